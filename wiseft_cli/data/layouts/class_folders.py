"""Published sets with a folder a class, named after its id, its label or its position.

`id-folders` are named after the card's labels, `index-folders` after positions in its class list.
Folders that the card's label map leaves out are no images of the set.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from wiseft_cli.data.card_form import DatasetCard, Part
from wiseft_cli.data.image_folder import list_image_folder
from wiseft_cli.data.image_set import ImageSet
from wiseft_cli.data.layouts.places import find_folder, none_of, packed_in
from wiseft_cli.errors import DatasetError, counted, list_some


def list_class_folders(card: DatasetCard, part: Part, root: Path, *, name: str) -> ImageSet:
    """List a set with a folder a class, labelled as the card labels it.

    Raises:
        DatasetError: Nothing there, or folders that are no class of the set.
    """
    folder = find_folder(card, part, root, name=name)
    label_of = _label_of_folder(card)
    _refuse_without_classes(card, part, root, folder, label_of, name=name)
    images = _without_left_out(card, list_image_folder(folder, name=name))
    wrong = [label for label in images.labels if label_of(label) is None]
    if wrong:
        are = "is no class" if len(wrong) == 1 else "are no classes"
        lines = "".join(f"\n  {label}" for label in list_some(wrong))
        raise DatasetError(
            f"image set {name!r}: {images.root} has {counted(len(wrong), 'folder')} that {are} of"
            f" {card.title}; expected {_expected(card)}:{lines}",
            hint=f"is it laid out as {card.source} has it? eval and finetune take it as a plain"
            " folder with ?card=none behind it",
        )
    records = tuple(
        replace(record, label=label_of(record.label) or record.label) for record in images.records
    )
    return replace(images, records=records)


def _refuse_without_classes(
    card: DatasetCard,
    part: Part,
    root: Path,
    folder: Path,
    label_of: Callable[[str], str | None],
    *,
    name: str,
) -> None:
    """Refuse a root that has neither a folder of the set nor a class, and a set still packed."""
    try:
        entries = sorted(os.listdir(folder))
    except OSError:
        return  # the listing of class folders says what is wrong
    left_out = set() if card.label_map is None else set(card.label_map.leave_out)
    if any(label_of(entry) is not None or entry in left_out for entry in entries):
        return
    packed = packed_in(folder)
    is_root = folder == root and bool(part.folders)
    if not packed and not is_root:
        return
    none = f"{none_of(part.folders)}, and no class folder" if is_root else "no class folder"
    found = [f"  {entry}" for entry in entries if not entry.startswith(".")]
    title = f"{card.title}, split {part.split}" if part.split else card.title
    remedy = (
        "name the folder that the download was unpacked into, or the one with the class folders"
    )
    if packed:
        remedy = f"unpack {', '.join(list_some(packed))}, and name the folder it was unpacked into"
    there = "\n".join(["found:", *list_some(found)]) if found else "found nothing"
    raise DatasetError(
        f"image set {name!r}: {folder} is no copy of {title}: it has {none}; expected"
        f" {_expected(card)}, {there}",
        hint=f"{remedy}; {card.source} has the set",
    )


def _expected(card: DatasetCard) -> str:
    if card.layout == "index-folders":
        return f"numbers from 0 to {len(card.class_ids) - 1}"
    return f"{'class ids' if card.label_map is None else 'labels'} such as {card.labels[0]}"


def _without_left_out(card: DatasetCard, images: ImageSet) -> ImageSet:
    absent = set(card.label_map.leave_out) if card.label_map is not None else set()
    kept = tuple(record for record in images.records if record.label not in absent)
    n_left_out = len(images.records) - len(kept)
    if not n_left_out:
        return images
    folders = [label for label in images.labels if label in absent]
    if not kept:
        raise DatasetError(
            f"image set {images.name!r}: none of the {counted(len(folders), 'folder')} of"
            f" {images.root} is one of the {len(card.labels)} classes of {card.title}"
        )
    note = (
        f"image set {images.name!r}: {counted(n_left_out, 'image')} in"
        f" {counted(len(folders), 'folder')}, such as {folders[0]}, are left out: the"
        f" set is scored over {len(card.labels)} classes"
    )
    return replace(images, records=kept, notes=(*images.notes, note))


def _label_of_folder(card: DatasetCard) -> Callable[[str], str | None]:
    """Return a function from a folder's name to a label, None where it is none."""
    if card.layout == "index-folders":
        of_index: dict[int, str] = dict(enumerate(card.class_ids))
        return lambda folder: of_index.get(int(folder)) if folder.isdecimal() else None
    return {label: label for label in card.labels}.get
