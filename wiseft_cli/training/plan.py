"""Check everything about a fine-tuning run that needs no torch, and plan the run.

Headers are read and folders are listed; no image is opened and no weights are loaded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wiseft_cli import __version__
from wiseft_cli.checkpoint.atomic import check_output
from wiseft_cli.checkpoint.card import (
    EXIF_ORIENTATION,
    Card,
    ClassEntry,
    HistoryEntry,
    HistoryInput,
    canonical_preprocess,
    join_histories,
)
from wiseft_cli.checkpoint.reader import read_classifier_card
from wiseft_cli.compute.torchrun import Launch
from wiseft_cli.data.image_set import ImageSet, data_fingerprint
from wiseft_cli.data.label_join import LabelJoin, join_image_set, require_one_class
from wiseft_cli.data.sources import open_image_set, open_training_set
from wiseft_cli.data.subsets import few_shot, stratified_split
from wiseft_cli.errors import UsageError, list_some
from wiseft_cli.evaluation.data_overlap import contains_training_images, training_records
from wiseft_cli.training.kept import (
    EPOCHS,
    Keep,
    TextSource,
    ema_path,
    epoch_path,
    find_selection_set,
    written_card,
)
from wiseft_cli.training.recipe import Recipe, ResolvedRecipe, recipe_warnings, resolve
from wiseft_cli.training.resume import Start, find_start, reject_other_output

if TYPE_CHECKING:
    from wiseft_cli.training.text import TextGuide


@dataclass(frozen=True)
class DataOptions:
    """The training and validation images of a run, as options describe them.

    Attributes:
        train: Spec of the training set.
        val: Specs of validation sets.
        val_fraction: Fraction of the training set that is held out for validation.
        shots: Training images per class; None for all.
        labels_are_indices: Whether labels are positions among the head's classes.
        max_bad: Unreadable training images that are allowed.
    """

    train: str
    val: Sequence[str] = ()
    val_fraction: float | None = None
    shots: int | None = None
    labels_are_indices: bool = False
    max_bad: int = 0


@dataclass(frozen=True)
class LabelledSet:
    """An image set, and the match between its labels and the head's classes."""

    images: ImageSet
    join: LabelJoin

    @property
    def targets(self) -> list[int]:
        """Class index of each image."""
        return self.images.records.map_labels(self.join.index)

    @property
    def images_per_class(self) -> Counter[int]:
        """Number of images of each class index that occurs."""
        return Counter(self.targets)


@dataclass(frozen=True)
class FinetunePlan:
    """A run that is about to start.

    Attributes:
        parent: Path of the checkpoint to start from.
        parent_card: Its card.
        card: Card of the output: the parent's, with this run at the end of its history.
        train: The training set.
        val: Sets whose accuracy is reported after each epoch; it has no influence, except that
            of the selection set.
        recipe: The resolved recipe.
        output: Path of the fine-tuned checkpoint.
        force: Whether an existing output may be replaced.
        resume: Whether the run continues from an earlier part of it, if there is one.
        max_bad: Unreadable training images that are allowed.
        start: Where the run starts; of several processes the first one's counts.
        keep: Which weights are written.
        text: Text features of CAR-FT and Lipsum-FT; None if neither is on.
        selection_set: Name of the validation set that chooses the weights; None for no choice.
        notes: Information, one sentence each.
        warnings: Settings that are allowed but probably unintended, one sentence each.
    """

    parent: Path
    parent_card: Card
    card: Card
    train: LabelledSet
    val: tuple[LabelledSet, ...]
    recipe: ResolvedRecipe
    output: Path
    force: bool
    resume: bool
    max_bad: int
    start: Start
    keep: Keep
    text: TextGuide | None
    selection_set: str | None
    notes: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def train_record(self) -> Mapping[str, Any]:
        """The description of the training set in the history."""
        record: Mapping[str, Any] = self.card.history[-1].options["train"]
        return record

    @property
    def other_outputs(self) -> tuple[Path, ...]:
        """The files that are written beside `output`."""
        n_epochs = self.recipe.epochs if self.keep.kind == EPOCHS else 0
        epochs = tuple(epoch_path(self.output, epoch + 1) for epoch in range(n_epochs))
        return (*epochs, ema_path(self.output)) if self.recipe.ema else epochs


