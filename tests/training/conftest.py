from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.training.fork_server import ForkServer
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
def fork_server() -> Iterator[ForkServer]:
    """A process with torch loaded that forks others."""
    with ForkServer() as server:
        yield server
