"""Everything about a fine-tuning run that can be known, and refused, before torch is imported.

Reads headers and lists folders; opens no image and loads no weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wiseft_cli.checkpoint.atomic import check_output
from wiseft_cli.checkpoint.card import Card
from wiseft_cli.checkpoint.reader import read_card
from wiseft_cli.data.image_set import data_fingerprint
from wiseft_cli.errors import CheckpointError, list_some
from wiseft_cli.training.recipe import Recipe, ResolvedRecipe, doubts, resolve
from wiseft_cli.training.training_data import DataChoice, LabelledSet, choose_images


@dataclass(frozen=True)
class FinetunePlan:
    """A run that is about to begin.

    Attributes:
        parent: The checkpoint to start from.
        card: Its card.
        parent_digest: Its content digest.
        train: The training set.
        train_record: What names the training set in the history.
        val: Sets whose accuracy is shown after each epoch and decides nothing.
        recipe: The resolved recipe.
        output: Where the fine-tuned checkpoint goes.
        force: Whether an existing output may be replaced.
        max_bad: Training images that may be left out because they cannot be read.
        notes: What a person should know, one sentence each.
        warnings: What is allowed but seldom meant, one sentence each.
    """

    parent: Path
    card: Card
    parent_digest: str
    train: LabelledSet
    train_record: Mapping[str, Any]
    val: tuple[LabelledSet, ...]
    recipe: ResolvedRecipe
    output: Path
    force: bool
    max_bad: int
    notes: tuple[str, ...]
    warnings: tuple[str, ...]


def make_plan(
    *,
    parent: Path,
    data: DataChoice,
    output: Path,
    recipe: Recipe,
    force: bool = False,
    resume: bool = False,
    writes: bool = True,
) -> FinetunePlan:
    """Check the inputs and the output of a run and settle its recipe.

    Args:
        parent: A checkpoint with a card: zero-shot, or fine-tuned or merged to go on from.
        data: What the person said about the images.
        output: Where the fine-tuned checkpoint is to go.
        recipe: What the person chose.
        force: Whether an existing output may be replaced.
        resume: Whether there may be one, of this very run; `find_start` tells.
        writes: Whether this process writes the output; of several the first one does.
    Raises:
        OutputError: The output must not be written.
        CheckpointError: The parent is no checkpoint with a model and classes.
        UsageError: A spec is malformed.
        DatasetError: A set cannot be listed, or a label is no class of the head.
        RecipeError: The recipe does not fit the training set.
    """
    if writes:
        check_output(output, force=force or resume, inputs=[parent])
    card, parent_digest = _read_parent_card(parent)
    chosen = choose_images(data, card.classes, seed=recipe.seed)
    train_set, val_sets = chosen.train, chosen.val
    resolved = resolve(recipe, len(train_set.images.records))
    return FinetunePlan(
        parent=parent,
        card=card,
        parent_digest=parent_digest,
        train=train_set,
        train_record={
            "fingerprint": data_fingerprint(train_set.images),
            "n_images": resolved.n_images,
            **chosen.record,
        },
        val=val_sets,
        recipe=resolved,
        output=output,
        force=force,
        max_bad=data.max_bad,
        notes=_notes(card, train_set, val_sets),
        warnings=(
            *(text for labelled in (train_set, *val_sets) for text in labelled.images.warnings),
            *_classes_without_images(train_set, card),
            *doubts(resolved),
        ),
    )


def _read_parent_card(path: Path) -> tuple[Card, str]:
    """Return the card and the content digest of a checkpoint that can be trained."""
    card = read_card(path)
    needed = {
        "model": card.model,
        "preprocessing": card.preprocess,
        "classes": card.classes,
        "digest": card.digest,
    }
    missing = [what for what, value in needed.items() if not value]
    if missing or card.digest is None:
        raise CheckpointError(
            f"{path}: its card has no {' and no '.join(missing)}, so it cannot be fine-tuned",
            hint="start from a checkpoint that `wiseft zeroshot-head` wrote",
        )
    return card, card.digest


def _classes_without_images(train: LabelledSet, card: Card) -> list[str]:
    missing = sorted(set(range(len(card.classes))) - set(train.join.class_indices))
    if not missing:
        return []
    names = ", ".join(list_some([repr(card.classes[index].name) for index in missing]))
    return [f"{len(missing)} of {len(card.classes)} classes have no training image: {names}"]


def _notes(card: Card, train: LabelledSet, val: Sequence[LabelledSet]) -> tuple[str, ...]:
    notes = [note for labelled in (train, *val) for note in labelled.images.notes]
    if card.role != "zeroshot":
        notes.insert(
            0, f"starting from a {card.role} checkpoint: this run goes on from earlier training"
        )
    return tuple(notes)
