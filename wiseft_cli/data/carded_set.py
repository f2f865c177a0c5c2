"""Opens a published image set as its card describes it, and tells what differs from the card.

Labels become the card's, so that they join a head by id whatever is on disk; how each layout
is listed stands in `layouts/`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from wiseft_cli.data.card_form import DatasetCard, Layout, Part
from wiseft_cli.data.image_set import ImageSet
from wiseft_cli.data.layouts.arrays import list_arrays
from wiseft_cli.data.layouts.class_folders import list_class_folders
from wiseft_cli.data.layouts.fmow import list_fmow
from wiseft_cli.data.layouts.ilsvrc import list_ilsvrc
from wiseft_cli.data.layouts.iwildcam import list_iwildcam
from wiseft_cli.data.layouts.torchvision_set import list_torchvision_set
from wiseft_cli.data.layouts.vid_robust import list_vid_robust
from wiseft_cli.data.layouts.ytbb_robust import list_ytbb_robust


class _ListSet(Protocol):
    def __call__(self, card: DatasetCard, part: Part, root: Path, *, name: str) -> ImageSet: ...


_LISTED_BY: Mapping[Layout, _ListSet] = {
    "id-folders": list_class_folders,
    "index-folders": list_class_folders,
    "iwildcam-wilds": list_iwildcam,
    "fmow-wilds": list_fmow,
    "ilsvrc": list_ilsvrc,
    "vid-robust": list_vid_robust,
    "ytbb-robust": list_ytbb_robust,
    "arrays": list_arrays,
    "torchvision": list_torchvision_set,
}


def open_carded_set(
    card: DatasetCard, root: Path, *, name: str | None = None, split: str | None = None
) -> ImageSet:
    """List a copy of a published set.

    Args:
        card: Its card.
        root: The folder that the download was unpacked into, or one that its card names below it.
        name: What reports call it; the card's name where None.
        split: One of the card's splits; the first where None.
    Returns:
        The set, labelled as the card labels it; differing counts are in its warnings.
    Raises:
        UsageError: The card has no such split.
        DatasetError: Nothing there, or what is there is no copy of the set.
    """
    part = card.part(split)
    name = name or card.name
    images = _LISTED_BY[card.layout](card, part, root, name=name)
    own = replace(
        images.join_options,
        primary=part.primary,
        label_map=images.join_options.label_map or card.label_map,
        competing=card.labels or images.join_options.competing,
    )
    warnings = (*images.warnings, *_differences(card, part, images))
    return replace(images, join_options=own, warnings=warnings)


def _differences(card: DatasetCard, part: Part, images: ImageSet) -> tuple[str, ...]:
    title = f"{card.title}, split {part.split}" if part.split else card.title
    counts = (
        ("images", len(images.records), part.n_images),
        ("classes", len(images.accepted_labels), part.n_classes),
        ("anchor frames", len(images.neighbourhoods), part.n_anchors),
    )
    return tuple(
        f"image set {images.name!r}: {found:,} {what}, {title} has {expected:,}: the copy is not"
        " complete, or another set"
        for what, found, expected in counts
        if expected is not None and found != expected
    )
