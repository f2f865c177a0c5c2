"""How two checkpoints differ, told from their headers and cards alone.

No tensor byte is read here, and nothing is judged: `merging/compatibility.py` does that.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from wiseft_cli.checkpoint.card import Card
from wiseft_cli.checkpoint.format import TensorInfo
from wiseft_cli.checkpoint.reader import CheckpointReader

INTERPOLATED_DTYPES = frozenset({"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"})
DISCRETE_DTYPES = frozenset({"BOOL", "U8", "I8", "I16", "U16", "I32", "U32", "I64", "U64"})


@dataclass(frozen=True)
class Comparison:
    """How the headers and cards of two checkpoints differ.

    Attributes:
        only_0: Names of tensors that theta_0 alone has, sorted.
        only_1: Names of tensors that theta_1 alone has, sorted.
        shapes: Names of the common tensors whose shapes differ.
        dtypes: Names of the common tensors whose dtypes differ.
        card: Lines about classes, model and preprocessing, where both have a card.
        n_common: Tensors that both have.
    """

    only_0: tuple[str, ...]
    only_1: tuple[str, ...]
    shapes: tuple[str, ...]
    dtypes: tuple[str, ...]
    card: tuple[str, ...]
    n_common: int

    @property
    def is_equal(self) -> bool:
        """Whether there is no difference at all."""
        return not (self.only_0 or self.only_1 or self.shapes or self.dtypes or self.card)


def compare(theta_0: CheckpointReader, theta_1: CheckpointReader) -> Comparison:
    """Compare two checkpoints by their headers and cards.

    Raises:
        CheckpointError: A card is damaged.
    """
    names_0, names_1 = theta_0.tensors.keys(), theta_1.tensors.keys()
    common = sorted(names_0 & names_1)
    pairs = [(theta_0.tensors[name], theta_1.tensors[name]) for name in common]
    card_0, card_1 = theta_0.card, theta_1.card
    return Comparison(
        only_0=tuple(sorted(names_0 - names_1)),
        only_1=tuple(sorted(names_1 - names_0)),
        shapes=tuple(a.name for a, b in pairs if a.shape != b.shape),
        dtypes=tuple(a.name for a, b in pairs if a.dtype != b.dtype),
        card=tuple(_compare_cards(card_0, card_1)) if card_0 and card_1 else (),
        n_common=len(common),
    )


def describe(found: Comparison, theta_0: CheckpointReader, theta_1: CheckpointReader) -> list[str]:
    """Return one line for each difference, the cards' first."""
    lines = list(found.card)
    lines += [f"{name}: only in {theta_0.path}" for name in found.only_0]
    lines += [f"{name}: only in {theta_1.path}" for name in found.only_1]
    for name in sorted({*found.shapes, *found.dtypes}):
        a, b = theta_0.tensors[name], theta_1.tensors[name]
        if a.shape != b.shape:
            lines.append(f"{name}: shape {b.shape}, expected {a.shape}")
        if a.dtype != b.dtype:
            lines.append(f"{name}: dtype {b.dtype}, expected {a.dtype}")
    return lines


def both_interpolated(a: TensorInfo, b: TensorInfo) -> bool:
    """Whether two tensors are of types that can be interpolated, equal or not."""
    return a.dtype in INTERPOLATED_DTYPES and b.dtype in INTERPOLATED_DTYPES


def _compare_cards(card_0: Card, card_1: Card) -> Iterable[str]:
    ids_0, ids_1 = ([entry.id for entry in card.classes] for card in (card_0, card_1))
    if len(ids_0) != len(ids_1):
        yield f"classes: {len(ids_1)}, expected {len(ids_0)}"
    else:
        changed = [i for i, (a, b) in enumerate(zip(ids_0, ids_1, strict=True)) if a != b]
        if changed:
            i = changed[0]
            yield (
                f"classes: {len(changed)} of {len(ids_0)} differ, the first is number {i}: "
                f"{ids_1[i]!r}, expected {ids_0[i]!r}"
            )
    if card_0.model is not None and card_1.model is not None:
        yield from _compare_settings("model", card_0.model.config, card_1.model.config)
    if card_0.preprocess is not None and card_1.preprocess is not None:
        yield from _compare_settings("preprocessing", card_0.preprocess, card_1.preprocess)


def _compare_settings(
    what: str, settings_0: Mapping[str, Any], settings_1: Mapping[str, Any]
) -> Iterable[str]:
    """Yield one line for each entry that differs, entries of nested settings by dotted name."""
    for key in sorted({*settings_0, *settings_1}):
        a, b = settings_0.get(key), settings_1.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            yield from _compare_settings(f"{what}.{key}", a, b)
        elif a != b:
            yield f"{what}.{key}: {json.dumps(b)}, expected {json.dumps(a)}"
