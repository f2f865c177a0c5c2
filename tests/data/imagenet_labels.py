"""Write the files that label ImageNet-1k's validation images, in their published format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy.io import savemat

FIELDS = (
    "ILSVRC2012_ID",
    "WNID",
    "words",
    "gloss",
    "num_children",
    "children",
    "wordnet_height",
    "num_train_images",
)


def write_meta(path: Path, wordnet_ids: Sequence[str]) -> None:
    """Write `meta.mat`: the classes, numbered from 1, and one synset above them all."""
    table = np.empty((len(wordnet_ids) + 1, 1), dtype=[(field, object) for field in FIELDS])
    for number, wordnet_id in enumerate((*wordnet_ids, "n00001740"), start=1):
        is_leaf = number <= len(wordnet_ids)
        children = np.zeros(0, np.uint8) if is_leaf else np.arange(1.0, number)
        counts = (0, 1300) if is_leaf else (1, 0)
        row = (float(number), wordnet_id, "words", "gloss", float(len(children)), children, *counts)
        table[number - 1, 0] = row
    savemat(path, {"synsets": table})


def write_devkit(folder: Path, wordnet_ids: Sequence[str], truth: Sequence[str]) -> Path:
    """Write the folder `data` of the development kit; `truth` labels image 1, 2, ..."""
    folder.mkdir(parents=True)
    write_meta(folder / "meta.mat", wordnet_ids)
    numbers = [wordnet_ids.index(label) + 1 for label in truth]
    path = folder / "ILSVRC2012_validation_ground_truth.txt"
    path.write_text("".join(f"{number}\n" for number in numbers))
    return path


def write_kaggle(path: Path, labels: Mapping[int, str]) -> Path:
    """Write Kaggle's table with one or two boxes per image."""
    rows = [
        f"ILSVRC2012_val_{number:08d},{label} 1 2 30 40 {f'{label} 5 6 7 8 ' * (number % 2)}"
        for number, label in labels.items()
    ]
    path.write_text("\n".join(["ImageId,PredictionString", *rows, ""]))
    return path
