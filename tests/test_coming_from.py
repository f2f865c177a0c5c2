"""Every command and every line of Python of docs/coming-from.md runs, in order."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.convert.folders import clip_folder
from tests.data.test_clip_benchmark import write_shard
from wiseft_cli.cli.app import main

PAGE = Path(__file__).parents[1] / "docs" / "coming-from.md"
SECTIONS = ("transformers", "open_clip", "timm")
PROGRAMS = ("wise-ft", "model-soups", "mergekit", "CLIP_benchmark")


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


def write_files_of_other_programs(models: Path) -> None:
    """Write finetuned.pt of wise-ft, soups, and an image set of CLIP_benchmark."""
    head = ["--classes", "classes.txt", "-o", "start.safetensors", "--force"]
    assert main(["zeroshot-head", "--model", "my-clip", *head]) == 0
    start = load_file("start.safetensors")

    def moved(prefix: str, seed: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return {
            prefix + name if name.startswith("visual.") else name: tensor
            + 0.01 * torch.randn(tensor.shape, generator=generator)
            for name, tensor in start.items()
        }

    torch.save(moved("image_encoder.model.", 0), "finetuned.pt")
    for number in range(2):
        torch.save(moved("model.", number), f"model_{number}.pt")
    write_shard(Path("vtab-dtd/test/0.tar"), [0, 1, 1])
    Path("vtab-dtd/test/nshards.txt").write_text("1")
    Path("vtab-dtd/classnames.txt").write_text("banded\nblotchy\n")
    Path("vtab-dtd/zeroshot_classification_templates.txt").write_text("a photo of a {c}.\n")


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_commands_for_another_program_run(
    name: str, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(models, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    write_files_of_other_programs(models)
    section = PAGE.read_text().split(f"\n## {name}\n")[1].split("\n## ")[0]
    blocks = re.findall(r"^```sh\n(.*?)^```", section, re.M | re.S)
    assert blocks
    for line in "".join(blocks).splitlines():
        program, *arguments = shlex.split(line)
        assert program == "wiseft"
        assert main(arguments) == 0, line
