"""Packing the digits is lossless and repeatable; splits are disjoint and balanced."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.demo.makers.glyphs import GlyphBank
from tests.demo.makers.pack import choose_font_digits, split_digits, write_assets
from wiseft_cli.demo.embedded import SET_NAMES, DigitAssets, LabelledDigits, load_digits


def test_packing_is_lossless_and_repeatable(digits: DigitAssets, tmp_path: Path):
    some = DigitAssets(
        **{
            name: LabelledDigits(labelled.images[::10], labelled.labels[::10])
            for name in SET_NAMES
            for labelled in [getattr(digits, name)]
        }
    )
    for name in ("first.npz", "again.npz"):
        write_assets(tmp_path / name, some)
    assert (tmp_path / "first.npz").read_bytes() == (tmp_path / "again.npz").read_bytes()
    packed = load_digits(tmp_path / "first.npz")
    for name in SET_NAMES:
        assert np.array_equal(getattr(packed, name).images, getattr(some, name).images)
        assert np.array_equal(getattr(packed, name).labels, getattr(some, name).labels)


def test_splits_are_disjoint_balanced_and_seeded():
    labels = np.arange(400, dtype=np.uint8) % 10
    digits = LabelledDigits(np.arange(400).reshape(400, 1, 1), labels)
    sizes = {"a": 200, "b": 100}
    first, again, other = (split_digits(digits, sizes, seed=seed) for seed in (0, 0, 1))
    assert not set(first["a"].images.ravel()) & set(first["b"].images.ravel())
    assert np.bincount(first["b"].labels).tolist() == [10] * 10
    assert np.array_equal(first["a"].images, again["a"].images)
    assert not np.array_equal(first["a"].images, other["a"].images)


def test_size_that_is_not_divisible_by_ten_is_rejected():
    digits = LabelledDigits(np.zeros((10, 1, 1), np.uint8), np.arange(10, dtype=np.uint8))
    with pytest.raises(ValueError, match=r"^a: 15 images cannot be divided among ten classes$"):
        split_digits(digits, {"a": 15})


def test_chosen_fonts_are_spread_over_the_families(glyph_bank: GlyphBank):
    families = len(set(glyph_bank.families))
    chosen = choose_font_digits(glyph_bank, fonts=families)
    legible = glyph_bank.is_legible[:, :10].all(1)
    expected = {
        glyph_bank.masks[row, digit].tobytes()
        for family in set(glyph_bank.families)
        for row in [
            row for row, other in enumerate(glyph_bank.families) if other == family and legible[row]
        ][:1]
        for digit in range(10)
    }
    assert expected <= {image.tobytes() for image in chosen.images}
