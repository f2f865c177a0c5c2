"""Reads a data set card from its YAML file, and checks that it fits together.

What a card says is described in `card_form.py`, and for people in `docs/data.md`.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, cast

from wiseft_cli.data.card_form import LAYOUTS, DatasetCard, Layout, Part
from wiseft_cli.data.label_map import read_label_map
from wiseft_cli.errors import DatasetError
from wiseft_cli.prompts import documents
from wiseft_cli.prompts.class_names import BUILTIN_CLASSES, read_class_names
from wiseft_cli.prompts.documents import read_text
from wiseft_cli.prompts.templates import BUILTIN_TEMPLATES

_KEYS = (
    "name",
    "title",
    "source",
    "licence",
    "citation",
    "layout",
    "folders",
    "classes",
    "class_ids",
    "map",
    "templates",
    "primary",
    "n_images",
    "n_classes",
    "n_anchors",
    "options",
    "splits",
    "notes",
)
_OF_PARTS = ("folders", "primary", "n_images", "n_classes", "n_anchors", "options")
_NEEDED = ("name", "title", "source", "licence", "citation", "layout", "classes", "n_classes")
_LISTS = ("folders", "class_ids", "notes")
_COUNTS = ("n_images", "n_classes", "n_anchors")
_MARKS = ("layout", "classes", "licence")
"""Keys that tell a card from a class list, which is a mapping too."""


def cards_folder() -> Path:
    """Return where the cards lie that ship with the package."""
    return Path(str(resources.files("wiseft_cli.data"))) / "cards"


def is_card_file(path: Path) -> bool:
    """Return whether a path is a YAML file that means to be a card, in whatever state."""
    if path.suffix.lower() not in documents.YAML_SUFFIXES or not path.is_file():
        return False
    try:
        text = read_text(path, DatasetError)
        if not all(key in text for key in _MARKS):
            return False  # at once: long class lists take seconds to parse
        root = documents.read_yaml(path, DatasetError)
    except DatasetError:
        return False  # who reads it as something else will say what is wrong
    keys = root.members if isinstance(root, documents.Mapping) else ()
    return {*_MARKS} <= {key.text for key, _ in keys if isinstance(key, documents.Text)}


def read_card_file(path: Path) -> DatasetCard:
    """Read a card; the files it names lie beside it.

    Raises:
        DatasetError: Unreadable, not YAML, or not of a card's form.
    """
    values = _members(path)
    classes = cast(str, values["classes"])
    class_list = classes if classes in BUILTIN_CLASSES else str(path.parent / classes)
    class_ids = _class_ids(path, values, class_list)
    label_map = read_label_map(path.parent / values["map"]) if "map" in values else None
    n_labels = len(class_ids if label_map is None else label_map.labels)
    if n_labels != values["n_classes"]:
        raise DatasetError(
            f"{path}: n_classes is {values['n_classes']}, but it names {n_labels} classes"
        )
    templates = values.get("templates", "simple")
    if templates not in BUILTIN_TEMPLATES and not (path.parent / templates).is_file():
        raise DatasetError(
            f"{path}: templates is {templates!r}: no such file beside the card, and no built-in"
            " set",
            hint=f"built-in sets: {', '.join(BUILTIN_TEMPLATES)}",
        )
    return DatasetCard(
        **{name: values[name] for name in ("name", "title", "source", "licence", "citation")},
        layout=cast(Layout, values["layout"]),
        classes=class_list,
        class_ids=class_ids,
        label_map=label_map,
        templates=templates if templates in BUILTIN_TEMPLATES else str(path.parent / templates),
        parts=_parts(path, values),
        notes=values.get("notes", ()),
    )


def _class_ids(path: Path, values: Mapping[str, Any], class_list: str) -> tuple[str, ...]:
    """Return the ids that the card names, in the order of the class list; else all of them."""
    all_ids = _ids_of(class_list)
    class_ids = cast(tuple[str, ...], values.get("class_ids") or all_ids)
    unknown = sorted(set(class_ids) - set(all_ids))
    if unknown or len(set(class_ids)) < len(class_ids):
        raise DatasetError(
            f"{path}: class_ids: {unknown[0] if unknown else 'an id'} "
            + ("is no class of" if unknown else "stands twice, of")
            + f" {values['classes']}"
        )
    order = {class_id: at for at, class_id in enumerate(all_ids)}
    return tuple(sorted(class_ids, key=order.__getitem__))


def _ids_of(class_list: str) -> tuple[str, ...]:
    if class_list in BUILTIN_CLASSES:
        # Written down beside the cards, as the library that has them takes seconds to import.
        ids = cards_folder() / "classes" / f"{class_list}-ids.txt"
        return tuple(ids.read_text("utf-8").split())
    return tuple(entry.id for entry in read_class_names(Path(class_list)).entries)


def _parts(path: Path, values: Mapping[str, Any]) -> tuple[Part, ...]:
    """Return the splits, each with what the card says of all of them."""
    shared = {name: values[name] for name in _OF_PARTS if name in values}
    parts = [
        Part(
            split,
            folders=own.get("folders", ()),
            n_images=own.get("n_images"),
            n_classes=own["n_classes"],
            primary=own.get("primary", "top1"),
            options=own.get("options", {}),
            n_anchors=own.get("n_anchors"),
        )
        for split, given in (values.get("splits") or {"": {}}).items()
        for own in [shared | given]
    ]
    without = [part.split or "the set" for part in parts if part.n_images is None]
    if without:
        raise DatasetError(f"{path}: n_images is missing for {', '.join(without)}")
    return tuple(parts)


def _members(path: Path) -> dict[str, Any]:
    """Return the values of a card's keys, each of its kind."""
    root = documents.read_yaml(path, DatasetError)
    if not isinstance(root, documents.Mapping):
        found = "nothing" if root is None else documents.describe(root)
        raise DatasetError(
            f"{path}: holds {found}, expected a data set card", hint=f"it has {', '.join(_KEYS)}"
        )
    values = _values(path, root, _KEYS, "a card")
    missing = [name for name in _NEEDED if name not in values]
    if missing:
        raise DatasetError(f"{path}: a data set card needs {', '.join(missing)}")
    if values["layout"] not in LAYOUTS:
        raise DatasetError(
            f"{path}: layout is {values['layout']!r}, expected one of {', '.join(LAYOUTS)}"
        )
    return values


