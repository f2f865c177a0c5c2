"""Decode images into modes that open_clip's transform handles correctly.

The transform resizes first and converts to RGB afterwards. Most modes are therefore left
unchanged; the modes that resizing or plain conversion would spoil are converted here, as listed in
`docs/data.md`. The EXIF orientation is not applied, as in open_clip. Of an animation the first
frame is used.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

import numpy as np
from PIL import Image, UnidentifiedImageError

from wiseft_cli.data.image_set import ImageSet
from wiseft_cli.errors import DatasetError

if TYPE_CHECKING:
    import numpy.typing as npt

ImageSource: TypeAlias = Path | str | BinaryIO | Image.Image

UNCHANGED_MODES = frozenset({"RGB", "L", "LA", "RGBA", "CMYK"})
"""Modes that bicubic resizing and conversion to RGB handle correctly."""


def load_image_of(image_set: ImageSet, index: int) -> Image.Image:
    """Decode one image of a set, and crop the set's `crop_border`.

    Raises:
        DatasetError: As in `load_image`, or the border leaves no pixels.
    """
    name, border = image_set.name_of(index), image_set.crop_border
    image = load_image(image_set.source(index), name=name)
    if not border:
        return image
    width, height = image.size
    if min(width, height) <= 2 * border:
        raise DatasetError(
            f"cannot crop image {name}: {width} x {height} pixels, with a border of {border} to"
            " cut from each side",
            hint="choose a smaller crop_border",
        )
    return image.crop((border, border, width - border, height - border))


def load_image(source: ImageSource, *, name: str | None = None) -> Image.Image:
    """Decode an image completely.

    Args:
        source: A file, a stream of its bytes, or a decoded image.
        name: Name of the image in messages; by default the path.
    Returns:
        An image in mode RGB, L, LA, RGBA or CMYK, eight bits per channel.
    Raises:
        DatasetError: The file is missing, damaged or not an image, or its size or range of values
            is not supported; the message names it.
    """
    try:
        with warnings.catch_warnings():
            # Pillow warns about odd metadata and about images above 89 million pixels, which maps
            # and slides may have. Above twice that it raises before it decodes.
            warnings.simplefilter("ignore")
            if isinstance(source, Image.Image):
                return _to_eight_bits(source)
            with Image.open(source) as image:
                image.load()
                return _to_eight_bits(image)
    except Exception as error:  # Pillow's decoders raise any class for a damaged file
        raise DatasetError(
            f"cannot read image {name or source}: {_reason(error, source)}",
            hint="replace or remove the file",
        ) from None


def find_unreadable_images(
    image_set: ImageSet, n_tried: int, on_tried: Callable[[], None] = lambda: None
) -> list[str]:
    """Decode an even sample of a set, including its first and last image.

    Args:
        n_tried: Number of images to decode; at most all.
        on_tried: Called after each image.
    Returns:
        One message per image that cannot be decoded.
    """
    n_images = len(image_set.records)
    n_tried = min(n_tried, n_images)
    unreadable = []
    for number in range(n_tried):
        try:
            load_image_of(image_set, number * (n_images - 1) // max(n_tried - 1, 1))
        except DatasetError as error:
            unreadable.append(error.message)
        on_tried()
    return unreadable


def _to_eight_bits(image: Image.Image) -> Image.Image:
    mode = image.mode
    if mode in UNCHANGED_MODES:
        return image
    if mode == "1":  # Pillow resizes bilevel and palette images by nearest neighbour only
        return image.convert("L")
    if mode in ("P", "PA"):
        has_alpha = mode == "PA" or "transparency" in image.info
        return image.convert("RGBA" if has_alpha else "RGB")
    if mode.startswith("I"):
        return _scale_integers(np.asarray(image))
    if mode == "F":
        return _scale_floats(np.asarray(image))
    return image.convert("RGB")


def _scale_integers(values: npt.NDArray[Any]) -> Image.Image:
    """Scale 16-bit grey to 8 bits, rounded; plain conversion clips values above 255."""
    if values.size and not 0 <= int(values.min()) <= int(values.max()) <= 65535:
        raise ValueError(
            f"integer pixels from {values.min()} to {values.max()}; expected 16 bits, 0 to 65535"
        )
    wide = values.astype(np.uint32)  # holds 65535 * 255 in half the memory of 64 bits
    return Image.fromarray(((wide * 255 + 32767) // 65535).astype(np.uint8))


def _scale_floats(values: npt.NDArray[Any]) -> Image.Image:
    """Scale float grey in [0, 1] to 8 bits, rounded; white is undefined for other ranges."""
    wide = values.astype(np.float64)
    if not bool(np.all((wide >= 0) & (wide <= 1))):
        raise ValueError(f"float pixels from {wide.min()} to {wide.max()}; expected them in [0, 1]")
    return Image.fromarray(np.rint(wide * 255).astype(np.uint8))


def _reason(error: Exception, source: ImageSource) -> str:
    """Return Pillow's message on one line and without the path."""
    if isinstance(error, UnidentifiedImageError):
        return (
            "the file is empty"
            if _is_empty(source)
            else "not an image in a format that Pillow knows"
        )
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def _is_empty(source: ImageSource) -> bool:
    if isinstance(source, Path | str):
        return os.path.isfile(source) and not os.path.getsize(source)
    return not isinstance(source, Image.Image) and source.seek(0, os.SEEK_END) == 0
