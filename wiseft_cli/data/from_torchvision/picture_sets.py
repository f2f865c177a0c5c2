"""Facts: the sets whose pictures lie in a few large files, which torchvision reads into memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import Any

from wiseft_cli.data.from_torchvision.facts import Reading, TorchvisionSet, no_names, second_of


def _by_train(test: Sequence[str], train: Sequence[str], *both: str) -> dict[str, Reading]:
    """Splits that torchvision's argument `train` chooses."""
    return {
        "test": Reading({"train": False}, (*test, *both)),
        "train": Reading({"train": True}, (*train, *both)),
    }


def _cifar_sums(cifar: Any) -> Sequence[Sequence[str]]:
    meta = (cifar.meta["filename"], cifar.meta["md5"])
    return [*cifar.train_list, *cifar.test_list, meta]


def _own_names(cls: Any) -> Mapping[str, str]:
    return {name: name for name in cls.classes}


def _like_mnist(class_name: str) -> TorchvisionSet:
    """A set in MNIST's files; torchvision looks at all four, whichever split is asked for."""
    test, train = (
        [f"{split}-images-idx3-ubyte", f"{split}-labels-idx1-ubyte"] for split in ("t10k", "train")
    )
    return TorchvisionSet(
        f"{class_name}/raw",
        _by_train([*test, *train], [*train, *test]),
        labels=attrgetter("targets"),
        known_names=_own_names,
    )


def _qmnist(what: str, files: str) -> Reading:
    return Reading({"what": what}, (f"{files}-images-idx3-ubyte", f"{files}-labels-idx2-int"))


def _emnist() -> dict[str, Reading]:
    """Six ways to sort the same characters into classes, each with a test and a train split."""
    return {
        f"{way}-{part}": Reading(
            {"split": way, "train": part == "train"},
            tuple(
                f"emnist-{way}-{part}-{what}" for what in ("images-idx3-ubyte", "labels-idx1-ubyte")
            ),
        )
        for way in ("balanced", "byclass", "bymerge", "digits", "letters", "mnist")
        for part in ("test", "train")
    }


def _pcam_labels(dataset: Any) -> Any:
    file = dataset._FILES[dataset._split]["targets"][0]
    with dataset.h5py.File(dataset._base_folder / file) as targets:
        return targets["y"][:, 0, 0, 0]


_CIFAR10_BATCHES = tuple(f"data_batch_{at}" for at in range(1, 6))
_STL10_FILES = ("test_X.bin", "test_y.bin", "train_X.bin", "train_y.bin", "unlabeled_X.bin")

PICTURE_SETS: Mapping[str, TorchvisionSet] = {
    "CIFAR10": TorchvisionSet(
        "cifar-10-batches-py",
        # Here, too, torchvision looks at the files of both splits.
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
    "EMNIST": TorchvisionSet("EMNIST/raw", _emnist(), labels=attrgetter("targets")),
    "FER2013": TorchvisionSet(
        "fer2013",
        # Of the files it can have, the one that has the labels of the test, too.
        {split: Reading({"split": split}, ("fer2013.csv",)) for split in ("test", "train")},
        labels=second_of("_samples"),
        names=no_names,
        sums=lambda cls: [cls._RESOURCES["fer"]],
    ),
    "FashionMNIST": _like_mnist("FashionMNIST"),
    "KMNIST": _like_mnist("KMNIST"),
    "MNIST": _like_mnist("MNIST"),
    "PCAM": TorchvisionSet(
        "pcam",
        {
            split: Reading(
                {"split": split},
                tuple(f"camelyonpatch_level_2_split_{file}_{what}.h5" for what in "xy"),
            )
            for split, file in (("test", "test"), ("train", "train"), ("val", "valid"))
        },
        labels=_pcam_labels,
        names=no_names,
        reads_later=True,
    ),
    "QMNIST": TorchvisionSet(
        "QMNIST/raw",
        {
            "test": _qmnist("test", "qmnist-test"),
            "train": _qmnist("train", "qmnist-train"),
            "test10k": _qmnist("test10k", "qmnist-test"),
            "test50k": _qmnist("test50k", "qmnist-test"),
            "nist": _qmnist("nist", "xnist"),
        },
        labels=lambda dataset: dataset.targets[:, 0],
        known_names=_own_names,
    ),
    "SEMEION": TorchvisionSet(
        "",
        # The one among these that would download unless told not to.
        {"": Reading({"download": False}, ("semeion.data",))},
        labels=attrgetter("labels"),
        names=no_names,
        sums=lambda cls: [(cls.filename, cls.md5_checksum)],
    ),
    "STL10": TorchvisionSet(
        "stl10_binary",
        {
            "test": Reading({"split": "test"}, _STL10_FILES),
            "train": Reading({"split": "train"}, (*_STL10_FILES[2:], *_STL10_FILES[:2])),
        },
        labels=attrgetter("labels"),
        names=lambda dataset: getattr(dataset, "classes", None),  # none without class_names.txt
        sums=lambda cls: [*cls.train_list, *cls.test_list],
    ),
    "SVHN": TorchvisionSet(
        "",
        {
            split: Reading({"split": split}, (f"{split}_32x32.mat",))
            for split in ("test", "train", "extra")
        },
        labels=attrgetter("labels"),
        names=no_names,
        sums=lambda cls: [part[1:] for part in cls.split_list.values()],
    ),
    "USPS": TorchvisionSet(
        "",
        _by_train(["usps.t.bz2"], ["usps.bz2"]),
        labels=attrgetter("targets"),
        names=no_names,
    ),
}
