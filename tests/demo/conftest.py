"""Fonts that every installation has, and the demo's image folders."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import pytest

from tests.demo.makers.glyphs import GlyphBank, render_glyph_bank
from wiseft_cli.demo.embedded import DigitAssets, load_digits
from wiseft_cli.demo.image_folders import DemoData, write_image_folders


@pytest.fixture(scope="session")
def font_folder() -> Path:
    return Path(matplotlib.get_data_path()) / "fonts" / "ttf"


@pytest.fixture(scope="session")
def glyph_bank(font_folder: Path) -> GlyphBank:
    return render_glyph_bank([font_folder])


@pytest.fixture(scope="session")
def digits() -> DigitAssets:
    return load_digits()


@pytest.fixture(scope="session")
def demo_data(tmp_path_factory: pytest.TempPathFactory) -> DemoData:
    return write_image_folders(tmp_path_factory.mktemp("demo"))
