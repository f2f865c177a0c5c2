"""Open a copy of a published image set as its card describes it.

Labels become the card's, so that they join a head by id however the copy is laid out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from wiseft_cli.data.dataset_card import DatasetCard, Layout
from wiseft_cli.data.image_set import ImageSet
from wiseft_cli.data.layouts.arrays import list_arrays
from wiseft_cli.data.layouts.class_folders import list_class_folders
from wiseft_cli.data.layouts.ilsvrc import list_ilsvrc
from wiseft_cli.data.layouts.local_copy import LocalCopy
from wiseft_cli.data.layouts.torchvision import list_torchvision_set
from wiseft_cli.data.layouts.video import list_vid_robust, list_ytbb_robust
from wiseft_cli.data.layouts.wilds import list_fmow, list_iwildcam

_LIST_FUNCTIONS: Mapping[Layout, Callable[[LocalCopy], ImageSet]] = {
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


def open_published_set(
    card: DatasetCard, root: Path, *, name: str | None = None, split: str | None = None
) -> ImageSet:
    """List a copy of a published set.

    Args:
        card: The set's card.
        root: The folder that the download was unpacked into, or one of the card's folders.
        name: The set's name in reports; the card's name if None.
        split: One of the card's splits; the first if None.
    Returns:
        The set, with the card's labels; warnings report counts that differ from the card's.
    Raises:
        UsageError: The card has no such split.
        DatasetError: There is no copy of the set, or it cannot be read.
    """
    copy = LocalCopy(card, card.split(split), root, name or card.name)
    images = _LIST_FUNCTIONS[card.layout](copy)
    join_options = replace(
        images.join_options,
        primary=copy.split.primary,
        label_map=images.join_options.label_map or card.label_map,
        competing=card.labels or images.join_options.competing,
    )
    warnings = (*images.warnings, *_differences(copy, images))
    return replace(
        images,
        join_options=join_options,
        exif_orientation=card.exif_orientation,
        warnings=warnings,
    )


def _differences(copy: LocalCopy, images: ImageSet) -> tuple[str, ...]:
    counts = (
        ("images", len(images.records), copy.split.n_images),
        ("classes", len(images.accepted_labels), copy.split.n_classes),
        ("anchor frames", len(images.neighbourhoods), copy.split.n_anchors),
    )
    return tuple(
        f"image set {images.name!r}: {found:,} {what}, but {copy.title} has {expected:,}: the copy"
        " is incomplete, or not of this set"
        for what, found, expected in counts
        if expected is not None and found != expected
    )
