"""Every example in docs/data.md runs: files, Python and commands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.evaluation.tiny import make_checkpoint
from wiseft_cli.checkpoint.card import ClassEntry
from wiseft_cli.cli.app import main

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
CLASSES = [
    ClassEntry(f"c{at}", name)
    for at, name in enumerate(["square", "small star", "circle", "big star"])
]
IMAGES = (
    "shapes-val/circle/001.png",
    "shapes-val/circle/002.jpg",
    "shapes-val/circle/more/003.webp",
    "shapes-val/square/001.png",
    "shapes-train/circle/001.png",
    "shapes-train/square/001.png",
    "drawings/star/1.png",
    "drawings/circle/1.png",
    "drawings/star in circle/1.png",
    "drawings/blank/1.png",
)


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.M | re.S)


COMMANDS = [block for block in blocks("console") if block.startswith("$ wiseft ")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the images and files of the page, and two checkpoints."""
    folder = tmp_path_factory.mktemp("page")
    random = np.random.default_rng(0)
    for name in IMAGES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (40, 40, 3), np.uint8)).save(folder / name)
    shown = re.findall(r"`([\w.-]+)`:\n\n```(?:csv|json|yaml)\n(.*?)^```$", PAGE, re.M | re.S)
    assert [name for name, _ in shown] == [
        "labels.csv",
        "labels.jsonl",
        "shapes.yaml",
        "shape-names.yaml",
        "suite.yaml",
        "drawings.yaml",
    ]
    for name, text in shown:
        (folder / name).write_text(text)
    zeroshot = make_checkpoint(folder / "zeroshot.safetensors", seed=0, classes=CLASSES)
    make_checkpoint(
        folder / "finetuned.safetensors",
        seed=1,
        role="finetuned",
        classes=CLASSES,
        parent=zeroshot,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for program in blocks("python"):
            exec(program, {})
    return folder


@pytest.mark.parametrize("block", COMMANDS)
def test_commands_print_what_the_page_shows(
    folder: Path, block: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    for module in ("evaluation.evaluate", "training.finetune"):  # a handful of images
        monkeypatch.setattr(f"wiseft_cli.{module}.default_workers", lambda *_: 0)
    line, *shown = block.rstrip("\n").split("\n")
    code = main(shlex.split(line.removeprefix("$ wiseft ")))
    out, err = capsys.readouterr()
    assert code == (1 if shown and shown[0].startswith("error: ") else 0), err
    if shown:
        assert (err if code else out).splitlines() == shown


def test_page_has_an_example_of_each_form() -> None:
    assert len(COMMANDS) == len(blocks("console")) == 9
    for form in ("shapes-val ", "labels.csv?", "labels.jsonl", ".tar", "suite.yaml", "map="):
        assert any(form in block for block in COMMANDS), form
