"""Read and check the header of a safetensors file; trust nothing in it.

A safetensors file is 8 bytes (little-endian length of the header), the header (JSON),
and the tensors' bytes back to back. Reading the header is enough to know every tensor's
name, type, shape and place, so that a file can be refused before its data is touched.
It does not read tensor data and does not know the card.

Source: the format's specification, https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

import json
import os
import stat
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wiseft_cli.checkpoint.dtypes import SIZES_BITS
from wiseft_cli.errors import NotACheckpointError, list_some

MAX_HEADER_BYTES = 100_000_000
"""The format's own cap on the header's length."""

_LENGTH_BYTES = 8
_MAX_BITS = 8 * 2**63
_QUOTED_CHARACTERS = 100
_PICKLE_PROTOCOLS = (b"\x02", b"\x03", b"\x04", b"\x05")


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor's name, safetensors type, shape, and absolute place in its file.

    Attributes:
        start: Offset of the first byte from the beginning of the file.
        end: Offset behind the last byte.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def nbytes(self) -> int:
        """Size of the tensor's data in bytes."""
        return self.end - self.start


@dataclass(frozen=True)
class Header:
    """What a file says of itself: its tensors by name, its metadata, where the data begins."""

    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]
    data_start: int


def read_header(path: Path) -> Header:
    """Read and validate the header of a safetensors file.

    Raises:
        NotACheckpointError: The file is missing, no regular file, not readable, not
            safetensors, damaged, or truncated; the message says which.
    """
    descriptor = open_regular_file(path)
    try:
        return read_header_from(descriptor, path)
    finally:
        os.close(descriptor)


def open_regular_file(path: Path) -> int:
    """Open a regular file for reading and return its descriptor.

    Raises:
        NotACheckpointError: Missing, a folder, a pipe or device, or not readable.
    """
    try:
        # Non-blocking, so that a named pipe is refused rather than waited for.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NotACheckpointError(f"{path}: no such file") from None
    except OSError as error:
        raise NotACheckpointError(f"{path}: cannot be opened: {error.strerror}") from None
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        kind = "a folder" if stat.S_ISDIR(mode) else "not a regular file"
        raise NotACheckpointError(f"{path}: is {kind}, expected a safetensors file")
    return descriptor


def read_header_from(descriptor: int, path: Path) -> Header:
    """Read and validate the header through an open descriptor; `path` is for messages."""
    size_bytes = os.fstat(descriptor).st_size
    length = _read_header_length(descriptor, size_bytes, path)
    text = _pread_exactly(descriptor, length, _LENGTH_BYTES, path)
    document = _parse_json(text, path)
    metadata = _check_metadata(document.pop("__metadata__", {}), path)
    data_start = _LENGTH_BYTES + length
    tensors = {
        name: _check_entry(name, entry, data_start, path) for name, entry in document.items()
    }
    _check_layout(tensors, data_start, size_bytes, path)
    return Header(tensors=tensors, metadata=metadata, data_start=data_start)


def _read_header_length(descriptor: int, size_bytes: int, path: Path) -> int:
    start = os.pread(descriptor, 512, 0)
    foreign = _recognise_foreign_file(start)
    if foreign:
        message, hint = foreign
        raise NotACheckpointError(f"{path}: {message}, expected a safetensors file", hint=hint)
    if len(start) < _LENGTH_BYTES:
        raise NotACheckpointError(
            f"{path}: {size_bytes} bytes are too few for a safetensors file (at least 10)"
        )
    length = int.from_bytes(start[:_LENGTH_BYTES], "little")
    if length > MAX_HEADER_BYTES:
        raise NotACheckpointError(
            f"{path}: not a safetensors file: its header would be {length} bytes long, "
            f"and the format allows {MAX_HEADER_BYTES}"
        )
    if _LENGTH_BYTES + length > size_bytes:
        raise NotACheckpointError(
            f"{path}: truncated: the header ends at byte {_LENGTH_BYTES + length}, "
            f"the file at byte {size_bytes}",
            hint="the download or copy was cut short; fetch the file again",
        )
    return length


def _recognise_foreign_file(start: bytes) -> tuple[str, str] | None:
    lowered = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if start.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer", "fetch the real file with `git lfs pull`"
    if lowered.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "is an HTML or XML page", "a download saved an error page; fetch the file again"
    if start.startswith(b"PK\x03\x04"):
        return (
            "is a zip archive (torch.save writes these)",
            "save its state dict with safetensors.torch.save_file first",
        )
    # The two bytes may also begin a header's length, but then a brace stands at byte 8.
    if start[:1] == b"\x80" and start[1:2] in _PICKLE_PROTOCOLS and start[8:9] != b"{":
        return (
            "is a pickle (an old torch.save)",
            "save its state dict with safetensors.torch.save_file first",
        )
    # A true header's length has zeros among its eight bytes, and text has none.
    if len(start) >= _LENGTH_BYTES and start.isascii() and b"\0" not in start[:_LENGTH_BYTES]:
        return "is a text file", "a download saved a message; fetch the file again"
    return None


