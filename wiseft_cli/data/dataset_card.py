"""Data set cards: YAML files that say what a published image set is and how it lies on disk.

They hold facts: where to get the set, its classes, its metric, its counts. Cards that ship with
the package go by name, a person's own by path. It opens no set; `carded_set.py` does.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any, Literal, cast

from wiseft_cli.errors import DatasetError, UsageError
from wiseft_cli.prompts import documents
from wiseft_cli.prompts.class_names import BUILTIN_CLASSES, read_class_names

CARD_SUFFIXES = (".yaml", ".yml")

Layout = Literal["id-folders", "index-folders"]
LAYOUTS: tuple[Layout, ...] = ("id-folders", "index-folders")


@dataclass(frozen=True)
class DatasetCard:
    """What is known of a published image set.

    Attributes:
        name: What reports call it, and the command line where it ships with the package.
        title: Its full name.
        source: Where to get it.
        licence: Of the set.
        citation: Whom to cite.
        layout: Whether folders are named after class ids, or after positions in `class_ids`.
        folders: Where below the root the class folders may lie, as the official download unpacks;
            the root itself where none of them is there.
        classes: `imagenet`, or the path of a class list.
        class_ids: The ids of its classes, in the order of the class list.
        templates: A built-in set of templates, or the path of a file of them.
        primary: The metric that reports show first.
        n_images: How many images it has.
        n_classes: How many classes it has.
    """

    name: str
    title: str
    source: str
    licence: str
    citation: str
    layout: Layout
    folders: tuple[str, ...]
    classes: str
    class_ids: tuple[str, ...]
    templates: str
    primary: str
    n_images: int
    n_classes: int


_OPTIONAL = ("folders", "class_ids", "templates", "primary")
_LISTS = ("folders", "class_ids")
_COUNTS = ("n_images", "n_classes")


def dataset_card_names() -> tuple[str, ...]:
    """Return the names of the cards that ship with the package, sorted."""
    return tuple(sorted(path.stem for path in _shipped().iterdir() if path.suffix == ".yaml"))


def read_dataset_card(source: str) -> DatasetCard:
    """Read a card.

    Args:
        source: The name of a card that ships with the package, or the path of a YAML file.
    Raises:
        UsageError: No card has that name.
        DatasetError: Unreadable, not YAML, or not of a card's form.
    """
    if source in dataset_card_names():
        return _read(_shipped() / f"{source}.yaml")
    if not source.lower().endswith(CARD_SUFFIXES):
        raise UsageError(
            f"no data set card is called {source!r}; there are {', '.join(dataset_card_names())}",
            hint="a card of your own is named by its path, with .yaml at the end",
        )
    return _read(Path(source))


def _shipped() -> Path:
    return Path(str(resources.files("wiseft_cli.data"))) / "cards"


def _read(path: Path) -> DatasetCard:
    values = _members(path)
    classes = cast(str, values["classes"])
    class_list = classes if classes in BUILTIN_CLASSES else str(path.parent / classes)
    all_ids = _ids_of(class_list)
    class_ids = cast(tuple[str, ...], values.get("class_ids") or all_ids)
    unknown = sorted(set(class_ids) - set(all_ids))
    if unknown or len(set(class_ids)) < len(class_ids):
        raise DatasetError(
            f"{path}: class_ids: {unknown[0] if unknown else 'an id'} "
            + ("is no class of" if unknown else "stands twice, of")
            + f" {classes}"
        )
    if len(class_ids) != values["n_classes"]:
        raise DatasetError(
            f"{path}: n_classes is {values['n_classes']}, but it names {len(class_ids)} classes"
        )
    order = {class_id: at for at, class_id in enumerate(all_ids)}
    values |= {"classes": class_list, "class_ids": tuple(sorted(class_ids, key=order.__getitem__))}
    defaults = {"folders": (), "templates": "simple", "primary": "top1"}
    return DatasetCard(**cast(Any, defaults | values))


def _ids_of(class_list: str) -> tuple[str, ...]:
    if class_list in BUILTIN_CLASSES:
        # Written down beside the cards, as the library that has them takes seconds to import.
        return tuple((_shipped() / f"{class_list}-ids.txt").read_text("utf-8").split())
    return tuple(entry.id for entry in read_class_names(Path(class_list)).entries)


def _members(path: Path) -> dict[str, Any]:
    """Return the values of a card's keys, each of its kind."""
    root = documents.read_yaml(path, DatasetError)
    names = [field.name for field in fields(DatasetCard)]
    if not isinstance(root, documents.Mapping):
        found = "nothing" if root is None else documents.describe(root)
        raise DatasetError(
            f"{path}: holds {found}, expected a data set card", hint=f"it has {', '.join(names)}"
        )
    values: dict[str, Any] = {}
    for key, node in root.members:
        name = key.text if isinstance(key, documents.Text) else key.kind
        if name in values or name not in names:
            what = "stands there twice" if name in values else "is no key of a card"
            raise DatasetError(
                f"{path}, {key.where}: {name!r} {what}", hint=f"a card has {', '.join(names)}"
            )
        values[name] = _value(path, name, node)
    missing = [name for name in names if name not in values and name not in _OPTIONAL]
    if missing:
        raise DatasetError(f"{path}: a data set card needs {', '.join(missing)}")
    if values["layout"] not in LAYOUTS:
        raise DatasetError(
            f"{path}: layout is {values['layout']!r}, expected {' or '.join(LAYOUTS)}"
        )
    return values


def _value(path: Path, name: str, node: documents.Node) -> str | int | tuple[str, ...]:
    where = f"{path}, {node.where}: {name}"
    if name in _LISTS:
        items = node.items if isinstance(node, documents.Listing) else (node,)
        texts = tuple(item.text for item in items if isinstance(item, documents.Text) and item.text)
        if len(texts) != len(items):
            raise DatasetError(f"{where} is {documents.describe(node)}, expected a list of texts")
        return texts
    if not isinstance(node, documents.Text) or not node.text:
        raise DatasetError(f"{where} is {documents.describe(node)}, expected a text")
    if name not in _COUNTS:
        return node.text
    if not node.text.isdecimal() or int(node.text) < 1:
        raise DatasetError(f"{where} is {node.text!r}, expected a number")
    return int(node.text)
