from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.tiny import write_images, write_zeroshot


@pytest.fixture
def zeroshot(tmp_path: Path) -> Path:
    """A tiny ViT's zero-shot checkpoint over three classes."""
    return write_zeroshot(tmp_path / "zeroshot.safetensors")


@pytest.fixture
def train_folder(tmp_path: Path) -> Path:
    """Twelve images, four of each class."""
    return write_images(tmp_path / "train")
