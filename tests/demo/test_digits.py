"""The shipped digits: what docs/demo.md says they are."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from sklearn import datasets

from wiseft_cli.demo.digits import SET_NAMES, LabelledDigits, digits_path, load_digits
from wiseft_cli.demo.glyphs import GlyphBank
from wiseft_cli.demo.pack import choose_font_digits, split_digits, write_assets


@pytest.mark.parametrize(
    ("name", "count", "side"),
    [
        ("train", 2000, 28),
        ("validation", 500, 28),
        ("test", 1000, 28),
        ("optdigits", 1797, 8),
        ("fonts", 500, 48),
    ],
)
def test_each_set_has_its_documented_size(name: str, count: int, side: int):
    digits = getattr(load_digits(), name)
    assert digits.images.shape == (count, side, side)
    assert digits.images.dtype == np.uint8
    assert set(digits.labels.tolist()) == set(range(10))
    if name != "optdigits":
        assert set(np.bincount(digits.labels).tolist()) == {count // 10}


def test_no_mnist_image_is_in_two_splits():
    digits = load_digits()
    seen = {
        name: {hashlib.sha256(image.tobytes()).digest() for image in getattr(digits, name).images}
        for name in ("train", "validation", "test")
    }
    assert {name: len(hashes) for name, hashes in seen.items()} == {
        "train": 2000,
        "validation": 500,
        "test": 1000,
    }
    assert not seen["train"] & seen["validation"]
    assert not seen["train"] & seen["test"]
    assert not seen["validation"] & seen["test"]


def test_the_optical_digits_are_those_of_scikit_learn():
    bunch = datasets.load_digits()
    shipped = load_digits().optdigits
    assert np.array_equal(shipped.labels, bunch.target)
    assert np.array_equal(np.rint(shipped.images * (16 / 255)), bunch.images)


def test_the_asset_file_is_well_under_its_limit():
    assert digits_path().stat().st_size < 1_500_000


def test_packing_is_lossless_and_repeatable(tmp_path: Path):
    for name in ("first.npz", "again.npz"):
        write_assets(tmp_path / name, load_digits())
    assert (tmp_path / "first.npz").read_bytes() == (tmp_path / "again.npz").read_bytes()
    packed, shipped = load_digits(tmp_path / "first.npz"), load_digits()
    for name in SET_NAMES:
        assert np.array_equal(getattr(packed, name).images, getattr(shipped, name).images)
        assert np.array_equal(getattr(packed, name).labels, getattr(shipped, name).labels)


def test_splits_are_disjoint_balanced_and_seeded():
    labels = np.arange(400, dtype=np.uint8) % 10
    digits = LabelledDigits(np.arange(400).reshape(400, 1, 1), labels)
    sizes = {"a": 200, "b": 100}
    first, again, other = (split_digits(digits, sizes, seed=seed) for seed in (0, 0, 1))
    assert not set(first["a"].images.ravel()) & set(first["b"].images.ravel())
    assert np.bincount(first["b"].labels).tolist() == [10] * 10
    assert np.array_equal(first["a"].images, again["a"].images)
    assert not np.array_equal(first["a"].images, other["a"].images)


def test_a_size_that_ten_classes_cannot_share_is_refused():
    digits = LabelledDigits(np.zeros((10, 1, 1), np.uint8), np.arange(10, dtype=np.uint8))
    with pytest.raises(ValueError, match=r"^a: 15 images cannot be shared by ten classes$"):
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


def test_images_without_labels_are_refused():
    with pytest.raises(ValueError, match=r"^2 images, 1 labels$"):
        LabelledDigits(np.zeros((2, 1, 1), np.uint8), np.zeros(1, np.uint8))


def test_the_asset_file_holds_exactly_its_sets():
    with np.load(digits_path(), allow_pickle=False) as archive:
        assert sorted(archive.files) == sorted(
            f"{name}_{part}" for name in SET_NAMES for part in ("images", "labels")
        )