@dataclass(frozen=True)
class ListedImages:
    """The training set and the validation sets of `DataOptions`, before images are selected."""

    train: ImageSet
    val: tuple[ImageSet, ...]


def list_images(data: DataOptions) -> ListedImages:
    """List the images of a run; several runs on the same images can share the result.

    Raises:
        UsageError: A spec is malformed.
        DatasetError: A set cannot be listed.
    """
    val = tuple(open_image_set(spec, option="--val") for spec in data.val)
    return ListedImages(open_training_set(data.train), val)


def make_plan(
    *,
    parent: Path,
    data: DataOptions,
    images: ListedImages | None = None,
    output: Path,
    recipe: Recipe,
    keep: Keep = Keep(),  # noqa: B008 - frozen
    text: TextSource | None = None,
    force: bool = False,
    resume: bool = False,
    threads: int | None = None,
    launch: Launch | None = None,
) -> FinetunePlan:
    """Check the inputs and the output of a run and resolve its recipe.

    Args:
        parent: A checkpoint with a model and classes, of any role.
        data: The training and validation images.
        images: The sets of `data`, if they are listed already.
        output: Path of the fine-tuned checkpoint.
        recipe: The recipe.
        keep: Which weights are written.
        text: The CLIP model whose text tower CAR-FT and Lipsum-FT use.
        force: Whether an existing output or state may be replaced.
        resume: Whether the run continues from an earlier part of it, if there is one.
        threads: CPU threads of torch; None accepts those of a state.
        launch: Rank of this process; process 0 reads states and writes the output.
    Raises:
        OutputError: The output exists, is an input, or cannot be written; or there is a state.
        CheckpointError: The parent is not a checkpoint with a model and classes.
        UsageError: A spec is malformed, or a method has no text tower.
        ModelError: The text tower cannot be loaded, or is not the parent's.
        DatasetError: A set cannot be listed, or a label is not a class of the head.
        RecipeError: The recipe does not fit the training set, or a state is of another run.
    """
    launch = launch or Launch()
    if launch.is_first:
        check_output(output, force=force or resume, inputs=[parent])
    parent_card = read_classifier_card(parent)
    train, val, record = _select_images(
        data, images or list_images(data), parent_card.classes, seed=recipe.seed
    )
    resolved = resolve(recipe, len(train.images.records))
    selection_set = find_selection_set(keep, [labelled.images.name for labelled in val])
    card = _output_card(parent_card, train.images, resolved, record)
    if selection_set is not None:
        card = written_card(card, selection=_describe_selection(val, selection_set))
    guide = _load_text_guide(text, parent, parent_card, resolved)
    if guide is not None:
        card = written_card(card, text_tower={"model": guide.name, "weights": guide.digest})
    plan = FinetunePlan(
        parent=parent,
        parent_card=parent_card,
        card=card,
        train=train,
        val=val,
        recipe=resolved,
        output=output,
        force=force,
        resume=resume,
        max_bad=data.max_bad,
        start=Start(),
        keep=keep,
        text=guide,
        selection_set=selection_set,
        notes=(*_list_notes(parent_card, (train, *val)), *(guide.notes if guide else ())),
        warnings=(
            *(text for labelled in (train, *val) for text in labelled.images.warnings),
            *_classes_without_images(train, parent_card),
            *_training_images_in(val, card),
            *recipe_warnings(resolved),
        ),
    )
    if not launch.is_first:
        return plan
    for path in plan.other_outputs:
        check_output(path, force=force or resume, inputs=[parent])
        if resume:
            reject_other_output(path, card, force=force)
    start = find_start(
        output, card, resume=resume, force=force, threads=threads, world_size=launch.world_size
    )
    return replace(plan, start=start)