def _values(
    path: Path, node: documents.Mapping, names: tuple[str, ...], owner: str
) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in node.members:
        name = key.text if isinstance(key, documents.Text) else key.kind
        if name in values or name not in names:
            what = "stands there twice" if name in values else f"is no key of {owner}"
            raise DatasetError(
                f"{path}, {key.where}: {name!r} {what}", hint=f"{owner} has {', '.join(names)}"
            )
        is_unknown = isinstance(value, documents.Text) and value.text == "unknown"
        if owner == "a split" and name == "n_classes" and is_unknown:
            values[name] = None  # nobody says how many classes have images in it
            continue
        values[name] = _value(path, name, value)
    return values


def _value(path: Path, name: str, node: documents.Node) -> Any:
    where = f"{path}, {node.where}: {name}"
    if name in _LISTS:
        items = node.items if isinstance(node, documents.Listing) else (node,)
        texts = tuple(item.text for item in items if isinstance(item, documents.Text) and item.text)
        if len(texts) != len(items):
            raise DatasetError(f"{where} is {documents.describe(node)}, expected a list of texts")
        return texts
    if name == "splits":
        return {
            split: _values(path, _mapping(given, f"{where}: {split}"), _OF_PARTS, "a split")
            for split, given in _entries(node, where)
        }
    if name == "options":
        return {key: _text(value, f"{where}: {key}") for key, value in _entries(node, where)}
    text = _text(node, where)
    if name not in _COUNTS:
        return text
    if not text.isdecimal() or int(text) < 1:
        raise DatasetError(f"{where} is {text!r}, expected a number")
    return int(text)


def _mapping(node: documents.Node, where: str) -> documents.Mapping:
    if not isinstance(node, documents.Mapping) or not node.members:
        raise DatasetError(f"{where} is {documents.describe(node)}, expected a mapping")
    return node


def _entries(node: documents.Node, where: str) -> list[tuple[str, documents.Node]]:
    """Return the members of a mapping by the text of their keys, each of which stands once."""
    members = _mapping(node, where).members
    keys = [key.text if isinstance(key, documents.Text) else "" for key, _ in members]
    if "" in keys or len(set(keys)) < len(keys):
        raise DatasetError(f"{where} has a key that is no text or stands twice")
    return list(zip(keys, (value for _, value in members), strict=True))


def _text(node: documents.Node, where: str) -> str:
    if not isinstance(node, documents.Text) or not node.text:
        raise DatasetError(f"{where} is {documents.describe(node)}, expected a text")
    return node.text
