"""The header of a safetensors file: read and validate it, or lay it out and render it.

A safetensors file is 8 bytes (the length of the header, little-endian), the header (JSON) and
the bytes of the tensors back to back. The header holds the name, dtype, shape and position of
every tensor, so a damaged or unsuitable file is rejected before any tensor is read. Nothing in
a header is trusted. This module does not read tensors and does not know the card.

Source: the format's specification, https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import os
import shlex
import stat
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from wiseft_cli.checkpoint.digest import canonical_json
from wiseft_cli.errors import (
    CheckpointError,
    NotACheckpointError,
    brief,
    counted,
    did_you_mean_path,
    list_some,
)

MAX_HEADER_BYTES = 100_000_000
"""Maximum length of a header, as the specification sets it."""

HEADER_ALIGNMENT_BYTES = 8

_LENGTH_BYTES = 8
_MAX_BITS = 8 * 2**63
_PICKLE_PROTOCOLS = (b"\x02", b"\x03", b"\x04", b"\x05")

_NUMPY_DTYPES: dict[str, np.dtype] = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    # E4M3 of the format is the variant without infinities, as in torch.
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
    "F8_E4M3FNUZ": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "F8_E5M2FNUZ": np.dtype(ml_dtypes.float8_e5m2fnuz),
    "I16": np.dtype("<i2"),
    "U16": np.dtype("<u2"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I32": np.dtype("<i4"),
    "U32": np.dtype("<u4"),
    "F32": np.dtype("<f4"),
    "C64": np.dtype("<c8"),
    "F64": np.dtype("<f8"),
    "I64": np.dtype("<i8"),
    "U64": np.dtype("<u8"),
}
_NAMES = {dtype: name for name, dtype in _NUMPY_DTYPES.items()}

SIZES_BITS = {
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    **{name: 8 * dtype.itemsize for name, dtype in _NUMPY_DTYPES.items()},
}
"""Bits per element of each safetensors dtype."""

INTEGER_DTYPES = frozenset({"BOOL", "U8", "I8", "I16", "U16", "I32", "U32", "I64", "U64"})
"""Integers and booleans."""

FLOATING_DTYPES = frozenset(
    {"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "C64"}
)
"""Dtypes with infinities or NaN that numpy can detect."""


def numpy_dtype(name: str) -> np.dtype:
    """Return the little-endian numpy dtype of a safetensors dtype.

    Raises:
        CheckpointError: numpy has no such dtype (packed 4-bit and 6-bit floats).
    """
    if name not in _NUMPY_DTYPES:
        raise CheckpointError(f"numpy cannot hold tensors of dtype {name}")
    return _NUMPY_DTYPES[name]


def safetensors_dtype(dtype: np.dtype) -> str:
    """Return the safetensors name of a numpy dtype.

    Raises:
        CheckpointError: The format has no such dtype (strings, float128, complex128).
    """
    name = _NAMES.get(dtype.newbyteorder("<") if dtype.byteorder == ">" else dtype)
    if name is None:
        raise CheckpointError(f"safetensors cannot store arrays of dtype {dtype}")
    return name


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, safetensors dtype and shape of a tensor that is going to be written."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Size of the data in bytes."""
        return SIZES_BITS[self.dtype] * prod(self.shape) // 8


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Name, safetensors dtype, shape and position of a tensor in a file.

    Attributes:
        start: Offset of the first byte, from the beginning of the file.
        end: Offset after the last byte.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def nbytes(self) -> int:
        """Size of the data in bytes."""
        return self.end - self.start


@dataclass(frozen=True)
class Header:
    """Tensors by name, and `__metadata__`."""

    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]


def plan_layout(specs: Sequence[TensorSpec]) -> list[TensorInfo]:
    """Return the tensors in file order, with offsets from the beginning of the data.

    Order: element size from largest to smallest, then UTF-8 name, so that every tensor is
    aligned to its dtype.
    """
    layout = []
    position = 0
    for spec in sorted(specs, key=lambda spec: (-SIZES_BITS[spec.dtype], spec.name.encode())):
        end = position + spec.nbytes
        layout.append(TensorInfo(spec.name, spec.dtype, spec.shape, position, end))
        position = end
    return layout


