"""Joins the labels of an image set with a head's classes, by id or name, never by position unasked.

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

JoinKind = Literal["id", "name", "normalized-name", "index", "map"]


@dataclass(frozen=True)
class LabelJoin:
    """How the labels of one image set find the classes of one head.

    An image is scored over columns. In a plain join a column is one class of the head; a map
    can make a column of several classes, whose score is the highest of their logits.

    Attributes:
        kind: What was compared, the same for every label of the set.
        index: Label to its one class of the head, for training; a label that stands for
            several classes is not in it.
        class_indices: The head's classes that take part, ascending.
        columns: The head's classes of each scored column.
        column_names: What each column is called: the class's id, or the map's entry.
        accepted: Label to the columns that are right for it, ascending: one, or for an any-of
            label several.
    """

    kind: JoinKind
    index: Mapping[str, int]
    class_indices: tuple[int, ...]
    columns: tuple[tuple[int, ...], ...]
    column_names: tuple[str, ...]
    accepted: Mapping[str, tuple[int, ...]]


def normalize_name(name: str) -> str:
    """Return the normal form of a name: case, `_`, `-` and runs of space make no difference.

    Unicode is brought to NFKC, since some file systems store accents decomposed.
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    return re.sub(r"[\s_-]+", " ", folded).strip()


def join_labels(
    labels: Sequence[str],
    classes: Sequence[ClassEntry],
    *,
    set_name: str,
    labels_are_indices: bool = False,
    all_classes: bool = False,
) -> LabelJoin:
    """Find the class of each label: by exact id, else by exact name, else by normal form.

    One kind serves all labels of the set, and only where it leaves no doubt: each label has
    exactly one class, and no two labels have the same.

    Args:
        labels: The distinct labels of the set.
        classes: The head's classes, in the order of its rows.
        set_name: The set's name, for the message.
        labels_are_indices: Take labels as positions among the classes, counted from 0.
        all_classes: Score over every class of the head, not only those of the set.
    Raises:
        DatasetError: No kind joins every label; all labels without a class are listed.
    """
    if labels_are_indices:
        found = _by_index(labels, len(classes), set_name=set_name)
        return _plain_join("index", found, classes, all_classes=all_classes)
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
        candidate = {label: positions.get(key(label), []) for label in labels}
        flat = [index for indices in candidate.values() for index in indices]
        if all(len(indices) == 1 for indices in candidate.values()) and len(set(flat)) == len(flat):
            index = {label: indices[0] for label, indices in candidate.items()}
            return _plain_join(kind, index, classes, all_classes=all_classes)
        candidates.append(candidate)
    raise _no_join(set_name, candidates, classes)


def _plain_join(
    kind: JoinKind, index: Mapping[str, int], classes: Sequence[ClassEntry], *, all_classes: bool
) -> LabelJoin:
    """Make each class a column of its own."""
    scored = tuple(range(len(classes))) if all_classes else tuple(sorted(index.values()))
    column_of = {class_index: column for column, class_index in enumerate(scored)}
    return LabelJoin(
        kind,
        index,
        class_indices=scored,
        columns=tuple((class_index,) for class_index in scored),
        column_names=tuple(classes[class_index].id for class_index in scored),
        accepted={label: (column_of[at],) for label, at in index.items()},
    )


def _as_index(label: str) -> int | None:
    """Return the number a label spells, leading zeros allowed; None where it is none."""
    return int(label) if label.isascii() and label.isdigit() else None


def _by_index(labels: Sequence[str], n_classes: int, *, set_name: str) -> dict[str, int]:
    found = {label: _as_index(label) for label in labels}
    index = {label: at for label, at in found.items() if at is not None and at < n_classes}
    wrong = [f"  {label!r}" for label in sorted(labels) if label not in index]
    if wrong:
        raise DatasetError(
            "\n".join(
                [
                    f"image set {set_name!r}: {len(wrong)} of {len(labels)} labels are no index"
                    f" of the head's classes, 0 to {n_classes - 1}:",
                    *list_some(wrong),
                ]
            ),
            hint="--labels-are-indices is for labels that are positions in the head's class"
            " list; without it labels are joined by id or name",
        )
    by_index: dict[int, list[str]] = {}
    for label, at in sorted(index.items()):
        by_index.setdefault(at, []).append(label)
    doubled = [f"  {', '.join(map(repr, same))}" for same in by_index.values() if len(same) > 1]
    if doubled:
        raise DatasetError(
            "\n".join([f"image set {set_name!r}: labels spell one index:", *list_some(doubled)]),
            hint="write each index in one way",
        )
    return index


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
    return DatasetError("\n".join([message, *list_some(lines)]), hint=_remedy(nearest, classes))


def _remedy(nearest: Mapping[str, list[int]], classes: Sequence[ClassEntry]) -> str:
    indices = [_as_index(label) for label in nearest]
    if not any(nearest.values()) and all(at is not None and at < len(classes) for at in indices):
        return (
            "if these are positions in the head's class list, counted from 0, say so with"
            " --labels-are-indices (`wiseft inspect CHECKPOINT` lists the classes in order)"
        )
    return (
        "label the images with the ids or names of the head's classes; position is never used"
        " unasked (`wiseft inspect CHECKPOINT` lists the classes)"
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
