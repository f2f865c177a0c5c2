"""Published sets in NumPy's files: one array of pictures and one of labels.

CIFAR-10.1 has one `.npy` file for each, CIFAR-10.2 a `.npz` with both. Nothing is unpickled.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from wiseft_cli.data.image_set import ImageSet
from wiseft_cli.data.layouts.local_copy import LocalCopy
from wiseft_cli.data.records import ImageRecord, ImageRecords
from wiseft_cli.errors import DatasetError

if TYPE_CHECKING:
    import numpy.typing as npt
    from PIL import Image


class ArrayFile(NamedTuple):
    """An array in a file.

    Attributes:
        path: A `.npy` or `.npz` file.
        member: The array's name in a `.npz` file.
        source: Where the file is published.
    """

    path: Path
    member: str | None
    source: str

    def __str__(self) -> str:
        """Return the file and, in an archive, the array's name."""
        return str(self.path) if self.member is None else f"{self.path}, {self.member}"

    def read(self) -> npt.NDArray[Any]:
        """Return the array; a `.npy` file is mapped into memory.

        Raises:
            DatasetError: The file is damaged or of another kind, or needs unpickling.
        """
        try:
            if self.member is None:
                return np.lib.format.open_memmap(self.path, mode="r")
            with zipfile.ZipFile(self.path) as archive, archive.open(f"{self.member}.npy") as file:
                array: npt.NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
                return array
        except Exception as error:  # a damaged file makes NumPy and zipfile raise any class
            reason = " ".join(str(error).split()) or type(error).__name__
            raise DatasetError(
                f"{self}: cannot be read: {reason}",
                hint=f"get {self.path.name} from {self.source} (for a Git LFS pointer,"
                " `git lfs pull`)",
            ) from None


class ArrayReader:
    """Reads the pictures of an array of shape (N, H, W, 3); a record's `offset` is its row.

    Each process opens the array itself, when it reads its first picture.
    """

    def __init__(self, file: ArrayFile) -> None:
        self.file = file
        self._pictures: npt.NDArray[np.uint8] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without the array, for another process."""
        return {**self.__dict__, "_pictures": None}

    @property
    def pictures(self) -> npt.NDArray[np.uint8]:
        """The array.

        Raises:
            DatasetError: The file cannot be read, or holds an array of another form.
        """
        if self._pictures is None:
            pictures = self.file.read()
            if pictures.dtype != np.uint8 or pictures.ndim != 4 or pictures.shape[3] != 3:
                raise DatasetError(
                    f"{self.file}: holds {pictures.dtype} of shape {pictures.shape}, expected"
                    " pictures: uint8 of shape (N, H, W, 3)"
                )
            self._pictures = pictures
        return self._pictures

    def read(self, record: ImageRecord) -> Image.Image:
        """Return the picture of a record.

        Raises:
            DatasetError: The file has changed since it was listed.
        """
        from PIL import Image  # lazy: listing a set does not need it

        row = record.offset or 0
        if row >= len(self.pictures):
            raise DatasetError(
                f"cannot read image {record.path}: {self.file.path} has {len(self.pictures)}"
                " pictures; it has changed since it was listed"
            )
        return Image.fromarray(np.ascontiguousarray(self.pictures[row]))


def list_arrays(copy: LocalCopy) -> ImageSet:
    """List a set of two arrays, whose labels are positions among the card's classes.

    The card's options are the files `images` and `labels`, or `npz`, a file with arrays of these
    names.

    Raises:
        DatasetError: A file is missing, or an array is not of the expected form.
    """
    folder = copy.find_folder()
    options = copy.split.options
    members: tuple[str | None, str | None] = (None, None)
    if "npz" in options:
        files, members = (options["npz"], options["npz"]), ("images", "labels")
    elif {"images", "labels"} <= options.keys():
        files = (options["images"], options["labels"])
    else:
        raise copy.error(
            "the card does not name the files of the arrays",
            hint="options: {images: FILE, labels: FILE}, or {npz: FILE} for both",
        )
    copy.require_files(folder, tuple(dict.fromkeys(files)))
    pictures, numbers = (
        ArrayFile(folder / file, member, copy.card.source)
        for file, member in zip(files, members, strict=True)
    )
    reader = ArrayReader(pictures)
    labels = _labels(copy, numbers, len(reader.pictures))
    size_bytes = reader.pictures[0].nbytes
    width = len(str(len(labels) - 1))
    records = ImageRecords(
        ImageRecord(f"{files[0]}/{row:0{width}}", label, size_bytes, container=files[0], offset=row)
        for row, label in enumerate(labels)
    )
    return ImageSet(copy.name, folder, records, reader=reader)


def _labels(copy: LocalCopy, file: ArrayFile, n_images: int) -> list[str]:
    numbers = file.read()
    if numbers.dtype.kind not in "iu" or numbers.shape != (n_images,) or not n_images:
        raise DatasetError(
            f"{file}: holds {numbers.dtype} of shape {numbers.shape}, expected labels: integers of"
            f" shape ({n_images},), one per image and at least one"
        )
    class_ids = copy.card.class_ids
    if not 0 <= int(numbers.min()) <= int(numbers.max()) < len(class_ids):
        raise DatasetError(
            f"{file}: has labels from {numbers.min()} to {numbers.max()}, expected positions among"
            f" the {len(class_ids)} classes of {copy.card.title}, 0 to {len(class_ids) - 1}"
        )
    return [class_ids[number] for number in numbers.tolist()]