def _load_text_guide(
    source: TextSource | None, parent: Path, card: Card, recipe: ResolvedRecipe
) -> TextGuide | None:
    if not recipe.needs_text:
        return None
    if source is None:
        raise UsageError(
            "car_ft and lipsum_ft need the text tower of the CLIP model that the checkpoint was"
            " made from",
            hint="add --model, and --pretrained for an open_clip name",
        )
    # lazy: only these methods need torch to plan a run
    from wiseft_cli.training.text import load_text_guide

    return load_text_guide(source, parent, card, recipe)


def _describe_selection(val: Sequence[LabelledSet], name: str) -> Mapping[str, Any]:
    images = next(labelled.images for labelled in val if labelled.images.name == name)
    return {
        "set": name,
        "fingerprint": data_fingerprint(images),
        "n_images": len(images.records),
        "metric": "top1",
    }


def _select_images(
    data: DataOptions, listed: ListedImages, classes: Sequence[ClassEntry], *, seed: int
) -> tuple[LabelledSet, tuple[LabelledSet, ...], Mapping[str, Any]]:
    """Select the images of a run by the seed, and join their labels.

    The validation split is taken first, so that it is the same for any number of shots.

    Returns:
        The training set, the validation sets, and a description of the selection for the history.
    """
    images = listed.train
    record: dict[str, Any] = {}
    held_out: list[ImageSet] = []
    if data.val_fraction is not None:
        split = stratified_split(images, data.val_fraction, seed)
        images, held_out, record["split"] = split.train, [split.val], split.record
    if data.shots is not None:
        selection = few_shot(images, data.shots, seed)
        images, record["selection"] = selection.images, selection.record
    val = [*held_out, *listed.val]

    def join(image_set: ImageSet) -> LabelledSet:
        found = join_image_set(image_set, classes, labels_are_indices=data.labels_are_indices)
        return LabelledSet(image_set, found)

    train = join(images)
    require_one_class(train.images, train.join)
    return train, tuple(join(image_set) for image_set in val), record


def _output_card(
    parent: Card, images: ImageSet, recipe: ResolvedRecipe, record: Mapping[str, Any]
) -> Card:
    train = {"fingerprint": data_fingerprint(images), "n_images": recipe.n_images, **record}
    preprocess = parent.preprocess or {}
    if canonical_preprocess(images.preprocess(preprocess)) != canonical_preprocess(preprocess):
        train[EXIF_ORIENTATION] = images.exif_orientation
    values = recipe.as_mapping()
    entry = HistoryEntry(
        command="finetune",
        version=__version__,
        options={"recipe": values, "seed": recipe.seed, "train": train},
        inputs=(HistoryInput(parent.role, parent.digest or ""),),
    )
    return replace(
        parent,
        role="finetuned",
        alpha=None,
        recipe=values,
        seed=recipe.seed,
        history=(*join_histories(parent), entry),
        digest=None,
    )


def _classes_without_images(train: LabelledSet, card: Card) -> list[str]:
    missing = sorted(set(range(len(card.classes))) - set(train.join.class_indices))
    if not missing:
        return []
    names = ", ".join(list_some([repr(card.classes[index].name) for index in missing]))
    return [f"{len(missing)} of {len(card.classes)} classes have no training image: {names}"]


def _training_images_in(val: Sequence[LabelledSet], card: Card) -> list[str]:
    """Report validation sets with the images of this run's training set, or of an earlier one's."""
    return [
        f"validation set {labelled.images.name!r} contains training images (by data fingerprint),"
        " so its accuracy says nothing about new images"
        for labelled in val
        if contains_training_images(labelled.images, training_records(card))
    ]


def _list_notes(parent: Card, sets: Sequence[LabelledSet]) -> tuple[str, ...]:
    notes = [note for labelled in sets for note in labelled.images.notes]
    if parent.role != "zeroshot":
        notes.insert(0, f"starting from a {parent.role} checkpoint, which continues its training")
    return tuple(notes)
