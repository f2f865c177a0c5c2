"""The transforms give the model exactly the input that open_clip gives it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from open_clip import image_transform
from PIL import Image

from wiseft_cli.errors import ModelError
from wiseft_cli.model.transforms import check_preprocessing, eval_transform, train_transform

PREPROCESS: dict[str, Any] = {
    "size": 32,
    "mode": "RGB",
    "mean": [0.48, 0.46, 0.41],
    "std": [0.27, 0.26, 0.28],
    "interpolation": "bicubic",
    "resize_mode": "shortest",
    "fill_color": 0,
}


def noise_image(width: int = 50, height: int = 40, *, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [32, [32, 32], [24, 32]])
def test_eval_transform_equals_open_clips(resize_mode: str, interpolation: str, size: Any) -> None:
    preprocess = {
        **PREPROCESS,
        "resize_mode": resize_mode,
        "interpolation": interpolation,
        "size": size,
    }
    expected = image_transform(
        size,
        is_train=False,
        mean=tuple(PREPROCESS["mean"]),
        std=tuple(PREPROCESS["std"]),
        resize_mode=resize_mode,
        interpolation=interpolation,
    )
    image = noise_image()
    assert torch.equal(eval_transform(preprocess)(image), expected(image))


def test_train_transform_equals_open_clips_training_crop() -> None:
    expected = image_transform(
        32, is_train=True, mean=tuple(PREPROCESS["mean"]), std=tuple(PREPROCESS["std"])
    )
    ours = train_transform(PREPROCESS, augment="crop")
    for seed in range(5):
        torch.manual_seed(seed)
        theirs = expected(noise_image(seed=seed))
        torch.manual_seed(seed)
        assert torch.equal(ours(noise_image(seed=seed)), theirs)


def test_crop_uses_only_torchs_global_generator() -> None:
    transform = train_transform(PREPROCESS, augment="crop")
    np_before, torch_before = np.random.get_state()[1].copy(), torch.get_rng_state()  # type: ignore[union-attr,index]
    torch.manual_seed(3)
    first = transform(noise_image())
    second = transform(noise_image())
    torch.manual_seed(3)
    assert torch.equal(transform(noise_image()), first)
    assert not torch.equal(first, second)
    assert np.array_equal(np.random.get_state()[1], np_before)  # type: ignore[index]
    torch.set_rng_state(torch_before)


def test_crops_cover_nine_tenths_of_the_area_and_are_never_flipped() -> None:
    """A crop of a horizontal ramp keeps its direction and most of its range."""
    ramp = np.broadcast_to(np.linspace(0, 255, 64).astype(np.uint8)[None, :, None], (64, 64, 3))
    transform = train_transform({**PREPROCESS, "mean": [0.0] * 3, "std": [1.0] * 3}, augment="crop")
    torch.manual_seed(0)
    for _ in range(20):
        row = transform(Image.fromarray(ramp.copy()))[0].mean(dim=0)
        assert row[-1] - row[0] > 0.75


def test_no_augmentation_is_the_eval_transform() -> None:
    image = noise_image()
    state = torch.get_rng_state()
    found = train_transform(PREPROCESS, augment="none")(image)
    assert torch.equal(found, eval_transform(PREPROCESS)(image))
    assert torch.equal(torch.get_rng_state(), state)


def test_unknown_fields_are_ignored_and_missing_ones_have_defaults() -> None:
    image = noise_image()
    found = eval_transform({"size": 32, "colour": "blue"})(image)
    assert torch.equal(found, image_transform(32, is_train=False)(image))


def test_unsupported_value_is_rejected() -> None:
    with pytest.raises(ModelError, match=r"open_clip does not support the preprocessing .*fold"):
        eval_transform({**PREPROCESS, "resize_mode": "fold"})


@pytest.mark.parametrize(
    "field",
    [
        {"interpolation": "wobbly"},
        {"resize_mode": "odd"},
        {"mean": "x"},
        {"mean": [0.5, 0.5]},
        {"std": [0, 0, 0]},
    ],
)
def test_unusable_preprocessing_is_found_without_images(field: dict[str, Any]) -> None:
    check_preprocessing({"size": 8})
    with pytest.raises(
        ModelError, match=r"^open_clip does not support the preprocessing \{.*\}"
    ) as caught:
        check_preprocessing({"size": 8, **field})
    assert caught.value.hint == (
        "the fields of preprocess_cfg are those of open_clip's PreprocessCfg: size, mode, mean,"
        " std, interpolation, resize_mode, fill_color"
    )
