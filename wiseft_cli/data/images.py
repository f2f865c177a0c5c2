"""Decodes one image file into a mode that open_clip's transform treats rightly.

That transform resizes first and converts to RGB after. Most modes are therefore handed on as
they are; the ones that resizing or plain conversion would spoil are converted here, and
`docs/data.md` lists them. The orientation tag of EXIF is not applied, as in open_clip, and of
an animation the first frame is taken.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from wiseft_cli.errors import DatasetError

if TYPE_CHECKING:
    import numpy.typing as npt

    from wiseft_cli.data.image_set import ImageSet

UNCHANGED_MODES = frozenset({"RGB", "L", "LA", "RGBA", "CMYK"})
"""Modes whose bicubic resize and later conversion to RGB are right as they are."""


def load_image_of(image_set: ImageSet, index: int) -> Image.Image:
    """Decode an image of a set completely, and cut its border off where the set says so.

    Raises:
        DatasetError: As in `load_image`; or nothing is left between the borders.
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
            hint="choose a narrower crop_border",
        )
    return image.crop((border, border, width - border, height - border))


def load_image(
    source: Path | str | BinaryIO | Image.Image, *, name: str | None = None
) -> Image.Image:
    """Decode an image completely.

    Args:
        source: The file, its bytes as a stream, or a picture that is decoded already.
        name: What messages call it; by default the path.
    Returns:
        The picture in mode RGB, L, LA, RGBA or CMYK, eight bits a channel.
    Raises:
        DatasetError: The file is missing, damaged, no image, or of a size or range that is
            refused; the message names it.
    """
    try:
        with warnings.catch_warnings():
            # Pillow warns of odd metadata, and of pictures above 89 million pixels, which maps
            # and slides may have. Above twice that it raises, before it decodes.
            warnings.simplefilter("ignore")
            if isinstance(source, Image.Image):
                return _to_eight_bits(source)
            with Image.open(source) as image:
                image.load()
                return _to_eight_bits(image)
    except Exception as error:  # a damaged file makes Pillow's decoders raise any class
        raise DatasetError(
            f"cannot read image {name or source}: {_reason(error, source)}",
            hint="replace or remove the file",
        ) from None


def _is_empty(source: Path | str | BinaryIO | Image.Image) -> bool:
    if isinstance(source, Path | str):
        return os.path.isfile(source) and not os.path.getsize(source)
    return not isinstance(source, Image.Image) and source.seek(0, os.SEEK_END) == 0


def _to_eight_bits(image: Image.Image) -> Image.Image:
    mode = image.mode
    if mode in UNCHANGED_MODES:
        return image
    if mode == "1":  # Pillow resizes bilevel and palette pictures with nearest neighbour only
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
    """Scale 16-bit grey to 8 bits, rounded; plain conversion would clip everything above 255."""
    if values.size and not 0 <= int(values.min()) <= int(values.max()) <= 65535:
        raise ValueError(
            f"integer pixels from {values.min()} to {values.max()}; expected 16 bits, 0 to 65535"
        )
    wide = values.astype(np.uint32)  # holds 65535 * 255, in half the memory of 64 bits
    return Image.fromarray(((wide * 255 + 32767) // 65535).astype(np.uint8))


def _scale_floats(values: npt.NDArray[Any]) -> Image.Image:
    """Scale float grey in [0, 1] to 8 bits, rounded; another range has no known white."""
    wide = values.astype(np.float64)
    if not bool(np.all((wide >= 0) & (wide <= 1))):
        raise ValueError(f"float pixels from {wide.min()} to {wide.max()}; expected them in [0, 1]")
    return Image.fromarray(np.rint(wide * 255).astype(np.uint8))


def _reason(error: Exception, source: Path | str | BinaryIO | Image.Image) -> str:
    """Put Pillow's exception into words that fit one line and do not repeat the path."""
    if isinstance(error, UnidentifiedImageError):
        if _is_empty(source):
            return "the file is empty"
        return "not an image in a format that Pillow knows"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__
