"""Reads an array out of NumPy's files: a .npy, mapped into memory, or a member of a .npz.

Headers are checked before anything is read, so that what is wrong is told in this program's
words. Nothing is unpickled. What an array has to hold is the caller's to check.
Source: the format is `numpy.lib.format`'s.
"""

from __future__ import annotations

import math
import os
import zipfile
import zlib
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np

from wiseft_cli.errors import DatasetError, list_some

if TYPE_CHECKING:
    import numpy.typing as npt

_MAGIC = b"\x93NUMPY"
_BEGINNINGS = (
    (b"version https://git-lfs", "a Git LFS pointer (`git lfs pull` fetches the file)"),
    (_MAGIC, "a .npy file of one array"),
    (b"PK", "a .npz archive"),
    (b"\x80", "a pickle, which can run any program when it is opened"),
)
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


class Place(NamedTuple):
    """Where an array is.

    Attributes:
        path: A .npy file, or a .npz.
        member: The array's name in the .npz.
        source: Where the file is published, for messages.
    """

    path: Path
    member: str | None
    source: str

    def __str__(self) -> str:
        """Return how messages call it."""
        return str(self.path) if self.member is None else f"{self.path}, {self.member}"

    def refusal(self, fault: str) -> DatasetError:
        """Return the error of an array that cannot be read."""
        return DatasetError(f"{self}: {fault}", hint=f"get {self.path.name} from {self.source}")


def read_array(place: Place) -> npt.NDArray[Any]:
    """Return an array, of any kind but Python objects.

    Raises:
        DatasetError: Unreadable, another kind of file, cut off, damaged, or of Python objects.
    """
    try:
        with open(place.path, "rb") as file:
            if place.member is not None:
                return _read_member(place, file, place.member)
            _check_header(place, file, os.fstat(file.fileno()).st_size)
        return np.load(place.path, mmap_mode="r", allow_pickle=False)  # type: ignore[no-any-return]
    except OSError as error:
        raise place.refusal(f"cannot be read: {error.strerror or error}") from None


def _read_member(place: Place, file: IO[bytes], member: str) -> npt.NDArray[Any]:
    if not zipfile.is_zipfile(file):
        file.seek(0)
        beginning = file.read(32)
        if beginning.startswith(b"PK"):
            raise place.refusal("the archive is cut off or damaged: its list of members is missing")
        raise place.refusal(f"is {_described(beginning)}, expected a .npz archive of arrays")
    try:
        with zipfile.ZipFile(file) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
            if member not in names:
                found = ", ".join(list_some([repr(name) for name in names])) or "nothing"
                raise place.refusal(f"no array of that name is in the archive; it has {found}")
            info = archive.infolist()[names.index(member)]
            with archive.open(info) as stream:
                _check_header(place, stream, info.file_size)
            with archive.open(info) as stream:
                return np.lib.format.read_array(stream, allow_pickle=False)
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError) as error:
        # Of the sum, of the stream or, for encrypted members, of zipfile itself.
        raise place.refusal(f"the archive is damaged: {' '.join(str(error).split())}") from None


def _check_header(place: Place, file: IO[bytes], size_bytes: int) -> None:
    """Refuse what is no array, an array of Python objects, and one that is cut off."""
    beginning = file.read(len(_MAGIC) + 2)
    if not beginning.startswith(_MAGIC):
        raise place.refusal(
            f"is {_described(beginning + file.read(24))}, expected a .npy file of one array"
        )
    read_header = _HEADERS.get((beginning[-2], beginning[-1]))
    if read_header is None or len(beginning) < len(_MAGIC) + 2:
        raise place.refusal("has a header that no array of numbers has; the file is damaged")
    try:
        shape, _, kind = read_header(file)
    except Exception:  # a damaged header makes numpy raise any class
        raise place.refusal("is cut off or damaged: its header is not whole") from None
    if kind.hasobject:
        raise place.refusal(
            "holds Python objects, a pickle, which can run any program when it is opened; nothing"
            " is unpickled here"
        )
    expected = file.tell() + math.prod(shape) * kind.itemsize
    if size_bytes < expected:
        raise place.refusal(f"is cut off: it has {size_bytes:,} bytes of {expected:,}")


def _described(beginning: bytes) -> str:
    """Say what a file is by its first bytes."""
    if not beginning:
        return "empty"
    for start, what in _BEGINNINGS:
        if beginning.startswith(start):
            return what
    return f"a file that begins with {beginning[:16]!r}"
