"""Joins the labels of an image set with the classes of a head, by id or name, never by position.

Two lists of the same length in different orders are the classic silent fault of evaluation;
here a label either finds its class by what it is called, or the set is refused.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from wiseft_cli.checkpoint.card import ClassEntry
from wiseft_cli.errors import DatasetError, list_some

JoinKind = Literal["id", "name", "normalized-name"]


@dataclass(frozen=True)
class LabelJoin:
    """How the labels of one image set find the classes of one head.

    Attributes:
        kind: What was compared, the same for every label of the set.
        index: Label to class index; no two labels share a class.
        class_indices: The classes that the set has, ascending: the logits to score over.
    """

    kind: JoinKind
    index: Mapping[str, int]
    class_indices: tuple[int, ...]


def normalize_name(name: str) -> str:
    """Return the normal form of a name: case, `_`, `-` and runs of space make no difference.

    Unicode is brought to NFKC, since some file systems store accents decomposed.
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    return re.sub(r"[\s_-]+", " ", folded).strip()


def join_labels(
    labels: Sequence[str], classes: Sequence[ClassEntry], *, set_name: str
) -> LabelJoin:
    """Find the class of each label: by exact id, else by exact name, else by normal form.

    One kind serves all labels of the set, and only where it leaves no doubt: each label has
    exactly one class, and no two labels have the same.

    Args:
        labels: The distinct labels of the set.
        classes: The head's classes, in the order of its rows.
        set_name: The set's name, for the message.
    Raises:
        DatasetError: No kind joins every label; all labels without a class are listed.
    """
    kinds: tuple[tuple[JoinKind, dict[str, list[int]], Callable[[str], str]], ...] = (
        ("id", _positions([entry.id for entry in classes]), str),
        ("name", _positions([entry.name for entry in classes]), str),
        (
            "normalized-name",
            _positions([normalize_name(entry.name) for entry in classes]),
            normalize_name,
        ),
    )
    candidates: list[dict[str, list[int]]] = []
    for kind, positions, key in kinds:
        found = {label: positions.get(key(label), []) for label in labels}
        flat = [index for indices in found.values() for index in indices]
        if all(len(indices) == 1 for indices in found.values()) and len(set(flat)) == len(flat):
            index = {label: indices[0] for label, indices in found.items()}
            return LabelJoin(kind, index, tuple(sorted(index.values())))
        candidates.append(found)
    raise _no_join(set_name, candidates, classes)


def _positions(keys: Sequence[str]) -> dict[str, list[int]]:
    positions: dict[str, list[int]] = {}
    for position, key in enumerate(keys):
        positions.setdefault(key, []).append(position)
    return positions


def _no_join(
    set_name: str, candidates: Sequence[dict[str, list[int]]], classes: Sequence[ClassEntry]
) -> DatasetError:
    """Describe the kind of join that came nearest: first what is unknown, else what is in doubt."""
    nearest = min(candidates, key=lambda found: sum(not indices for indices in found.values()))
    unknown = sorted(label for label, indices in nearest.items() if not indices)
    if unknown:
        message = (
            f"image set {set_name!r}: {len(unknown)} of {len(nearest)} labels are no class"
            f" of the head ({len(classes)} classes, the first {classes[0].id!r}):"
        )
        lines = [f"  {label!r}" for label in unknown]
    else:
        message = f"image set {set_name!r}: the labels do not name one class each:"
        lines = _doubts(nearest, classes)
    return DatasetError(
        "\n".join([message, *list_some(lines)]),
        hint="name the folders after the ids or names of the head's classes; position is"
        " never used (`wiseft inspect CHECKPOINT` lists the classes)",
    )


def _doubts(found: Mapping[str, list[int]], classes: Sequence[ClassEntry]) -> list[str]:
    """List labels that fit several classes, and classes that several labels fit."""
    lines = [
        f"  {label!r} fits the classes with ids {', '.join(repr(classes[i].id) for i in indices)}"
        for label, indices in sorted(found.items())
        if len(indices) > 1
    ]
    by_class: dict[int, list[str]] = {}
    for label, indices in sorted(found.items()):
        for index in indices:
            by_class.setdefault(index, []).append(label)
    lines += [
        f"  {', '.join(map(repr, labels))} all fit the class {classes[index].name!r}"
        for index, labels in sorted(by_class.items())
        if len(labels) > 1
    ]
    return lines
