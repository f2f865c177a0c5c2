"""Suggest what was meant by a folder or a label that does not fit."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Collection, Sequence
from pathlib import Path

from wiseft_cli.checkpoint.card import ClassEntry
from wiseft_cli.data.dataset_card import dataset_card_names, read_dataset_card
from wiseft_cli.data.image_set import ImageSet

_MAX_DEPTH = 6
_COMMON_FOLDERS = frozenset({"2750", "datasets", "images", "test", "train", "val", "val_in_folder"})
"""Names of folders of published sets that say nothing about the set."""


def similar_class(label: str, classes: Sequence[ClassEntry]) -> str | None:
    """Return the id or name of a class that resembles a label most, if there is one.

    Numbers must be equal: ids such as n01440764 resemble each other without a meaning.
    """
    texts = {text.casefold(): text for entry in classes for text in (entry.name, entry.id)}
    numbers = re.findall(r"\d+", label)
    texts = {key: text for key, text in texts.items() if re.findall(r"\d+", text) == numbers}
    close = difflib.get_close_matches(label.casefold(), texts, n=1, cutoff=0.75)
    return texts[close[0]] if close else None


def published_set_of(folder: Path) -> str | None:
    """Return the published set that a folder is named after, if there is one."""
    name = os.path.basename(os.path.abspath(folder))
    as_card = name.lower().replace("_", "-")
    if as_card in dataset_card_names():
        return as_card
    if name in _COMMON_FOLDERS:
        return None
    for card in map(read_dataset_card, dataset_card_names()):
        if any(name in below.split("/") for split in card.splits for below in split.folders):
            return card.name
    return None


def folder_with_classes(image_set: ImageSet, class_names: Collection[str]) -> list[str]:
    """Return folders above or below the root of a set whose subfolders are classes of a head.

    Args:
        image_set: A set whose labels are not classes of the head.
        class_names: Ids and names of the classes.
    """
    folders = [record.path.split("/")[:-1] for record in image_set.records]
    if image_set.reader is not None or any(
        not parts or parts[0] != record.label
        for parts, record in zip(folders, image_set.records, strict=True)
    ):
        return []  # the labels are not the names of the folders
    known = {name.casefold() for name in class_names}
    for depth in range(1, _MAX_DEPTH):
        below: dict[str, set[str]] = {}
        for parts in folders:
            if len(parts) > depth:
                below.setdefault("/".join(parts[:depth]), set()).add(parts[depth].casefold())
        fitting = [at for at, names in sorted(below.items()) if 2 * len(names & known) > len(names)]
        if fitting:
            return [os.path.join(image_set.root, at) for at in fitting]
    if os.path.basename(os.path.abspath(image_set.root)).casefold() in known:
        return [parent_of(image_set.root)]
    return []


def parent_of(folder: Path) -> str:
    """Return the path of the folder above."""
    return str(folder.parent if folder.name not in ("", "..") else folder / "..")
