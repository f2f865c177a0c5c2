"""Small copies of published sets, laid out as the official downloads are, of pictures that tell.

A class's pictures share a pattern of four by four colours, so that a linear classifier learns
which is which from a few; a label that went to another class shows as a wrong prediction.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision
from PIL import Image

from wiseft_cli.data.dataset_card import read_dataset_card


def picture(class_number: int, at: int, *, size: int = 32) -> np.ndarray:
    """Pixels (size, size, 3) of a class; another `at` differs in noise alone."""
    pattern = np.random.default_rng(class_number).integers(40, 216, (4, 4, 3))
    noise = np.random.default_rng([class_number, at]).integers(-20, 21, (size, size, 3))
    return (np.kron(pattern, np.ones((size // 4, size // 4, 1))) + noise).astype(np.uint8)


def pictures(numbers: Sequence[int], *, first: int = 0) -> np.ndarray:
    """Pictures (N, 32, 32, 3) of these classes, no two alike."""
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
    """`cifar-10-batches-py/` with these classes; `train` is shared out over its five files."""
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
    """Make torchvision take the sums of a copy's files for the published ones."""
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
