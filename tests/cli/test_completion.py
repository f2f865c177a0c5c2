"""Shell completion, through the protocol that the shells' scripts use."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def complete(*words: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-m", "wiseft_cli"],
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "_WISEFT_COMPLETE": "complete_bash",
            "COMP_WORDS": " ".join(["wiseft", *words]),
            "COMP_CWORD": str(len(words)),
        },
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("fine",), "finetune"),
        (("finetune", "--rec"), "--recipe"),
        (("finetune", "--recipe", "wise-ft-"), "wise-ft-16shot"),
        (("finetune", "--train", "dt"), "dtd="),
        (("zeroshot-head", "--templates", "op"), "openai"),
        (("zeroshot-head", "--classes", "imagenet-sk"), "imagenet-sketch"),
        (("eval", "x.safetensors", "--suite", "cif"), "cifar-shifts"),
        (("eval", "x.safetensors", "--data", "objectn"), "objectnet="),
        (("datasets", "show", "dt"), "dtd"),
    ],
)
def test_names_are_completed(words: tuple[str, ...], expected: str) -> None:
    assert complete(*words) == [expected]


@pytest.mark.parametrize(
    "words",
    [
        ("merge", "zero"),
        ("merge", "a.safetensors", "--output", "mer"),
        ("finetune", "--recipe", "./my-"),
        ("eval", "model.saf"),
    ],
)
def test_file_names_are_left_to_the_shell(words: tuple[str, ...]) -> None:
    assert complete(*words) == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_installed_for_a_shell(shell: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "wiseft_cli", "--install-completion", shell],
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "HOME": str(tmp_path),
            "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1",
        },
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    installed = [path for path in tmp_path.rglob("*wiseft*") if path.is_file()]
    assert len(installed) == 1
    assert "_WISEFT_COMPLETE=complete_" in installed[0].read_text()
