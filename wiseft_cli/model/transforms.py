"""From an image to the tensor a model sees, as the card's preprocessing says.

Both transforms are open_clip's own, so that a checkpoint is fed exactly as open_clip would
feed its model. They resize first and convert to RGB after.
It does not decode files; `data/images.py` does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, Literal

from open_clip import AugmentationCfg
from open_clip.transform import PreprocessCfg, image_transform_v2, merge_preprocess_dict
from PIL.Image import Image
from PIL.Image import new as new_image
from torch import Tensor

from wiseft_cli.errors import ModelError

Transform = Callable[[Image], Tensor]
"""PIL image of any size and mode -> float32 tensor (3, H, W), normalised."""

CROP_SCALE = (0.9, 1.0)
"""Smallest and largest area of a training crop, as fractions of the image's area."""


def eval_transform(preprocess: Mapping[str, Any]) -> Transform:
    """Return the deterministic transform: resize, centre crop, RGB, tensor, normalise.

    Args:
        preprocess: open_clip's `PreprocessCfg` fields (size, mean, std, interpolation,
            resize_mode, fill_color); absent ones take open_clip's defaults.
    Raises:
        ModelError: A field has a value that open_clip does not know.
    """
    return _open_clip_transform(preprocess, is_train=False)


def train_transform(
    preprocess: Mapping[str, Any], *, augment: Literal["crop", "none"]
) -> Transform:
    """Return the transform of training images.

    `crop` takes a random part of 90 to 100 % of the area with an aspect ratio of 3/4 to 4/3,
    resized (bicubic) to the model's size, never flipped. It draws from torch's global generator
    and from nothing else (torchvision's `RandomResizedCrop`), so `torch.manual_seed` before a
    call decides that call's crop. `none` is the evaluation transform, which draws nothing.

    Args:
        preprocess: As for `eval_transform`.
        augment: `crop` or `none`.
    Source: Wortsman et al. 2022, arXiv:2109.01903, appendix D.2; open_clip
        src/open_clip/transform.py.
    """
    if augment == "none":
        return eval_transform(preprocess)
    return _open_clip_transform(preprocess, is_train=True)


def check_preprocessing(preprocess: Mapping[str, Any]) -> None:
    """Make sure that images can go through `eval_transform`, by one of four pixels.

    Raises:
        ModelError: A field has a value that open_clip does not know, or cannot use.
    """
    transform = eval_transform(preprocess)
    try:
        is_usable = bool(transform(new_image("RGB", (2, 2))).isfinite().all())
    except Exception as error:  # fields are free-form, and so is what strikes the transform
        raise _unknown(preprocess, error) from None
    if not is_usable:
        raise _unknown(preprocess, ValueError("it makes numbers that are not finite"))


def _open_clip_transform(preprocess: Mapping[str, Any], *, is_train: bool) -> Transform:
    try:
        config = PreprocessCfg(**merge_preprocess_dict(PreprocessCfg(), dict(preprocess)))
        transform: Transform = image_transform_v2(
            config, is_train=is_train, aug_cfg=AugmentationCfg(scale=CROP_SCALE)
        )
    except (AssertionError, TypeError, ValueError, IndexError) as error:
        raise _unknown(preprocess, error) from None
    return transform


def _unknown(preprocess: Mapping[str, Any], error: Exception) -> ModelError:
    return ModelError(
        f"the preprocessing {dict(preprocess)} is not one that open_clip knows"
        + (f": {error}" if str(error) else ""),
        hint="the fields of preprocess_cfg are those of open_clip's PreprocessCfg: "
        + ", ".join(field.name for field in fields(PreprocessCfg)),
    )
