"""Join the labels of an image set with the classes of a head; labels without a class are rejected.

Labels are joined by id or name. They are joined by position only on request: two class lists of
the same length in different orders are the classic silent error of evaluation.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from wiseft_cli.checkpoint.card import ClassEntry
from wiseft_cli.checkpoint.digest import sha256_of_json
from wiseft_cli.data.image_set import ImageSet
from wiseft_cli.data.label_map import LabelMap
from wiseft_cli.data.suggestions import folder_with_classes, published_set_of, similar_class
from wiseft_cli.errors import DatasetError, counted, list_some

MatchKind = Literal["id", "name", "normalized-name"]
JoinKind = Literal[MatchKind, "index", "map"]


@dataclass(frozen=True)
class LabelJoin:
    """The columns that the images of a set are scored over, and the correct columns of each label.

    In a plain join every column is one class of the head. A label map can form a column of several
    classes; its score is the highest of their logits.

    Attributes:
        kind: What was compared, the same for all labels of the set.
        index: Position of the one class of each label, for training; labels that stand for several
            classes or for none are missing.
        columns: Positions of the head's classes of each column, ascending.
        accepted: Correct columns of each label, ascending: one, several for an `any_of` label,
            none for an unmapped label.
    """

    kind: JoinKind
    index: Mapping[str, int]
    columns: tuple[tuple[int, ...], ...]
    accepted: Mapping[str, tuple[int, ...]]

    @property
    def class_indices(self) -> tuple[int, ...]:
        """Positions of the head's classes that are scored, ascending."""
        return tuple(sorted(index for column in self.columns for index in column))

    @property
    def digest(self) -> str:
        """SHA-256 of the columns and the accepted columns, `sha256:` and 64 digits."""
        return sha256_of_json([self.columns, {**self.accepted}])


def join_image_set(
    image_set: ImageSet,
    classes: Sequence[ClassEntry],
    *,
    labels_are_indices: bool = False,
    all_classes: bool = False,
) -> LabelJoin:
    """Join an image set by its own join options, combined with the options for every set.

    A label map of the set takes precedence over all options. The label map of a published set is
    for heads of other classes: a head that has the map's own labels as ids is joined by them.

    Args:
        classes: The head's classes, in the order of its rows.
        labels_are_indices: As in `join_labels`.
        all_classes: As in `join_labels`.
    Raises:
        DatasetError: As in `join_labels`.
    """
    own = image_set.join_options
    try:
        return join_labels(
            image_set.labels,
            classes,
            set_name=image_set.name,
            labels_are_indices=own.labels_are_indices or labels_are_indices,
            all_classes=own.all_classes or all_classes,
            label_map=_map_for(image_set, classes),
            competing=own.competing,
        )
    except DatasetError as error:
        raise DatasetError(
            error.message, hint=_folder_hint(image_set, classes) or error.hint
        ) from None


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
    """Find the class of each label by exact id, else by exact name, else by normalized name.

    All labels of a set are joined in the same way, and only if that is unambiguous: each label
    matches exactly one class, and no two labels match the same class.

    Args:
        labels: The distinct labels of the set.
        classes: The head's classes, in the order of its rows.
        set_name: Name of the set in messages.
        labels_are_indices: Labels are positions among the classes, from 0.
        all_classes: Score over every class of the head, not only the classes of the set.
        label_map: Columns and accepted columns are those of the map, including columns without an
            image; the two options above are then ignored.
        competing: Further labels to score over, if the head has their classes.
    Raises:
        DatasetError: The labels cannot be joined; labels without a class are listed.
    """
    if label_map is not None:
        return _join_by_map(labels, classes, label_map, set_name=set_name)
    if labels_are_indices:
        index = _parse_indices(labels, len(classes), set_name=set_name)
        return _plain_join("index", index, classes, all_classes=all_classes)
    matches = _match_classes(labels, classes)
    wider = _match_classes([*dict.fromkeys([*labels, *competing])], classes) if competing else ()
    for match in (*(match.drop_ambiguous(keep={*labels}) for match in wider), *matches):
        if match.index is not None and len({*match.index.values()}) == len(match.index):
            return _plain_join(match.kind, match.index, classes, all_classes=all_classes)
    raise _no_match_error(
        matches,
        classes,
        subject=f"image set {set_name!r}",
        noun="labels",
        hint=_label_hint(matches, classes, is_published=bool(competing)),
    )


