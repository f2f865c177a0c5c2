"""Published sets that torchvision reads, labelled as their card labels them.

torchvision expects a set in a folder of its own; a copy elsewhere is read through a temporary
link. Nothing is downloaded. torchvision unpickles CIFAR's files after it has verified their MD5.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wiseft_cli.data.files import file_sizes, is_regular_file
from wiseft_cli.data.image_set import ImageSet, JoinOptions
from wiseft_cli.data.layouts.local_copy import LocalCopy
from wiseft_cli.data.records import ImageRecord, ImageRecords
from wiseft_cli.data.torchvision_sets import (
    TorchvisionSet,
    TorchvisionSplit,
    find_torchvision_set,
    torchvision_class,
)
from wiseft_cli.errors import DatasetError
from wiseft_cli.prompts.documents import read_text

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class DatasetReader:
    """Reads the pictures of a torchvision dataset; a record's `offset` is its index.

    Attributes:
        dataset: A torchvision dataset; item i is (picture, class number).
        reopen: Makes the dataset in another process; None if it can be pickled.
    """

    dataset: Any
    reopen: Callable[[], Any] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the dataset, or the function that makes it."""
        if self.reopen is None:
            return DatasetReader, (self.dataset,)
        return _reopen, (self.reopen,)

    def read(self, record: ImageRecord) -> Image.Image:
        """Return the picture of a record.

        Raises:
            DatasetError: torchvision cannot read it.
        """
        try:
            image: Image.Image = self.dataset[record.offset][0]
        except Exception as error:  # torchvision raises any class
            raise DatasetError(f"cannot read image {record.path}: {error}") from None
        return image


def _reopen(reopen: Callable[[], Any]) -> DatasetReader:
    return DatasetReader(reopen(), reopen)


def list_torchvision_set(copy: LocalCopy) -> ImageSet:
    """List a set that torchvision reads; the card's option `class` names torchvision's class.

    Raises:
        DatasetError: Files are missing, torchvision rejects them, or classes are not the card's.
        MissingDependencyError: torchvision is not installed.
    """
    class_name = copy.split.options.get("class", "")
    facts = find_torchvision_set(class_name)
    split = facts.splits.get(copy.split.name)
    if split is None:
        raise copy.error(
            f"the card has a split {copy.split.name!r}, but torchvision's {class_name} has"
            f" {', '.join(filter(None, facts.splits)) or 'no splits'}"
        )
    folder = copy.find_folder()
    copy.require_files(folder, split.files)
    found = _load(copy, class_name, split, folder)
    labels = _labels(copy, found, folder)
    reader = None
    if found.paths is None:
        reader = DatasetReader(found.dataset, found.reopen)
        records = _picture_records(found.dataset, labels, copy.split.name, split.files[0])
    else:
        label_of = dict(zip(found.paths, labels, strict=True))
        if split.listing is not None:
            label_of = _select_listed(copy, folder, split.listing, label_of)
        records = _file_records(copy, folder, label_of)
    if not records:
        raise copy.error(f"torchvision finds no images in {folder}")
    records.sort(key=lambda record: record.path)
    # Where the card has no classes, those that torchvision names compete.
    join_options = JoinOptions(competing=found.names or ())
    return ImageSet(
        copy.name, folder, ImageRecords(records), join_options=join_options, reader=reader
    )


@dataclass(frozen=True)
class _Loaded:
    """A torchvision dataset with its paths and classes.

    Attributes:
        dataset: The dataset; it holds the pictures where there are no paths.
        paths: Each image's path below the set's folder; None if the images are not files.
        classes: Each image's class name, or its class number where torchvision has no names.
        names: All class names; None if torchvision has none.
        reopen: As in `DatasetReader`.
    """

    dataset: Any
    paths: tuple[str, ...] | None
    classes: tuple[str, ...]
    names: tuple[str, ...] | None
    reopen: Callable[[], Any] | None


def _load(copy: LocalCopy, class_name: str, split: TorchvisionSplit, folder: Path) -> _Loaded:
    """Make torchvision's dataset of a split in a folder.

    Raises:
        DatasetError: torchvision rejects the files, or images have no usable label.
        MissingDependencyError: torchvision is not installed.
    """
    cls, facts = torchvision_class(class_name), find_torchvision_set(class_name)
    folder = Path(os.path.abspath(folder))
    if facts.opens_files_later and not _is_in_place(folder, facts):
        raise copy.error(
            f"torchvision reads {class_name} only from a folder named {facts.folder}, not from"
            f" {folder}",
            hint=f"rename it, and name the folder that has {facts.folder}",
        )
    with _torchvision_root(folder, facts) as root:
        place = str(root / facts.folder)
        reopen = partial(_open, class_name, str(root), split.options)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # NumPy warns about files as old as CIFAR's
                dataset = reopen()
                names = None if facts.names is None else facts.names(dataset)
                numbers = np.asarray(facts.labels(dataset)).tolist()
                # Strings: a hundred thousand Path objects cost seconds.
                paths = None if facts.paths is None else list(map(os.fspath, facts.paths(dataset)))
        except Exception as error:  # a damaged file makes torchvision raise any class
            reason = f"{type(error).__name__}: {error}".replace(place, str(folder))
            raise _rejection(copy, cls, split, folder, reason) from None
    return _Loaded(
        dataset,
        None if paths is None else tuple(path.removeprefix(f"{place}{os.sep}") for path in paths),
        _class_texts(copy, folder, numbers, names),
        None if names is None else tuple(names),
        reopen if facts.opens_files_later else None,  # such a dataset cannot be pickled
    )


