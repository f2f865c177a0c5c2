"""Whether two checkpoints may be merged: their tensors, their cards, their roles, their descent.

All of it is decided from headers and cards, before any tensor byte is read.
It does not find the differences; `merging/comparison.py` does.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import replace

from wiseft_cli.checkpoint.card import Card
from wiseft_cli.checkpoint.digest import shorten
from wiseft_cli.checkpoint.reader import CheckpointReader
from wiseft_cli.errors import CheckpointError, IncompatibleCheckpointsError, list_some
from wiseft_cli.merging.causes import cause_of
from wiseft_cli.merging.comparison import Comparison, both_interpolated, compare, describe
from wiseft_cli.merging.provenance import card_of_result


def require_roles_in_order(theta_0: CheckpointReader, theta_1: CheckpointReader) -> None:
    """Refuse a zero-shot checkpoint in the fine-tuned one's place.

    Raises:
        CheckpointError: The second file is zero-shot and the first is not.
    """
    card_0, card_1 = theta_0.card, theta_1.card
    if card_0 and card_1 and card_1.role == "zeroshot" and card_0.role != "zeroshot":
        raise CheckpointError(
            f"{theta_0.path}: is a {card_0.role} checkpoint in the zero-shot one's place",
            hint="name the zero-shot checkpoint first: wiseft merge "
            + shlex.join([str(theta_1.path), str(theta_0.path)]),
        )


def doubts_about_descent(theta_0: CheckpointReader, theta_1: CheckpointReader) -> Iterator[str]:
    """Yield what speaks against the second checkpoint having been fine-tuned from the first.

    The merge is defined for any two, but WiSE-FT's line of good models is one between a
    zero-shot model and its own fine-tuned descendant (arXiv:2109.01903, section 5).
    """
    card_0, card_1 = theta_0.card, theta_1.card
    if theta_0.files[0].samefile(theta_1.files[0]):
        yield f"{theta_0.path} and {theta_1.path} are the same file: every merge of it is itself"
    if card_0 is None or card_1 is None:
        yield from _doubts_about_cards(theta_0, theta_1)
        return
    if card_0.role != "zeroshot":
        yield f"{theta_0.path} is a {card_0.role} checkpoint, expected a zero-shot one"
    parents = _parents_of(card_1)
    if parents and card_0.digest not in parents:
        yield (
            f"{theta_1.path} was fine-tuned from another zero-shot checkpoint "
            f"({shorten(parents[-1])}) than {theta_0.path} ({shorten(card_0.digest)})"
        )


def _doubts_about_cards(theta_0: CheckpointReader, theta_1: CheckpointReader) -> Iterator[str]:
    """Yield what becomes of the card where only one of two checkpoints has one."""
    for source, other in ((theta_0, theta_1), (theta_1, theta_0)):
        if source.card is not None or other.card is None:
            continue
        if card_of_result(theta_0, theta_1) is not None:
            yield (
                f"{source.path} has no wiseft card: its classes and model are taken to be "
                "those of the other file"
            )
        else:
            n_unknown = len(source.tensors.keys() - other.tensors.keys())
            yield (
                f"{source.path} has no wiseft card, and tensors that {other.path} has not "
                f"({n_unknown}): the result is no classifier, and its card names no model"
            )


def _parents_of(card: Card) -> list[str]:
    """Return the digests of the zero-shot checkpoints that a history's steps began from."""
    return [
        item.digest
        for entry in card.history
        if entry.command in ("finetune", "merge")
        for item in entry.inputs
        if item.role == "zeroshot"
    ]


def require_compatible(
    theta_0: CheckpointReader,
    theta_1: CheckpointReader,
    *,
    converts: bool = False,
    copies_missing: bool = False,
) -> Comparison:
    """Refuse two checkpoints that cannot be merged, with all differences in one report.

    Args:
        converts: Whether floating tensors may differ in dtype, because all are converted.
        copies_missing: Whether tensors that only one side has are wanted.
    Raises:
        IncompatibleCheckpointsError: They differ.
        CheckpointError: A card is damaged.
    """
    found = compare(theta_0, theta_1)
    # Two files without a single common tensor are a mistake, whatever is to be copied.
    copies_missing = copies_missing and found.n_common > 0
    faults = replace(
        found,
        only_0=() if copies_missing else found.only_0,
        only_1=() if copies_missing else found.only_1,
        dtypes=tuple(
            name
            for name in found.dtypes
            if not (converts and both_interpolated(theta_0.tensors[name], theta_1.tensors[name]))
        ),
    )
    if faults.is_equal:
        return found
    n_tensors = len({*faults.only_0, *faults.only_1, *faults.shapes, *faults.dtypes})
    n_all = len({*theta_0.tensors, *theta_1.tensors})
    where = f" at {n_tensors} of {n_all} tensors" if n_tensors else ""
    lines = list_some(describe(faults, theta_0, theta_1))
    raise IncompatibleCheckpointsError(
        "\n  ".join([f"{theta_1.path} does not match {theta_0.path}{where}", *lines]),
        hint=cause_of(faults, theta_0.tensors, theta_1.tensors),
    )
