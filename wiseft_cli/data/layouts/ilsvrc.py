"""ImageNet-1k in class folders, or as the flat validation images that are downloaded.

The labels of flat images come from the ground truth of the development kit or from Kaggle's
table. Source: readme.txt of ILSVRC2012_devkit_t12.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from wiseft_cli.data.files import is_regular_file
from wiseft_cli.data.image_formats import is_image_name
from wiseft_cli.data.image_set import ImageSet
from wiseft_cli.data.layouts.class_folders import list_class_folders
from wiseft_cli.data.layouts.local_copy import LocalCopy
from wiseft_cli.data.layouts.tables import read_columns, reject_faults
from wiseft_cli.data.records import ImageRecord, ImageRecords
from wiseft_cli.errors import DatasetError, counted, list_some
from wiseft_cli.prompts.documents import read_text

_IMAGE = re.compile(r"ILSVRC2012_val_\d{8}\.JPEG", re.ASCII | re.IGNORECASE)
_CLASS_FOLDER = re.compile(r"n\d{8}", re.ASCII)
_LEVELS_ABOVE = 4
"""From Kaggle's ILSVRC/Data/CLS-LOC/val up to the folder with its tables."""
_KIT_FOLDERS = (
    *("", "data", "devkit", "devkit/data"),
    *("ILSVRC2012_devkit_t12", "ILSVRC2012_devkit_t12/data"),
)


def list_ilsvrc(copy: LocalCopy) -> ImageSet:
    """List class folders, or flat validation images with their ground truth.

    Raises:
        DatasetError: There are no images, folders that are not a class, or flat images without
            labels.
    """
    folder = copy.find_folder()
    sizes, n_others = _flat_images(folder)
    if not sizes:
        return list_class_folders(copy)
    truth = _find_ground_truth(copy, folder, len(sizes))
    class_ids = _GROUND_TRUTHS[truth.name](truth)
    labels = {path: class_ids.get(path.partition(".")[0], "") for path in sorted(sizes)}
    unlabelled = [path for path, label in labels.items() if not label]
    if unlabelled:
        raise copy.error(
            f"{truth} has no label for {len(unlabelled)} of {len(labels)} images of {folder}",
            faults=unlabelled,
            hint="images and ground truth are of different releases, or one is incomplete",
        )
    unknown = sorted(set(labels.values()) - set(copy.card.labels))
    if unknown:
        raise DatasetError(
            f"{truth}: not classes of {copy.card.title}: {', '.join(list_some(unknown))}"
        )
    records = ImageRecords(ImageRecord(path, label, sizes[path]) for path, label in labels.items())
    note = (
        f"image set {copy.name!r}: {counted(n_others, 'image')} ignored, whose names are not those"
        " of validation images"
    )
    return ImageSet(copy.name, folder, records, (note,) if n_others else ())


def _flat_images(folder: Path) -> tuple[dict[str, int], int]:
    """Return the sizes of the validation images in a folder, and the number of other images.

    A folder with class folders has none.
    """
    sizes: dict[str, int] = {}
    n_others = 0
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if _CLASS_FOLDER.fullmatch(entry.name):
                    return {}, 0
                if _IMAGE.fullmatch(entry.name) and entry.is_file():
                    sizes[entry.name] = entry.stat().st_size
                elif is_image_name(entry.name) and not entry.name.startswith("."):
                    n_others += 1
    except OSError:
        return {}, 0  # listing the class folders reports it
    return sizes, n_others


def _find_ground_truth(copy: LocalCopy, folder: Path, n_images: int) -> Path:
    """Return the ground truth nearest to the images, the development kit's before Kaggle's."""
    real = Path(os.path.abspath(folder))
    for above in (real, *real.parents)[: _LEVELS_ABOVE + 1]:
        for file in _GROUND_TRUTHS:
            for below in _KIT_FOLDERS:
                if is_regular_file(above / below / file):
                    return above / below / file
    raise copy.error(
        f"{folder} has {n_images} validation images without class folders; neither it nor the"
        f" {_LEVELS_ABOVE} folders above have their ground truth, {' or '.join(_GROUND_TRUTHS)}",
        hint="unpack ILSVRC2012_devkit_t12.tar.gz beside the images, or put Kaggle's"
        " LOC_val_solution.csv there, or sort the images into class folders",
    )


def _read_devkit(path: Path) -> Mapping[str, str]:
    """Return WordNet ids by image name; line n is the class number of image n.

    Raises:
        DatasetError: The ground truth, or the `meta.mat` beside it, cannot be used.
    """
    wordnet_ids = _read_synsets(path.parent / "meta.mat")
    lines = [line.strip() for line in read_text(path, DatasetError).rstrip().splitlines()]
    reject_faults(
        path,
        [f"line {at}: {line!r:.40}" for at, line in enumerate(lines, 1) if line not in wordnet_ids],
        unit="line",
        hint=f"expected one class number from 1 to {len(wordnet_ids)} per line",
    )
    return {f"ILSVRC2012_val_{at:08d}": wordnet_ids[line] for at, line in enumerate(lines, 1)}


def _read_synsets(path: Path) -> Mapping[str, str]:
    """Return the WordNet ids of the classes without subclasses, by their number as text."""
    from scipy.io import loadmat  # lazy: scipy costs a tenth of a second

    fields = ["ILSVRC2012_ID", "WNID", "num_children"]
    try:
        rows = loadmat(str(path), squeeze_me=True)["synsets"][fields].ravel()
        return {str(int(number)): str(id) for number, id, n_children in rows if not n_children}
    except Exception as error:  # a damaged file makes the reader raise any class
        raise DatasetError(
            f"{path}: cannot be read: {type(error).__name__}: {' '.join(str(error).split())}",
            hint="the ground truth needs the meta.mat beside it in the folder data of"
            " ILSVRC2012_devkit_t12.tar.gz, which numbers the classes",
        ) from None


def _read_kaggle_table(path: Path) -> Mapping[str, str]:
    """Return WordNet ids by image name; a row has an image's boxes, each with the same class.

    Raises:
        DatasetError: The table cannot be read, or has rows that cannot be used.
    """
    labels: dict[str, str] = {}
    faults: list[str] = []
    for line, (image, boxes) in read_columns(path, ("ImageId", "PredictionString"), faults):
        words = boxes.split()
        class_ids = set(words[::5])  # a box is a class and four numbers
        if image in labels or len(class_ids) != 1 or len(words) % 5:
            faults.append(f"line {line}: {f'{image},{boxes}'!r:.80}")
        else:
            labels[image] = class_ids.pop()
    hint = "expected one row per image, with boxes of one class (its id and four numbers)"
    reject_faults(path, faults, unit="row", hint=hint)
    return labels


_GROUND_TRUTHS: Mapping[str, Callable[[Path], Mapping[str, str]]] = {
    "ILSVRC2012_validation_ground_truth.txt": _read_devkit,
    "LOC_val_solution.csv": _read_kaggle_table,
}
