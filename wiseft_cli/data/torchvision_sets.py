"""How torchvision reads the image sets that give each image one label: facts, a row a set.

Where it looks below its root, which files a split needs, and under which attributes a dataset
holds its labels, paths and class names. It reads nothing and imports no torchvision;
`layouts/torchvision_set.py` does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any


@dataclass(frozen=True)
class Reading:
    """How a split is asked for.

    Attributes:
        options: What torchvision's class is called with, beside the root.
        needs: What must lie in the set's folder, the file that holds the pictures first where
            they are no files.
        listing: A file that names the split's images, a path a line, where torchvision gives
            those of all splits.
    """

    options: Mapping[str, object]
    needs: tuple[str, ...]
    listing: str | None = None


@dataclass(frozen=True)
class TorchvisionSet:
    """How torchvision reads a set.

    Attributes:
        place: The set's folder below torchvision's root; empty where it is the root.
        splits: Its splits, the first the one to test on; one without a name where it has none.
        labels: From a dataset of torchvision's to the class number of each image.
        paths: Likewise to the path of each image; None where it holds pictures.
        names: Likewise to the text of each class number; gives None where it has none.
        sums: From torchvision's class to files and the MD5 sums it compares, as far as known.
    """

    place: str
    splits: Mapping[str, Reading]
    labels: Callable[[Any], Any]
    paths: Callable[[Any], Sequence[Any]] | None = None
    names: Callable[[Any], Sequence[str] | None] = field(default=attrgetter("classes"))
    sums: Callable[[Any], Sequence[Sequence[str]]] | None = None


def _cifar_sums(cifar: Any) -> Sequence[Sequence[str]]:
    meta = (cifar.meta["filename"], cifar.meta["md5"])
    return [*cifar.train_list, *cifar.test_list, meta]


def _first_of(attribute: str) -> Callable[[Any], list[Any]]:
    return lambda dataset: [path for path, _ in getattr(dataset, attribute)]


def _second_of(attribute: str) -> Callable[[Any], list[Any]]:
    return lambda dataset: [number for _, number in getattr(dataset, attribute)]


def _by_train(test: Sequence[str], train: Sequence[str], *both: str) -> dict[str, Reading]:
    """Splits that torchvision's argument `train` chooses."""
    return {
        "test": Reading({"train": False}, (*test, *both)),
        "train": Reading({"train": True}, (*train, *both)),
    }


_CIFAR10_BATCHES = tuple(f"data_batch_{at}" for at in range(1, 6))

TORCHVISION_SETS: Mapping[str, TorchvisionSet] = {
    "CIFAR10": TorchvisionSet(
        "cifar-10-batches-py",
        # Whichever split is asked for, torchvision looks at the files of both.
        _by_train(
            ["test_batch", *_CIFAR10_BATCHES], [*_CIFAR10_BATCHES, "test_batch"], "batches.meta"
        ),
        labels=attrgetter("targets"),
        sums=_cifar_sums,
    ),
    "CIFAR100": TorchvisionSet(
        "cifar-100-python",
        _by_train(["test", "train"], ["train", "test"], "meta"),
        labels=attrgetter("targets"),
        sums=_cifar_sums,
    ),
    "StanfordCars": TorchvisionSet(
        "stanford_cars",
        {
            "test": Reading(
                {"split": "test"},
                ("cars_test", "cars_test_annos_withlabels.mat", "devkit/cars_meta.mat"),
            ),
            "train": Reading(
                {"split": "train"},
                ("cars_train", "devkit/cars_train_annos.mat", "devkit/cars_meta.mat"),
            ),
        },
        labels=_second_of("_samples"),
        paths=_first_of("_samples"),
    ),
    "DTD": TorchvisionSet(
        "dtd/dtd",
        {
            split: Reading({"split": split, "partition": 1}, ("images", f"labels/{split}1.txt"))
            for split in ("test", "train", "val")
        },
        labels=attrgetter("_labels"),
        paths=attrgetter("_image_files"),
    ),
    "SUN397": TorchvisionSet(
        "SUN397",
        {
            "all": Reading({}, ("ClassName.txt",)),
            "test": Reading({}, ("ClassName.txt",), listing="Testing_01.txt"),
            "train": Reading({}, ("ClassName.txt",), listing="Training_01.txt"),
        },
        labels=attrgetter("_labels"),
        paths=attrgetter("_image_files"),
    ),
    "Food101": TorchvisionSet(
        "food-101",
        {
            split: Reading({"split": split}, ("images", f"meta/{split}.json"))
            for split in ("test", "train")
        },
        labels=attrgetter("_labels"),
        paths=attrgetter("_image_files"),
    ),
    "EuroSAT": TorchvisionSet(
        "eurosat/2750",
        {"": Reading({}, ("SeaLake",))},
        labels=attrgetter("targets"),
        paths=_first_of("samples"),
    ),
    "Flowers102": TorchvisionSet(
        "flowers-102",
        {
            split: Reading({"split": split}, ("jpg", "imagelabels.mat", "setid.mat"))
            for split in ("test", "train", "val")
        },
        labels=attrgetter("_labels"),
        paths=attrgetter("_image_files"),
        # Releases before it had the names have the numbers of imagelabels.mat alone.
        names=lambda dataset: getattr(dataset, "classes", None),
        sums=lambda cls: [cls._file_dict["label"], cls._file_dict["setid"]],
    ),
}
