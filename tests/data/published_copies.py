"""Write small copies of published sets in the layout of the official downloads.

The pictures of a class share a pattern of four by four colours, so a linear classifier learns the
classes from a few pictures, and a label assigned to another class shows as a wrong prediction.
"""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision
from PIL import Image
from scipy.io import savemat

from wiseft_cli.data.dataset_card import read_dataset_card


def picture(class_number: int, at: int, *, size: int = 32) -> np.ndarray:
    """Return pixels (size, size, 3) of a class; `at` seeds their noise."""
    pattern = np.random.default_rng(class_number).integers(40, 216, (4, 4, 3))
    noise = np.random.default_rng([class_number, at]).integers(-20, 21, (size, size, 3))
    return (np.kron(pattern, np.ones((size // 4, size // 4, 1))) + noise).astype(np.uint8)


def pictures(numbers: Sequence[int], *, first: int = 0) -> np.ndarray:
    """Return distinct pictures (N, 32, 32, 3) of these classes."""
    return np.stack([picture(number, first + at) for at, number in enumerate(numbers)])


def save_picture(path: Path, class_number: int, at: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(class_number, at)).save(path, quality=95)


def write_pickle(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(dict(content), protocol=2))


def _batch(numbers: Sequence[int], first: int, labels: str) -> dict[str, Any]:
    planes = pictures(numbers, first=first).transpose(0, 3, 1, 2)
    return {
        "data": planes.reshape(len(numbers), 3072),
        labels: list(numbers),
        "filenames": [f"{at}.png" for at in range(len(numbers))],
        "batch_label": "a batch",
    }


def write_cifar10(root: Path, test: Sequence[int], train: Sequence[int]) -> Path:
    """Write `cifar-10-batches-py/`; the classes `train` are divided over its five files."""
    folder = root / "cifar-10-batches-py"
    per_file = -(-len(train) // 5)
    for at in range(5):
        part = train[at * per_file : (at + 1) * per_file]
        write_pickle(folder / f"data_batch_{at + 1}", _batch(part, 1000 * at, "labels"))
    write_pickle(folder / "test_batch", _batch(test, 9000, "labels"))
    names = list(read_dataset_card("cifar10").class_ids)
    meta = {"label_names": names, "num_cases_per_batch": 10000, "num_vis": 3072}
    write_pickle(folder / "batches.meta", meta)
    return folder


def write_cifar100(root: Path, test: Sequence[int], train: Sequence[int]) -> Path:
    folder = root / "cifar-100-python"
    for name, numbers, first in (("train", train, 0), ("test", test, 9000)):
        coarse = {"coarse_labels": [0] * len(numbers)}
        write_pickle(folder / name, _batch(numbers, first, "fine_labels") | coarse)
    names = list(read_dataset_card("cifar100").class_ids)
    write_pickle(folder / "meta", {"fine_label_names": names, "coarse_label_names": ["all"]})
    return folder


def _md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def publish_cifar(patch: pytest.MonkeyPatch, class_name: str, folder: Path) -> None:
    """Replace the MD5 sums that torchvision expects by those of a copy."""
    cls = getattr(torchvision.datasets, class_name)
    for attribute in ("train_list", "test_list"):
        files = [[file, _md5(folder / file)] for file, _ in getattr(cls, attribute)]
        patch.setattr(cls, attribute, files)
    patch.setattr(cls, "meta", {**cls.meta, "md5": _md5(folder / cls.meta["filename"])})


def write_cifar10_1(folder: Path, numbers: Sequence[int]) -> Path:
    folder.mkdir(parents=True)
    np.save(folder / "cifar10.1_v6_data.npy", pictures(numbers, first=500))
    np.save(folder / "cifar10.1_v6_labels.npy", np.array(numbers, np.int32))
    return folder


def write_cifar10_2(folder: Path, numbers: Sequence[int], *, split: str = "test") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(
        folder / f"cifar102_{split}.npz",
        images=pictures(numbers, first=600),
        labels=np.array(numbers, np.int64),
        label_names=np.array(read_dataset_card("cifar10").class_ids),
        ti_indices=np.arange(len(numbers)),
        keywords=np.array(["tabby"] * len(numbers)),
    )
    return folder


Where = Sequence[tuple[int, int]]
"""The class number and the number of each image."""


def _struct(columns: Mapping[str, Sequence[Any]]) -> np.ndarray:
    """Return a MATLAB struct array 1 x N."""
    count = len(next(iter(columns.values())))
    array = np.empty((1, count), dtype=[(name, "O") for name in columns])
    for name, values in columns.items():
        for at, value in enumerate(values):
            array[0, at][name] = value
    return array


def write_cars(folder: Path, test: Where, train: Where) -> Path:
    """Write `devkit/`, `cars_train/`, `cars_test/` and the labels of the test split."""
    (folder / "devkit").mkdir(parents=True)
    names = np.empty((1, 196), object)
    names[0] = list(read_dataset_card("stanford-cars").class_ids)
    savemat(folder / "devkit/cars_meta.mat", {"class_names": names})
    for split, file, images in (
        ("test", "cars_test_annos_withlabels.mat", test),
        ("train", "devkit/cars_train_annos.mat", train),
    ):
        files = [f"{at:05d}.jpg" for _, at in images]
        for (number, at), name in zip(images, files, strict=True):
            save_picture(folder / f"cars_{split}" / name, number, at)
        corner: dict[str, Sequence[Any]] = {
            f"bbox_{side}": [1] * len(images) for side in ("x1", "y1", "x2", "y2")
        }
        numbers = [np.uint8(number + 1) for number, _ in images]
        annotations = _struct({**corner, "class": numbers, "fname": files})
        savemat(folder / file, {"annotations": annotations})
    # In the official archive, but not read: it has no classes.
    bare = _struct({**corner, "fname": files})
    savemat(folder / "devkit/cars_test_annos.mat", {"annotations": bare})
    return folder


def write_dtd(folder: Path, **splits: Where) -> Path:
    """Write `images/` and `labels/` with one line `class/file.jpg` per image."""
    (folder / "labels").mkdir(parents=True)
    ids = read_dataset_card("dtd").class_ids
    for split, images in splits.items():
        files = [f"{ids[number]}/{ids[number]}_{at:04d}.jpg" for number, at in images]
        for (number, at), file in zip(images, files, strict=True):
            save_picture(folder / "images" / file, number, at)
        (folder / f"labels/{split}1.txt").write_text("".join(f"{file}\n" for file in files))
    return folder


def write_sun397(folder: Path, **splits: Where) -> Path:
    """Write `ClassName.txt`, one folder per letter and the listings of partition 1.

    Classes such as `apse/indoor` are two folders deep.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ids = read_dataset_card("sun397").class_ids
    places = [f"/{class_id[0]}/{class_id}" for class_id in ids]
    (folder / "ClassName.txt").write_text("".join(f"{place}\n" for place in places))
    for split, images in splits.items():
        files = [f"{places[number]}/sun_{at:016d}.jpg" for number, at in images]
        for (number, at), file in zip(images, files, strict=True):
            save_picture(folder / file[1:], number, at)
        listing = {"test": "Testing_01.txt", "train": "Training_01.txt"}[split]
        (folder / listing).write_text("".join(f"{file}\n" for file in files))
    return folder


def write_food101(folder: Path, **splits: Where) -> Path:
    """Write `images/` and `meta/test.json`, which lists the images of each class, unsorted."""
    (folder / "meta").mkdir(parents=True)
    ids = read_dataset_card("food101").class_ids
    for split, images in splits.items():
        listed: dict[str, list[str]] = {}
        for number, at in images:
            listed.setdefault(ids[number], []).append(f"{ids[number]}/{at}")
            save_picture(folder / "images" / ids[number] / f"{at}.jpg", number, at)
        (folder / f"meta/{split}.json").write_text(json.dumps(listed))
    return folder


def write_eurosat(folder: Path, images: Where) -> Path:
    """Write one folder per class with images: `AnnualCrop/AnnualCrop_1.jpg`."""
    ids = read_dataset_card("eurosat").class_ids
    for number, at in images:
        save_picture(folder / ids[number] / f"{ids[number]}_{at}.jpg", number, at)
    return folder


def write_flowers102(folder: Path, **splits: Where) -> Path:
    """Write `jpg/`, `imagelabels.mat` and `setid.mat`; images are numbered from 1."""
    images = sorted({image for part in splits.values() for image in part}, key=lambda i: i[1])
    labels = np.ones(max(at for _, at in images), np.uint8)
    for number, at in images:
        labels[at - 1] = number + 1
        save_picture(folder / f"jpg/image_{at:05d}.jpg", number, at)
    savemat(folder / "imagelabels.mat", {"labels": labels[np.newaxis]})
    ids = {"train": "trnid", "val": "valid", "test": "tstid"}
    sets = {
        key: np.array([[at for _, at in splits.get(split, ())]], np.uint16)
        for split, key in ids.items()
    }
    savemat(folder / "setid.mat", sets)
    return folder


def publish_flowers102(patch: pytest.MonkeyPatch, folder: Path) -> None:
    files = {
        key: (file, _md5(folder / file) if file.endswith(".mat") else md5)
        for key, (file, md5) in torchvision.datasets.Flowers102._file_dict.items()
    }
    patch.setattr(torchvision.datasets.Flowers102, "_file_dict", files)
