"""Decode images into modes that open_clip's transform handles correctly.

The transform resizes first and converts to RGB afterwards. Most modes are therefore left
unchanged; the modes that resizing or plain conversion would spoil are converted here, as listed in
`docs/data.md`. A decoded image keeps its EXIF orientation, which the transform applies or ignores
as the card states. Of an animation the first frame is used.
"""

from __future__ import annotations

import io
import os
import stat
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias, TypeVar

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from wiseft_cli.data.image_formats import is_raw_name, register_plugins, remedy_for
from wiseft_cli.data.image_set import ImageSet
from wiseft_cli.errors import DatasetError

if TYPE_CHECKING:
    import numpy.typing as npt

T = TypeVar("T")
ImageSource: TypeAlias = Path | str | BinaryIO | Image.Image

UPRIGHT = 1
"""The EXIF orientation of an image whose pixels are stored as they are shown."""

_TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns an image of each other EXIF orientation upright."""

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_TEXTS = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
_PNG_ORIENTATIONS = (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")
"""Keywords of the texts that may hold an orientation."""

_FORMATS_OF_16_BIT = ("PNG", "PPM")
"""Formats whose grey images in mode I have 16 bits; Pillow scales those of PPM to them."""

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
        An image in mode RGB, L, LA, RGBA or CMYK, eight bits per channel, as it is stored;
        `exif_orientation` returns how it is to be turned.
    Raises:
        DatasetError: The file is missing, damaged or not an image, or its size or range of values
            is not supported; the message names it.
    """
    label = name or str(source)
    try:
        with warnings.catch_warnings():
            # Pillow warns about odd metadata and about images above 89 million pixels, which maps
            # and slides may have. Above twice that it raises before it decodes.
            warnings.simplefilter("ignore")
            if isinstance(source, Image.Image):
                return _to_eight_bits(source)
            _require_regular_file(source)
            if is_raw_name(label):
                raise ValueError(remedy_for(label))
            try:
                return _decode(source)
            except ValueError as error:
                if "MAX_TEXT" not in str(error):  # the names of Pillow's limits on text in PNG
                    raise
                return _decode(_without_text(source))
    except Exception as error:  # Pillow's decoders raise any class for a damaged file
        raise DatasetError(
            f"cannot read image {label}: {_reason(error, source, label)}",
            hint="replace or remove the file",
        ) from None


def transform_image(image: Image.Image, transform: Callable[[Image.Image], T], name: str) -> T:
    """Apply a transform to an image.

    Raises:
        DatasetError: The transform fails on this image; the message names it.
    """
    try:
        return transform(image)
    except (MemoryError, OSError, OverflowError, ValueError) as error:
        width, height = image.size
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DatasetError(
            f"cannot transform image {name} of {width} x {height} pixels: {reason}",
            hint="replace or remove the file",
        ) from None


def _require_regular_file(source: Path | str | BinaryIO) -> None:
    """Reject a named pipe, socket or device, which could block forever."""
    if isinstance(source, Path | str):
        mode = os.stat(source).st_mode
        if not stat.S_ISREG(mode):
            raise ValueError("a folder" if stat.S_ISDIR(mode) else "not a regular file")


def _decode(source: Path | str | BinaryIO) -> Image.Image:
    with _open(source) as image:
        image.load()
        return _keep_orientation(_to_eight_bits(image), exif_orientation(image))


def _open(source: Path | str | BinaryIO) -> Image.Image:
    try:
        return Image.open(source)
    except UnidentifiedImageError:
        if not register_plugins():
            raise
        if not isinstance(source, Path | str):
            source.seek(0)
        return Image.open(source)


def _without_text(source: Path | str | BinaryIO) -> BinaryIO:
    """Return a PNG file without the texts and the profile that exceed Pillow's limits."""
    if isinstance(source, Path | str):
        data = Path(source).read_bytes()
    else:
        source.seek(0)
        data = source.read()
    kept, at = [data[: len(_PNG_SIGNATURE)]], len(_PNG_SIGNATURE)
    while at < len(data):
        n_bytes = int.from_bytes(data[at : at + 4]) + 12  # with length, type and checksum
        chunk = data[at : at + n_bytes]
        holds_orientation = chunk[8:].startswith(_PNG_ORIENTATIONS) and n_bytes < 2**16
        if chunk[4:8] not in _PNG_TEXTS or holds_orientation:
            kept.append(chunk)
        at += n_bytes
    return io.BytesIO(b"".join(kept))


