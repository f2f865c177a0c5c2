"""Facts: the sets whose images are files, which torchvision lists with their classes."""

from __future__ import annotations

from collections.abc import Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any

from wiseft_cli.data.from_torchvision.facts import (
    Reading,
    TorchvisionSet,
    first_of,
    no_names,
    second_of,
)

_LABELS = attrgetter("_labels")
_FILES = attrgetter("_image_files")


def _splits(*names: str, needs: tuple[str, ...] = ()) -> dict[str, Reading]:
    """Splits that torchvision's argument `split` chooses; `{}` in a need is the split's name."""
    return {
        name: Reading({"split": name}, tuple(path.replace("{}", name) for path in needs))
        for name in names
    }


def _caltech101_paths(dataset: Any) -> list[str]:
    return [
        f"{dataset.root}/101_ObjectCategories/{dataset.categories[number]}/image_{at:04d}.jpg"
        for number, at in zip(dataset.y, dataset.index, strict=True)
    ]


def _caltech256_paths(dataset: Any) -> list[str]:
    folder = f"{dataset.root}/256_ObjectCategories"
    return [
        f"{folder}/{dataset.categories[number]}/{number + 1:03d}_{at:04d}.jpg"
        for number, at in zip(dataset.y, dataset.index, strict=True)
    ]


def _gtsrb_numbers(dataset: Any) -> list[int]:
    """Take a class from its folder's name: torchvision counts the folders that are there."""
    folders = [(Path(path).parent.name, number) for path, number in dataset._samples]
    return [int(folder) if folder.isdecimal() else number for folder, number in folders]


def _pet_numbers(dataset: Any) -> list[int]:
    """Take positions among the classes that occur, which is what torchvision names."""
    position = {number: at for at, number in enumerate(sorted(set(dataset._labels)))}
    return [position[number] for number in dataset._labels]


def _by_number(dataset: Any) -> list[str]:
    return sorted(dataset.class_to_idx, key=lambda name: int(dataset.class_to_idx[name]))


def _imagenette() -> dict[str, Reading]:
    sizes = {"": "full", "-320px": "320px", "-160px": "160px"}
    return {
        f"{split}{suffix}": Reading(
            {"split": split, "size": size}, (f"imagenette2{suffix.removesuffix('px')}/{split}",)
        )
        for suffix, size in sizes.items()
        for split in ("val", "train")
    }