def require_one_class(image_set: ImageSet, join: LabelJoin) -> None:
    """Reject labels that stand for several classes or none: training needs exactly one.

    Raises:
        DatasetError: Lists all such labels.
    """
    several = [repr(label) for label in image_set.labels if label not in join.index]
    if several:
        raise DatasetError(
            f"image set {image_set.name!r}: {counted(len(several), 'label')} without exactly one"
            " class of the head, as training requires",
            faults=several,
            hint="map each label to one class for training, or leave it out",
        )


def is_of_other_classes(image_set: ImageSet, classes: Sequence[ClassEntry]) -> bool:
    """Return whether a head is of other classes: it knows less than half of the classes of a set.

    Unrelated sets can share a few names: a daisy is a class of ImageNet and of Flowers-102.
    """
    label_map = _map_for(image_set, classes)
    wanted = {*image_set.labels, *image_set.join_options.competing}
    if label_map is not None:
        wanted = {name for names in label_map.classes.values() for name in names}
    unknown = _nearest(_match_classes(sorted(wanted), classes)).unknown
    return len(unknown) > len(wanted) / 2


@dataclass(frozen=True)
class _Match:
    """The classes that texts match in one way of comparing.

    Attributes:
        kind: What was compared.
        positions: Positions of the classes that each text matches.
    """

    kind: MatchKind
    positions: Mapping[str, Sequence[int]]

    @property
    def index(self) -> dict[str, int] | None:
        """Position of the class of each text; None unless every text matches exactly one."""
        if any(len(at) != 1 for at in self.positions.values()):
            return None
        return {text: at[0] for text, at in self.positions.items()}

    @property
    def unknown(self) -> list[str]:
        """Texts that match no class, sorted."""
        return sorted(text for text, at in self.positions.items() if not at)

    def drop_ambiguous(self, *, keep: Collection[str]) -> _Match:
        """Drop the texts outside `keep` that do not match exactly one class."""
        kept = {text: at for text, at in self.positions.items() if text in keep or len(at) == 1}
        return _Match(self.kind, kept)


def _match_classes(texts: Sequence[str], classes: Sequence[ClassEntry]) -> tuple[_Match, ...]:
    """Compare texts with a head's classes in every way, the strictest first."""
    ways: tuple[tuple[MatchKind, Sequence[str], Callable[[str], str]], ...] = (
        ("id", [entry.id for entry in classes], str),
        ("id", [to_nfc(entry.id) for entry in classes], to_nfc),
        ("name", [entry.name for entry in classes], str),
        ("normalized-name", [normalize_name(entry.name) for entry in classes], normalize_name),
    )
    matches = []
    for kind, keys, key_of in ways:
        positions: dict[str, list[int]] = {}
        for position, key in enumerate(keys):
            positions.setdefault(key, []).append(position)
        matches.append(_Match(kind, {text: positions.get(key_of(text), []) for text in texts}))
    return tuple(matches)


def to_nfc(text: str) -> str:
    """Return a text in Unicode's composed form; some file systems decompose accents."""
    return unicodedata.normalize("NFC", text)


