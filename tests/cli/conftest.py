"""Fixtures of the commands that build and export zero-shot checkpoints."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.clip_merges import write_clip_merges
from tests.model.conftest import MERGES, write_model_folder
from wiseft_cli.checkpoint.reader import open_checkpoint, read_card
from wiseft_cli.checkpoint.writer import write_checkpoint
from wiseft_cli.cli.app import main


@pytest.fixture(scope="session")
def model_folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two tiny models and their byte-pair vocabulary."""
    folder = tmp_path_factory.mktemp("models")
    merges = write_clip_merges(folder / "bpe.txt.gz", MERGES)
    write_model_folder(folder / "tiny", "vit", merges)
    write_model_folder(folder / "tiny-siglip", "siglip", merges)
    return folder


@pytest.fixture
def place(model_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with models, classes and templates."""
    shutil.copytree(model_folders, tmp_path, dirs_exist_ok=True)
    (tmp_path / "classes.txt").write_text("cat\ndog\nowl\n")
    (tmp_path / "templates.txt").write_text("a {}.\nthe {}\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def trained(place: Path) -> str:
    """A checkpoint whose encoder differs from the model's, as after fine-tuning."""
    arguments = ["--model", "local-dir:tiny", "--classes", "classes.txt", "-o", "base.safetensors"]
    assert main(["zeroshot-head", *arguments]) == 0
    with open_checkpoint(Path("base.safetensors")) as reader:
        arrays = {name: reader.read_array(name) for name in reader.tensors}
    generator = np.random.default_rng(0)
    moved = {
        name: (array + 0.01 * generator.standard_normal(array.shape)).astype(np.float32)
        for name, array in arrays.items()
    }
    write_checkpoint(Path("trained.safetensors"), moved, read_card(Path("base.safetensors")))
    Path("classes.txt").write_text("boat\nplane\n")
    return "trained.safetensors"
