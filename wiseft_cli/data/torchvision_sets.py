"""How torchvision reads each set that gives an image one label; no data is read here.

A set is added as one entry of `TORCHVISION_SETS`. `layouts/torchvision.py` reads a copy.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

from wiseft_cli.errors import MissingDependencyError, UsageError


@dataclass(frozen=True)
class TorchvisionSplit:
    """One split of a torchvision dataset.

    Attributes:
        options: Arguments of torchvision's class, besides the root.
        files: Files and folders that must be in the set's folder; the file with the pictures
            comes first where the images are not files.
        listing: A file that lists the split's images, one path per line, where torchvision
            returns those of all splits.
    """

    options: Mapping[str, object]
    files: tuple[str, ...]
    listing: str | None = None


@dataclass(frozen=True)
class TorchvisionSet:
    """How torchvision reads a set.

    Attributes:
        folder: The set's folder below torchvision's root; empty if it is the root.
        splits: The first one is the test split; a single one without a name for a set without
            splits.
        labels: Returns the class number of each image of a dataset.
        paths: Returns the path of each image; None if the dataset holds the pictures themselves.
        names: Returns the name of each class number, or None; None if torchvision has no names.
        known_names: Returns the class ids and their names for prompts from torchvision's class
            alone; None if they are only known from the data.
        md5_sums: Returns (file, MD5) of the files that torchvision's class verifies.
        opens_files_later: Whether a dataset opens its files when an image is read; they must
            then be where torchvision expects them.
    """

    folder: str
    splits: Mapping[str, TorchvisionSplit]
    labels: Callable[[Any], Any]
    paths: Callable[[Any], Sequence[Any]] | None = None
    names: Callable[[Any], Sequence[str] | None] | None = attrgetter("classes")
    known_names: Callable[[Any], Mapping[str, str]] | None = None
    md5_sums: Callable[[Any], Sequence[Sequence[str]]] | None = None
    opens_files_later: bool = False


def find_torchvision_set(class_name: str) -> TorchvisionSet:
    """Return the facts about one of torchvision's sets.

    Raises:
        UsageError: torchvision has no such set, or not one with one class per image.
    """
    if class_name in TORCHVISION_SETS:
        return TORCHVISION_SETS[class_name]
    by_lower_case = {name.lower(): name for name in TORCHVISION_SETS}
    similar = difflib.get_close_matches(class_name.lower(), by_lower_case, n=5)
    names = ", ".join([by_lower_case[name] for name in similar] or TORCHVISION_SETS)
    raise UsageError(
        f"torchvision has no set {class_name!r} with one class per image",
        hint=f"{'similar names' if similar else 'its sets'}: {names}; list the images of another"
        " set in a manifest",
    )


def known_class_names(class_name: str) -> Mapping[str, str]:
    """Return the class ids of a set and their names for prompts; empty if only the data has them.

    Raises:
        UsageError: As in `find_torchvision_set`.
        MissingDependencyError: torchvision is not installed or too old.
    """
    known_names = find_torchvision_set(class_name).known_names
    return {} if known_names is None else known_names(torchvision_class(class_name))


def torchvision_class(class_name: str) -> Any:
    """Import a dataset class of torchvision's.

    Raises:
        MissingDependencyError: torchvision is not installed or too old.
    """
    try:
        import torchvision  # lazy: torch costs seconds
    except ImportError:
        raise MissingDependencyError(
            f"torchvision, which reads {class_name}, is not installed",
            hint="pip install torchvision",
        ) from None
    found = getattr(torchvision.datasets, class_name, None)
    if found is None:
        raise MissingDependencyError(
            f"torchvision {torchvision.__version__} has no {class_name}",
            hint="pip install --upgrade torchvision",
        )
    return found


_LABELS = attrgetter("_labels")
_TARGETS = attrgetter("targets")
_IMAGE_FILES = attrgetter("_image_files")


def _first_of(attribute: str) -> Callable[[Any], list[Any]]:
    """Return a function to the first items of the pairs in a dataset's attribute."""
    return lambda dataset: [path for path, _ in getattr(dataset, attribute)]


def _second_of(attribute: str) -> Callable[[Any], list[Any]]:
    return lambda dataset: [number for _, number in getattr(dataset, attribute)]


def _names_if_any(dataset: Any) -> Any:
    """Return None for STL10 without class_names.txt, and Flowers102 of an old torchvision."""
    return getattr(dataset, "classes", None)


def _names_by_number(dataset: Any) -> list[str]:
    return sorted(dataset.class_to_idx, key=lambda name: int(dataset.class_to_idx[name]))


