"""Open a file of torch.save as tensors that are read on request, without torch.

A file is a zip archive with one pickle, `data.pkl`, and a member per storage; or, from before
torch 1.6, a row of pickles followed by the storages. `pickles.py` reads the pickles, and
`state_dicts.py` chooses the tensors. Archives of TorchScript are read in the same way.

Source: `torch/serialization.py`.
"""

from __future__ import annotations

import os
import re
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from wiseft_cli.checkpoint.card import Card
from wiseft_cli.checkpoint.format import (
    SIZES_BITS,
    TensorInfo,
    numpy_dtype,
    open_regular_file,
    read_exactly,
)
from wiseft_cli.checkpoint.reader import CheckpointReader
from wiseft_cli.checkpoint.shards import TORCH_NAMES
from wiseft_cli.convert.pickles import (
    MAX_PICKLE_BYTES,
    Record,
    Storage,
    StoredTensor,
    UnsupportedTensor,
    load_pickle,
)
from wiseft_cli.convert.state_dicts import find_state_dict
from wiseft_cli.errors import CheckpointError, NotACheckpointError, counted

_DTYPES = {
    "Double": "F64",
    "Float": "F32",
    "Half": "F16",
    "BFloat16": "BF16",
    "Long": "I64",
    "Int": "I32",
    "Short": "I16",
    "Char": "I8",
    "Byte": "U8",
    "Bool": "BOOL",
    "ComplexFloat": "C64",
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint64": "U64",
    "uint32": "U32",
    "uint16": "U16",
    "uint8": "U8",
    "bool": "BOOL",
    "complex64": "C64",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2fnuz": "F8_E5M2FNUZ",
    "float8_e8m0fnu": "F8_E8M0",
}
"""Safetensors dtype of each of torch's storage classes and dtypes."""

_UNTYPED = "UntypedStorage"
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_START = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"
_LOCAL_HEADER_BYTES = 30
_HINT_AGAIN = "the download or copy is incomplete or damaged; fetch the file again"


@dataclass(frozen=True, slots=True)
class Located:
    """A tensor and its place.

    Attributes:
        info: Its values' place in the file; the end counts if they lie in C order.
        stride: The stride in elements if they do not.
    """

    info: TensorInfo
    stride: tuple[int, ...] | None


