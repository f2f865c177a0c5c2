"""Image folders have reproducible bytes and correct labels, and shifts alter the images."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from wiseft_cli.demo import shifts
from wiseft_cli.demo.effect import DERIVED, INDEPENDENT, SHIFTS
from wiseft_cli.demo.embedded import DIGIT_NAMES, DigitAssets
from wiseft_cli.demo.image_folders import DemoData, make_shift, write_image_folders


def contents(root: Path) -> dict[str, str]:
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
        if path.is_file()
    }


def root_of(data: DemoData) -> Path:
    return data.classes.parent


def test_two_runs_write_the_same_bytes(demo_data: DemoData, tmp_path: Path):
    write_image_folders(tmp_path)
    assert contents(tmp_path) == contents(root_of(demo_data))


def test_every_set_has_its_documented_number_of_images_per_class(demo_data: DemoData):
    expected = {"train": 200, "validation": 50, "test": 100, "optdigits": 100}
    folders = {
        "train": demo_data.train,
        "validation": demo_data.validation,
        "test": demo_data.test,
        **demo_data.shifts,
    }
    for name, folder in folders.items():
        assert sorted(path.name for path in folder.iterdir()) == sorted(DIGIT_NAMES)
        counts = {len(list((folder / digit).iterdir())) for digit in DIGIT_NAMES}
        assert counts == {expected.get(name, 50)}, name


def test_mnist_pixels_and_labels_are_those_of_the_assets(demo_data: DemoData, digits: DigitAssets):
    for path in sorted(demo_data.test.rglob("*.png"))[::97]:
        number = int(path.stem)
        with Image.open(path) as image:
            assert np.array_equal(np.asarray(image), digits.test.images[number])
        assert DIGIT_NAMES[digits.test.labels[number]] == path.parent.name


def test_class_and_template_files_match_the_folders(demo_data: DemoData):
    assert demo_data.classes.read_text().split() == list(DIGIT_NAMES)
    templates = demo_data.templates.read_text().splitlines()
    assert all(template.count("{}") == 1 for template in templates)
    assert len(set(templates)) == len(templates) == 11


@pytest.mark.parametrize("name", SHIFTS)
def test_pictures_of_a_shift_depend_on_the_seed_and_labels_do_not(digits: DigitAssets, name: str):
    pictures, labels = make_shift(name, digits)
    again, _ = make_shift(name, digits)
    assert torch.equal(pictures, again)
    assert pictures.shape[2:] == (32, 32)
    assert len(pictures) == len(labels)
    other, other_labels = make_shift(name, digits, seed=1)
    assert np.array_equal(labels, other_labels)
    is_random = name in ("fonts", "fonts-colored", "colored", "rotated", "noisy")
    assert torch.equal(pictures, other) != is_random
    if name in DERIVED:
        test_labels = digits.test.labels
        firsts = [np.flatnonzero(test_labels == digit)[:50] for digit in range(10)]
        assert np.array_equal(labels, test_labels[np.sort(np.concatenate(firsts))])


def test_every_derived_set_differs_from_the_test_images_and_the_other_sets(digits: DigitAssets):
    gray = {name: make_shift(name, digits)[0].clamp(0, 1).mean(1) for name in DERIVED}
    rows = np.sort(
        np.concatenate([np.flatnonzero(digits.test.labels == digit)[:50] for digit in range(10)])
    )
    original = torch.from_numpy(digits.test.images[rows]).float().div(255)[:, None]
    gray["original"] = shifts.enlarge_mnist(original)[:, 0]
    names = list(gray)
    for index, first in enumerate(names):
        for second in names[:index]:
            assert (gray[first] - gray[second]).abs().mean() > 0.01, (first, second)


def test_inverting_twice_restores_the_image():
    image = torch.rand(2, 1, 32, 32)
    unused = torch.Generator()
    assert torch.allclose(shifts.invert(shifts.invert(image, unused), unused), image)


def test_rotation_is_by_20_to_45_degrees_in_both_directions():
    bar = torch.zeros(400, 1, 32, 32)
    bar[:, :, 4:28, 15:17] = 1
    turned = shifts.rotate(bar, torch.Generator().manual_seed(0))[:, 0]
    axis = torch.arange(32) - 15.5
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    covariance = (turned * x * y).sum((1, 2))
    spread = (turned * (y * y - x * x)).sum((1, 2))
    degrees = 0.5 * torch.atan2(2 * covariance, spread) * 180 / torch.pi
    assert degrees.abs().min() > 19
    assert degrees.abs().max() < 46
    assert 0.4 < (degrees > 0).double().mean() < 0.6


def test_thin_strokes_lose_one_pixel_on_each_side():
    stroke = torch.zeros(1, 1, 32, 32)
    stroke[:, :, 6:26, 12:18] = 1
    expected = torch.zeros(32, 32)
    expected[7:25, 13:17] = 1
    assert torch.equal(shifts.thin(stroke, torch.Generator())[0, 0].gt(0.5).float(), expected)


def test_small_digit_is_the_shrunk_picture_in_the_centre():
    small = shifts.shrink(torch.ones(1, 1, 32, 32), torch.Generator())
    expected = torch.zeros(32, 32)
    expected[7:25, 7:25] = 1
    assert torch.allclose(small[0, 0], expected)


def test_independent_and_derived_sets_are_disjoint():
    assert not set(INDEPENDENT) & set(DERIVED)
    assert set(DERIVED) == set(shifts.DERIVATIONS)


def test_existing_folders_are_not_overwritten(demo_data: DemoData):
    with pytest.raises(FileExistsError):
        write_image_folders(root_of(demo_data))