def render_header(
    layout: Sequence[TensorInfo],
    metadata: Mapping[str, str],
    *,
    alignment: int = HEADER_ALIGNMENT_BYTES,
) -> bytes:
    """Return the length field and the JSON header, padded with spaces.

    Args:
        layout: Tensors in file order, from `plan_layout`.
        metadata: Entries of `__metadata__`.
        alignment: The data begins at a multiple of this many bytes.
    """
    members = [f'"__metadata__":{canonical_json(dict(metadata))}']
    for info in layout:
        entry = {
            "dtype": info.dtype,
            "shape": list(info.shape),
            "data_offsets": [info.start, info.end],
        }
        members.append(f"{canonical_json(info.name)}:{canonical_json(entry)}")
    text = ("{" + ",".join(members) + "}").encode()
    text += b" " * (-(_LENGTH_BYTES + len(text)) % alignment)
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text


def read_header(path: Path) -> Header:
    """Read and validate the header of a safetensors file.

    Raises:
        NotACheckpointError: The file cannot be opened, is not a safetensors file, is damaged or
            is truncated; the message says which.
    """
    descriptor = open_regular_file(path)
    try:
        return read_header_from(descriptor, path)
    finally:
        os.close(descriptor)


def open_regular_file(path: Path) -> int:
    """Open a regular file for reading and return its descriptor.

    Raises:
        NotACheckpointError: The path is missing, a folder, a pipe or a device, or not readable.
    """
    try:
        # Non-blocking, so that opening a named pipe does not wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NotACheckpointError(f"{path}: no such file", hint=did_you_mean_path(path)) from None
    except OSError as error:
        raise NotACheckpointError(f"{path}: cannot be opened: {error.strerror}") from None
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        kind = "a folder" if stat.S_ISDIR(mode) else "not a regular file"
        raise NotACheckpointError(f"{path}: is {kind}, expected a safetensors file")
    return descriptor


def read_exactly(descriptor: int, buffer: memoryview, position: int, path: Path) -> None:
    """Fill a buffer from a position in an open file; `path` is for messages.

    Raises:
        CheckpointError: The file ended early or could not be read.
    """
    while buffer.nbytes:
        try:
            count = os.preadv(descriptor, [buffer], position)
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
        if count == 0:
            raise CheckpointError(f"{path}: was truncated while it was being read")
        buffer = buffer[count:]
        position += count


def read_header_from(descriptor: int, path: Path) -> Header:
    """Read and validate the header through an open descriptor; `path` is for messages."""
    size_bytes = os.fstat(descriptor).st_size
    text = bytearray(_read_header_length(descriptor, size_bytes, path))
    read_exactly(descriptor, memoryview(text), _LENGTH_BYTES, path)
    data_start = _LENGTH_BYTES + len(text)
    try:
        document = _parse_json(text)
        metadata = _check_metadata(document.pop("__metadata__", {}))
        tensors = {name: _check_entry(name, at, data_start) for name, at in document.items()}
        data_end = _check_layout(tensors, data_start)
    except ValueError as error:
        raise NotACheckpointError(f"{path}: damaged header: {error}") from None
    if data_end > size_bytes:
        raise _truncated(path, f"the tensors end at byte {data_end}", size_bytes)
    if data_end < size_bytes:
        raise NotACheckpointError(
            f"{path}: damaged: {counted(size_bytes - data_end, 'byte')} after the last tensor"
        )
    return Header(tensors, metadata)


def _truncated(path: Path, what: str, size_bytes: int) -> NotACheckpointError:
    return NotACheckpointError(
        f"{path}: truncated: {what}, the file at byte {size_bytes}",
        hint="the download or copy is incomplete; fetch the file again",
    )


def _read_header_length(descriptor: int, size_bytes: int, path: Path) -> int:
    start = os.pread(descriptor, 512, 0)
    foreign = _recognize_foreign_file(start, path)
    if foreign:
        what, hint = foreign
        raise NotACheckpointError(f"{path}: is {what}, expected a safetensors file", hint=hint)
    if len(start) < _LENGTH_BYTES:
        raise NotACheckpointError(
            f"{path}: {counted(size_bytes, 'byte')}, a safetensors file has at least 10"
        )
    length = int.from_bytes(start[:_LENGTH_BYTES], "little")
    if length > MAX_HEADER_BYTES:
        raise NotACheckpointError(
            f"{path}: not a safetensors file: its header would have {length} bytes, "
            f"the maximum is {MAX_HEADER_BYTES}"
        )
    if _LENGTH_BYTES + length > size_bytes:
        raise _truncated(path, f"the header ends at byte {_LENGTH_BYTES + length}", size_bytes)
    return length