def _open(class_name: str, root: str, options: Mapping[str, object]) -> Any:
    return torchvision_class(class_name)(root, **options)


def _is_in_place(folder: Path, facts: TorchvisionSet) -> bool:
    expected = Path(facts.folder).parts
    return folder.parts[len(folder.parts) - len(expected) :] == expected


@contextmanager
def _torchvision_root(folder: Path, facts: TorchvisionSet) -> Iterator[Path]:
    """Yield a root below which torchvision finds the folder, through a link if necessary."""
    n_levels = len(Path(facts.folder).parts)
    if _is_in_place(folder, facts):
        yield folder.parents[n_levels - 1] if n_levels else folder
        return
    with tempfile.TemporaryDirectory(prefix="wiseft-") as root:
        link = Path(root, facts.folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(folder, target_is_directory=True)
        yield Path(root)


def _class_texts(
    copy: LocalCopy, folder: Path, numbers: list[Any], names: Sequence[str] | None
) -> tuple[str, ...]:
    if None in numbers:
        raise copy.error(
            f"torchvision finds images without a label in {folder}",
            hint="the labels of this split are not published; choose another one",
        )
    if names is None:
        return tuple(str(int(number)) for number in numbers)
    if numbers and not 0 <= min(numbers) <= max(numbers) < len(names):
        raise copy.error(
            f"torchvision finds class numbers from {min(numbers)} to {max(numbers)} in {folder},"
            f" but {len(names)} class names"
        )
    return tuple(names[int(number)] for number in numbers)


def _rejection(
    copy: LocalCopy, cls: Any, split: TorchvisionSplit, folder: Path, reason: str
) -> DatasetError:
    """Return the error of files that torchvision rejects, naming those with another MD5."""
    from torchvision.datasets.utils import check_integrity  # lazy: torch costs seconds

    md5_sums = find_torchvision_set(cls.__name__).md5_sums
    files = [] if md5_sums is None else [(folder / file, md5) for file, md5 in md5_sums(cls)]
    changed = [
        path.name
        for path, md5 in files
        if is_regular_file(path) and not check_integrity(str(path), md5)
    ]
    if changed:
        return copy.error(
            f"{folder} has files whose MD5 is not that of the published ones",
            faults=changed,
            hint=f"they are truncated, damaged or changed; get them from {copy.card.source}",
        )
    reason = " ".join(reason.split()).partition(" You can ")[0]  # what follows is about downloading
    read = [file for file in split.files if is_regular_file(folder / file)]
    return copy.error(
        f"torchvision cannot read {folder} as {cls.__name__}: {reason}",
        hint=(f"is {' or '.join(read)} damaged? " if read else "")
        + f"Compare the copy with {copy.card.source}",
    )


def _labels(copy: LocalCopy, found: _Loaded, folder: Path) -> list[str]:
    """Return the card's label of each image.

    Labels are found by class name. Class numbers are used where the installed torchvision has no
    names; they then count the card's classes (Flowers-102 in old releases).
    """
    labels = copy.card.labels
    if not labels:
        return list(found.classes)
    known = labels if found.names is not None else [str(number) for number in range(len(labels))]
    of_class = dict(zip(known, labels, strict=True))
    unknown = sorted(set(found.classes) - set(of_class))
    if unknown:
        raise copy.error(
            f"{folder} has classes that {copy.card.title} does not have (expected such as"
            f" {labels[0]!r})",
            faults=unknown,
            hint=f"is it laid out as at {copy.card.source}?",
        )
    return [of_class[text] for text in found.classes]


def _select_listed(
    copy: LocalCopy, folder: Path, listing: str, label_of: Mapping[str, str]
) -> dict[str, str]:
    """Return the images in a listing, which is in the set's folder, beside it or in `Partitions/`.

    Raises:
        DatasetError: The listing is missing, or images in it are.
    """
    places = [at / below for at in (folder, folder.parent) for below in ("", "Partitions")]
    file = next((place / listing for place in places if is_regular_file(place / listing)), None)
    if file is None:
        raise copy.error(
            f"{listing}, which lists the images of this split, is not in {folder}, beside it or in"
            " Partitions/",
            hint=f"get it from {copy.card.source}, or choose another split",
        )
    lines = [line.strip().removeprefix("/") for line in read_text(file, DatasetError).splitlines()]
    listed = [path for path in lines if path]
    missing = [path for path in listed if path not in label_of]
    if missing:
        raise copy.error(
            f"{len(missing):,} of {len(listed):,} images in {file} are not in {folder}",
            faults=missing,
        )
    return {path: label_of[path] for path in listed}


def _file_records(copy: LocalCopy, folder: Path, label_of: Mapping[str, str]) -> list[ImageRecord]:
    sizes, missing = file_sizes(folder, label_of)
    if missing:
        raise copy.error(
            f"{len(missing):,} of {len(label_of):,} listed images are not in {folder}",
            faults=[f"{path}: {reason}" for path, reason in missing.items()],
            hint="unpack the images beside the lists",
        )
    return [ImageRecord(path, label, sizes[path]) for path, label in label_of.items()]


def _picture_records(
    dataset: Any, labels: Sequence[str], split: str, container: str
) -> list[ImageRecord]:
    """Return one record per picture; all pictures have the size of the first."""
    if not labels:
        return []
    size_bytes = len(dataset[0][0].tobytes())
    width = len(str(len(labels) - 1))
    return [
        ImageRecord(
            f"{split or 'all'}/{row:0{width}}", label, size_bytes, container=container, offset=row
        )
        for row, label in enumerate(labels)
    ]