def _own_names(cls: Any) -> Mapping[str, str]:
    return {name: name for name in cls.classes}


def _without_splits(*files: str) -> dict[str, TorchvisionSplit]:
    return {"": TorchvisionSplit({}, files)}


def _splits(
    names: str | Mapping[str, str], *files: str, argument: str = "split"
) -> dict[str, TorchvisionSplit]:
    """Return the splits that an argument of torchvision's class selects.

    Args:
        names: The values of the argument, or each with the text that replaces `{}` in files.
        files: The files of a split; `{}` stands for its name.
    """
    texts = {name: name for name in names.split()} if isinstance(names, str) else names
    return {
        name: TorchvisionSplit({argument: name}, tuple(file.replace("{}", text) for file in files))
        for name, text in texts.items()
    }


def _test_and_train(
    test: Iterable[str], train: Iterable[str], *both: str
) -> dict[str, TorchvisionSplit]:
    """Return splits of torchvision's argument `train`."""
    return {
        "test": TorchvisionSplit({"train": False}, (*test, *both)),
        "train": TorchvisionSplit({"train": True}, (*train, *both)),
    }


def _caltech_paths(folder: str, file: str) -> Callable[[Any], list[str]]:
    """Return a function to paths; `file` has the fields {number} of a class and {at} in it."""
    return lambda dataset: [
        f"{dataset.root}/{folder}/{dataset.categories[number]}/"
        + file.format(number=number + 1, at=at)
        for number, at in zip(dataset.y, dataset.index, strict=True)
    ]


def _cifar(folder: str, test: str, train: Sequence[str], meta: str) -> TorchvisionSet:
    """Return a set of pickles; torchvision verifies the files of both splits."""
    return TorchvisionSet(
        folder,
        _test_and_train([test, *train], [*train, test], meta),
        _TARGETS,
        md5_sums=lambda cls: [
            *(*cls.train_list, *cls.test_list),
            (cls.meta["filename"], cls.meta["md5"]),
        ],
    )


def _emnist_splits() -> dict[str, TorchvisionSplit]:
    """Return six ways to sort the characters into classes, each with a test and a train split."""
    return {
        f"{classes}-{part}": TorchvisionSplit(
            {"split": classes, "train": part == "train"},
            (
                f"emnist-{classes}-{part}-images-idx3-ubyte",
                f"emnist-{classes}-{part}-labels-idx1-ubyte",
            ),
        )
        for classes in ("balanced", "byclass", "bymerge", "digits", "letters", "mnist")
        for part in ("test", "train")
    }


def _gtsrb_numbers(dataset: Any) -> list[int]:
    """Return class numbers from folder names: torchvision numbers the folders that exist."""
    folders = [(Path(path).parent.name, number) for path, number in dataset._samples]
    return [int(folder) if folder.isdecimal() else number for folder, number in folders]


def _imagenette_splits() -> dict[str, TorchvisionSplit]:
    return {
        f"{split}{suffix}": TorchvisionSplit(
            {"split": split, "size": size}, (f"imagenette2{suffix.removesuffix('px')}/{split}",)
        )
        for suffix, size in (("", "full"), ("-320px", "320px"), ("-160px", "160px"))
        for split in ("val", "train")
    }


def _mnist(class_name: str) -> TorchvisionSet:
    """Return a set in MNIST's files; torchvision needs all four for either split."""
    test, train = (
        (f"{split}-images-idx3-ubyte", f"{split}-labels-idx1-ubyte") for split in ("t10k", "train")
    )
    return TorchvisionSet(
        f"{class_name}/raw",
        _test_and_train((*test, *train), (*train, *test)),
        _TARGETS,
        known_names=_own_names,
    )


def _pcam_labels(dataset: Any) -> Any:
    file = dataset._FILES[dataset._split]["targets"][0]
    with dataset.h5py.File(dataset._base_folder / file) as targets:
        return targets["y"][:, 0, 0, 0]


def _pet_numbers(dataset: Any) -> list[int]:
    """Return positions among the classes that occur, which are those that torchvision names."""
    position = {number: at for at, number in enumerate(sorted(set(dataset._labels)))}
    return [position[number] for number in dataset._labels]


def _places365_splits() -> dict[str, TorchvisionSplit]:
    """Return the validation and two training splits, of large images and of small ones."""
    folders = {
        "val": "val_{}",
        "train-standard": "data_{}_standard",
        "train-challenge": "data_{}_challenge",
    }
    return {
        split + ("-256" if small else ""): TorchvisionSplit(
            {"split": split, "small": small},
            (
                "categories_places365.txt",
                f"places365_{split.replace('-', '_')}.txt",
                folder.replace("{}", "256" if small else "large"),
            ),
        )
        for small in (False, True)
        for split, folder in folders.items()
    }


