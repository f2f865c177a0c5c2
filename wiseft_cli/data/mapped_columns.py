"""The columns that a label map makes of a head's classes.

A column is scored by the highest logit of its classes. Two columns never share a class, since
they would tie wherever it wins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from wiseft_cli.checkpoint.card import ClassEntry
from wiseft_cli.data.class_matching import match_classes, no_match
from wiseft_cli.data.label_map import LabelMap
from wiseft_cli.errors import DatasetError, list_some


@dataclass(frozen=True)
class MappedColumns:
    """A label map over the classes of one head.

    Attributes:
        columns: The head's classes of each column, in the order of their first class.
        names: What each is called: the id of a single class, else the map's labels.
        accepted: Label to the columns that are right for it, ascending; none for an unmapped one.
    """

    columns: tuple[tuple[int, ...], ...]
    names: tuple[str, ...]
    accepted: Mapping[str, tuple[int, ...]]


def map_columns(label_map: LabelMap, classes: Sequence[ClassEntry]) -> MappedColumns:
    """Find the classes that a map names, by id, else by name, else by normal form, all alike.

    Raises:
        DatasetError: A class of the map is none of the head's, or in doubt; or two labels
            share some of their classes and not all.
    """
    index = _class_index(label_map, classes)
    column_of: dict[str, tuple[int, ...]] = {
        label: tuple(sorted({index[name] for name in names}))
        for label, names in label_map.classes.items()
    }
    column_of |= {name: (index[name],) for name in _single_names(label_map)}
    columns = tuple(sorted(set(column_of.values())))
    labels = {
        column: [label for label in label_map.classes if column_of[label] == column]
        for column in columns
    }
    _refuse_overlap(label_map, labels, classes)
    position = {column: at for at, column in enumerate(columns)}
    accepted: dict[str, tuple[int, ...]] = {
        label: (position[column_of[label]],) for label in label_map.classes
    }
    for label, names in label_map.any_of.items():
        known = [column_of[name] for name in names if name in column_of]
        accepted[label] = tuple(sorted({position[column] for column in known}))
    accepted |= dict.fromkeys(label_map.unmapped, ())
    names_of_columns = tuple(
        classes[column[0]].id if len(column) == 1 else " / ".join(labels[column])
        for column in columns
    )
    return MappedColumns(columns, names_of_columns, accepted)


def _single_names(label_map: LabelMap) -> set[str]:
    """Return what any_of names besides the labels of `classes`: classes, each a column."""
    named = {name for names in label_map.any_of.values() for name in names}
    return named - set(label_map.labels)


def _class_index(label_map: LabelMap, classes: Sequence[ClassEntry]) -> dict[str, int]:
    names = {name for names in label_map.classes.values() for name in names}
    matches = match_classes(sorted(names | _single_names(label_map)), classes)
    for match in matches:
        if match.is_single:
            return match.index
    raise no_match(
        matches,
        classes,
        subject=str(label_map.path),
        noun="classes that it names",
        hint="name the head's classes by id, or all of them by name"
        " (`wiseft inspect CHECKPOINT` lists them)",
    )


def _refuse_overlap(
    label_map: LabelMap,
    labels: Mapping[tuple[int, ...], Sequence[str]],
    classes: Sequence[ClassEntry],
) -> None:
    """Refuse columns that share a class; `labels` has those of each column."""
    holders: dict[int, list[str]] = {}
    for column, of_column in labels.items():
        for at in column:
            holders.setdefault(at, []).append(" / ".join(of_column) or "any_of alone")
    shared = [
        f"  {classes[at].id!r} is in {', '.join(map(repr, holding))}"
        for at, holding in sorted(holders.items())
        if len(holding) > 1
    ]
    if shared:
        raise DatasetError(
            "\n".join(
                [
                    f"{label_map.path}: {len(shared)} classes of the head count for more than one"
                    " column:",
                    *list_some(shared),
                ]
            ),
            hint="such columns would tie; an image with several right answers is `any_of:`",
        )
