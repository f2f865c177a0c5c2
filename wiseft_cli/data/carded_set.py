"""Opens a published image set as its card describes it, and tells what differs from the card.

Labels become the card's class ids, so that they join a head by id whatever folders are called.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from wiseft_cli.data.dataset_card import DatasetCard
from wiseft_cli.data.image_folder import list_image_folder
from wiseft_cli.data.image_set import ImageSet, JoinOptions
from wiseft_cli.errors import DatasetError, list_some


def open_carded_set(card: DatasetCard, root: Path, *, name: str | None = None) -> ImageSet:
    """List a copy of a published set.

    Args:
        card: Its card.
        root: The folder that the download was unpacked into, or that holds the class folders.
        name: What reports call it; the card's name where None.
    Returns:
        The set, labelled with the card's class ids; differing counts are in its warnings.
    Raises:
        DatasetError: Nothing there, or folders that are no class of the set.
    """
    name = name or card.name
    images = list_image_folder(_class_root(card, root), name=name)
    class_of = _id_of_folder(card)
    wrong = [label for label in images.labels if class_of(label) is None]
    if wrong:
        expected = (
            f"numbers from 0 to {card.n_classes - 1}"
            if card.layout == "index-folders"
            else f"class ids such as {card.class_ids[0]}"
        )
        lines = "".join(f"\n  {label}" for label in list_some(wrong))
        raise DatasetError(
            f"image set {name!r}: {images.root} has {len(wrong)} folders that are no class of"
            f" {card.title}; expected {expected}:{lines}",
            hint=f"is it laid out as {card.source} has it? ?card=none behind the folder takes it"
            " as a plain one",
        )
    records = tuple(
        replace(record, label=class_of(record.label) or record.label) for record in images.records
    )
    return replace(
        images,
        records=records,
        join_options=JoinOptions(primary=card.primary),
        warnings=_differences(card, name, len(records), len({record.label for record in records})),
    )


def _class_root(card: DatasetCard, root: Path) -> Path:
    inside = (root / folder for folder in card.folders)
    return next((path for path in inside if path.is_dir()), root)


def _id_of_folder(card: DatasetCard) -> Callable[[str], str | None]:
    """Return a function from a folder's name to a class id, None where it is none."""
    if card.layout == "id-folders":
        return {class_id: class_id for class_id in card.class_ids}.get
    of_index: dict[int, str] = dict(enumerate(card.class_ids))
    return lambda label: of_index.get(int(label)) if label.isdecimal() else None


def _differences(card: DatasetCard, name: str, n_images: int, n_classes: int) -> tuple[str, ...]:
    counts = (("images", n_images, card.n_images), ("classes", n_classes, card.n_classes))
    return tuple(
        f"image set {name!r}: {found:,} {what}, {card.title} has {expected:,}: the copy is not"
        " complete, or another set"
        for what, found, expected in counts
        if found != expected
    )
