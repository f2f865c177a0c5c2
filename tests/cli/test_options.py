"""An option that several commands have is worded once, or a command says why it differs."""

from __future__ import annotations

from collections import defaultdict

import pytest
import typer.main

from wiseft_cli.cli.app import build_app, main

OWN_WORDS = {
    "--force": {"demo", "eval", "export", "finetune"},
    "--json": {"eval", "plot", "report"},
    "--batch-size": {"finetune", "zeroshot-head"},
    "--precision": {"finetune", "zeroshot-head"},
    "--threads": {"merge", "soup"},
}
"""Commands in which an option does something else."""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["eval", "a", "--precision", "fp17"], "'fp17' is not one of 'fp32', 'bf16', 'fp16'"),
        (["datasets", "shwo"], "'shwo' is not one of 'list', 'show', 'check'"),
        (["zeroshot-head", "--precision", "x"], "'x' is not one of 'fp32', 'bf16'"),
    ],
)
def test_wrong_choices_are_reported_in_plain_words(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Value error" not in error


@pytest.mark.parametrize(
    "option",
    ["--device", "--workers", "--threads", "--batch-size", "--precision", "--json", "--force"],
)
def test_shared_options_have_one_wording(option: str) -> None:
    commands = typer.main.get_command(build_app()).commands  # type: ignore[attr-defined]
    found = defaultdict(list)
    for name, command in commands.items():
        for parameter in command.params:
            if option in parameter.opts and name not in OWN_WORDS.get(option, set()):
                key = parameter.help, parameter.metavar, parameter.rich_help_panel
                found[key].append(name)
    assert len(found) == 1, dict(found)
    assert len(next(iter(found.values()))) > 1