def exif_orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of an image, 1 to 8.

    It is 1, upright, if the image has none, or one that is not defined, or damaged metadata.
    """
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # metadata is free-form, and Pillow raises any class for damaged metadata
        return UPRIGHT
    return orientation if orientation in _TRANSPOSITIONS else UPRIGHT


def turn_upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation of an image to its pixels."""
    transposition = _TRANSPOSITIONS.get(exif_orientation(image))
    return image if transposition is None else image.transpose(transposition)


def _keep_orientation(image: Image.Image, orientation: int) -> Image.Image:
    """Store an orientation where crops and conversions of the image keep it."""
    if orientation != UPRIGHT:
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        image.info["exif"] = exif.tobytes()
    return image


@dataclass(frozen=True)
class DecodedSample:
    """The result of decoding some images of a set.

    Attributes:
        name: Name of the set.
        n_images: Size of the set.
        n_decoded: Number of images that were decoded.
        n_rotated: How many of these have an EXIF orientation other than upright.
        unreadable: Why the other images of the sample could not be decoded, one sentence each.
        seconds: Time that decoding took.
    """

    name: str
    n_images: int
    n_decoded: int
    n_rotated: int
    unreadable: tuple[str, ...]
    seconds: float


def decode_sample(
    image_set: ImageSet, n_tried: int, on_tried: Callable[[], None] = lambda: None
) -> DecodedSample:
    """Decode an even sample of a set, including its first and last image.

    Args:
        n_tried: Number of images to decode; at most all.
        on_tried: Called after each image.
    """
    n_images = len(image_set.records)
    n_tried = min(n_tried, n_images)
    unreadable, n_rotated, began = [], 0, time.perf_counter()
    for number in range(n_tried):
        try:
            image = load_image_of(image_set, number * (n_images - 1) // max(n_tried - 1, 1))
            n_rotated += exif_orientation(image) != UPRIGHT
        except DatasetError as error:
            unreadable.append(error.message)
        on_tried()
    return DecodedSample(
        image_set.name,
        n_images,
        n_tried - len(unreadable),
        n_rotated,
        tuple(unreadable),
        time.perf_counter() - began,
    )


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
        is_16_bit = mode != "I" or image.format in _FORMATS_OF_16_BIT
        return _scale_integers(np.asarray(image), is_16_bit=is_16_bit)
    if mode == "F":
        return _scale_floats(np.asarray(image))
    return image.convert("RGB")


def _scale_integers(values: npt.NDArray[Any], *, is_16_bit: bool) -> Image.Image:
    """Scale 16-bit grey to 8 bits, rounded; plain conversion clips values above 255.

    Args:
        is_16_bit: Whether the file states 16 bits; 32-bit grey is accepted if white is clear.
    """
    if not is_16_bit and 0 < int(values.max(initial=0)) <= 255 and int(values.min()) >= 0:
        raise ValueError(
            f"32-bit integer pixels from {values.min()} to {values.max()}: white may be 255 or"
            " 65535; convert the image to 8 or 16 bits"
        )
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


def _reason(error: Exception, source: ImageSource, name: str) -> str:
    """Return Pillow's message on one line and without the path, or what reads the format."""
    if isinstance(error, UnidentifiedImageError) and not isinstance(source, Image.Image):
        header = _header(source)
        if not header:
            return "the file is empty"
        remedy = remedy_for(name, header)
        unknown = "not an image in a format that Pillow knows"
        return f"{unknown}; {remedy}" if remedy else unknown
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def _header(source: Path | str | BinaryIO) -> bytes:
    if not isinstance(source, Path | str):
        source.seek(0)
        return source.read(12)
    with open(source, "rb") as file:
        return file.read(12)
