"""Read a checkpoint under the tensor names of another library, without a copy of it.

`ConvertedReader` is a `CheckpointReader` whose tensors are computed from those of another reader
when they are read: renamed, concatenated, split, transposed. Bytes are moved, never computed
with, so a conversion and its reverse give the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isqrt, prod
from pathlib import Path
from typing import Any

import numpy as np

from wiseft_cli.checkpoint.card import Card
from wiseft_cli.checkpoint.format import SIZES_BITS, TensorInfo, safetensors_dtype
from wiseft_cli.checkpoint.reader import CheckpointReader
from wiseft_cli.convert.names import NOT_WEIGHTS, TABLES, Form, Naming, Row, expand_rows

_TIMM_BIAS = "head.bias"
"""timm's projection always has a bias; CLIP's has none, so it is zero."""


@dataclass(frozen=True)
class Piece:
    """Consecutive bytes of a source tensor."""

    name: str
    start: int
    nbytes: int


@dataclass(frozen=True)
class Derived:
    """A tensor that is computed from others.

    Attributes:
        pieces: Bytes that follow each other; none for a tensor of zeros.
        stored: Shape and order of axes to permute the pieces with; None if they are the tensor.
    """

    dtype: str
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]
    stored: tuple[tuple[int, ...], tuple[int, ...]] | None = None

    @property
    def nbytes(self) -> int:
        """Size of the tensor in bytes."""
        return SIZES_BITS[self.dtype] * prod(self.shape) // 8


@dataclass(frozen=True)
class NamePlan:
    """The tensors of a file under other names.

    Attributes:
        derived: The new tensors by name.
        dropped: Names of buffers that hold no weights, and of towers that the target lacks.
        unknown: Names that the table does not have.
        missing: Names that the table has and the file lacks.
        faults: Tensors with a shape or dtype that the table does not allow.
    """

    derived: Mapping[str, Derived]
    dropped: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()


class ConvertedReader(CheckpointReader):
    """A view of a reader with other tensors; closing it closes nothing."""

    def __init__(self, source: CheckpointReader, derived: Mapping[str, Derived]) -> None:
        self.source = source
        self.path, self.files = source.path, source.files
        self.derived = derived
        self.added: Mapping[str, Any] = {}
        self.metadata = source.metadata
        self.tensors = {
            name: TensorInfo(name, each.dtype, each.shape, 0, each.nbytes)
            for name, each in derived.items()
        }
        self._permuted: tuple[str, bytes] | None = None

    def __exit__(self, *_: object) -> None:
        pass

    @cached_property
    def card(self) -> Card | None:
        """None: a card describes the names of its own file."""
        return None

    @property
    def changes(self) -> Mapping[str, Any]:
        """Those of the source, and those that were `added`."""
        return {**self.source.changes, **self.added}

    @property
    def partial(self) -> tuple[str, str] | None:
        """What the source is if it is not a whole checkpoint, and the remedy."""
        return self.source.partial

    def read_into(self, name: str, buffer: memoryview, offset: int = 0) -> None:
        """Fill a buffer with bytes of a tensor; see `CheckpointReader.read_into`."""
        tensor = self.derived[name]
        if offset + buffer.nbytes > tensor.nbytes:
            raise ValueError(f"{name} has {tensor.nbytes} bytes, not {offset + buffer.nbytes}")
        if tensor.stored is not None:
            buffer[:] = memoryview(self._permute(name, tensor))[offset : offset + buffer.nbytes]
        elif not tensor.pieces:
            buffer[:] = bytes(buffer.nbytes)
        else:
            self._read_pieces(tensor.pieces, buffer, offset)

    def _read_pieces(self, pieces: Sequence[Piece], buffer: memoryview, offset: int) -> None:
        for piece in pieces:
            if not buffer.nbytes:
                return
            if offset >= piece.nbytes:
                offset -= piece.nbytes
                continue
            count = min(piece.nbytes - offset, buffer.nbytes)
            self.source.read_into(piece.name, buffer[:count], piece.start + offset)
            buffer, offset = buffer[count:], 0

    def _permute(self, name: str, tensor: Derived) -> bytes:
        """Return the bytes of a permuted tensor; those of the last one are kept."""
        last = self._permuted
        if last is None or last[0] != name:
            assert tensor.stored is not None
            shape, axes = tensor.stored
            data = np.empty(tensor.nbytes, np.uint8)
            self._read_pieces(tensor.pieces, data.data, 0)
            # Elements of any dtype are moved as integers, so that no bit of a NaN changes.
            elements = data.view(f"u{SIZES_BITS[tensor.dtype] // 8}").reshape(shape)
            last = name, elements.transpose(axes).tobytes()
            self._permuted = last
        return last[1]


class ArrayReader(CheckpointReader):
    """Arrays in memory, read as a checkpoint; `path` is for messages."""

    def __init__(self, path: Path, arrays: Mapping[str, np.ndarray]) -> None:
        self.path, self.files, self.metadata = path, (), {}
        self._arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        self.tensors = {
            name: TensorInfo(name, safetensors_dtype(array.dtype), array.shape, 0, array.nbytes)
            for name, array in arrays.items()
        }

    def __exit__(self, *_: object) -> None:
        pass

    @cached_property
    def card(self) -> Card | None:
        """None."""
        return None

    @property
    def partial(self) -> tuple[str, str] | None:
        """None: the arrays are whole."""
        return None

    def read_into(self, name: str, buffer: memoryview, offset: int = 0) -> None:
        """Fill a buffer with bytes of an array; see `CheckpointReader.read_into`."""
        data = self._arrays[name].reshape(-1).view(np.uint8).data
        buffer[:] = data[offset : offset + buffer.nbytes]


def plan_names(reader: CheckpointReader, naming: Naming, *, to_open_clip: bool) -> NamePlan:
    """Plan the tensors of a file under open_clip's names, or those of open_clip under others.

    Args:
        reader: The file, without wrappers and prefixes.
        naming: The naming other than open_clip's.
    """
    tensors = reader.tensors
    rows = expand_rows(TABLES[naming], tensors, from_open_clip=not to_open_clip)
    sides = [
        (row.other, row.open_clip) if to_open_clip else (row.open_clip, row.other) for row in rows
    ]
    parts = {
        row.part
        for row, (given, _) in zip(rows, sides, strict=True)
        if any(name in tensors for name in given)
    }
    derived: dict[str, Derived] = {}
    missing, faults = [], []
    for row, (given, wanted) in zip(rows, sides, strict=True):
        absent = [name for name in given if name not in tensors]
        if absent:
            is_complete = len(absent) == len(given) and (row.is_optional or row.part not in parts)
            missing += [] if is_complete else absent
            continue
        found = _derive(row, [tensors[name] for name in given], wanted, to_open_clip=to_open_clip)
        if isinstance(found, str):
            faults.append(found)
        else:
            derived |= found
    used = {name for given, _ in sides for name in given}
    rest = [name for name in tensors if name not in used]
    dropped = [name for name in rest if NOT_WEIGHTS.search(name)]
    if naming == Naming("timm", "clip"):
        _match_projection_bias(reader, derived, dropped, faults, to_open_clip=to_open_clip)
    if naming.library == "timm" and not to_open_clip:
        dropped += [name for name in rest if not name.startswith("visual.")]
    unknown = [name for name in rest if name not in dropped and name != _TIMM_BIAS]
    return NamePlan(derived, *map(tuple, (sorted(set(dropped)), unknown, missing, faults)))


def _match_projection_bias(
    reader: CheckpointReader,
    derived: dict[str, Derived],
    dropped: list[str],
    faults: list[str],
    *,
    to_open_clip: bool,
) -> None:
    """Drop the zero bias of timm's projection, or add it."""
    if not to_open_clip:
        if "head.weight" in derived:
            weight = derived["head.weight"]
            derived[_TIMM_BIAS] = Derived(weight.dtype, weight.shape[:1], ())
    elif _TIMM_BIAS in reader.tensors:
        if np.any(reader.read_array(_TIMM_BIAS)):
            faults.append(
                f"{_TIMM_BIAS}: is not zero, so head.* is a classifier instead of CLIP's projection"
            )
        dropped.append(_TIMM_BIAS)


