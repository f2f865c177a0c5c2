"""The card and the metadata of a merged checkpoint: what it is, and how it came to be.

It computes no digest and writes no file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from wiseft_cli import __version__
from wiseft_cli.checkpoint.card import (
    METADATA_KEY,
    Card,
    HistoryEntry,
    HistoryInput,
    join_histories,
)
from wiseft_cli.checkpoint.digest import UNKNOWN_DIGEST
from wiseft_cli.checkpoint.reader import CheckpointReader
from wiseft_cli.merging.alpha import Alpha


def build_merged_card(
    theta_0: CheckpointReader,
    theta_1: CheckpointReader,
    alpha: Alpha,
    *,
    options: Mapping[str, Any],
    digests: tuple[str | None, str | None],
) -> Card:
    """Return the card of a merge.

    The fine-tuned side says what the model is, the other where that side has no card. A card that
    is silent about some of the result's tensors (two foreign files, or tensors copied to a
    classifier from a file that has more) says nothing of model and classes, so that its digest
    and history stand somewhere and nobody takes the result for a classifier.

    Args:
        options: Those beside alpha that affect the result.
        digests: Content digests of theta_0 and theta_1; one that is not known yet leaves a slot
            of the same width.
    """
    inputs = tuple(
        HistoryInput(role, digest or UNKNOWN_DIGEST)
        for role, digest in zip(("zeroshot", "finetuned"), digests, strict=True)
    )
    entry = HistoryEntry("merge", __version__, {"alpha": alpha.text, **options}, inputs)
    cards = [source.card for source in (theta_0, theta_1) if source.card]
    history = (*join_histories(*cards), entry)
    card = card_of_result(theta_0, theta_1)
    if card is None:
        return Card(role="merged", alpha=alpha.text, history=history)
    return replace(
        card,
        role="merged",
        alpha=alpha.text,
        history=history,
        digest=None,
        extra=_shared([card.extra for card in cards]),
    )


def card_of_result(theta_0: CheckpointReader, theta_1: CheckpointReader) -> Card | None:
    """Return the card that says what a merge of the two is, None where neither can.

    A card speaks for the result only if its file has every tensor that the result will have.
    """
    names = theta_0.tensors.keys() | theta_1.tensors.keys()
    for source in (theta_1, theta_0):
        if source.card is not None and len(source.tensors) == len(names):
            return source.card
    return None


def shared_metadata(theta_0: CheckpointReader, theta_1: CheckpointReader) -> dict[str, str]:
    """Return the `__metadata__` entries, beside the card, that both inputs have and agree on."""
    shared = _shared([theta_0.metadata, theta_1.metadata])
    return {key: value for key, value in shared.items() if key != METADATA_KEY}


def _shared(mappings: list[Mapping[str, Any]]) -> dict[str, Any]:
    first, *others = mappings
    return {
        key: value
        for key, value in first.items()
        if all(key in other and other[key] == value for other in others)
    }
