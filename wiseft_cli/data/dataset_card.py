"""Data set cards: the facts about a published image set, and the YAML files they are read from.

A card states the classes, splits, counts, metric, licence and layout on disk. `published_set.py`
opens a copy of the set as its card describes it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from itertools import starmap
from pathlib import Path
from typing import Any, Literal, get_args

from wiseft_cli.checkpoint.card import EXIF_ORIENTATIONS, IGNORE_ORIENTATION, ClassEntry
from wiseft_cli.data.label_map import LabelMap, read_label_map
from wiseft_cli.data.torchvision_sets import find_torchvision_set, known_class_names
from wiseft_cli.errors import ClassNamesError, DatasetError, UsageError
from wiseft_cli.prompts import documents
from wiseft_cli.prompts.class_names import BUILTIN_CLASSES, ClassList, read_class_names
from wiseft_cli.prompts.documents import read_text
from wiseft_cli.prompts.templates import BUILTIN_TEMPLATES

TORCHVISION_PREFIX = "torchvision:"
"""Precedes the name of a torchvision dataset class, whose card is generated."""

Layout = Literal[
    "id-folders",
    "index-folders",
    "iwildcam-wilds",
    "fmow-wilds",
    "ilsvrc",
    "vid-robust",
    "ytbb-robust",
    "arrays",
    "torchvision",
]


@dataclass(frozen=True)
class Split:
    """One split of a published set, or the whole of a set without splits.

    Attributes:
        name: Empty for a set without splits.
        folders: Folders below the root that may hold the split, as the official download
            unpacks; the root itself is used where none of them exists.
        n_images: Number of images; None if unknown.
        n_classes: Number of classes with at least one image; None if unknown.
        primary: The metric that reports show first.
        options: Settings of the layout, by the layout's own names.
        n_anchors: Number of anchor frames, for a set of video frames.
    """

    name: str
    folders: tuple[str, ...]
    n_images: int | None
    n_classes: int | None
    primary: str
    options: Mapping[str, str] = field(default_factory=dict)
    n_anchors: int | None = None


@dataclass(frozen=True)
class DatasetCard:
    """Facts about a published image set.

    Attributes:
        name: The set's name in reports, and on the command line if the card ships with wiseft.
        title: The full name.
        source: Where to get the set.
        licence: The set's licence.
        citation: The publication to cite.
        layout: How the files are laid out; selects a reader in `layouts/`.
        classes: A built-in class list, or the path of one.
        class_ids: Ids of the set's classes, in the order of the class list; empty if only the
            data names them.
        label_map: Maps the set's labels to classes of another list; None if they are the classes.
        templates: A built-in template set, or the path of a template file.
        splits: The first one is the default; a single one without a name for a set without splits.
        exif_orientation: `ignore` for the sets that ship with wiseft, because their published
            results were computed so; None to follow the checkpoint.
        notes: Remarks for the user, one sentence each.
    """

    name: str
    title: str
    source: str
    licence: str
    citation: str
    layout: Layout
    classes: str
    class_ids: tuple[str, ...]
    label_map: LabelMap | None
    templates: str
    splits: tuple[Split, ...]
    exif_orientation: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels of the images: the set's classes, or the labels of its map."""
        return self.class_ids if self.label_map is None else self.label_map.labels

    def split(self, name: str | None = None) -> Split:
        """Return the split of that name, or the first one.

        Raises:
            UsageError: The set has no such split.
        """
        for split in self.splits:
            if name is None or split.name == name:
                return split
        names = ", ".join(split.name for split in self.splits)
        raise UsageError(
            f"the set {self.name!r} has no split {name!r}",
            hint=f"its splits are {names}" if names else "it has no splits",
        )


def dataset_card_names() -> tuple[str, ...]:
    """Return the names of the cards that ship with the package, sorted."""
    return tuple(sorted(path.stem for path in _cards_folder().glob("*.yaml")))


