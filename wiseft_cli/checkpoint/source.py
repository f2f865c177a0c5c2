"""A set of named tensors to read from, in one file or sharded over several.

What a person names may be a safetensors file, a `*.safetensors.index.json`, or a folder that
holds one of either. It reads headers at once and tensor bytes when asked, and writes nothing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any

from wiseft_cli.checkpoint.card import METADATA_KEY, Card
from wiseft_cli.checkpoint.header import MAX_HEADER_BYTES, TensorInfo, open_regular_file
from wiseft_cli.checkpoint.reader import CheckpointReader
from wiseft_cli.errors import CheckpointError, NotACheckpointError, list_some

INDEX_SUFFIX = ".safetensors.index.json"
FILE_SUFFIX = ".safetensors"


class CheckpointSource:
    """The tensors of one or more open files; use it as a context manager.

    Attributes:
        path: What the person named.
        files: Every file it is read from, an index included.
        tensors: The tensors by name; each one's offsets count in its own file.
        metadata: `__metadata__`; of several shards, the entries that all of them share.
    """

    def __init__(
        self, path: Path, *, files: Sequence[Path], readers: Sequence[CheckpointReader]
    ) -> None:
        self.path = path
        self.files = tuple(files)
        self._readers = tuple(readers)
        self._reader_of = {name: reader for reader in readers for name in reader.tensors}
        self.tensors: Mapping[str, TensorInfo] = {
            name: reader.tensors[name] for name, reader in self._reader_of.items()
        }
        first, *others = [reader.metadata for reader in readers]
        self.metadata: Mapping[str, str] = {
            key: value
            for key, value in first.items()
            if all(other.get(key) == value for other in others)
        }

    def __enter__(self) -> CheckpointSource:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for reader in self._readers:
            reader.__exit__(kind, error, trace)

    @property
    def card(self) -> Card | None:
        """The card, or None where there is none; a sharded checkpoint has none.

        Raises:
            CheckpointError: The card is damaged or newer than this version.
        """
        return self._readers[0].card if len(self._readers) == 1 else None

    @property
    def size_bytes(self) -> int:
        """Bytes of all tensors together."""
        return sum(info.nbytes for info in self.tensors.values())

    def read_into(self, name: str, buffer: memoryview, offset: int = 0) -> None:
        """Fill a buffer with a tensor's bytes from `offset` on; safe from several threads.

        Raises:
            CheckpointError: The file ended or could not be read.
        """
        self._reader_of[name].read_into(name, buffer, offset)


def open_source(path: Path) -> CheckpointSource:
    """Open a safetensors file, a sharded checkpoint's index, or a folder that holds one.

    Raises:
        NotACheckpointError: There is no such checkpoint, or a file of it is none.
        CheckpointError: The index and its shards do not agree.
    """
    if path.is_dir():
        return _open_file_or_index(_only_checkpoint_in(path), named=path)
    return _open_file_or_index(path, named=path)


def stem_of(path: Path) -> str:
    """Return a checkpoint's name without folder and suffix; of a folder, the folder's name."""
    name = path.resolve().name if path.is_dir() else path.name
    for suffix in (INDEX_SUFFIX, FILE_SUFFIX):
        if name.endswith(suffix) and name != suffix:
            return name.removesuffix(suffix)
    return name


def _only_checkpoint_in(folder: Path) -> Path:
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise NotACheckpointError(f"{folder}: cannot be opened: {error.strerror}") from None
    indices = [name for name in names if name.endswith(INDEX_SUFFIX)]
    files = [name for name in names if name.endswith(FILE_SUFFIX)]
    # A sharded checkpoint's shards lie beside its index.
    found = indices or files
    if len(found) == 1:
        return folder / found[0]
    if not found:
        raise NotACheckpointError(
            f"{folder}: a folder without any *{FILE_SUFFIX} or *{INDEX_SUFFIX}"
        )
    raise NotACheckpointError(
        "\n  ".join([f"{folder}: a folder with {len(found)} checkpoints:", *list_some(found)]),
        hint="name one of them",
    )


def _open_file_or_index(path: Path, *, named: Path) -> CheckpointSource:
    if not path.name.endswith(".json"):
        return CheckpointSource(named, files=[path], readers=[CheckpointReader(path)])
    shard_of = _read_index(path)
    shards = sorted(set(shard_of.values()))
    with ExitStack() as opened:
        readers = {
            shard: opened.enter_context(CheckpointReader(path.parent / shard)) for shard in shards
        }
        _check_shards(path, shard_of, readers)
        opened.pop_all()
    files = [path, *(path.parent / shard for shard in shards)]
    return CheckpointSource(named, files=files, readers=list(readers.values()))


def _read_index(path: Path) -> dict[str, str]:
    """Return the shard of each tensor by name, having trusted nothing in the index."""
    descriptor = open_regular_file(path)
    with os.fdopen(descriptor, "rb") as file:
        text = file.read(MAX_HEADER_BYTES + 1)
    if len(text) > MAX_HEADER_BYTES:
        raise NotACheckpointError(f"{path}: more than {MAX_HEADER_BYTES} bytes, too long an index")
    try:
        document: Any = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise NotACheckpointError(f"{path}: not a JSON index of shards: {error}") from None
    weight_map = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise NotACheckpointError(
            f"{path}: not an index of shards: expected an object weight_map, names to files"
        )
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or not _is_inside(shard):
            raise CheckpointError(
                f"{path}: tensor {name!r}: shard {shard!r} is not a file name inside the folder"
            )
    return weight_map


def _is_inside(shard: str) -> bool:
    try:
        shard.encode()  # JSON can spell halves of characters, which no file name has
    except UnicodeEncodeError:
        return False
    parts = PurePosixPath(shard).parts
    return bool(parts) and not shard.startswith("/") and ".." not in parts and "\0" not in shard


def _check_shards(
    path: Path, shard_of: Mapping[str, str], readers: Mapping[str, CheckpointReader]
) -> None:
    """Refuse an index that does not say exactly what lies in its shards, all faults at once."""
    faults = [
        f"{name}: not in {shard}, where the index places it"
        for name, shard in shard_of.items()
        if name not in readers[shard].tensors
    ]
    for shard, reader in readers.items():
        faults += [
            f"{name}: in {shard}, but the index "
            + (f"places it in {shard_of[name]}" if name in shard_of else "does not name it")
            for name in reader.tensors
            if shard_of.get(name) != shard
        ]
        if METADATA_KEY in reader.metadata and len(readers) > 1:
            faults.append(f"{shard}: carries a card of its own, as only a whole checkpoint may")
    if faults:
        raise CheckpointError(
            "\n  ".join([f"{path}: does not agree with its shards", *list_some(faults)]),
            hint="fetch the index and all shards again, from the same place",
        )
