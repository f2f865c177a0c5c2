"""The commands of docs/recipes.md run in their order."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest

from tests.training.tiny import write_images, write_zeroshot
from wiseft_cli.checkpoint.reader import read_card
from wiseft_cli.cli.app import main
from wiseft_cli.training import recipe_file
from wiseft_cli.training.recipe_file import builtin_names

PAGE = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text()
COMMANDS = [
    line
    for block in re.findall(r"^```sh\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    for line in block.replace("\\\n", "").splitlines()
]


@pytest.fixture
def short_patching(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the recipe `patching` take 20 steps in place of 2000."""
    presets = shutil.copytree(recipe_file._PRESETS, tmp_path / "presets")
    patching = presets / "patching.yaml"
    text = patching.read_text().replace("steps: 2000", "steps: 20").replace("p: 200", "p: 2")
    assert "steps: 20\n" in text
    patching.write_text(text)
    monkeypatch.setattr(recipe_file, "_PRESETS", presets)


def test_commands_of_the_page_run(tmp_path, monkeypatch, capsys, short_patching):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("wiseft_cli.training.finetune.default_workers", lambda *_: 0)
    write_zeroshot(tmp_path / "zeroshot.safetensors")
    for folder in ("train", "photos/train", "photos/val"):
        write_images(tmp_path / folder, (10, 10, 10))
    assert len(COMMANDS) == 8
    for line in COMMANDS:
        assert line.startswith("wiseft ")
        assert main(shlex.split(line)[1:]) == 0, line + capsys.readouterr().err
    assert not Path("later.safetensors").exists()
    lp_ft = read_card(Path("lp-ft.safetensors"))
    assert [entry.command for entry in lp_ft.history] == ["zeroshot-head", "finetune", "finetune"]
    assert lp_ft.history[1].options["recipe"]["freeze"] == "encoder"


@pytest.mark.parametrize("name", builtin_names())
def test_each_built_in_recipe_is_on_the_page(name):
    assert f"| `{name}` |" in PAGE
