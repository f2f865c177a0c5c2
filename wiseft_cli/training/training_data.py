"""Which images of a run train, and which validate: whole sets, or seeded parts of one.

It lists sets and joins their labels to the classes; what is drawn in which step is `batches.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from wiseft_cli.checkpoint.card import ClassEntry
from wiseft_cli.data.image_set import ImageSet
from wiseft_cli.data.label_join import LabelJoin, join_image_set, require_one_class
from wiseft_cli.data.sources import open_image_set, open_training_set
from wiseft_cli.data.subsets import few_shot, stratified_split


@dataclass(frozen=True)
class LabelledSet:
    """An image set and how its labels find the head's classes."""

    images: ImageSet
    join: LabelJoin

    @property
    def targets(self) -> list[int]:
        """Class index of each image."""
        return [self.join.index[record.label] for record in self.images.records]

    @property
    def images_per_class(self) -> Counter[int]:
        """Number of images of each class index that occurs."""
        return Counter(self.targets)


@dataclass(frozen=True)
class DataChoice:
    """What a person says about the images of a run.

    Attributes:
        train: Spec of the training set.
        val: Specs of sets that validate.
        val_fraction: Share of the training set that is set aside to validate.
        shots: Images of each class that train; all where None.
        labels_are_indices: Whether labels are positions among the head's classes.
        max_bad: Unreadable training images to leave out.
    """

    train: str
    val: Sequence[str] = ()
    val_fraction: float | None = None
    shots: int | None = None
    labels_are_indices: bool = False
    max_bad: int = 0


@dataclass(frozen=True)
class TrainingData:
    """The images of a run.

    Attributes:
        train: Those that train.
        val: Sets whose accuracy is shown after each epoch and decides nothing.
        record: What names a split or a selection in the history; empty for whole sets.
    """

    train: LabelledSet
    val: tuple[LabelledSet, ...]
    record: Mapping[str, Any] = field(default_factory=dict)


def choose_images(choice: DataChoice, classes: Sequence[ClassEntry], *, seed: int) -> TrainingData:
    """List the sets of a run and take the parts that were asked for.

    The validation split is taken first, so that the same images validate for any number of shots.

    Args:
        classes: The head's, in the order of its rows.
        seed: Of the split and of the selection.
    Raises:
        UsageError: A spec is malformed, or a number out of range.
        DatasetError: A set cannot be listed, a label is no class of the head, or a class has
            fewer images than shots.
    """
    images = open_training_set(choice.train)
    record: dict[str, Any] = {}
    held_out: list[ImageSet] = []
    if choice.val_fraction is not None:
        split = stratified_split(images, choice.val_fraction, seed)
        images, held_out, record["split"] = split.train, [split.val], split.record
    if choice.shots is not None:
        selection = few_shot(images, choice.shots, seed)
        images, record["selection"] = selection.images, selection.record
    val = [*held_out, *(open_image_set(spec, option="--val") for spec in choice.val)]

    def join(image_set: ImageSet) -> LabelledSet:
        found = join_image_set(image_set, classes, labels_are_indices=choice.labels_are_indices)
        return LabelledSet(image_set, found)

    train = join(images)
    require_one_class(train.images, train.join)
    return TrainingData(train, tuple(join(image_set) for image_set in val), record)