def _pread_exactly(descriptor: int, size_bytes: int, offset: int, path: Path) -> bytes:
    pieces = []
    while size_bytes > 0:
        piece = os.pread(descriptor, size_bytes, offset)
        if not piece:
            raise NotACheckpointError(f"{path}: truncated while it was read")
        pieces.append(piece)
        size_bytes -= len(piece)
        offset += len(piece)
    return b"".join(pieces)


def _parse_json(text: bytes, path: Path) -> dict[str, Any]:
    def refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        unique = dict(pairs)
        if len(unique) != len(pairs):
            counts = Counter(name for name, _ in pairs)
            twice = [_quote(name) for name, count in sorted(counts.items()) if count > 1]
            raise NotACheckpointError(
                f"{path}: damaged header: name used twice: {', '.join(list_some(twice))}"
            )
        return unique

    try:
        document = json.loads(text.decode("utf-8"), object_pairs_hook=refuse_duplicates)
    except UnicodeDecodeError as error:
        raise NotACheckpointError(
            f"{path}: damaged header: not UTF-8 at byte {_LENGTH_BYTES + error.start}"
        ) from None
    except (ValueError, RecursionError) as error:
        raise NotACheckpointError(f"{path}: damaged header: not JSON: {error}") from None
    if not isinstance(document, dict):
        raise NotACheckpointError(f"{path}: damaged header: expected a JSON object")
    for name in document:
        if not _is_text(name):
            raise NotACheckpointError(
                f"{path}: damaged header: name {_quote(name)} has half a character"
            )
    return document


def _is_text(name: str) -> bool:
    try:
        name.encode()  # JSON can spell one half of a surrogate pair, which UTF-8 cannot
    except UnicodeEncodeError:
        return False
    return True


def _quote(value: Any) -> str:
    """Show a value of a hostile header in a message that stays readable."""
    text = ascii(value)
    return text if len(text) <= _QUOTED_CHARACTERS else text[: _QUOTED_CHARACTERS - 3] + "..."


def _check_metadata(metadata: Any, path: Path) -> dict[str, str]:
    if not isinstance(metadata, dict) or not all(
        isinstance(value, str) and _is_text(key + value) for key, value in metadata.items()
    ):
        raise NotACheckpointError(
            f"{path}: damaged header: __metadata__ must map strings to strings"
        )
    return metadata


def _check_entry(name: str, entry: Any, data_start: int, path: Path) -> TensorInfo:
    def refuse(what: str) -> NotACheckpointError:
        return NotACheckpointError(f"{path}: damaged header: tensor {_quote(name)}: {what}")

    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise refuse("expected exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in SIZES_BITS:
        raise refuse(f"unknown dtype {_quote(dtype)}")
    if not _is_list_of_sizes(shape):
        raise refuse(f"shape {_quote(shape)} is not a list of whole numbers from 0")
    if not _is_list_of_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise refuse(f"data_offsets {_quote(offsets)} are not a begin and an end")
    bits = _count_bits(dtype, shape)
    if bits != 8 * (offsets[1] - offsets[0]):
        takes = "more than any file holds" if bits is None else f"takes {bits / 8:g}"
        raise refuse(
            f"{_quote(offsets[1] - offsets[0])} bytes of data, but {dtype} of shape "
            f"{_quote(shape)} {takes}"
        )
    return TensorInfo(name, dtype, tuple(shape), data_start + offsets[0], data_start + offsets[1])


def _count_bits(dtype: str, shape: list[int]) -> int | None:
    """Return the bits that a tensor takes, or None where no file could hold them."""
    if 0 in shape:
        return 0
    bits = SIZES_BITS[dtype]
    for extent in shape:
        bits *= extent
        # Python's integers do not overflow; this keeps a hostile shape from growing one for hours.
        if bits > _MAX_BITS:
            return None
    return bits


def _is_list_of_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in value
    )


def _check_layout(
    tensors: Mapping[str, TensorInfo], data_start: int, size_bytes: int, path: Path
) -> None:
    position = data_start
    for info in sorted(tensors.values(), key=lambda info: (info.start, info.end)):
        if info.start != position:
            what = "overlaps the tensor before it" if info.start < position else "leaves a gap"
            raise NotACheckpointError(
                f"{path}: damaged header: tensor {_quote(info.name)} {what} "
                f"(begins at byte {info.start}, expected {position})"
            )
        position = info.end
    if position > size_bytes:
        raise NotACheckpointError(
            f"{path}: truncated: the tensors end at byte {position}, the file at byte {size_bytes}",
            hint="the download or copy was cut short; fetch the file again",
        )
    if position < size_bytes:
        raise NotACheckpointError(
            f"{path}: damaged: {size_bytes - position} bytes behind the last tensor"
        )
