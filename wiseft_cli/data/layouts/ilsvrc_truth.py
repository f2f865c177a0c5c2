"""The labels of ImageNet-1k's validation images: the development kit's files, and Kaggle's table.

It lists no image; `ilsvrc.py` does.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from wiseft_cli.data.files import is_regular_file
from wiseft_cli.data.layouts.csv_table import read_columns
from wiseft_cli.data.layouts.faults import refuse
from wiseft_cli.errors import DatasetError
from wiseft_cli.prompts.documents import read_text

_FIELDS = ("ILSVRC2012_ID", "WNID", "num_children")
_COLUMNS = ("ImageId", "PredictionString")
_NUMBERS_OF_A_BOX = 4


def read_devkit(path: Path) -> Mapping[str, str]:
    """Return WordNet ids by image name, from a ground truth and the `meta.mat` beside it.

    Args:
        path: ILSVRC2012_validation_ground_truth.txt; its line n has the number of the class of
            image n.
    Raises:
        DatasetError: Unreadable, or not of that form; the lines are named.
    """
    wordnet_ids = _read_synsets(path.parent / "meta.mat")
    lines = read_text(path, DatasetError).rstrip().splitlines()
    wrong = [
        f"  line {number}: {line!r:.40}"
        for number, line in enumerate(lines, start=1)
        if line.strip() not in wordnet_ids
    ]
    refuse(
        path, wrong, what="lines", hint=f"a line is the number of a class, 1 to {len(wordnet_ids)}"
    )
    return {
        f"ILSVRC2012_val_{number:08d}": wordnet_ids[line.strip()]
        for number, line in enumerate(lines, start=1)
    }


def _read_synsets(path: Path) -> Mapping[str, str]:
    """Return the WordNet ids of the lowest classes by their number as text."""
    if not is_regular_file(path):
        raise DatasetError(
            f"{path} is not there; the ground truth beside it numbers the classes as meta.mat does",
            hint="both are in the folder data of ILSVRC2012_devkit_t12.tar.gz",
        )
    from scipy.io import loadmat  # lazy: scipy costs a tenth of a second

    try:
        rows = loadmat(path, squeeze_me=True)["synsets"]
        synsets = [tuple(row[field] for field in _FIELDS) for row in rows.ravel()]
        return {str(int(number)): str(id) for number, id, n_children in synsets if not n_children}
    except Exception as error:  # a damaged file makes the reader raise any class
        raise DatasetError(
            f"{path}: is no meta.mat of the development kit: {_words(error)}",
            hint="expected the variable synsets with ILSVRC2012_ID, WNID and num_children",
        ) from None


def _words(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def read_kaggle_table(path: Path) -> Mapping[str, str]:
    """Return WordNet ids by image name, from Kaggle's LOC_val_solution.csv.

    A row has an image's boxes, each with its class, which is the same in all of them.

    Raises:
        DatasetError: Unreadable, or not of that form; the lines are named.
    """
    labels: dict[str, str] = {}
    wrong: list[str] = []
    for line, (image, boxes) in read_columns(path, _COLUMNS, wrong):
        label = _class_of_boxes(boxes)
        if label is None or image in labels:
            wrong.append(f"  line {line}: {image + ',' + boxes!r:.80}")
        else:
            labels[image] = label
    remedy = "each image stands there once, with boxes of one class (id and four numbers)"
    refuse(path, wrong, what="rows", hint=remedy)
    return labels


def _class_of_boxes(boxes: str) -> str | None:
    """Return the class of an image's boxes; None where the text is not of the form."""
    words = boxes.split()
    width = 1 + _NUMBERS_OF_A_BOX
    ids = set(words[::width])
    return ids.pop() if len(ids) == 1 and len(words) % width == 0 else None