_STL10_FILES = ("test_X.bin", "test_y.bin", "train_X.bin", "train_y.bin", "unlabeled_X.bin")


TORCHVISION_SETS: Mapping[str, TorchvisionSet] = {
    "CIFAR10": _cifar(
        "cifar-10-batches-py",
        "test_batch",
        [f"data_batch_{number}" for number in range(1, 6)],
        "batches.meta",
    ),
    "CIFAR100": _cifar("cifar-100-python", "test", ["train"], "meta"),
    "CLEVRClassification": TorchvisionSet(
        "clevr/CLEVR_v1.0",
        _splits("val train", "images/{}", "scenes/CLEVR_{}_scenes.json"),
        _LABELS,  # the number of objects
        _IMAGE_FILES,
        None,
    ),
    "Caltech101": TorchvisionSet(
        "caltech101",
        _without_splits("101_ObjectCategories", "101_ObjectCategories/BACKGROUND_Google"),
        attrgetter("y"),
        _caltech_paths("101_ObjectCategories", "image_{at:04d}.jpg"),
        attrgetter("categories"),
    ),
    "Caltech256": TorchvisionSet(
        "caltech256",
        _without_splits("256_ObjectCategories"),
        attrgetter("y"),
        _caltech_paths("256_ObjectCategories", "{number:03d}_{at:04d}.jpg"),
        attrgetter("categories"),
    ),
    "Country211": TorchvisionSet(
        "country211", _splits("test train valid", "{}"), _TARGETS, _first_of("samples")
    ),
    "DTD": TorchvisionSet(  # partition 1
        "dtd/dtd", _splits("test train val", "images", "labels/{}1.txt"), _LABELS, _IMAGE_FILES
    ),
    "EMNIST": TorchvisionSet("EMNIST/raw", _emnist_splits(), _TARGETS),
    "EuroSAT": TorchvisionSet(
        "eurosat/2750", _without_splits("SeaLake"), _TARGETS, _first_of("samples")
    ),
    "FER2013": TorchvisionSet(
        "fer2013",
        # Of the files that torchvision accepts, the one with labels for the test split.
        _splits("test train", "fer2013.csv"),
        _second_of("_samples"),
        names=None,
        md5_sums=lambda cls: [cls._RESOURCES["fer"]],
    ),
    "FGVCAircraft": TorchvisionSet(
        "fgvc-aircraft-2013b",
        _splits(
            "test train val trainval",
            *("data/images", "data/variants.txt", "data/images_variant_{}.txt"),
        ),
        _LABELS,
        _IMAGE_FILES,
    ),
    "FashionMNIST": _mnist("FashionMNIST"),
    "Flowers102": TorchvisionSet(
        "flowers-102",
        _splits("test train val", "jpg", "imagelabels.mat", "setid.mat"),
        _LABELS,
        _IMAGE_FILES,
        _names_if_any,
        md5_sums=lambda cls: [cls._file_dict["label"], cls._file_dict["setid"]],
    ),
    "Food101": TorchvisionSet(
        "food-101", _splits("test train", "images", "meta/{}.json"), _LABELS, _IMAGE_FILES
    ),
    "GTSRB": TorchvisionSet(
        "gtsrb",
        _splits("test", "GTSRB/Final_Test/Images", "GT-final_test.csv")
        | _splits("train", "GTSRB/Training"),
        _gtsrb_numbers,
        _first_of("_samples"),
        None,
    ),
    "INaturalist": TorchvisionSet(
        "",
        _splits("2021_valid 2021_train 2021_train_mini 2019 2018 2017", "{}", argument="version"),
        _first_of("index"),
        lambda dataset: [
            f"{dataset.root}/{dataset.all_categories[number]}/{file}"
            for number, file in dataset.index
        ],
        attrgetter("all_categories"),
    ),
    "Imagenette": TorchvisionSet(
        "",
        _imagenette_splits(),
        _second_of("_samples"),
        _first_of("_samples"),
        attrgetter("wnids"),
        known_names=lambda cls: {wnid: names[0] for wnid, names in cls._WNID_TO_CLASS.items()},
    ),
    "KMNIST": _mnist("KMNIST"),
    "LFWPeople": TorchvisionSet(
        "lfw-py",
        _splits(
            {"test": "DevTest", "train": "DevTrain", "10fold": ""},
            *("people{}.txt", "lfw-names.txt", "lfw_funneled", "lfw-funneled.tgz"),
        ),
        _TARGETS,
        attrgetter("data"),
        _names_by_number,
        md5_sums=lambda cls: [*cls.checksums.items(), cls.file_dict["funneled"][1:]],
    ),
    "MNIST": _mnist("MNIST"),
    "Omniglot": TorchvisionSet(
        "omniglot-py",
        {  # torchvision needs the archive beside the folder that it was unpacked to
            name: TorchvisionSplit(
                {"background": name == "background"}, (f"images_{name}", f"images_{name}.zip")
            )
            for name in ("evaluation", "background")
        },
        _second_of("_flat_character_images"),
        lambda dataset: [
            f"{dataset.target_folder}/{dataset._characters[number]}/{file}"
            for file, number in dataset._flat_character_images
        ],
        attrgetter("_characters"),
        md5_sums=lambda cls: [(f"{name}.zip", md5) for name, md5 in cls.zips_md5.items()],
    ),
    "OxfordIIITPet": TorchvisionSet(
        "oxford-iiit-pet",
        _splits("test trainval", "images", "annotations/{}.txt"),
        _pet_numbers,
        attrgetter("_images"),
    ),
    "PCAM": TorchvisionSet(
        "pcam",
        _splits(
            {"test": "test", "train": "train", "val": "valid"},
            "camelyonpatch_level_2_split_{}_x.h5",
            "camelyonpatch_level_2_split_{}_y.h5",
        ),
        _pcam_labels,
        names=None,
        opens_files_later=True,
    ),
    "Places365": TorchvisionSet(
        "",
        _places365_splits(),
        _TARGETS,
        _first_of("imgs"),
        _names_by_number,
        md5_sums=lambda cls: [cls._CATEGORIES_META, *cls._FILE_LIST_META.values()],
    ),
    "QMNIST": TorchvisionSet(
        "QMNIST/raw",
        _splits(
            {"test": "qmnist-test", "train": "qmnist-train"}
            | {"test10k": "qmnist-test", "test50k": "qmnist-test", "nist": "xnist"},
            *("{}-images-idx3-ubyte", "{}-labels-idx2-int"),
            argument="what",
        ),
        lambda dataset: dataset.targets[:, 0],
        known_names=_own_names,
    ),
    "RenderedSST2": TorchvisionSet(
        "rendered-sst2",
        _splits({"test": "test", "train": "train", "val": "valid"}, "{}/negative", "{}/positive"),
        _second_of("_samples"),
        _first_of("_samples"),
        known_names=lambda _: {"negative": "negative", "positive": "positive"},
    ),
    "SEMEION": TorchvisionSet(
        "",
        # The only class among these that downloads by default.
        {"": TorchvisionSplit({"download": False}, ("semeion.data",))},
        attrgetter("labels"),
        names=None,
        md5_sums=lambda cls: [(cls.filename, cls.md5_checksum)],
    ),
    "STL10": TorchvisionSet(
        "stl10_binary",
        _splits("test", *_STL10_FILES) | _splits("train", *_STL10_FILES[2:], *_STL10_FILES[:2]),
        attrgetter("labels"),
        names=_names_if_any,
        md5_sums=lambda cls: [*cls.train_list, *cls.test_list],
    ),
    "SUN397": TorchvisionSet(
        "SUN397",
        {
            "test": TorchvisionSplit({}, ("ClassName.txt",), listing="Testing_01.txt"),
            "train": TorchvisionSplit({}, ("ClassName.txt",), listing="Training_01.txt"),
            "all": TorchvisionSplit({}, ("ClassName.txt",)),
        },
        _LABELS,
        _IMAGE_FILES,
    ),
    "SVHN": TorchvisionSet(
        "",
        _splits("test train extra", "{}_32x32.mat"),
        attrgetter("labels"),
        names=None,
        md5_sums=lambda cls: [part[1:] for part in cls.split_list.values()],
    ),
    "StanfordCars": TorchvisionSet(
        "stanford_cars",
        _splits("test", "cars_test", "cars_test_annos_withlabels.mat", "devkit/cars_meta.mat")
        | _splits("train", "cars_train", "devkit/cars_train_annos.mat", "devkit/cars_meta.mat"),
        _second_of("_samples"),
        _first_of("_samples"),
    ),
    "USPS": TorchvisionSet("", _test_and_train(["usps.t.bz2"], ["usps.bz2"]), _TARGETS, names=None),
}
