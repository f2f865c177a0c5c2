"""Published sets whose pictures are one array and whose labels another, in NumPy's files.

CIFAR-10.1 has a .npy file for each, CIFAR-10.2 both in a .npz. `npy_file.py` reads them;
pictures of a .npy are mapped into memory and taken one at a time.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wiseft_cli.data.card_form import DatasetCard, Part
from wiseft_cli.data.files import path_exists
from wiseft_cli.data.image_set import ImageRecord, ImageSet
from wiseft_cli.data.layouts.npy_file import Place, read_array
from wiseft_cli.data.layouts.places import find_folder, require_files
from wiseft_cli.errors import DatasetError

if TYPE_CHECKING:
    import numpy.typing as npt
    from PIL import Image


class ArrayReader:
    """Gives pictures out of an array (N, H, W, 3) of bytes; `offset` is their row.

    The array is opened when the first picture is asked for, in each process for itself.

    Args:
        place: Where it is.
    """

    def __init__(self, place: Place) -> None:
        self.place = place
        self._pictures: npt.NDArray[np.uint8] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave the array itself behind: a process that is sent the reader opens its own."""
        return {**self.__dict__, "_pictures": None}

    @property
    def pictures(self) -> npt.NDArray[np.uint8]:
        """The array.

        Raises:
            DatasetError: The file holds none of that form.
        """
        if self._pictures is None:
            pictures = read_array(self.place)
            if pictures.dtype != np.uint8 or pictures.ndim != 4 or pictures.shape[3] != 3:
                raise DatasetError(
                    f"{self.place}: holds {pictures.dtype} of shape"
                    f" {pictures.shape}, expected pictures: uint8 of shape (N, H, W, 3)"
                )
            self._pictures = pictures
        return self._pictures

    def read(self, record: ImageRecord) -> Image.Image:
        """Return the picture of a record.

        Raises:
            DatasetError: The file has changed since it was listed.
        """
        from PIL import Image  # lazy: listing a set needs none of it

        row = record.offset or 0
        if row >= len(self.pictures):
            raise DatasetError(
                f"cannot read image {record.path}: {self.place.path} has {len(self.pictures)}"
                " pictures; it has changed since it was listed"
            )
        return Image.fromarray(np.ascontiguousarray(self.pictures[row]))


def list_arrays(card: DatasetCard, part: Part, root: Path, *, name: str) -> ImageSet:
    """List a set of two arrays; labels are positions among the card's classes.

    The card's options are the files, `images` and `labels`, or `npz`, a file that has members of
    these names, and `pickled`, a file of the same that is not read.

    Raises:
        DatasetError: Nothing there, arrays of another form, or labels that are no class.
    """
    folder = find_folder(card, part, root, name=name)
    options, archive = part.options, part.options.get("npz")
    if archive is None:
        if not {"images", "labels"} <= set(options):
            raise DatasetError(
                f"the card {card.name!r} does not say which files its arrays are in",
                hint="options: {images: FILE, labels: FILE}, or {npz: FILE} for both",
            )
        files = (options["images"], options["labels"])
        members: tuple[str | None, ...] = (None, None)
    else:
        files, members = (archive, archive), ("images", "labels")
        _refuse_pickled(card, folder, archive, options.get("pickled"), name=name)
    require_files(card, part, folder, tuple(dict.fromkeys(files)), name=name)
    pictures, numbers = (
        Place(folder / file, member, card.source)
        for file, member in zip(files, members, strict=True)
    )
    reader = ArrayReader(pictures)
    labels = _labels(card, numbers, len(reader.pictures))
    size_bytes = reader.pictures[0].nbytes
    width = len(str(len(labels) - 1))
    records = tuple(
        ImageRecord(f"{files[0]}/{row:0{width}}", label, size_bytes, container=files[0], offset=row)
        for row, label in enumerate(labels)
    )
    return ImageSet(name, folder, records, reader=reader)


def _refuse_pickled(
    card: DatasetCard, folder: Path, archive: str, pickled: str | None, *, name: str
) -> None:
    if pickled is None or path_exists(folder / archive) or not path_exists(folder / pickled):
        return
    raise DatasetError(
        f"image set {name!r}: {folder / pickled} is a pickled dictionary, which can run any program"
        " when it is opened; nothing is unpickled here",
        hint=f"get {archive} from {card.source}, which has the same images as plain arrays",
    )


def _labels(card: DatasetCard, place: Place, n_images: int) -> list[str]:
    numbers = read_array(place)
    if numbers.dtype.kind not in "iu" or numbers.shape != (n_images,) or not n_images:
        raise DatasetError(
            f"{place}: holds {numbers.dtype} of shape {numbers.shape}, expected labels: integers of"
            f" shape ({n_images},), one an image and at least one"
        )
    n_classes = len(card.class_ids)
    if not 0 <= int(numbers.min()) <= int(numbers.max()) < n_classes:
        raise DatasetError(
            f"{place}: has labels from {numbers.min()} to {numbers.max()}, expected positions among"
            f" the {n_classes} classes of {card.title}, 0 to {n_classes - 1}"
        )
    return [card.class_ids[number] for number in numbers.tolist()]
