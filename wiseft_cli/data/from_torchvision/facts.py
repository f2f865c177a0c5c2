"""What has to be known of a set to read it with torchvision: the form of the facts.

The sets themselves stand in `file_sets.py` and `picture_sets.py`. It imports no torchvision.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any


@dataclass(frozen=True)
class Reading:
    """How a split is asked for.

    Attributes:
        options: What torchvision's class is called with, beside the root.
        needs: What must lie in the set's folder, the file that holds the pictures first where
            they are no files.
        listing: A file that names the split's images, a path a line, where torchvision gives
            those of all splits.
    """

    options: Mapping[str, object]
    needs: tuple[str, ...]
    listing: str | None = None


@dataclass(frozen=True)
class TorchvisionSet:
    """How torchvision reads a set that gives each image one label.

    Attributes:
        place: The set's folder below torchvision's root; empty where it is the root.
        splits: Its splits, the first the one to test on; one without a name where it has none.
        labels: From a dataset of torchvision's to the class number of each image.
        paths: Likewise to the path of each image; None where it holds pictures.
        names: Likewise to the text of each class number; gives None where it has none.
        known_names: From torchvision's class to texts and names for prompts, where it knows them
            without the data.
        sums: From torchvision's class to files and the MD5 sums that it compares, if any.
        reads_later: Whether a dataset opens files when a picture is asked for; the set's folder
            must then lie where torchvision looks.
    """

    place: str
    splits: Mapping[str, Reading]
    labels: Callable[[Any], Any]
    paths: Callable[[Any], Sequence[Any]] | None = None
    names: Callable[[Any], Sequence[str] | None] = field(default=attrgetter("classes"))
    known_names: Callable[[Any], Mapping[str, str]] | None = None
    sums: Callable[[Any], Sequence[Sequence[str]]] | None = None
    reads_later: bool = False


def first_of(attribute: str) -> Callable[[Any], list[Any]]:
    """Return what takes the first of each pair that a dataset has under that name."""
    return lambda dataset: [path for path, _ in getattr(dataset, attribute)]


def second_of(attribute: str) -> Callable[[Any], list[Any]]:
    """Return what takes the second of each pair that a dataset has under that name."""
    return lambda dataset: [number for _, number in getattr(dataset, attribute)]


def no_names(_dataset: Any) -> None:
    """Say that torchvision has no class names of a set: its labels are numbers."""
