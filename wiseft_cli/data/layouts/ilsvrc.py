"""ImageNet-1k as people keep it: a folder a class, or the flat validation images as downloaded.

The labels of flat images come from the files that were published with them: the development
kit's, or Kaggle's table. Source: readme.txt of ILSVRC2012_devkit_t12.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from wiseft_cli.data.card_form import DatasetCard, Part
from wiseft_cli.data.files import is_image_name, is_regular_file
from wiseft_cli.data.image_set import ImageRecord, ImageSet
from wiseft_cli.data.layouts.class_folders import list_class_folders
from wiseft_cli.data.layouts.ilsvrc_truth import read_devkit, read_kaggle_table
from wiseft_cli.data.layouts.places import find_folder
from wiseft_cli.errors import DatasetError, counted, list_some

_IMAGE = re.compile(r"ILSVRC2012_val_\d{8}\.JPEG", re.ASCII | re.IGNORECASE)
_CLASS_FOLDER = re.compile(r"n\d{8}", re.ASCII)
_TRUTH: Mapping[str, Callable[[Path], Mapping[str, str]]] = {
    "ILSVRC2012_validation_ground_truth.txt": read_devkit,
    "LOC_val_solution.csv": read_kaggle_table,
}
_LEVELS_ABOVE = 4
"""From Kaggle's ILSVRC/Data/CLS-LOC/val up to the folder that holds its tables."""
_BELOW = (
    "",
    "data",
    "devkit",
    "devkit/data",
    "ILSVRC2012_devkit_t12",
    "ILSVRC2012_devkit_t12/data",
)


def list_ilsvrc(card: DatasetCard, part: Part, root: Path, *, name: str) -> ImageSet:
    """List the images of class folders, or flat validation images with their ground truth.

    Raises:
        DatasetError: Nothing there, folders that are no class, or flat images whose labels are
            not there or do not fit.
    """
    folder = find_folder(card, part, root, name=name)
    flat, n_others = _flat_images(folder)
    if not flat:
        return list_class_folders(card, part, root, name=name)
    truth = _find_truth(folder, name, len(flat))
    label_of = _TRUTH[truth.name](truth)
    unlabelled = [f"  {path}" for path in sorted(flat) if _stem(path) not in label_of]
    if unlabelled:
        raise DatasetError(
            f"image set {name!r}: {truth} has no label for {len(unlabelled)} of {len(flat)} images"
            f" of {folder}:\n" + "\n".join(list_some(unlabelled)),
            hint="images and ground truth are of different releases, or one is not complete",
        )
    labels = set(card.labels)
    wrong = sorted({label_of[_stem(path)] for path in flat} - labels)
    if wrong:
        raise DatasetError(f"{truth}: {', '.join(list_some(wrong))} is no class of {card.title}")
    records = tuple(
        ImageRecord(path, label_of[_stem(path)], size_bytes)
        for path, size_bytes in sorted(flat.items())
    )
    return ImageSet(name, folder, records, _notes(name, n_others))


def _notes(name: str, n_others: int) -> tuple[str, ...]:
    if not n_others:
        return ()
    such = "that is not named as a validation image is ignored"
    if n_others > 1:
        such = "that are not named as validation images are ignored"
    return (f"image set {name!r}: {counted(n_others, 'image')} {such}",)


def _stem(path: str) -> str:
    return path.partition(".")[0]


def _flat_images(folder: Path) -> tuple[dict[str, int], int]:
    """Return names and sizes of the validation images in a folder, and how many others lie there.

    There are none beside class folders.
    """
    images: dict[str, int] = {}
    n_others = 0
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if _CLASS_FOLDER.fullmatch(entry.name):
                    return {}, 0
                if _IMAGE.fullmatch(entry.name) and entry.is_file():
                    images[entry.name] = entry.stat().st_size
                elif is_image_name(entry.name) and not entry.name.startswith("."):
                    n_others += 1
    except OSError:
        return {}, 0  # the listing of class folders says what is wrong
    return images, n_others


def _find_truth(folder: Path, name: str, n_images: int) -> Path:
    """Return the ground truth that lies nearest above the images, the development kit's first."""
    real = Path(os.path.abspath(folder))
    for above in (real, *real.parents)[: _LEVELS_ABOVE + 1]:
        for file in _TRUTH:
            for below in _BELOW:
                if is_regular_file(above / below / file):
                    return above / below / file
    raise DatasetError(
        f"image set {name!r}: {folder} holds {n_images} validation images without class folders,"
        f" and no ground truth lies there or up to {_LEVELS_ABOVE} folders above"
        f" (looked for {' and '.join(_TRUTH)})",
        hint="unpack ILSVRC2012_devkit_t12.tar.gz beside the images, or put Kaggle's"
        " LOC_val_solution.csv there, or sort the images into class folders",
    )