def _places365() -> dict[str, Reading]:
    """The validation and two training splits, in large images and in small ones."""
    folders = {"val": "val_{}", "train-standard": "data_{}_standard"}
    folders["train-challenge"] = "data_{}_challenge"
    return {
        f"{split}{'-256' if small else ''}": Reading(
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


def _omniglot(background: bool) -> Reading:
    folder = f"images_{'background' if background else 'evaluation'}"
    # torchvision wants the archive beside what it was unpacked to.
    return Reading({"background": background}, (folder, f"{folder}.zip"))


FILE_SETS: Mapping[str, TorchvisionSet] = {
    "CLEVRClassification": TorchvisionSet(
        "clevr/CLEVR_v1.0",
        _splits("val", "train", needs=("images/{}", "scenes/CLEVR_{}_scenes.json")),
        labels=_LABELS,  # how many objects there are
        paths=_FILES,
        names=no_names,
    ),
    "Caltech101": TorchvisionSet(
        "caltech101",
        {"": Reading({}, ("101_ObjectCategories", "101_ObjectCategories/BACKGROUND_Google"))},
        labels=attrgetter("y"),
        paths=_caltech101_paths,
        names=attrgetter("categories"),
    ),
    "Caltech256": TorchvisionSet(
        "caltech256",
        {"": Reading({}, ("256_ObjectCategories",))},
        labels=attrgetter("y"),
        paths=_caltech256_paths,
        names=attrgetter("categories"),
    ),
    "Country211": TorchvisionSet(
        "country211",
        _splits("test", "train", "valid", needs=("{}",)),
        labels=attrgetter("targets"),
        paths=first_of("samples"),
    ),
    "DTD": TorchvisionSet(
        "dtd/dtd",
        _splits("test", "train", "val", needs=("images", "labels/{}1.txt")),  # partition 1
        labels=_LABELS,
        paths=_FILES,
    ),
    "EuroSAT": TorchvisionSet(
        "eurosat/2750",
        {"": Reading({}, ("SeaLake",))},
        labels=attrgetter("targets"),
        paths=first_of("samples"),
    ),
    "FGVCAircraft": TorchvisionSet(
        "fgvc-aircraft-2013b",
        _splits(
            *("test", "train", "val", "trainval"),
            needs=("data/images", "data/variants.txt", "data/images_variant_{}.txt"),
        ),
        labels=_LABELS,
        paths=_FILES,
    ),
    "Flowers102": TorchvisionSet(
        "flowers-102",
        _splits("test", "train", "val", needs=("jpg", "imagelabels.mat", "setid.mat")),
        labels=_LABELS,
        paths=_FILES,
        # Releases before it had the names have the numbers of imagelabels.mat alone.
        names=lambda dataset: getattr(dataset, "classes", None),
        sums=lambda cls: [cls._file_dict["label"], cls._file_dict["setid"]],
    ),
    "Food101": TorchvisionSet(
        "food-101",
        _splits("test", "train", needs=("images", "meta/{}.json")),
        labels=_LABELS,
        paths=_FILES,
    ),
    "GTSRB": TorchvisionSet(
        "gtsrb",
        {
            "test": Reading({"split": "test"}, ("GTSRB/Final_Test/Images", "GT-final_test.csv")),
            "train": Reading({"split": "train"}, ("GTSRB/Training",)),
        },
        labels=_gtsrb_numbers,
        paths=first_of("_samples"),
        names=no_names,
    ),
    "INaturalist": TorchvisionSet(
        "",
        {
            version: Reading({"version": version}, (version,))
            for version in ("2021_valid", "2021_train", "2021_train_mini", "2019", "2018", "2017")
        },
        labels=first_of("index"),
        paths=lambda dataset: [
            f"{dataset.root}/{dataset.all_categories[number]}/{file}"
            for number, file in dataset.index
        ],
        names=attrgetter("all_categories"),
    ),
    "Imagenette": TorchvisionSet(
        "",
        _imagenette(),
        labels=second_of("_samples"),
        paths=first_of("_samples"),
        names=attrgetter("wnids"),
        known_names=lambda cls: {wnid: names[0] for wnid, names in cls._WNID_TO_CLASS.items()},
    ),
    "LFWPeople": TorchvisionSet(
        "lfw-py",
        {
            split: Reading(
                {"split": split},
                (f"people{part}.txt", "lfw-names.txt", "lfw_funneled", "lfw-funneled.tgz"),
            )
            for split, part in (("test", "DevTest"), ("train", "DevTrain"), ("10fold", ""))
        },
        labels=attrgetter("targets"),
        paths=attrgetter("data"),
        names=_by_number,
        sums=lambda cls: [*cls.checksums.items(), cls.file_dict["funneled"][1:]],
    ),
    "Omniglot": TorchvisionSet(
        "omniglot-py",
        {"evaluation": _omniglot(background=False), "background": _omniglot(background=True)},
        labels=second_of("_flat_character_images"),
        paths=lambda dataset: [
            f"{dataset.target_folder}/{dataset._characters[number]}/{file}"
            for file, number in dataset._flat_character_images
        ],
        names=attrgetter("_characters"),
        sums=lambda cls: [(f"{name}.zip", md5) for name, md5 in cls.zips_md5.items()],
    ),
    "OxfordIIITPet": TorchvisionSet(
        "oxford-iiit-pet",
        _splits("test", "trainval", needs=("images", "annotations/{}.txt")),
        labels=_pet_numbers,
        paths=attrgetter("_images"),
    ),
    "Places365": TorchvisionSet(
        "",
        _places365(),
        labels=attrgetter("targets"),
        paths=first_of("imgs"),
        names=_by_number,
        sums=lambda cls: [cls._CATEGORIES_META, *cls._FILE_LIST_META.values()],
    ),
    "RenderedSST2": TorchvisionSet(
        "rendered-sst2",
        {
            split: Reading({"split": split}, (f"{folder}/negative", f"{folder}/positive"))
            for split, folder in (("test", "test"), ("train", "train"), ("val", "valid"))
        },
        labels=second_of("_samples"),
        paths=first_of("_samples"),
        known_names=lambda _: {"negative": "negative", "positive": "positive"},
    ),
    "SUN397": TorchvisionSet(
        "SUN397",
        {
            "test": Reading({}, ("ClassName.txt",), listing="Testing_01.txt"),
            "train": Reading({}, ("ClassName.txt",), listing="Training_01.txt"),
            "all": Reading({}, ("ClassName.txt",)),
        },
        labels=_LABELS,
        paths=_FILES,
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
        labels=second_of("_samples"),
        paths=first_of("_samples"),
    ),
}
