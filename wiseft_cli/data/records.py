"""The images of a set, stored compactly: about 50 bytes per image instead of 375.

The records of ten million images fit in memory, and worker processes that read them share the
memory with their parent, because no Python object is kept per image.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """One image of a set.

    Attributes:
        path: Path below the root, with `/` between parts; for an image in a shard, the shard's
            path and the name of the member.
        label: Name of the image's class in the set.
        size_bytes: Size of the encoded image.
        group: Group of the image, for `worst_group` accuracy; None without groups.
        container: Path of the shard below the root; None for an image in a file of its own.
        offset: Position of the image in its container: the first byte in a shard, the row in an
            array.
    """

    path: str
    label: str
    size_bytes: int
    group: str | None = None
    container: str | None = None
    offset: int | None = None


class _Texts:
    """A column of texts of which many are equal; None is an item like any other."""

    def __init__(self) -> None:
        self.distinct: list[str | None] = []
        self.numbers = array("i")
        self._number_of: dict[str | None, int] = {}

    def append(self, text: str | None) -> None:
        number = self._number_of.setdefault(text, len(self.distinct))
        if number == len(self.distinct):
            self.distinct.append(text)
        self.numbers.append(number)

    def __getitem__(self, index: int) -> str | None:
        return self.distinct[self.numbers[index]]


class ImageRecords(Sequence[ImageRecord]):
    """An immutable sequence of image records; each record is made when it is asked for.

    Args:
        records: The records in order; they are read once.
    """

    def __init__(self, records: Iterable[ImageRecord] = ()) -> None:
        # A path is stored as its folder, which many images share, and its name.
        self._names = bytearray()
        self._name_ends = array("Q", [0])
        self._folders, self._labels = _Texts(), _Texts()
        self._groups, self._containers = _Texts(), _Texts()
        self._sizes, self._offsets = array("q"), array("q")
        self._is_sorted, last = True, ""
        for record in records:
            self._append(record)
            self._is_sorted = self._is_sorted and last <= record.path
            last = record.path

    def _append(self, record: ImageRecord) -> None:
        folder, _, name = record.path.rpartition("/")
        self._names += name.encode("utf-8", "surrogatepass")
        self._name_ends.append(len(self._names))
        self._folders.append(folder if len(name) < len(record.path) else None)
        self._labels.append(record.label)
        self._groups.append(record.group)
        self._containers.append(record.container)
        self._sizes.append(record.size_bytes)
        self._offsets.append(-1 if record.offset is None else record.offset)

    @property
    def labels(self) -> tuple[str, ...]:
        """The distinct labels, in the order of their first image."""
        return tuple(label for label in self._labels.distinct if label is not None)

    @property
    def groups(self) -> tuple[str, ...]:
        """The distinct groups, in the order of their first image."""
        return tuple(group for group in self._groups.distinct if group is not None)

    @property
    def label_indices(self) -> npt.NDArray[np.int32]:
        """The position in `labels` of the label of each image, shape (n,)."""
        return np.frombuffer(self._labels.numbers, np.int32) if len(self) else np.zeros(0, np.int32)

    def map_labels(self, index_of: Mapping[str, int]) -> list[int]:
        """Return for each image the number that a mapping has for its label."""
        numbers = np.array([index_of[label] for label in self.labels], np.int64)
        found: list[int] = numbers[self.label_indices].tolist()
        return found

    def path(self, index: int) -> str:
        """Return the path of an image."""
        begin, end = self._name_ends[index], self._name_ends[index + 1]
        name = self._names[begin:end].decode("utf-8", "surrogatepass")
        folder = self._folders[index]
        return name if folder is None else f"{folder}/{name}"

    def sorted_by_path(self) -> ImageRecords:
        """Return the records in the code point order of their paths."""
        if self._is_sorted:
            return self
        paths = np.array([self.path(index) for index in range(len(self))], object)
        order = paths.argsort(kind="stable")
        del paths  # twice the size of the records
        return self.take(order)

    def take(self, indices: Iterable[int]) -> ImageRecords:
        """Return the records at some positions."""
        return ImageRecords(self[int(index)] for index in indices)

    def __len__(self) -> int:
        return len(self._sizes)

    @overload
    def __getitem__(self, index: int) -> ImageRecord: ...
    @overload
    def __getitem__(self, index: slice) -> ImageRecords: ...
    def __getitem__(self, index: int | slice) -> ImageRecord | ImageRecords:
        if isinstance(index, slice):
            return self.take(range(*index.indices(len(self))))
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        index %= len(self)
        offset = self._offsets[index]
        return ImageRecord(
            self.path(index),
            self._labels[index] or "",
            self._sizes[index],
            self._groups[index],
            self._containers[index],
            None if offset < 0 else offset,
        )

    def __iter__(self) -> Iterator[ImageRecord]:
        return (self[index] for index in range(len(self)))

    def __eq__(self, other: Any) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(x == y for x, y in zip(self, other, strict=True))

    def __hash__(self) -> int:
        return hash(bytes(self._names))

    def __repr__(self) -> str:
        return f"ImageRecords({list(self)!r})"