def similar_card_names(text: str) -> tuple[str, ...]:
    """Return up to three shipped cards whose names resemble a text, the most similar first."""
    normalized = text.lower().replace("_", "-")
    return tuple(difflib.get_close_matches(normalized, dataset_card_names(), n=3, cutoff=0.7))


def is_dataset_card_name(source: str) -> bool:
    """Return whether a text names a shipped card or has the form `torchvision:NAME`."""
    return source in dataset_card_names() or source.startswith(TORCHVISION_PREFIX)


def is_dataset_card(source: str) -> bool:
    """Return whether a text names a card or is the path of a card file."""
    return is_dataset_card_name(source) or _is_card_file(Path(source))


def read_dataset_card(source: str) -> DatasetCard:
    """Read a card.

    Args:
        source: The name of a shipped card, `torchvision:NAME`, or the path of a YAML file.
    Raises:
        UsageError: No card has that name.
        DatasetError: The file cannot be read or is not a valid card.
    """
    if source.startswith(TORCHVISION_PREFIX):
        shipped = _shipped_torchvision_card(source.removeprefix(TORCHVISION_PREFIX))
        return _torchvision_card(source) if shipped is None else _read_card_file(shipped)
    if source in dataset_card_names():
        return _read_card_file(_cards_folder() / f"{source}.yaml")
    if not source.lower().endswith(documents.YAML_SUFFIXES):
        similar = similar_card_names(source)
        raise UsageError(
            f"there is no data set card {source!r}; the cards are"
            f" {', '.join(dataset_card_names())}",
            hint=(f"did you mean {' or '.join(similar)}? " if similar else "")
            + "give your own card as the path of its .yaml file",
        )
    return _read_card_file(Path(source))


def torchvision_classes(source: str) -> ClassList:
    """Return the classes of `torchvision:NAME`.

    Raises:
        ClassNamesError: Only the data has their names.
    """
    names = known_class_names(source.removeprefix(TORCHVISION_PREFIX))
    if not names:
        raise ClassNamesError(
            f"{source}: torchvision does not know the class names without the data",
            hint="write them into a file, one line ID<TAB>NAME per class, and give that as"
            " --classes FILE; ID is torchvision's class name, or the class number if it has none",
        )
    return ClassList(tuple(starmap(ClassEntry, names.items())), "built-in")


def _cards_folder() -> Path:
    return Path(str(resources.files("wiseft_cli.data"))) / "cards"


def _is_card_file(path: Path) -> bool:
    if path.suffix.lower() not in documents.YAML_SUFFIXES or not path.is_file():
        return False
    keys = {"layout", "classes", "licence"}  # no class list or suite has these three
    try:
        text = read_text(path, DatasetError)
        if not all(key in text for key in keys):
            return False  # parsing a long class list takes seconds
        root = documents.read_yaml(path, DatasetError)
    except DatasetError:
        return False  # the reader of another form reports what is wrong
    return isinstance(root, documents.Mapping) and keys <= {
        key.text for key, _ in root.members if isinstance(key, documents.Text)
    }


def _shipped_torchvision_card(class_name: str) -> Path | None:
    """Return the shipped card that torchvision's class reads, if there is one."""
    options = re.compile(rf"^options: \{{class: {re.escape(class_name)}\}}$", re.M)
    paths = sorted(_cards_folder().glob("*.yaml"))
    return next((path for path in paths if options.search(path.read_text("utf-8"))), None)


def _torchvision_card(source: str) -> DatasetCard:
    """Generate a card from torchvision's own facts; counts, licence and citation are unknown."""
    class_name = source.removeprefix(TORCHVISION_PREFIX)
    facts = find_torchvision_set(class_name)
    names = known_class_names(class_name)
    splits = [
        Split(
            name,
            folders=(facts.folder,) if facts.folder else (),
            n_images=None,
            n_classes=len(names) or None,
            primary="top1",
            options={"class": class_name},
        )
        for name in facts.splits
    ]
    return DatasetCard(
        name=source,
        title=f"{class_name} of torchvision",
        source=f"https://docs.pytorch.org/vision/stable/generated/torchvision.datasets.{class_name}.html",
        licence="not known here; see its owner's page",
        citation="not known here; see its owner's page",
        layout="torchvision",
        classes=source,
        class_ids=tuple(names),
        label_map=None,
        templates="simple",
        splits=tuple(splits),
        exif_orientation=IGNORE_ORIENTATION,
    )