class TorchFile:
    """An open file of torch.save; `open_torch_file` creates it. Use it as a context manager.

    Attributes:
        path: The file.
        root: The saved object, as `pickles.load_pickle` returns it.
        is_script: Whether it is an archive of TorchScript.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.root: Any = None
        self.is_script = False
        self._places: dict[str, tuple[int, int]] = {}  # by storage key: start and number of bytes
        self._descriptor = open_regular_file(path)
        self._size_bytes = os.fstat(self._descriptor).st_size

    def __enter__(self) -> TorchFile:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def begins_with(self, start: bytes) -> bool:
        """Return whether these are the file's first bytes."""
        return os.pread(self._descriptor, len(start), 0) == start

    def read_zip(self) -> None:
        """Read the pickle of a zip archive and the places of its storages."""
        with os.fdopen(os.dup(self._descriptor), "rb") as file:
            try:
                archive = zipfile.ZipFile(file)
            except (zipfile.BadZipFile, ValueError, OverflowError, NotImplementedError) as error:
                raise NotACheckpointError(
                    f"{self.path}: damaged zip archive: {error}", hint=_HINT_AGAIN
                ) from None
            members = self._members(archive.infolist())
            pickled = [name for name in members if re.fullmatch("[^/]+/data.pkl", name)]
            if len(pickled) != 1:
                raise NotACheckpointError(
                    f"{self.path}: is a zip archive without the one data.pkl that torch.save writes"
                )
            folder = pickled[0].removesuffix("data.pkl")
            self.is_script = f"{folder}constants.pkl" in members
            order = self._content(members, f"{folder}byteorder")
            if order not in (b"", b"little"):
                raise NotACheckpointError(f"{self.path}: its numbers are big-endian")
            start, nbytes = members[pickled[0]]
            if nbytes > MAX_PICKLE_BYTES:
                raise NotACheckpointError(
                    f"{self.path}: data.pkl has {nbytes} bytes, the maximum is {MAX_PICKLE_BYTES}"
                )
            file.seek(start)
            self.root = load_pickle(file, self.path)
        data = f"{folder}data/"
        self._places = {
            name.removeprefix(data): place
            for name, place in members.items()
            if name.startswith(data)
        }

    def _members(self, infos: list[zipfile.ZipInfo]) -> dict[str, tuple[int, int]]:
        """Return the place of each member; torch.save neither compresses nor overlaps them."""
        faults = []
        places: dict[str, tuple[int, int]] = {}
        for info in infos:
            if re.match("[^/]+/(code|extra)/", info.filename):
                continue  # of TorchScript, perhaps compressed
            if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
                faults.append(f"{info.filename}: is compressed or encrypted")
            elif info.filename in places:
                faults.append(f"{info.filename}: occurs twice")
            else:
                places[info.filename] = self._place(info)
        end = 0
        for name, (start, nbytes) in sorted(places.items(), key=lambda item: item[1]):
            if nbytes and start < end:
                faults.append(f"{name}: overlaps another member")
            end = max(end, start + nbytes)
        if end > self._size_bytes:
            faults.append(f"the members end at byte {end}, the file at byte {self._size_bytes}")
        if faults:
            raise NotACheckpointError(
                f"{self.path}: is a zip archive that torch.save did not write",
                faults=faults,
                hint="a repacked archive must be stored without compression (zip -0)",
            )
        return places

    def _place(self, info: zipfile.ZipInfo) -> tuple[int, int]:
        header = self._bytes(info.header_offset, _LOCAL_HEADER_BYTES)
        if not header.startswith(b"PK\x03\x04"):
            raise NotACheckpointError(
                f"{self.path}: damaged zip archive: no member at byte {info.header_offset}",
                hint=_HINT_AGAIN,
            )
        lengths = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        return info.header_offset + _LOCAL_HEADER_BYTES + lengths, info.file_size

    def _content(self, members: Mapping[str, tuple[int, int]], name: str) -> bytes:
        start, nbytes = members.get(name, (0, 0))
        return self._bytes(start, min(nbytes, 64))

    def _bytes(self, start: int, nbytes: int) -> bytes:
        buffer = bytearray(nbytes)
        read_exactly(self._descriptor, memoryview(buffer), start, self.path)
        return bytes(buffer)

    def read_legacy(self) -> None:
        """Read the pickles of a file from before torch 1.6, and the places of its storages."""
        with os.fdopen(os.dup(self._descriptor), "rb") as file:
            file.seek(0)
            magic, version, system = (load_pickle(file, self.path) for _ in range(3))
            if magic != _LEGACY_MAGIC or version != 1001:
                raise NotACheckpointError(f"{self.path}: is not a file of torch.save")
            if not isinstance(system, dict) or system.get("little_endian") is not True:
                raise NotACheckpointError(f"{self.path}: its numbers are big-endian")
            self.root = load_pickle(file, self.path)
            keys = load_pickle(file, self.path)
            position = file.tell()
        storages = {storage.key: storage for storage in _storages(self.root)}
        if not isinstance(keys, list):
            raise NotACheckpointError(f"{self.path}: damaged: no list of storages")
        for key in keys:
            if not isinstance(key, str) or key not in storages:
                raise NotACheckpointError(
                    f"{self.path}: damaged: a storage that no tensor uses", hint=_HINT_AGAIN
                )
            numel = int.from_bytes(self._bytes(position, 8), "little")
            nbytes = numel * self._itemsize(storages[key])
            self._places[key] = position + 8, nbytes
            position += 8 + nbytes
            if position > self._size_bytes:
                raise NotACheckpointError(
                    f"{self.path}: truncated: storage {key} ends at byte {position}, the file at "
                    f"byte {self._size_bytes}",
                    hint=_HINT_AGAIN,
                )

    def _itemsize(self, storage: Storage, dtype: str | None = None) -> int:
        return 1 if storage.kind == _UNTYPED else SIZES_BITS[self.dtype_of(storage, dtype)] // 8

    def dtype_of(self, storage: Storage, dtype: str | None = None) -> str:
        """Return the safetensors dtype of a tensor.

        Raises:
            CheckpointError: safetensors or this program has none, or the file does not say it.
        """
        name = dtype or storage.kind.removesuffix("Storage")
        if name not in _DTYPES:
            raise CheckpointError(f"{self.path}: tensors of torch's type {name} cannot be stored")
        return _DTYPES[name]

    def locate(self, name: str, tensor: StoredTensor) -> Located:
        """Return the place of a tensor's values, checked against the file.

        Raises:
            CheckpointError: The storage is missing or too short, or the tensor repeats elements.
        """
        storage = tensor.storage
        dtype = self.dtype_of(storage, tensor.dtype)
        size = SIZES_BITS[dtype] // 8
        start, nbytes = self._places.get(storage.key, (0, -1))
        if nbytes < storage.numel * self._itemsize(storage, tensor.dtype):
            what = "is missing" if nbytes < 0 else f"has only {nbytes} bytes"
            raise CheckpointError(
                f"{self.path}: {name}: its data ({storage.key[:40]!r}) {what}", hint=_HINT_AGAIN
            )
        extents = list(zip(tensor.shape, tensor.stride, strict=True))
        count = prod(tensor.shape)
        last = tensor.offset + sum((n - 1) * step for n, step in extents) if count else 0
        if count and (last + 1) * size > nbytes:
            raise CheckpointError(f"{self.path}: {name}: reaches beyond its data")
        if count * size > nbytes:
            raise CheckpointError(
                f"{self.path}: {name}: repeats its elements (an expanded tensor of shape "
                f"{tensor.shape})",
                hint="save it with .contiguous()",
            )
        begin = start + tensor.offset * size
        info = TensorInfo(name, dtype, tensor.shape, begin, begin + count * size)
        expected = [prod(tensor.shape[at + 1 :]) for at in range(len(tensor.shape))]
        is_contiguous = all(n == 1 or a == b for (n, a), b in zip(extents, expected, strict=True))
        return Located(info, None if is_contiguous or not count else tensor.stride)

    def read(self, at: Located, buffer: memoryview, offset: int) -> None:
        """Fill a buffer with bytes of a tensor in C order, from an offset within it."""
        if at.stride is None:
            read_exactly(self._descriptor, buffer, at.info.start + offset, self.path)
            return
        dtype = numpy_dtype(at.info.dtype)
        kept = [(n, step) for n, step in zip(at.info.shape, at.stride, strict=True) if n != 1]
        shape, stride = (tuple(values) for values in zip(*kept, strict=True))
        span = 1 + sum((n - 1) * step for n, step in kept)
        with os.fdopen(os.dup(self._descriptor), "rb") as file:
            mapped = np.memmap(file, np.uint8, "r", at.info.start, (span * dtype.itemsize,))
        strides = [step * dtype.itemsize for step in stride]
        view = np.lib.stride_tricks.as_strided(mapped.view(dtype), shape, strides, writeable=False)
        row = prod(shape[1:]) * dtype.itemsize
        first, last = offset // row, -(-(offset + buffer.nbytes) // row)
        block = np.ascontiguousarray(view[first:last]).reshape(-1).view(np.uint8)
        begin = offset - first * row
        buffer[:] = block[begin : begin + buffer.nbytes].data


