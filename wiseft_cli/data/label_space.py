"""Joins the labels of an image set with a head's classes, by id or name, never by position unasked.

Two lists of the same length in different orders are the classic silent fault of evaluation;
here a label either finds its class by what it is called, or the set is refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from wiseft_cli.checkpoint.card import ClassEntry
from wiseft_cli.checkpoint.digest import canonical_json
from wiseft_cli.data.class_matching import MatchKind, match_classes, nearest_match, no_match
from wiseft_cli.data.image_set import ImageSet
from wiseft_cli.data.label_map import LabelMap
from wiseft_cli.data.mapped_columns import map_columns
from wiseft_cli.errors import DatasetError, list_some

JoinKind = Literal[MatchKind, "index", "map"]


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
        accepted: Label to the columns that are right for it, ascending: one, for an any-of label
            several, for one that its map leaves without a class none.
    """

    kind: JoinKind
    index: Mapping[str, int]
    class_indices: tuple[int, ...]
    columns: tuple[tuple[int, ...], ...]
    column_names: tuple[str, ...]
    accepted: Mapping[str, tuple[int, ...]]

    @property
    def digest(self) -> str:
        """What tells two joins apart: the SHA-256 of their columns and what they accept."""
        document = canonical_json([self.columns, {**self.accepted}])
        return f"sha256:{hashlib.sha256(document.encode('ascii')).hexdigest()}"


def join_image_set(
    image_set: ImageSet,
    classes: Sequence[ClassEntry],
    *,
    labels_are_indices: bool = False,
    all_classes: bool = False,
) -> LabelJoin:
    """Join a set's labels as the set itself says, and as the options for every set say.

    A set with a label map is joined through it, whatever the options say. A published set's map
    is for heads of other classes: one that has the map's own labels as ids is joined by them.

    Args:
        classes: The head's classes, in the order of its rows.
        labels_are_indices: As in `join_labels`.
        all_classes: As in `join_labels`.
    Raises:
        DatasetError: As in `join_labels`.
    """
    own = image_set.join_options
    return join_labels(
        image_set.labels,
        classes,
        set_name=image_set.name,
        labels_are_indices=own.labels_are_indices or labels_are_indices,
        all_classes=own.all_classes or all_classes,
        label_map=_map_for(image_set, classes),
        competing=own.competing,
    )


def _map_for(image_set: ImageSet, classes: Sequence[ClassEntry]) -> LabelMap | None:
    """Return a set's map, each label standing for itself where the head's ids are its labels.

    Labels that the map leaves without a class stand for themselves where the head has them.
    """
    label_map = image_set.join_options.label_map
    if label_map is None or not image_set.join_options.competing:
        return label_map
    known = {entry.id for entry in classes}
    if not known.issuperset(label_map.classes):
        return label_map
    return replace(
        label_map,
        classes={label: (label,) for label in label_map.labels if label in known},
        unmapped=tuple(label for label in label_map.unmapped if label not in known),
    )


def is_of_other_classes(image_set: ImageSet, classes: Sequence[ClassEntry]) -> bool:
    """Return whether a head was made for something else: it knows less than half of the classes.

    Two sets can share a few names (a daisy is a class of ImageNet and of Flowers-102).
    """
    label_map = _map_for(image_set, classes)
    wanted = {*image_set.labels, *image_set.join_options.competing}
    if label_map is not None:
        wanted = {name for names in label_map.classes.values() for name in names}
    unknown = nearest_match(match_classes(sorted(wanted), classes)).unknown
    return len(unknown) > len(wanted) / 2


def require_one_class(image_set: ImageSet, join: LabelJoin) -> None:
    """Refuse labels that stand for several classes, which nothing can be trained towards.

    Raises:
        DatasetError: A map gives a label several classes; all such labels are listed.
    """
    several = [f"  {label!r}" for label in image_set.labels if label not in join.index]
    if several:
        raise DatasetError(
            "\n".join(
                [
                    f"image set {image_set.name!r}: {len(several)} labels stand for several classes"
                    " of the head or for none, and images are trained towards one:",
                    *list_some(several),
                ]
            ),
            hint="for training, map each label to one class, or leave it out",
        )


def join_labels(
    labels: Sequence[str],
    classes: Sequence[ClassEntry],
    *,
    set_name: str,
    labels_are_indices: bool = False,
    all_classes: bool = False,
    label_map: LabelMap | None = None,
    competing: Sequence[str] = (),
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
        label_map: What the labels stand for; the columns are then those of the map, also where
            the set has no image of one, and the two options before are not looked at.
        competing: Further labels to score over, where the head has their classes.
    Raises:
        DatasetError: No kind joins every label; all labels without a class are listed.
    """
    if label_map is not None:
        return _join_through_map(labels, classes, label_map, set_name=set_name)
    if labels_are_indices:
        found = _by_index(labels, len(classes), set_name=set_name)
        return _plain_join("index", found, classes, all_classes=all_classes)
    matches = match_classes(labels, classes)
    wider = match_classes([*dict.fromkeys([*labels, *competing])], classes) if competing else ()
    for match in (*(match.narrowed_to({*labels}) for match in wider), *matches):
        if match.is_single and match.is_injective:
            return _plain_join(match.kind, match.index, classes, all_classes=all_classes)
    raise no_match(
        matches,
        classes,
        subject=f"image set {set_name!r}",
        noun="labels",
        hint=_remedy(nearest_match(matches).found, classes, is_published=bool(competing)),
    )


def _join_through_map(
    labels: Sequence[str], classes: Sequence[ClassEntry], label_map: LabelMap, *, set_name: str
) -> LabelJoin:
    mapped = map_columns(label_map, classes)
    missing = [f"  {label!r}" for label in sorted(labels) if label not in mapped.accepted]
    if missing:
        raise DatasetError(
            "\n".join(
                [
                    f"image set {set_name!r}: {len(missing)} of {len(labels)} labels are not in"
                    f" {label_map.path}:",
                    *list_some(missing),
                ]
            ),
            hint="give each label its classes, or list it under `leave_out:`",
        )
    accepted = {label: mapped.accepted[label] for label in labels}
    columns = mapped.columns
    single = {
        label: columns[right[0]][0]
        for label, right in accepted.items()
        if len(right) == 1 and len(columns[right[0]]) == 1
    }
    return LabelJoin(
        "map",
        single,
        class_indices=tuple(sorted(index for column in columns for index in column)),
        columns=columns,
        column_names=mapped.names,
        accepted=accepted,
    )


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


def _remedy(
    nearest: Mapping[str, Sequence[int]], classes: Sequence[ClassEntry], *, is_published: bool
) -> str:
    if is_published:
        return (
            "the head is of other classes; `wiseft zeroshot-head --classes NAME` makes one of a"
            " published set's (`wiseft inspect CHECKPOINT` lists the classes)"
        )
    indices = [_as_index(label) for label in nearest]
    if not any(nearest.values()) and all(at is not None and at < len(classes) for at in indices):
        return (
            "if these are positions in the head's class list, counted from 0, say so with"
            " --labels-are-indices, or ?labels_are_indices=true behind the set"
            " (`wiseft inspect CHECKPOINT` lists the classes in order)"
        )
    return (
        "label the images with the ids or names of the head's classes; position is never used"
        " unasked (`wiseft inspect CHECKPOINT` lists the classes)"
    )