def _read_card_file(path: Path) -> DatasetCard:
    """Read a card; the files that it names are relative to its folder."""
    values = _read_values(path)
    classes = values["classes"]
    class_list = classes if classes in BUILTIN_CLASSES else str(path.parent / classes)
    class_ids = _class_ids(path, values, class_list)
    label_map = read_label_map(path.parent / values["map"]) if "map" in values else None
    n_labels = len(class_ids if label_map is None else label_map.labels)
    if n_labels != values["n_classes"]:
        raise DatasetError(
            f"{path}: n_classes is {values['n_classes']}, but the card names {n_labels} classes"
        )
    templates = values.get("templates", "simple")
    if templates not in BUILTIN_TEMPLATES:
        templates = str(path.parent / templates)
        if not Path(templates).is_file():
            raise DatasetError(
                f"{path}: templates is {values['templates']!r}, which is neither a file beside the"
                " card nor a built-in set",
                hint=f"built-in sets: {', '.join(BUILTIN_TEMPLATES)}",
            )
    return DatasetCard(
        **{key: values[key] for key in ("name", "title", "source", "licence", "citation")},
        layout=values["layout"],
        classes=class_list,
        class_ids=class_ids,
        label_map=label_map,
        templates=templates,
        splits=_splits(path, values),
        exif_orientation=values.get("exif_orientation"),
        notes=values.get("notes", ()),
    )


def _class_ids(path: Path, values: Mapping[str, Any], class_list: str) -> tuple[str, ...]:
    """Return the ids that the card names, or all of the class list, in the list's order."""
    if class_list in BUILTIN_CLASSES:
        # The ids are stored beside the cards: the library that has them takes seconds to import.
        file = _cards_folder() / "classes" / f"{class_list}-ids.txt"
        listed = tuple(file.read_text("utf-8").split())
    else:
        listed = tuple(entry.id for entry in read_class_names(Path(class_list)).entries)
    named = values.get("class_ids") or listed
    selected = set(named)
    wrong = sorted(selected - set(listed))
    if wrong:
        raise DatasetError(f"{path}: class_ids: {wrong[0]} is not a class of {values['classes']}")
    if len(selected) < len(named):
        raise DatasetError(f"{path}: class_ids: an id is listed twice")
    return tuple(class_id for class_id in listed if class_id in selected)


def _splits(path: Path, values: Mapping[str, Any]) -> tuple[Split, ...]:
    """Return the splits, each completed by the values that the card gives for all of them."""
    shared = {key: values[key] for key in _SPLIT_KEYS if key in values}
    splits = []
    for name, own in values.get("splits", {"": {}}).items():
        keys = {"folders": (), "primary": "top1", "n_images": None, **shared, **own}
        if keys["n_images"] is None:
            raise DatasetError(f"{path}: n_images is missing for {name or 'the set'}")
        splits.append(Split(name, **keys))
    return tuple(splits)


def _read_values(path: Path) -> dict[str, Any]:
    """Return the checked values of a card's keys."""
    root = documents.read_yaml(path, DatasetError)
    if not isinstance(root, documents.Mapping):
        found = "nothing" if root is None else documents.describe(root)
        raise DatasetError(
            f"{path}: holds {found}, expected a data set card",
            hint=f"the keys of a card are {', '.join(_KEYS)}",
        )
    values = _read_keys(path, root, _KEYS)
    needed = ("name", "title", "source", "licence", "citation", "layout", "classes", "n_classes")
    missing = [key for key in needed if key not in values]
    if missing:
        raise DatasetError(f"{path}: a data set card needs {', '.join(missing)}")
    layouts = get_args(Layout)
    if values["layout"] not in layouts:
        raise DatasetError(
            f"{path}: layout is {values['layout']!r}, expected one of {', '.join(layouts)}"
        )
    return values