def normalize_name(name: str) -> str:
    """Return a name with case folded, and runs of space, `_` and `-` replaced by one space.

    Unicode is normalized to NFKC, because some file systems decompose accents.
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    return re.sub(r"[\s_-]+", " ", folded).strip()


def _plain_join(
    kind: JoinKind, index: Mapping[str, int], classes: Sequence[ClassEntry], *, all_classes: bool
) -> LabelJoin:
    scored = range(len(classes)) if all_classes else sorted(index.values())
    column_of = {class_index: column for column, class_index in enumerate(scored)}
    return LabelJoin(
        kind,
        index,
        columns=tuple((class_index,) for class_index in scored),
        accepted={label: (column_of[at],) for label, at in index.items()},
    )


def _as_index(label: str) -> int | None:
    return int(label) if label.isascii() and label.isdigit() else None


def _parse_indices(labels: Sequence[str], n_classes: int, *, set_name: str) -> dict[str, int]:
    found = {label: _as_index(label) for label in labels}
    index = {label: at for label, at in found.items() if at is not None and at < n_classes}
    wrong = [repr(label) for label in sorted(labels) if label not in index]
    if wrong:
        raise DatasetError(
            f"image set {set_name!r}: {len(wrong)} of {len(labels)} labels are not indices of the"
            f" head's classes, 0 to {n_classes - 1}",
            faults=wrong,
            hint="--labels-are-indices is for labels that are positions in the head's class list;"
            " without it labels are joined by id or name",
        )
    by_index: dict[int, list[str]] = {}
    for label, at in sorted(index.items()):
        by_index.setdefault(at, []).append(repr(label))
    doubled = [", ".join(same) for same in by_index.values() if len(same) > 1]
    if doubled:
        raise DatasetError(
            f"image set {set_name!r}: different labels are the same index",
            faults=doubled,
            hint="write each index in one way",
        )
    return index


def _map_for(image_set: ImageSet, classes: Sequence[ClassEntry]) -> LabelMap | None:
    """Return a set's label map, or the identity if the head's ids are the labels of the map.

    Unmapped labels that the head knows stand for themselves, too.
    """
    label_map = image_set.join_options.label_map
    if label_map is None or not image_set.join_options.competing:
        return label_map
    known = {to_nfc(entry.id) for entry in classes}
    if not known.issuperset(map(to_nfc, label_map.classes)):
        return label_map
    return replace(
        label_map,
        classes={label: (label,) for label in label_map.labels if to_nfc(label) in known},
        unmapped=tuple(label for label in label_map.unmapped if to_nfc(label) not in known),
    )


def _join_by_map(
    labels: Sequence[str], classes: Sequence[ClassEntry], label_map: LabelMap, *, set_name: str
) -> LabelJoin:
    column_of = _columns_of_map(label_map, classes)
    columns = tuple(sorted({*column_of.values()}))
    _reject_overlap(label_map, column_of, columns, classes)
    position = {column: at for at, column in enumerate(columns)}
    right = {label: (label,) for label in label_map.classes} | {**label_map.any_of}
    right |= dict.fromkeys(label_map.unmapped, ())
    of_nfc = {to_nfc(label): names for label, names in right.items()}
    missing = [repr(label) for label in sorted(labels) if to_nfc(label) not in of_nfc]
    if missing:
        raise DatasetError(
            f"image set {set_name!r}: {len(missing)} of {len(labels)} labels are not in"
            f" {label_map.path}",
            faults=missing,
            hint="give each label its classes, or list it under `leave_out:`",
        )
    right = {label: right.get(label, of_nfc[to_nfc(label)]) for label in labels}
    accepted = {
        label: tuple(sorted({position[column_of[name]] for name in names if name in column_of}))
        for label, names in right.items()
    }
    single = {
        label: columns[at[0]][0]
        for label, at in accepted.items()
        if len(at) == 1 and len(columns[at[0]]) == 1
    }
    return LabelJoin("map", single, columns, accepted)


def _columns_of_map(
    label_map: LabelMap, classes: Sequence[ClassEntry]
) -> dict[str, tuple[int, ...]]:
    """Return the classes of each label of a map, and of each class that only `any_of` names."""
    single = {name for names in label_map.any_of.values() for name in names} - {*label_map.labels}
    names = {name for names in label_map.classes.values() for name in names} | single
    matches = _match_classes(sorted(names), classes)
    index = next((match.index for match in matches if match.index is not None), None)
    if index is None:
        raise _no_match_error(
            matches,
            classes,
            subject=str(label_map.path),
            noun="classes that it names",
            hint="name the head's classes by id, or all of them by name"
            " (`wiseft inspect CHECKPOINT --json` lists them)",
        )
    column_of = {
        label: tuple(sorted({index[name] for name in of_label}))
        for label, of_label in label_map.classes.items()
    }
    return column_of | {name: (index[name],) for name in single}


def _reject_overlap(
    label_map: LabelMap,
    column_of: Mapping[str, tuple[int, ...]],
    columns: Sequence[tuple[int, ...]],
    classes: Sequence[ClassEntry],
) -> None:
    """Reject columns that share a class: they would tie whenever that class wins."""
    owners: dict[int, list[str]] = {}
    for column in columns:
        labels = [label for label in label_map.classes if column_of[label] == column]
        for at in column:
            owners.setdefault(at, []).append(repr(" / ".join(labels) or "any_of alone"))
    shared = [
        f"{classes[at].id!r} is in {', '.join(names)}"
        for at, names in sorted(owners.items())
        if len(names) > 1
    ]
    if shared:
        raise DatasetError(
            f"{label_map.path}: {counted(len(shared), 'class', plural='classes')} of the head in"
            " more than one column",
            faults=shared,
            hint="such columns would tie; list an image with several correct answers under"
            " `any_of:`",
        )


def _nearest(matches: Sequence[_Match]) -> _Match:
    """Return the way of comparing that leaves the fewest texts without a class."""
    return min(matches, key=lambda match: len(match.unknown))


def _no_match_error(
    matches: Sequence[_Match],
    classes: Sequence[ClassEntry],
    *,
    subject: str,
    noun: str,
    hint: str,
) -> DatasetError:
    nearest = _nearest(matches)
    if not nearest.unknown:
        return DatasetError(
            f"{subject}: the {noun} do not match one class each",
            faults=_ambiguities(nearest.positions, classes),
            hint=hint,
        )
    faults = []
    for at, text in enumerate(nearest.unknown):
        similar = similar_class(text, classes) if at < 10 else None  # more are not shown
        is_other = similar not in (None, text)
        faults.append(repr(text) + (f" (did you mean {similar!r}?)" if is_other else ""))
    return DatasetError(
        f"{subject}: {len(nearest.unknown)} of {len(nearest.positions)} {noun} are not classes of"
        f" the head ({len(classes)} classes, the first {classes[0].id!r})",
        faults=faults,
        hint=hint,
    )


def _ambiguities(
    positions: Mapping[str, Sequence[int]], classes: Sequence[ClassEntry]
) -> list[str]:
    """List texts that match several classes, and classes that several texts match."""
    several = [
        f"{text!r} matches the classes with ids {', '.join(repr(classes[i].id) for i in at)}"
        for text, at in sorted(positions.items())
        if len(at) > 1
    ]
    by_class: dict[int, list[str]] = {}
    for text, at in sorted(positions.items()):
        for index in at:
            by_class.setdefault(index, []).append(repr(text))
    return several + [
        f"{', '.join(texts)} all match the class {classes[index].name!r}"
        for index, texts in sorted(by_class.items())
        if len(texts) > 1
    ]


def _folder_hint(image_set: ImageSet, classes: Sequence[ClassEntry]) -> str | None:
    """Suggest another folder, or the published set that the folder is named after."""
    if image_set.join_options.competing or image_set.join_options.label_map is not None:
        return None
    names = {text for entry in classes for text in (entry.id, entry.name)}
    folders = folder_with_classes(image_set, names)
    if folders:
        return f"did you mean {' or '.join(list_some(folders, limit=3))}?"
    card = published_set_of(image_set.root)
    return card and f"did you mean the published set {card}? Give it as {card}={image_set.root}"


def _label_hint(
    matches: Sequence[_Match], classes: Sequence[ClassEntry], *, is_published: bool
) -> str:
    if is_published:
        return (
            "the head is of other classes; `wiseft zeroshot-head --classes NAME` builds a head of"
            " a published set's classes (`wiseft inspect CHECKPOINT --json` lists the classes)"
        )
    nearest = _nearest(matches).positions
    indices = [_as_index(label) for label in nearest]
    if not any(nearest.values()) and all(at is not None and at < len(classes) for at in indices):
        return (
            "if the labels are positions in the head's class list, counted from 0, give"
            " --labels-are-indices, or add ?labels_are_indices=true to the set"
            " (`wiseft inspect CHECKPOINT --json` lists the classes in order)"
        )
    return (
        "label the images with the ids or names of the head's classes; positions are used only on"
        " request (`wiseft inspect CHECKPOINT --json` lists the classes)"
    )
