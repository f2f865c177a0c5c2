"""Published sets with one folder per class, named by its label or by its position.

`id-folders` are named by the card's labels, `index-folders` by positions in its class list.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from wiseft_cli.data.dataset_card import DatasetCard
from wiseft_cli.data.image_folder import list_image_folder
from wiseft_cli.data.image_set import ImageSet
from wiseft_cli.data.layouts.local_copy import LocalCopy, archives_in, none_of
from wiseft_cli.data.records import ImageRecords
from wiseft_cli.errors import counted, list_some


def list_class_folders(copy: LocalCopy) -> ImageSet:
    """List a set with one folder per class; folders that the card's map leaves out are skipped.

    Raises:
        DatasetError: There are no class folders, or folders that are not a class of the set.
    """
    card, folder = copy.card, copy.find_folder()
    label_of = _label_of_folder(card)
    left_out = set() if card.label_map is None else set(card.label_map.leave_out)
    _require_class_folder(copy, folder, lambda name: name in left_out or label_of(name) is not None)
    images = _without_labels(copy, list_image_folder(folder, name=copy.name), left_out)
    unknown = [label for label in images.labels if label_of(label) is None]
    if unknown:
        raise copy.error(
            f"{folder} has folders that are not a class of {card.title} (expected"
            f" {_expected(card)})",
            faults=unknown,
            hint=f"is it laid out as at {card.source}? ?card=none reads it as a plain folder",
        )
    records = ImageRecords(
        replace(record, label=label_of(record.label) or record.label) for record in images.records
    )
    return replace(images, records=records)


def _label_of_folder(card: DatasetCard) -> Callable[[str], str | None]:
    if card.layout == "index-folders":
        by_index = dict(enumerate(card.class_ids))
        return lambda folder: by_index.get(int(folder)) if folder.isdecimal() else None
    return {label: label for label in card.labels}.get


def _expected(card: DatasetCard) -> str:
    if card.layout == "index-folders":
        return f"numbers from 0 to {len(card.class_ids) - 1}"
    return f"{'class ids' if card.label_map is None else 'labels'} such as {card.labels[0]}"


def _require_class_folder(copy: LocalCopy, folder: Path, is_class: Callable[[str], bool]) -> None:
    """Reject a root that holds neither a folder of the set nor a class, and a packed set."""
    try:
        entries = sorted(os.listdir(folder))
    except OSError:
        return  # listing the class folders reports it
    archives = archives_in(folder)
    is_root = folder == copy.root and bool(copy.split.folders)
    if any(map(is_class, entries)) or not (archives or is_root):
        return
    lacks = f"{none_of(copy.split.folders)} and no class folder" if is_root else "no class folder"
    found = [entry for entry in entries if not entry.startswith(".")]
    remedy = f"unpack {', '.join(list_some(archives))}, and name" if archives else "name"
    raise copy.error(
        f"{folder} is not a copy of {copy.title}: it has {lacks} (expected {_expected(copy.card)});"
        f" {'found' if found else 'it is empty'}",
        faults=found,
        hint=f"{remedy} the folder that the download was unpacked into, or the one with the class"
        f" folders; the set is at {copy.card.source}",
    )


def _without_labels(copy: LocalCopy, images: ImageSet, left_out: set[str]) -> ImageSet:
    """Leave out the images of some labels, with a note."""
    kept = ImageRecords(record for record in images.records if record.label not in left_out)
    n_left_out = len(images.records) - len(kept)
    if not n_left_out:
        return images
    folders = [label for label in images.labels if label in left_out]
    if not kept:
        raise copy.error(
            f"none of the {counted(len(folders), 'folder')} of {images.root} is one of the"
            f" {len(copy.card.labels)} classes of {copy.card.title}"
        )
    note = (
        f"image set {copy.name!r}: {counted(n_left_out, 'image')} in"
        f" {counted(len(folders), 'folder')} that are not among its {len(copy.card.labels)}"
        f" classes are left out, such as {folders[0]}"
    )
    return replace(images, records=kept, notes=(*images.notes, note))
