"""Image transforms, built from the preprocessing that a card states.

Both transforms are open_clip's own, so a checkpoint gets exactly the input that open_clip would
give its model; only the EXIF orientation, which open_clip ignores, is applied before them if the
card says so. They resize first and convert to RGB afterwards. `data/images.py` decodes files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import partial
from typing import Any, Literal

from open_clip import AugmentationCfg
from open_clip.transform import PreprocessCfg, image_transform_v2, merge_preprocess_dict
from PIL import Image
from torch import Tensor
from torchvision.transforms import ToTensor, v2

from wiseft_cli.checkpoint.card import (
    APPLY_ORIENTATION,
    EXIF_ORIENTATION,
    EXIF_ORIENTATIONS,
    IGNORE_ORIENTATION,
)
from wiseft_cli.data.images import turn_upright
from wiseft_cli.errors import ModelError

Transform = Callable[[Image.Image], Tensor]
"""PIL image of any size and mode -> normalized float32 tensor (3, H, W)."""

MAX_RESIZED_PIXELS = 178_956_970
"""Most pixels of a resized image: the limit at which Pillow refuses to decode a file."""

CROP_SCALE = (0.9, 1.0)
"""Range of the area of a training crop, as fractions of the image's area."""


def eval_transform(preprocess: Mapping[str, Any]) -> Transform:
    """Return the deterministic transform: resize, centre crop, RGB, tensor, normalize.

    Args:
        preprocess: open_clip's `PreprocessCfg` fields (size, mean, std, interpolation,
            resize_mode, fill_color); missing fields have open_clip's defaults. And
            `exif_orientation`: `apply` turns images upright first, `ignore`, the default, does
            not.
    Raises:
        ModelError: A value is not supported.
    """
    return _open_clip_transform(preprocess, is_train=False)


def train_transform(
    preprocess: Mapping[str, Any],
    *,
    augment: Literal["crop", "none"],
    randaugment: int = 0,
    random_erasing: float = 0.0,
) -> Transform:
    """Return the transform for training images.

    `crop` takes a random crop of 90 to 100 % of the area with an aspect ratio of 3/4 to 4/3 and
    resizes it (bicubic) to the model's size; images are never flipped. It uses only torch's global
    generator (torchvision's `RandomResizedCrop`), so `torch.manual_seed` before a call determines
    the crop. `none` is the evaluation transform.

    Args:
        preprocess: As for `eval_transform`.
        augment: `crop` or `none`.
        randaugment: Magnitude of torchvision's RandAugment, 0 to 30, with two operations after
            the crop; 0 for none.
        random_erasing: Probability of torchvision's RandomErasing after normalization.
    Source: Wortsman et al. 2022, arXiv:2109.01903, appendix D.2; open_clip
        src/open_clip/transform.py.
    """
    added: list[tuple[Any, type | None]] = []
    if randaugment:
        added.append((v2.RandAugment(magnitude=randaugment), ToTensor))
    if random_erasing:
        added.append((v2.RandomErasing(p=random_erasing), None))
    return _open_clip_transform(preprocess, is_train=augment == "crop", added=added)


def check_preprocessing(preprocess: Mapping[str, Any]) -> None:
    """Check that an image can go through `eval_transform`.

    Raises:
        ModelError: A value is not supported, or the result is not finite.
    """
    transform = eval_transform(preprocess)
    try:
        if not transform(Image.new("RGB", (2, 2))).isfinite().all():
            raise ValueError("the transformed values are not finite")
    except Exception as error:  # fields are free-form, and open_clip checks few of them
        raise _unsupported(preprocess, error) from None


def _open_clip_transform(
    preprocess: Mapping[str, Any],
    *,
    is_train: bool,
    added: Sequence[tuple[Any, type | None]] = (),
) -> Transform:
    """Return open_clip's transform with others added.

    Args:
        added: Transforms, each with the kind of step that it precedes; None for the end.
    """
    orientation = preprocess.get(EXIF_ORIENTATION, IGNORE_ORIENTATION)
    if orientation not in EXIF_ORIENTATIONS:
        raise ModelError(
            f"the preprocessing has {EXIF_ORIENTATION} {orientation!r}; expected"
            f" {' or '.join(EXIF_ORIENTATIONS)}",
            hint="update wiseft-cli if a newer version wrote the checkpoint",
        )
    try:
        config = PreprocessCfg(**merge_preprocess_dict(PreprocessCfg(), dict(preprocess)))
        transform: Transform = image_transform_v2(
            config, is_train=is_train, aug_cfg=AugmentationCfg(scale=CROP_SCALE)
        )
    except (AssertionError, TypeError, ValueError, IndexError) as error:
        raise _unsupported(preprocess, error) from None
    for step, kind in added:
        steps: list[Any] = transform.transforms  # type: ignore[attr-defined]
        places = [at for at, other in enumerate(steps) if kind and isinstance(other, kind)]
        steps.insert(places[0] if kind else len(steps), step)
    max_ratio = math.inf
    if config.resize_mode == "shortest" and not is_train:
        side = config.size if isinstance(config.size, int) else max(config.size)
        max_ratio = MAX_RESIZED_PIXELS / side**2
    turns = orientation == APPLY_ORIENTATION
    return partial(_transform, transform, max_ratio=max_ratio, turns=turns)


def _transform(
    transform: Transform, image: Image.Image, *, max_ratio: float, turns: bool
) -> Tensor:
    if max(image.size) > max_ratio * min(image.size):
        raise ValueError(
            f"its sides have a ratio above {int(max_ratio):,}, so that it would have more than"
            f" {MAX_RESIZED_PIXELS:,} pixels after resizing"
        )
    return transform(turn_upright(image) if turns else image)


def _unsupported(preprocess: Mapping[str, Any], error: Exception) -> ModelError:
    return ModelError(
        f"open_clip does not support the preprocessing {dict(preprocess)}"
        + (f": {error}" if str(error) else ""),
        hint="the fields of preprocess_cfg are those of open_clip's PreprocessCfg: "
        + ", ".join(field.name for field in fields(PreprocessCfg)),
    )