def _derive(
    row: Row, given: Sequence[TensorInfo], wanted: Sequence[str], *, to_open_clip: bool
) -> dict[str, Derived] | str:
    """Return the tensors of one row, or a fault."""
    first = given[0]
    if any((t.dtype, t.shape[1:]) != (first.dtype, first.shape[1:]) for t in given):
        return " and ".join(f"{t.name}: {t.dtype} {t.shape}" for t in given) + ": do not fit"
    if SIZES_BITS[first.dtype] % 8:
        return f"{first.name}: dtype {first.dtype} has no whole bytes"
    pieces = tuple(Piece(t.name, 0, t.nbytes) for t in given)
    if len(wanted) == 1:
        shape = first.shape
        if len(given) > 1:
            shape = (sum(t.shape[0] for t in given), *first.shape[1:])
        changed = _reshape(row.form, shape, to_open_clip=to_open_clip)
        if changed is None:
            return f"{first.name}: shape {first.shape} does not fit"
        return {wanted[0]: Derived(first.dtype, changed[0], pieces, changed[1])}
    total = sum(row.shares)
    if not first.shape or first.shape[0] % total:
        return f"{first.name}: shape {first.shape}, expected a multiple of {total} rows"
    split, start = {}, 0
    for name, share in zip(wanted, row.shares, strict=True):
        nbytes = first.nbytes * share // total
        shape = (first.shape[0] * share // total, *first.shape[1:])
        split[name] = Derived(first.dtype, shape, (Piece(first.name, start, nbytes),))
        start += nbytes
    return split


Reshaped = tuple[tuple[int, ...], tuple[tuple[int, ...], tuple[int, ...]] | None]


def _reshape(form: Form, shape: tuple[int, ...], *, to_open_clip: bool) -> Reshaped | None:
    """Return the shape on the other side, and how to permute the elements; None if impossible."""
    if form == "same":
        return shape, None
    if form == "transposed":
        return (shape[::-1], (shape, (1, 0))) if len(shape) == 2 else None
    if form == "patches":
        return _reshape_patches(shape, to_open_clip=to_open_clip)
    extra = {"axis": (1,), "two_axes": (1, 1), "drop_axis": (1,), "scalar": (1,)}[form]
    adds = to_open_clip == (form == "drop_axis")
    if form == "scalar" and prod(shape) != 1:
        return None
    if adds:
        return (shape if form == "scalar" and shape else (*extra, *shape)), None
    if shape[: len(extra)] != extra:
        return (shape, None) if form == "scalar" else None
    return shape[len(extra) :], None


def _reshape_patches(shape: tuple[int, ...], *, to_open_clip: bool) -> Reshaped | None:
    """Convert a linear layer over patches (D, P * P * C), C = 3, to a convolution, or back."""
    channels = 3
    if not to_open_clip:
        if len(shape) != 4 or shape[1] != channels:
            return None
        return (shape[0], prod(shape[1:])), (shape, (0, 2, 3, 1))
    if len(shape) != 2 or shape[1] % channels:
        return None
    side = isqrt(shape[1] // channels)
    if channels * side**2 != shape[1]:
        return None
    return (shape[0], channels, side, side), ((shape[0], side, side, channels), (0, 3, 1, 2))
