"""Data set cards: what a published image set is, where to get it, and how it lies on disk.

They hold facts: classes, metric, counts, licence. How one is found is `dataset_card.py`'s, how a
file is read `card_file.py`'s, and how a set is opened `carded_set.py`'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from wiseft_cli.data.label_map import LabelMap
from wiseft_cli.errors import UsageError

TORCHVISION_PREFIX = "torchvision:"
"""Before the name of a set of torchvision's, for which a card is made."""

Layout = Literal[
    "id-folders",
    "index-folders",
    "iwildcam-wilds",
    "fmow-wilds",
    "ilsvrc",
    "vid-robust",
    "ytbb-robust",
    "arrays",
    "torchvision",
]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)


@dataclass(frozen=True)
class Part:
    """A published set, or one split of it.

    Attributes:
        split: Its name; empty for a set without splits.
        folders: Where below the root its images or tables may lie, as the official download
            unpacks; the root itself where none of them is there.
        n_images: How many images it has; None where nobody says.
        n_classes: How many classes have an image in it; None likewise.
        primary: The metric that reports show first.
        options: What the layout wants to know beside these, by its own names.
        n_anchors: How many anchor frames a set of video frames has.
    """

    split: str
    folders: tuple[str, ...]
    n_images: int | None
    n_classes: int | None
    primary: str
    options: Mapping[str, str] = field(default_factory=dict)
    n_anchors: int | None = None


@dataclass(frozen=True)
class DatasetCard:
    """What is known of a published image set.

    Attributes:
        name: What reports call it, and the command line where it ships with the package.
        title: Its full name.
        source: Where to get it.
        licence: Of the set.
        citation: Whom to cite.
        layout: How it lies on disk; the name of a module's rules in `layouts/`.
        classes: A built-in class list, or the path of one.
        class_ids: The ids of its classes, in the order of the class list; none where only the
            data tells.
        label_map: What its labels stand for among the classes of another list, where it has one.
        templates: A built-in set of templates, or the path of a file of them.
        parts: Its splits, the first the one that is meant where none is named; one without a name
            where it has no splits.
        notes: What else a person should know, one sentence each.
    """

    name: str
    title: str
    source: str
    licence: str
    citation: str
    layout: Layout
    classes: str
    class_ids: tuple[str, ...]
    label_map: LabelMap | None
    templates: str
    parts: tuple[Part, ...]
    notes: tuple[str, ...] = ()

    @property
    def labels(self) -> tuple[str, ...]:
        """What its images are labelled with: its classes, or the labels that its map explains."""
        return self.class_ids if self.label_map is None else self.label_map.labels

    def part(self, split: str | None = None) -> Part:
        """Return the split of that name, or the first.

        Raises:
            UsageError: There is none of that name.
        """
        if split is None:
            return self.parts[0]
        for part in self.parts:
            if part.split == split:
                return part
        names = ", ".join(part.split for part in self.parts)
        found = f"there are {names}" if names else "it has no splits"
        raise UsageError(f"the set {self.name!r} has no split {split!r}; {found}")
