"""Warn about image sets that share images with each other or with the training data.

Sets are compared by their data fingerprint, which covers paths, sizes and labels but no pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from wiseft_cli.data.image_set import ImageSet, data_fingerprint
from wiseft_cli.data.subsets import few_shot, stratified_split
from wiseft_cli.errors import DatasetError
from wiseft_cli.reporting.results import ResultLine

if TYPE_CHECKING:
    from wiseft_cli.checkpoint.card import Card
    from wiseft_cli.evaluation.weight_sets import NamedCheckpoint


def overlap_warnings(lines: Sequence[ResultLine]) -> list[str]:
    """Report a validation set that is the reference, and sets with the same fingerprint.

    Args:
        lines: The planned or measured lines of one evaluation.
    """
    warnings = [
        f"image set {name!r} both chooses alpha and is the in-distribution set: its accuracy at"
        " the chosen alpha is optimistic; choose on a separate validation set"
        for name in dict.fromkeys(
            line.set_name for line in lines if line.selection and line.reference
        )
    ]
    same_images: dict[str, dict[str, bool]] = {}
    for line in lines:
        same_images.setdefault(line.data_fingerprint, {})[line.set_name] = line.selection
    for sets in same_images.values():
        if len(sets) > 1:
            names = " and ".join(map(repr, sets))
            effect = (
                "alpha is chosen on images that are also reported"
                if any(sets.values())
                else "they are counted more than once"
            )
            warnings.append(
                f"image sets {names} have the same data fingerprint (paths, sizes and labels); if"
                f" they are the same images, {effect}"
            )
    return warnings


def trained_on_warnings(
    pairs: Iterable[tuple[ImageSet, Sequence[NamedCheckpoint]]],
) -> list[str]:
    """Report image sets that checkpoints were trained on, or that chose the weights of one.

    Both are read from the histories of the checkpoints.
    """
    checked = {
        (image_set.name, checkpoint.name): (image_set, checkpoint.card)
        for image_set, checkpoints in pairs
        for checkpoint in checkpoints
    }
    warnings = [
        f"image set {set_name!r} contains the images that {name} was trained on (by data"
        " fingerprint), so its accuracy says nothing about new images"
        for (set_name, name), (image_set, card) in checked.items()
        if contains_training_images(image_set, training_records(card))
    ]
    warnings += [
        f"image set {set_name!r} chose the weights of {name} (by data fingerprint), so its accuracy"
        " there is optimistic"
        for (set_name, name), (image_set, card) in checked.items()
        if chose_weights(image_set, card)
    ]
    return warnings


def chose_weights(image_set: ImageSet, card: Card) -> bool:
    """Return whether a set chose the epoch or the soup that a checkpoint or its parents are."""
    records = [entry.options.get("selection") for entry in card.history]
    fingerprints = [at.get("fingerprint") for at in records if isinstance(at, Mapping)]
    return bool(fingerprints) and data_fingerprint(image_set) in fingerprints


def training_records(card: Card) -> list[Mapping[str, Any]]:
    """Return the descriptions of the training sets in a history, oldest first."""
    records = [entry.options.get("train") for entry in card.history]
    return [record for record in records if isinstance(record, Mapping)]


def contains_training_images(image_set: ImageSet, records: Iterable[Mapping[str, Any]]) -> bool:
    """Return whether a set is a training set, or the set that a training set was taken from."""
    return any(_training_fingerprint(image_set, at) == at.get("fingerprint") for at in records)


def _training_fingerprint(image_set: ImageSet, record: Mapping[str, Any]) -> str:
    """Return the fingerprint of what a run trains on if it is given this set."""
    whole = data_fingerprint(image_set)
    split, selection = record.get("split"), record.get("selection")
    if whole == record.get("fingerprint") or not (split or selection):
        return whole
    try:
        if split:
            image_set = stratified_split(image_set, split["val_fraction"], split["seed"]).train
        if selection:
            image_set = few_shot(image_set, selection["shots"], selection["seed"]).images
    except (DatasetError, KeyError):  # another set, or a card of another program
        return whole
    return data_fingerprint(image_set)