def open_torch_file(path: Path) -> TorchFile:
    """Open a file of torch.save; only its pickles are read.

    Raises:
        NotACheckpointError: The file is not one, is damaged, or its pickle is rejected.
        CheckpointError: It could not be read.
    """
    file = TorchFile(path)
    try:
        if file.begins_with(b"PK"):
            file.read_zip()
        elif file.begins_with(_LEGACY_START):
            file.read_legacy()
        else:
            raise NotACheckpointError(f"{path}: is not a file of torch.save")
    except BaseException:
        file.__exit__()
        raise
    return file


def find_torch_file(path: Path) -> Path | None:
    """Return the file of torch.save at a path, whatever its name is, or None.

    In a folder it is `pytorch_model.bin`, or open_clip's, if no safetensors file is there.
    """
    if path.is_dir():
        if any(path.glob("*.safetensors")):
            return None
        found = [path / name for name in TORCH_NAMES if (path / name).is_file()]
        return found[0] if found else None
    try:
        with path.open("rb") as file:
            start = file.read(len(_LEGACY_START))
    except OSError:
        return None
    return path if start == _LEGACY_START or start.startswith(b"PK\x03\x04") else None


def _storages(root: Any) -> Iterable[Storage]:
    """Yield every storage that an object refers to; each object is visited once."""
    seen: set[int] = set()
    pending = [root]
    while pending:
        value = pending.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Storage):
            yield value
        elif isinstance(value, StoredTensor):
            pending.append(value.storage)
        elif isinstance(value, dict):
            pending += value.values()
        elif isinstance(value, list | tuple):
            pending += value
        elif isinstance(value, UnsupportedTensor):
            pending += value.args
        elif isinstance(value, Record):
            pending += [value.args, value.state, value.items, value.elements]


class TorchReader(CheckpointReader):
    """The weights of an open file of torch.save, as a checkpoint whose tensors are read."""

    def __init__(self, file: TorchFile, state: Mapping[str, StoredTensor]) -> None:
        self.path, self.files = file.path, (file.path,)
        self.metadata = {}
        self._file = file
        self._located = {name: file.locate(name, state[name]) for name in sorted(state)}
        self.tensors = {name: at.info for name, at in self._located.items()}

    def __exit__(self, *_: object) -> None:
        self._file.__exit__()

    @cached_property
    def card(self) -> Card | None:
        """None: only safetensors files have one."""
        return None

    @property
    def partial(self) -> tuple[str, str] | None:
        """None: a file of torch.save is not sharded."""
        return None

    def read_into(self, name: str, buffer: memoryview, offset: int = 0) -> None:
        """Fill a buffer with bytes of a tensor; see `CheckpointReader.read_into`."""
        at = self._located[name]
        if offset + buffer.nbytes > at.info.nbytes:
            raise ValueError(f"{name} has {at.info.nbytes} bytes, not {offset + buffer.nbytes}")
        self._file.read(at, buffer, offset)


def open_torch_weights(path: Path, *, key: str | None = None) -> tuple[TorchReader, list[str]]:
    """Open the weights in a file of torch.save, and say what was chosen and renamed.

    Args:
        key: Where the weights are in the saved object, see `state_dicts.find_state_dict`.
    Raises:
        CheckpointError: See `open_torch_file`, `find_state_dict` and `TorchFile.locate`.
        UsageError: `key` does not fit.
    """
    file = open_torch_file(path)
    try:
        state = find_state_dict(file.root, path, key=key)
        reader = TorchReader(file, state.tensors)
    except BaseException:
        file.__exit__()
        raise
    shared = Counter((at.storage.key, at.offset, at.shape) for at in state.tensors.values())
    if tied := sum(count - 1 for count in shared.values()):
        return reader, [*state.notes, f"{counted(tied, 'tensor')} shared in the file are copies"]
    return reader, [*state.notes]
