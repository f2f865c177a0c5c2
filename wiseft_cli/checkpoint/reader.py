"""Open a checkpoint and read its card and tensors, from one file or from shards.

Opening reads only headers; the bytes of a tensor are read on request. Tensors are not
interpreted here: `model/classifier.py` and `merging/` do that.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from wiseft_cli.checkpoint.card import METADATA_KEY, NO_MODEL_HINT, Card, parse_card
from wiseft_cli.checkpoint.digest import algorithm_of, content_digest, new_hash
from wiseft_cli.checkpoint.format import (
    FLOATING_DTYPES,
    Header,
    TensorInfo,
    numpy_dtype,
    open_regular_file,
    read_exactly,
    read_header_from,
)
from wiseft_cli.checkpoint.shards import (
    FILE_SUFFIX,
    INDEX_SUFFIX,
    CheckpointFiles,
    find_checkpoint_files,
    shard_number,
)
from wiseft_cli.errors import CheckpointError, NotACheckpointError, counted

RECORD_TENSOR = "record"
"""Tensor that only the saved state of a run has: bytes, so that the content digest covers them."""

FISHER_KEY = "wiseft_fisher"
"""Metadata entry of a file with Fisher information (`merging/fisher_file.py`)."""

_CHUNK_BYTES = 1 << 20


class _OpenFile:
    """One open safetensors file: its descriptor and its header."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.descriptor = open_regular_file(path)
        try:
            self.header: Header = read_header_from(self.descriptor, path)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        os.close(self.descriptor)


class CheckpointReader:
    """An open checkpoint; `open_checkpoint` creates it. Use it as a context manager.

    Attributes:
        path: The path that was opened.
        files: Every file it is read from, an index of shards included.
        tensors: Tensors by name; their offsets count within the file that holds them.
        metadata: `__metadata__`; for shards, the entries that are equal in all of them, and the
            card in the index.
    """

    def __init__(self, path: Path, found: CheckpointFiles, opened: Sequence[_OpenFile]) -> None:
        self.path = path
        self.files = found.files if found.index is None else (found.index, *found.files)
        self._opened = tuple(opened)
        self._file_of = {name: file for file in opened for name in file.header.tensors}
        self.tensors: Mapping[str, TensorInfo] = {
            name: file.header.tensors[name] for name, file in self._file_of.items()
        }
        in_index = {} if found.card is None else {METADATA_KEY: found.card}
        shared = shared_entries([file.header.metadata for file in opened])
        self.metadata: Mapping[str, Any] = {**in_index, **shared}

    def __enter__(self) -> CheckpointReader:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._opened:
            file.close()

    @cached_property
    def card(self) -> Card | None:
        """The card, or None if there is none; that of a checkpoint in shards is in its index.

        Raises:
            CheckpointError: The card is damaged or newer than this version.
        """
        if METADATA_KEY not in self.metadata:
            return None
        first = self._opened[0]
        path = first.path if METADATA_KEY in first.header.metadata else self.files[0]
        return parse_card(self.metadata[METADATA_KEY], path)

    @property
    def digest_algorithm(self) -> str:
        """The hash of its content digest: that of the card, BLAKE3 without a card."""
        return algorithm_of(self.card.digest if self.card else None)

    @property
    def changes(self) -> Mapping[str, Any]:
        """Options with which the tensors differ from those of the files, for a merge's history."""
        return {}

    @property
    def partial(self) -> tuple[str, str] | None:
        """What the file is if it is not a whole checkpoint, and the remedy; otherwise None."""
        if RECORD_TENSOR in self.tensors and any(n.startswith("weights.") for n in self.tensors):
            return "the saved state of a fine-tuning run, not a checkpoint", _way_out(self.path)
        if FISHER_KEY in self.metadata:
            return (
                "the Fisher information of a checkpoint, not a checkpoint",
                "wiseft merge --method fisher takes it with --fisher",
            )
        number = shard_number(self.path)
        if number is None or len(self._opened) > 1 or METADATA_KEY in self.metadata:
            return None
        indices = sorted(self.path.parent.glob(f"*{INDEX_SUFFIX}"))
        whole = f"index {indices[0]}" if indices else f"folder {self.path.parent} with all shards"
        return f"shard {number[0]} of {number[1]} of a checkpoint", f"name the {whole}"

    @property
    def size_bytes(self) -> int:
        """Total size of the tensors in bytes."""
        return sum(info.nbytes for info in self.tensors.values())

    def read_into(self, name: str, buffer: memoryview, offset: int = 0) -> None:
        """Fill a buffer with bytes of a tensor; may be called from several threads.

        Args:
            buffer: Writable bytes; its length is the number of bytes to read.
            offset: Position of the first byte within the tensor.
        Raises:
            CheckpointError: The file ended early or could not be read.
        """
        info, file = self.tensors[name], self._file_of[name]
        if offset + buffer.nbytes > info.nbytes:
            raise ValueError(f"{name} has {info.nbytes} bytes, not {offset + buffer.nbytes}")
        read_exactly(file.descriptor, buffer, info.start + offset, file.path)

    def read_array(self, name: str) -> np.ndarray:
        """Return a tensor as a new array in C order, in its stored dtype."""
        info = self.tensors[name]
        array = np.empty(info.shape, dtype=numpy_dtype(info.dtype))
        if info.nbytes:
            self.read_into(name, array.reshape(-1).view(np.uint8).data)
        return array