_Reader = Callable[[Path, str, documents.Node], Any]


def _read_keys(
    path: Path, node: documents.Mapping, readers: Mapping[str, _Reader]
) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in node.members:
        name = key.text if isinstance(key, documents.Text) else key.kind
        if name not in readers:
            raise DatasetError(
                f"{path}, {key.where}: unknown key {name!r}",
                hint=f"the keys are {', '.join(readers)}",
            )
        if name in values:
            raise DatasetError(f"{path}, {key.where}: the key {name!r} is repeated")
        values[name] = readers[name](path, name, value)
    return values


def _invalid(path: Path, name: str, node: documents.Node, expected: str) -> DatasetError:
    found = repr(node.text) if isinstance(node, documents.Text) else documents.describe(node)
    return DatasetError(f"{path}, {node.where}: {name} is {found}, expected {expected}")


def _text(path: Path, name: str, node: documents.Node) -> str:
    if not isinstance(node, documents.Text) or not node.text:
        raise _invalid(path, name, node, "a text")
    return node.text


def _texts(path: Path, name: str, node: documents.Node) -> tuple[str, ...]:
    items = node.items if isinstance(node, documents.Listing) else (node,)
    return tuple(_text(path, f"an item of {name}", item) for item in items)


def _orientation(path: Path, name: str, node: documents.Node) -> str:
    text = _text(path, name, node)
    if text not in EXIF_ORIENTATIONS:
        raise _invalid(path, name, node, " or ".join(EXIF_ORIENTATIONS))
    return text


def _count(path: Path, name: str, node: documents.Node) -> int:
    text = _text(path, name, node)
    if not text.isdecimal() or int(text) < 1:
        raise _invalid(path, name, node, "a number")
    return int(text)


def _count_or_unknown(path: Path, name: str, node: documents.Node) -> int | None:
    is_unknown = isinstance(node, documents.Text) and node.text == "unknown"
    return None if is_unknown else _count(path, name, node)


def _mapping(path: Path, name: str, node: documents.Node) -> documents.Mapping:
    if not isinstance(node, documents.Mapping) or not node.members:
        raise _invalid(path, name, node, "a mapping")
    return node


def _entries(path: Path, name: str, node: documents.Node) -> list[tuple[str, documents.Node]]:
    """Return the members of a mapping whose keys are distinct texts."""
    members = _mapping(path, name, node).members
    entries = [(_text(path, f"a key of {name}", key), value) for key, value in members]
    if len(dict(entries)) < len(entries):
        raise DatasetError(f"{path}, {node.where}: a key of {name} is repeated")
    return entries


def _options(path: Path, name: str, node: documents.Node) -> dict[str, str]:
    return {key: _text(path, key, value) for key, value in _entries(path, name, node)}


def _split_values(path: Path, name: str, node: documents.Node) -> dict[str, dict[str, Any]]:
    return {
        split: _read_keys(path, _mapping(path, f"split {split}", value), _SPLIT_KEYS)
        for split, value in _entries(path, name, node)
    }


_SPLIT_KEYS: Mapping[str, _Reader] = {
    "folders": _texts,
    "primary": _text,
    "n_images": _count,
    "n_classes": _count_or_unknown,
    "n_anchors": _count,
    "options": _options,
}
_KEYS: Mapping[str, _Reader] = {
    "name": _text,
    "title": _text,
    "source": _text,
    "licence": _text,
    "citation": _text,
    "layout": _text,
    "classes": _text,
    "class_ids": _texts,
    "map": _text,
    "templates": _text,
    **_SPLIT_KEYS,
    "n_classes": _count,
    "exif_orientation": _orientation,
    "splits": _split_values,
    "notes": _texts,
}
