"""Published sets with a folder a class, named after its id, its label or its position.

`id-folders` are named after the card's labels, `index-folders` after positions in its class list.
Folders that the card's label map leaves out are no images of the set.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from wiseft_cli.data.card_form import DatasetCard, Part
from wiseft_cli.data.image_folder import list_image_folder
from wiseft_cli.data.image_set import ImageSet
from wiseft_cli.data.layouts.places import first_folder
from wiseft_cli.errors import DatasetError, list_some


def list_class_folders(card: DatasetCard, part: Part, root: Path, *, name: str) -> ImageSet:
    """List a set with a folder a class, labelled as the card labels it.

    Raises:
        DatasetError: Nothing there, or folders that are no class of the set.
    """
    images = _without_left_out(card, list_image_folder(first_folder(root, part.folders), name=name))
    label_of = _label_of_folder(card)
    wrong = [folder for folder in images.labels if label_of(folder) is None]
    if wrong:
        expected = (
            f"numbers from 0 to {len(card.class_ids) - 1}"
            if card.layout == "index-folders"
            else f"{'class ids' if card.label_map is None else 'labels'} such as {card.labels[0]}"
        )
        lines = "".join(f"\n  {folder}" for folder in list_some(wrong))
        raise DatasetError(
            f"image set {name!r}: {images.root} has {len(wrong)} folders that are no class of"
            f" {card.title}; expected {expected}:{lines}",
            hint=f"is it laid out as {card.source} has it? ?card=none behind the folder takes it"
            " as a plain one",
        )
    records = tuple(
        replace(record, label=label_of(record.label) or record.label) for record in images.records
    )
    return replace(images, records=records)


def _without_left_out(card: DatasetCard, images: ImageSet) -> ImageSet:
    absent = set(card.label_map.leave_out) if card.label_map is not None else set()
    kept = tuple(record for record in images.records if record.label not in absent)
    n_left_out = len(images.records) - len(kept)
    if not n_left_out:
        return images
    folders = [label for label in images.labels if label in absent]
    if not kept:
        raise DatasetError(
            f"image set {images.name!r}: none of the {len(folders)} folders of {images.root} is one"
            f" of the {len(card.labels)} classes of {card.title}"
        )
    note = (
        f"image set {images.name!r}: {n_left_out:,} images in {len(folders)} folders, such as"
        f" {folders[0]}, are left out: the set is scored over {len(card.labels)} classes"
    )
    return replace(images, records=kept, notes=(*images.notes, note))


def _label_of_folder(card: DatasetCard) -> Callable[[str], str | None]:
    """Return a function from a folder's name to a label, None where it is none."""
    if card.layout == "index-folders":
        of_index: dict[int, str] = dict(enumerate(card.class_ids))
        return lambda folder: of_index.get(int(folder)) if folder.isdecimal() else None
    return {label: label for label in card.labels}.get
