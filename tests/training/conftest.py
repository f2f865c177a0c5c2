from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.training.ranks import Ranks
from tests.training.tiny import write_images, write_zeroshot


@pytest.fixture
def zeroshot(tmp_path: Path) -> Path:
    """A tiny ViT's zero-shot checkpoint over three classes."""
    return write_zeroshot(tmp_path / "zeroshot.safetensors")


@pytest.fixture
def train_folder(tmp_path: Path) -> Path:
    """Twelve images, four of each class."""
    return write_images(tmp_path / "train")


@pytest.fixture(scope="session")
def ranks() -> Iterator[Ranks]:
    """Run functions and commands in two processes."""
    with Ranks() as ranks:
        yield ranks
