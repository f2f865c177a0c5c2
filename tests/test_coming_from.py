"""Every command and every line of Python of docs/coming-from.md runs, in order."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.convert.folders import clip_folder
from wiseft_cli.cli.app import main

PAGE = Path(__file__).parents[1] / "docs" / "coming-from.md"
SECTIONS = ("transformers", "open_clip", "timm")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small models in the place of those that the page names."""
    folder = tmp_path_factory.mktemp("models")
    clip_folder(folder / "my-clip")
    clip_folder(folder / "my-clip-finetuned", seed=1)
    assert main(["convert", str(folder / "my-clip"), "-o", f"{folder}/clip/"]) == 0
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "photo.png")
    (folder / "classes.txt").write_text("cat\ndog\n")
    return folder


@pytest.mark.parametrize("name", SECTIONS)
def test_the_code_of_a_section_runs(
    name: str, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(models, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    section = PAGE.read_text().split(f"\n## {name}\n")[1].split("\n## ")[0]
    # In timm's section, the commands make the folder that the Python code loads.
    blocks = re.findall(r"^```(sh|python)\n(.*?)^```", section, re.M | re.S)
    assert len(blocks) >= 2
    for language, text in (
        sorted(blocks, key=lambda b: b[0] == "python") if name == "timm" else blocks
    ):
        if language == "python":
            exec(compile(text, f"{PAGE.name}, {name}", "exec"), {})
            sys.modules.pop("image_classifier", None)
            continue
        for line in text.splitlines():
            program, *arguments = shlex.split(line)
            assert program == "wiseft"
            assert main(arguments) == 0, line
