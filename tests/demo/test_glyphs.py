"""Glyph masks of matplotlib's fonts are legible and can be split by family."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.demo.makers.glyphs import (
    CHARACTERS,
    GLYPH_SIZE,
    GlyphBank,
    render_glyph_bank,
    split_by_family,
)
from wiseft_cli.errors import DatasetError


def test_masks_are_centred_and_at_most_of_the_glyph_size(glyph_bank: GlyphBank):
    assert glyph_bank.masks.shape[1:] == (len(CHARACTERS), 48, 48)
    rows, columns = np.any(glyph_bank.masks, axis=3), np.any(glyph_bank.masks, axis=2)
    for ink in (rows, columns):
        first, last = ink.argmax(-1), 47 - ink[..., ::-1].argmax(-1)
        assert np.abs(first - (47 - last)).max() <= 2
        assert (last - first + 1).max() <= GLYPH_SIZE


def test_symbol_fonts_are_excluded(glyph_bank: GlyphBank):
    # cmsy10 and cmex10 map some letters to symbols and parts of brackets.
    assert not {"cmsy10", "cmex10"} & set(glyph_bank.names)
    assert "DejaVu Sans" in glyph_bank.names


def test_bank_does_not_depend_on_the_paths_of_the_fonts(
    glyph_bank: GlyphBank, font_folder: Path, tmp_path: Path
):
    for number, path in enumerate(sorted(font_folder.glob("*.ttf"))):
        target = tmp_path / str(number % 3)
        target.mkdir(exist_ok=True)
        shutil.copyfile(path, target / path.name)
    (tmp_path / "broken.ttf").write_bytes(b"\0\1\0\0 this is not a font")
    again = render_glyph_bank([tmp_path])
    assert again.names == glyph_bank.names
    assert np.array_equal(again.masks, glyph_bank.masks)


def test_every_family_is_on_one_side_of_the_split(glyph_bank: GlyphBank):
    training, held_out = split_by_family(glyph_bank, held_out_fraction=0.4)
    assert training.names
    assert held_out.names
    assert not set(training.families) & set(held_out.families)
    assert len(training.names) + len(held_out.names) == len(glyph_bank.names)


def test_removing_fonts_does_not_move_other_families_across_the_split(glyph_bank: GlyphBank):
    _, held_out = split_by_family(glyph_bank, held_out_fraction=0.4)
    fewer = glyph_bank.select(range(0, len(glyph_bank.names), 2))
    _, held_out_of_fewer = split_by_family(fewer, held_out_fraction=0.4)
    assert set(held_out_of_fewer.families) == set(held_out.families) & set(fewer.families)


def test_folder_without_fonts_is_rejected(tmp_path: Path):
    with pytest.raises(DatasetError, match=f"^no usable font below {tmp_path}: 0 font files"):
        render_glyph_bank([tmp_path])


def test_missing_folder_is_reported(tmp_path: Path):
    with pytest.raises(DatasetError, match=f"^{tmp_path / 'absent'} is not a folder$"):
        render_glyph_bank([tmp_path / "absent"])