def open_checkpoint(path: Path, *, allow_shards: bool = False) -> CheckpointReader:
    """Open a checkpoint for reading.

    Args:
        path: A safetensors file.
        allow_shards: Accept also an index of shards (`*.safetensors.index.json`), or a folder
            that holds one checkpoint; shards without an index if all of them are there.
    Raises:
        NotACheckpointError: A file is not a safetensors file, or the folder does not hold
            exactly one checkpoint.
        CheckpointError: An index and its shards do not agree.
    """
    found = find_checkpoint_files(path) if allow_shards else CheckpointFiles((path,))
    with ExitStack() as stack:
        opened = []
        for file in found.files:
            opened.append(_OpenFile(file))
            stack.callback(opened[-1].close)
        _check_shards(path, found, opened)
        stack.pop_all()
    return CheckpointReader(path, found, opened)


def read_card(path: Path, *, roles: Sequence[str] | None = None) -> Card:
    """Return the card of a wiseft checkpoint; only headers are read.

    Args:
        path: A safetensors file, an index of shards, or a folder that holds one checkpoint.
        roles: Accepted roles; None accepts any.
    Raises:
        NotACheckpointError: The file is not a safetensors file, is a shard, the saved state of
            a run or Fisher information, or has no card.
        CheckpointError: The card is damaged, or its role is not accepted.
    """
    with open_checkpoint(path, allow_shards=True) as reader:
        require_whole_checkpoint(reader)
        card = reader.card
    if card is None:
        raise NotACheckpointError(
            f"{path}: has no wiseft card, expected a checkpoint written by wiseft",
            hint="make one with `wiseft zeroshot-head`",
        )
    if roles is not None and card.role not in roles:
        raise CheckpointError(f"{path}: is a {card.role} checkpoint, expected {' or '.join(roles)}")
    return card


def read_classifier_card(path: Path) -> Card:
    """Return the card of a checkpoint that can be run; only the header is read.

    Raises:
        NotACheckpointError: See `read_card`.
        CheckpointError: The card is damaged, or has no model, preprocessing, classes or digest.
    """
    with open_checkpoint(path, allow_shards=True) as reader:
        return require_classifier(reader)


def require_classifier(reader: CheckpointReader) -> Card:
    """Return the card of an open checkpoint; raises like `read_classifier_card`."""
    require_whole_checkpoint(reader)
    card = reader.card
    if card is None:
        raise NotACheckpointError(
            f"{reader.path}: has no wiseft card, expected a checkpoint written by wiseft",
            hint="give its image encoder a head with `wiseft zeroshot-head --image-encoder "
            f"{reader.path}`, with --model and --pretrained for the model it was trained from",
        )
    fields = {
        "model": card.model,
        "preprocessing": card.preprocess,
        "classes": card.classes,
        "digest": card.digest,
    }
    missing = [name for name, value in fields.items() if not value]
    if missing:
        raise CheckpointError(
            f"{reader.path}: its card has no {' and no '.join(missing)}, expected a classifier",
            hint="make one with `wiseft zeroshot-head`" if card.model else NO_MODEL_HINT,
        )
    return card


def require_whole_checkpoint(reader: CheckpointReader) -> None:
    """Reject a single shard of a checkpoint, the saved state of a run, and Fisher information.

    Raises:
        NotACheckpointError: The file is one of them; the hint is the remedy.
    """
    if reader.partial is not None:
        what, remedy = reader.partial
        raise NotACheckpointError(f"{reader.path}: is {what}", hint=remedy)


def _way_out(state: Path) -> str:
    """Return how to get the weights of a run whose saved state is given."""
    folder = state.parent if state.parent.name else state.absolute().parent
    output = folder.with_suffix("") if folder.suffix == ".state" else Path("OUT")
    if output.is_file():
        return f"the checkpoint of the run is {output}"
    return (
        f"continue the run with --resume; it writes the checkpoint {output} at its end; for a"
        " checkpoint of each epoch, train with --keep epochs"
    )


def stem_of(path: Path) -> str:
    """Return a checkpoint's name without folder and suffix; for a folder, the folder's name."""
    name = path.resolve().name if path.is_dir() else path.name
    for suffix in (INDEX_SUFFIX, FILE_SUFFIX):
        if name.endswith(suffix) and name != suffix:
            return name.removesuffix(suffix)
    return name


