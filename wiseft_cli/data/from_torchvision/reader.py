"""Reads a copy of a set with torchvision: its images' paths or pictures, and their classes.

torchvision looks in folders of its own; a copy that lies elsewhere is shown to it through a link.
It is never asked to download. What it unpickles (CIFAR) it has compared with the published MD5
sums before. Labels and records are `layouts/torchvision_set.py`'s.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from wiseft_cli.data.files import is_regular_file
from wiseft_cli.data.from_torchvision.facts import Reading, TorchvisionSet
from wiseft_cli.errors import DatasetError, MissingDependencyError, list_some


@dataclass(frozen=True)
class TorchvisionCopy:
    """What torchvision makes of a copy of a set.

    Attributes:
        dataset: Its dataset; item i is (picture i, class number).
        paths: The path of each image below the set's folder; None where the dataset holds
            pictures.
        classes: What each image's class is called: a class name, or where there are none its
            number.
        names: All class names, by number; None where torchvision has none.
        reopen: Makes the dataset anew in another process; None where it can be sent there.
    """

    dataset: Any
    paths: tuple[str, ...] | None
    classes: tuple[str, ...]
    names: tuple[str, ...] | None
    reopen: Callable[[], Any] | None = None


def torchvision_class(class_name: str) -> Any:
    """Return a data set class of torchvision's.

    Raises:
        MissingDependencyError: torchvision is not installed, or too old to have it.
    """
    try:
        import torchvision  # lazy: torch costs seconds
    except ImportError:
        raise MissingDependencyError(
            f"torchvision, which reads {class_name}, is not installed",
            hint="pip install torchvision",
        ) from None
    found = getattr(torchvision.datasets, class_name, None)
    if found is None:
        raise MissingDependencyError(
            f"torchvision {torchvision.__version__} has no {class_name}",
            hint="pip install --upgrade torchvision",
        )
    return found


def read_torchvision(
    class_name: str, facts: TorchvisionSet, reading: Reading, folder: Path, *, source: str
) -> TorchvisionCopy:
    """Read a split of a set.

    Args:
        class_name: torchvision's class.
        facts: How it reads that set.
        reading: The split.
        folder: What torchvision calls `facts.place` below a root.
        source: Where to get the set, for messages.
    Raises:
        DatasetError: torchvision refuses the files.
        MissingDependencyError: torchvision is not installed.
    """
    cls = torchvision_class(class_name)
    folder = Path(os.path.abspath(folder))
    if facts.reads_later and not _is_at_place(folder, facts):
        raise DatasetError(
            f"{folder}: torchvision reads {class_name} only out of a folder {facts.place}",
            hint=f"name the folder above {facts.place}",
        )
    with _root_of(folder, facts) as root:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of numpy, about files as old as CIFAR's
                dataset = _open(class_name, str(root), reading.options)
                found = facts.names(dataset)
                names = None if found is None else tuple(found)
                numbers = [
                    None if number is None else int(number)
                    for number in np.asarray(facts.labels(dataset)).tolist()
                ]
                paths = None if facts.paths is None else facts.paths(dataset)
        except Exception as error:  # a damaged file makes it raise any class
            told = f"{type(error).__name__}: {error}".replace(str(root / facts.place), str(folder))
            raise _refusal(cls, facts, reading, folder, told, source=source) from None
        # Texts: a hundred thousand Path objects cost seconds.
        prefix = f"{root / facts.place}{os.sep}"
        below = None if paths is None else tuple(os.fspath(p).removeprefix(prefix) for p in paths)
    reopen = None
    if facts.reads_later:  # such a dataset holds a module, which cannot be sent
        reopen = partial(_open, class_name, str(root), reading.options)
    return TorchvisionCopy(dataset, below, _texts(numbers, names, folder), names, reopen)


def _open(class_name: str, root: str, options: Mapping[str, object]) -> Any:
    return torchvision_class(class_name)(root, **options)


def _is_at_place(folder: Path, facts: TorchvisionSet) -> bool:
    place = Path(facts.place).parts
    return folder.parts[len(folder.parts) - len(place) :] == place


@contextmanager
def _root_of(folder: Path, facts: TorchvisionSet) -> Iterator[Path]:
    """Give a root below which torchvision finds the folder: a real one, or one with a link."""
    place = Path(facts.place)
    if _is_at_place(folder, facts):
        yield folder.parents[len(place.parts) - 1] if place.parts else folder
        return
    with tempfile.TemporaryDirectory(prefix="wiseft-") as root:
        link = Path(root, place)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(folder, target_is_directory=True)
        yield Path(root)


def _texts(
    numbers: list[int | None], names: tuple[str, ...] | None, folder: Path
) -> tuple[str, ...]:
    if None in numbers:
        raise DatasetError(
            f"{folder}: torchvision finds images without a label there",
            hint="its labels are not published; choose another split",
        )
    known = [number for number in numbers if number is not None]
    if names is None:
        return tuple(map(str, known))
    wrong = sorted({number for number in known if not 0 <= number < len(names)})
    if wrong:
        raise DatasetError(
            f"{folder}: labels an image with class {wrong[0]} of {len(names)}, counted from 0"
        )
    return tuple(names[number] for number in known)


def _refusal(
    cls: Any, facts: TorchvisionSet, reading: Reading, folder: Path, told: str, *, source: str
) -> DatasetError:
    from torchvision.datasets.utils import check_integrity  # lazy: as above

    sums = [] if facts.sums is None else facts.sums(cls)
    there = [(folder / file, md5) for file, md5 in sums if is_regular_file(folder / file)]
    other = [f"  {file.name}" for file, md5 in there if not check_integrity(str(file), md5)]
    if other:
        lines = "\n".join(
            [f"{folder}: files are not the published ones by MD5:", *list_some(other)]
        )
        return DatasetError(
            lines, hint=f"they are cut off, damaged or changed; get them from {source}"
        )
    # What it says of downloading is a person's to do, not this program's.
    reason = " ".join(told.split()).partition(" You can ")[0]
    files = [path for path in reading.needs if is_regular_file(folder / path)]
    which = files[0] if len(files) == 1 else f"one of {', '.join(files)}"
    cause = f"; {which} is not of its form, or does not fit what lies there" if files else ""
    return DatasetError(
        f"{folder}: torchvision cannot read it as {cls.__name__}{cause}: {reason}",
        hint=f"is the copy whole, and laid out as {source} has it?",
    )