def convert_command(path: Path) -> str:
    """Return the command that writes the weights of a file of torch.save as safetensors."""
    stem = f"{path.stem}-converted" if path.suffix == ".safetensors" else path.stem
    return shlex.join(["wiseft", "convert", str(path), "-o", f"{stem}.safetensors"])


def _recognize_foreign_file(start: bytes, path: Path) -> tuple[str, str] | None:
    """Return the format of a file that is not safetensors and the remedy, or None."""
    lowered = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    to_safetensors = f"write its weights as safetensors first: {convert_command(path)}"
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer", "fetch the real file with `git lfs pull`"
    if lowered.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "an HTML or XML page", "a download saved an error page; fetch the file again"
    if start.startswith(b"GGUF"):
        return "a GGUF file of quantized weights", "use the weights it was made from"
    if start.startswith(b"PK\x03\x04"):
        return "a zip archive (torch.save writes these)", to_safetensors
    # The first two bytes may also belong to a header's length, but then byte 8 is a brace.
    if start[:1] == b"\x80" and start[1:2] in _PICKLE_PROTOCOLS and start[8:9] != b"{":
        return "a pickle (an old torch.save)", to_safetensors
    # The eight bytes of a valid length contain zeros; text does not.
    if len(start) >= _LENGTH_BYTES and start.isascii() and b"\0" not in start[:_LENGTH_BYTES]:
        return (
            "a text file",
            "give a .safetensors file; a failed download may have saved a message instead",
        )
    return None


def _parse_json(text: bytearray) -> dict[str, Any]:
    """Parse the header; every ValueError from here on describes the damage."""
    try:
        document = json.loads(text.decode(), object_pairs_hook=_reject_duplicates)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from None
    if not isinstance(document, dict):
        raise ValueError("expected a JSON object")
    "".join(document).encode()  # JSON can spell half a surrogate pair, UTF-8 cannot
    return document


def _reject_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) != len(pairs):
        counts = Counter(name for name, _ in pairs)
        repeated = [_quote(name) for name, count in sorted(counts.items()) if count > 1]
        raise ValueError(f"duplicate names: {', '.join(list_some(repeated))}")
    return unique


def _quote(value: Any) -> str:
    return brief(ascii(value))


def _check_metadata(metadata: Any) -> dict[str, str]:
    if metadata is None:  # null, which the reference reader accepts
        return {}
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ValueError("__metadata__ must map strings to strings")
    "".join([*metadata, *metadata.values()]).encode()
    return metadata


def _check_entry(name: str, entry: Any, data_start: int) -> TensorInfo:
    def damage(what: str) -> ValueError:
        return ValueError(f"tensor {_quote(name)}: {what}")

    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise damage("expected exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in SIZES_BITS:
        raise damage(f"unknown dtype {_quote(dtype)}")
    if not _is_list_of_sizes(shape):
        raise damage(f"shape {_quote(shape)}, expected a list of integers from 0")
    if not _is_list_of_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise damage(f"data_offsets {_quote(offsets)}, expected a start and an end")
    bits = _count_bits(dtype, shape)
    if bits != 8 * (offsets[1] - offsets[0]):
        needed = "more than any file holds" if bits is None else f"{bits / 8:g}"
        raise damage(
            f"{_quote(offsets[1] - offsets[0])} bytes of data, expected {needed} for {dtype} of "
            f"shape {_quote(shape)}"
        )
    return TensorInfo(name, dtype, tuple(shape), data_start + offsets[0], data_start + offsets[1])


def _count_bits(dtype: str, shape: list[int]) -> int | None:
    """Return the number of bits of a tensor, or None if no file could hold it."""
    if 0 in shape:
        return 0
    bits = SIZES_BITS[dtype]
    for extent in shape:
        bits *= extent
        # Python integers do not overflow: without this, a hostile shape multiplies for hours.
        if bits > _MAX_BITS:
            return None
    return bits


def _is_list_of_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in value
    )


def _check_layout(tensors: Mapping[str, TensorInfo], data_start: int) -> int:
    """Return the offset after the last tensor."""
    position = data_start
    for info in sorted(tensors.values(), key=lambda info: (info.start, info.end)):
        if info.start != position:
            fault = "overlaps the previous tensor" if info.start < position else "follows a gap"
            raise ValueError(
                f"tensor {_quote(info.name)} {fault} (begins at byte {info.start}, expected "
                f"{position})"
            )
        position = info.end
    return position