def shared_entries(mappings: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the entries that all of several mappings have with the same value."""
    first, *others = mappings
    return {
        key: value
        for key, value in first.items()
        if all(key in other and other[key] == value for other in others)
    }


@dataclass(frozen=True)
class ContentReport:
    """Result of reading all data of a checkpoint.

    Attributes:
        digest: The content digest.
        not_finite: Number of infinite or NaN elements by tensor; finite tensors are omitted.
    """

    digest: str
    not_finite: dict[str, int]

    def find_faults(self, card: Card | None) -> list[str]:
        """Return one line for a digest other than the card's and for each non-finite tensor."""
        faults = []
        if card is not None and card.digest != self.digest:
            faults.append(f"content digest {self.digest}, expected {card.digest} as in the card")
        return faults + [
            f"{name}: {counted(count, 'value')} infinite or NaN"
            for name, count in self.not_finite.items()
        ]


def read_content(
    reader: CheckpointReader,
    *,
    algorithm: str | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> ContentReport:
    """Read every tensor once, compute the content digest and count non-finite elements.

    Args:
        algorithm: The hash of the digest; None for that of the checkpoint's card.
        on_progress: Called with the number of bytes read since the last call.
    Raises:
        CheckpointError: A file ended early or could not be read.
    """
    buffer, algorithm = np.empty(_CHUNK_BYTES, np.uint8), algorithm or reader.digest_algorithm
    rows, not_finite = [], {}
    for info in reader.tensors.values():
        data_hash, count = new_hash(algorithm), 0
        for offset in range(0, info.nbytes, _CHUNK_BYTES):
            data = buffer[: min(_CHUNK_BYTES, info.nbytes - offset)]
            reader.read_into(info.name, data.data, offset)
            data_hash.update(data.data)
            count += count_not_finite(info, data)
            if on_progress:
                on_progress(data.nbytes)
        rows.append((info.name, info.dtype, info.shape, data_hash.hexdigest()))
        if count:
            not_finite[info.name] = count
    return ContentReport(content_digest(rows, algorithm), not_finite)


def count_not_finite(info: TensorInfo, data: np.ndarray) -> int:
    """Return the number of infinite or NaN elements in bytes of a tensor, 0 for integers."""
    if info.dtype not in FLOATING_DTYPES:
        return 0
    with np.errstate(invalid="ignore"):  # inspecting a signalling NaN raises the flag
        values = data.view(numpy_dtype(info.dtype))
        return len(values) - int(np.count_nonzero(np.isfinite(values)))


def has_equal_bytes(reader_0: CheckpointReader, reader_1: CheckpointReader, name: str) -> bool:
    """Return whether a tensor of the same size has the same bytes in two checkpoints."""
    size = reader_0.tensors[name].nbytes
    x, y = bytearray(_CHUNK_BYTES), bytearray(_CHUNK_BYTES)
    for offset in range(0, size, _CHUNK_BYTES):
        count = min(_CHUNK_BYTES, size - offset)
        reader_0.read_into(name, memoryview(x)[:count], offset)
        reader_1.read_into(name, memoryview(y)[:count], offset)
        if x[:count] != y[:count]:
            return False
    return True


def require_card_digest(reader: CheckpointReader, digest: str) -> None:
    """Reject a checkpoint whose content digest differs from the one in its card.

    Args:
        digest: The content digest of the tensors as read.
    Raises:
        CheckpointError: The two digests differ.
    """
    if reader.card is not None and reader.card.digest != digest:
        raise CheckpointError(
            f"{reader.path}: its tensors do not match its card: content digest {digest}, "
            f"expected {reader.card.digest}",
            hint="the file was damaged or changed by another program; fetch or make it again",
        )


def _check_shards(path: Path, found: CheckpointFiles, opened: Sequence[_OpenFile]) -> None:
    """Reject an index that does not list exactly the tensors in its shards, and doubled tensors."""
    tensors = {file.path: file.header.tensors for file in opened}
    folder = path if found.index is None else found.index.parent
    if found.shard_of is None:
        counts = Counter(name for names in tensors.values() for name in names)
        faults = [f"{name}: in {count} shards" for name, count in counts.items() if count > 1]
    else:
        faults = [
            f"{name}: not in {shard}, where the index places it"
            for name, shard in found.shard_of.items()
            if name not in tensors[folder / shard]
        ]
        faults += [
            f"{name}: in {file.relative_to(folder)}, but the index "
            + (f"places it in {placed}" if placed else "does not list it")
            for file, names in tensors.items()
            for name in names
            if folder / (placed := found.shard_of.get(name, "")) != file
        ]
    faults += [
        f"{file.path.relative_to(folder)}: has a card of its own, which only a whole checkpoint may"
        " have"
        for file in opened
        if METADATA_KEY in file.header.metadata and len(opened) > 1
    ]
    if faults:
        raise CheckpointError(
            f"{found.index}: does not agree with its shards"
            if found.index
            else f"{path}: its shards do not belong together",
            faults=faults,
            hint="fetch the index and all shards again, from the same place",
        )
