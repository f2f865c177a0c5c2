"""Sets whose images torchvision lists: places, splits, classes by text, what is told of faults."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torchvision
from scipy.io import savemat

from tests.data.official import (
    Where,
    picture,
    publish_cifar,
    publish_flowers102,
    write_cars,
    write_cifar10,
    write_cifar100,
    write_dtd,
    write_eurosat,
    write_flowers102,
    write_food101,
    write_sun397,
)
from wiseft_cli.data.dataset_card import read_dataset_card
from wiseft_cli.data.image_set import ImageSet, data_fingerprint
from wiseft_cli.data.images import load_image_of
from wiseft_cli.data.sources import open_image_set, open_suite
from wiseft_cli.errors import DatasetError, MissingDependencyError
from wiseft_cli.prompts.class_names import read_class_names
from wiseft_cli.prompts.templates import read_templates

COUNTS = {
    "cifar10": (10, 18),
    "cifar100": (100, 18),
    "stanford-cars": (196, 8),
    "dtd": (47, 8),
    "sun397": (397, 2),
    "food101": (101, 1),
    "eurosat": (10, 3),
    "flowers102": (102, 1),
}
"""Classes and templates of each set, in openai/CLIP's data/prompts.md."""

TEST: Where = [(7, 1), (2, 2), (9, 3), (2, 4)]
TRAIN: Where = [(2, 11), (5, 12)]


def write(name: str, folder: Path, patch: pytest.MonkeyPatch) -> Path:
    """A copy of a set with the images of TEST, and where it has a split those of TRAIN."""
    if name == "stanford-cars":
        return write_cars(folder, TEST, TRAIN)
    if name == "eurosat":
        return write_eurosat(folder, TEST)
    writers: dict[str, Callable[..., Path]] = {
        "dtd": write_dtd,
        "sun397": write_sun397,
        "food101": write_food101,
        "flowers102": write_flowers102,
    }
    writers[name](folder, test=TEST, train=TRAIN)
    if name == "flowers102":
        publish_flowers102(patch, folder)
    return folder


PLACES = [
    ("stanford-cars", "stanford_cars"),
    ("stanford-cars", ""),
    ("dtd", "dtd/dtd"),
    ("dtd", "dtd"),
    ("dtd", ""),
    ("sun397", "SUN397"),
    ("sun397", ""),
    ("food101", "food-101"),
    ("food101", ""),
    ("eurosat", "eurosat/2750"),
    ("eurosat", "2750"),
    ("eurosat", "EuroSAT_RGB"),
    ("eurosat", ""),
    ("flowers102", "flowers-102"),
    ("flowers102", ""),
]
SETS = list(dict.fromkeys(name for name, _ in PLACES))


def class_numbers(images: ImageSet) -> list[int]:
    ids = read_dataset_card(images.name).class_ids
    return [ids.index(record.label) for record in images.records]


@pytest.mark.parametrize("name", COUNTS)
def test_classes_and_templates_have_the_published_counts(name: str):
    card = read_dataset_card(name)
    entries = read_class_names(Path(card.classes)).entries
    templates = read_templates([card.templates], [], load_set=lambda _: ())
    assert (len(entries), len(templates)) == COUNTS[name]
    assert len({entry.name for entry in entries}) == len(entries)
    assert not any("_" in entry.name for entry in entries)


def test_flowers_are_those_of_torchvision_in_its_order():
    assert read_dataset_card("flowers102").class_ids == tuple(
        torchvision.datasets.Flowers102.classes
    )


@pytest.mark.parametrize(("name", "place"), PLACES)
def test_a_copy_is_read_where_torchvision_or_the_archive_puts_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, place: str
):
    folder = write(name, tmp_path / place, monkeypatch)
    images = open_image_set(f"{name}={tmp_path}")
    assert images.root == folder
    assert sorted(class_numbers(images)) == [2, 2, 7, 9]
    assert [record.path for record in images.records] == sorted(
        record.path for record in images.records
    )
    for at, number in enumerate(class_numbers(images)):
        shown = np.asarray(load_image_of(images, at), np.int64)
        wanted = {number: picture(number, 0).astype(np.int64) for number in (2, 7, 9)}
        errors = {key: np.abs(shown - pixels).mean() for key, pixels in wanted.items()}
        assert min(errors, key=lambda key: errors[key]) == number
    assert all(
        record.size_bytes == (folder / record.path).stat().st_size for record in images.records
    )
    assert images.reader is None


@pytest.mark.parametrize("name", SETS)
def test_the_fingerprint_does_not_know_where_the_copy_lies(tmp_path, monkeypatch, name):
    places = [place for of, place in PLACES if of == name]
    found = set()
    for at, place in enumerate(places):
        with pytest.MonkeyPatch.context() as patch:
            write(name, tmp_path / str(at) / place, patch)
            found.add(data_fingerprint(open_image_set(f"{name}={tmp_path / str(at)}")))
    assert len(found) == 1


@pytest.mark.parametrize("name", ["stanford-cars", "dtd", "sun397", "food101", "flowers102"])
def test_train_is_a_split_with_classes_by_text_not_by_number(tmp_path, monkeypatch, name):
    write(name, tmp_path, monkeypatch)
    images = open_image_set(f"{name}={tmp_path}?split=train")
    # A split with two classes numbers them 0 and 1 in DTD's and Food-101's own lists.
    assert sorted(class_numbers(images)) == [2, 5]


def test_sun397_is_listed_the_same_whatever_order_the_disk_gives(tmp_path, monkeypatch):
    write_sun397(tmp_path, test=TEST)
    expected = open_image_set(f"sun397={tmp_path}").records
    whole = Path.rglob
    monkeypatch.setattr(Path, "rglob", lambda path, pattern: list(whole(path, pattern))[::-1])
    assert open_image_set(f"sun397={tmp_path}").records == expected


@pytest.mark.parametrize("place", ["", "Partitions", "..", "../Partitions"])
def test_the_partition_of_sun397_is_a_split_where_its_lists_are(tmp_path: Path, place: str):
    folder = write_sun397(tmp_path / "SUN397", test=TEST)
    (folder / "Testing_01.txt").unlink()
    paths = [record.path for record in open_image_set(f"sun397={tmp_path}?split=all").records]
    with pytest.raises(DatasetError) as caught:
        open_image_set(f"sun397={tmp_path}")
    assert caught.value.message == (
        "image set 'sun397': Testing_01.txt, which names the images of this split, is not in"
        f" {folder}, nor beside it, nor in Partitions/"
    )
    assert (caught.value.hint or "").endswith("; a split that does without is all")
    listing = folder / place / "Testing_01.txt"
    listing.parent.mkdir(exist_ok=True)
    listing.write_text(f"/{paths[2]}\n/{paths[0]}\n")
    images = open_image_set(f"sun397={tmp_path}?split=test")
    assert [record.path for record in images.records] == [paths[0], paths[2]]
    listing.write_text(f"/{paths[2]}\n/a/abbey/sun_b.jpg\n")
    with pytest.raises(DatasetError) as caught:
        open_image_set(f"sun397={tmp_path}?split=test")
    assert caught.value.message.endswith(f"are not in {folder}:\n  a/abbey/sun_b.jpg")


def test_torchvisions_own_root_is_the_root_of_the_suite(tmp_path, monkeypatch):
    """Each set where torchvision's download would have put it, all in one folder."""
    write_cars(tmp_path / "stanford_cars", TEST, TRAIN)
    write_dtd(tmp_path / "dtd/dtd", test=TEST)
    write_sun397(tmp_path / "SUN397", test=TEST)
    write_food101(tmp_path / "food-101", test=TEST)
    write_eurosat(tmp_path / "eurosat/2750", TEST)
    publish_flowers102(monkeypatch, write_flowers102(tmp_path / "flowers-102", test=TEST))
    publish_cifar(monkeypatch, "CIFAR10", write_cifar10(tmp_path, [2, 7], [0] * 5))
    publish_cifar(monkeypatch, "CIFAR100", write_cifar100(tmp_path, [2, 7], [0]))
    images = open_suite("transfer", tmp_path)
    assert [image_set.name for image_set in images] == [*SETS, "cifar10", "cifar100"]
    for image_set in images:
        assert {2, 7} <= set(class_numbers(image_set)) <= {2, 7, 9}


def test_numbers_serve_for_flowers_where_torchvision_has_no_names(tmp_path, monkeypatch):
    write("flowers102", tmp_path, monkeypatch)
    monkeypatch.delattr(torchvision.datasets.Flowers102, "classes")
    assert class_numbers(open_image_set(f"flowers102={tmp_path}")) == [7, 2, 9, 2]


@pytest.mark.parametrize(
    ("name", "lacking"),
    [
        ("stanford-cars", "cars_test, cars_test_annos_withlabels.mat, devkit/cars_meta.mat"),
        ("dtd", "images, labels/test1.txt"),
        ("sun397", "ClassName.txt"),
        ("food101", "images, meta/test.json"),
        ("eurosat", "SeaLake"),
        ("flowers102", "jpg, imagelabels.mat, setid.mat"),
    ],
)
def test_a_folder_without_the_set_is_told_what_it_lacks(tmp_path: Path, name: str, lacking: str):
    with pytest.raises(DatasetError) as caught:
        open_image_set(f"{name}={tmp_path}")
    card, files = read_dataset_card(name), lacking.split(", ")
    assert caught.value.message == "\n".join(
        [
            f"image set {name!r}: {tmp_path} is no copy of {card.title}: {len(files)} of"
            f" {len(files)} that it is read from are not there:",
            *(f"  {file}" for file in files),
        ]
    )
    below = {"dtd": "dtd/dtd/ or dtd/", "eurosat": "eurosat/2750/, 2750/ or EuroSAT_RGB/"}
    assert caught.value.hint == (
        f"get it from {card.source}; it is looked for in the folder that is named, or below it in"
        f" {below.get(name, f'{card.part().folders[0]}/')}"
    )
    assert not list(tmp_path.iterdir())


def test_images_that_a_list_names_and_the_copy_lacks_are_named(tmp_path):
    write_dtd(tmp_path, test=TEST)
    ids = read_dataset_card("dtd").class_ids
    lost = f"images/{ids[9]}/{ids[9]}_0003.jpg"
    (tmp_path / lost).unlink()
    with pytest.raises(DatasetError) as caught:
        open_image_set(f"dtd={tmp_path}")
    assert caught.value.message == (
        f"image set 'dtd': 1 of 4 images that its lists name are not in {tmp_path}:\n  {lost}:"
        " No such file or directory"
    )
    assert caught.value.hint == "unpack the images beside the lists"


def test_a_class_of_another_list_is_refused(tmp_path):
    write_eurosat(tmp_path, TEST)
    (tmp_path / "Residential").rename(tmp_path / "Canal")
    with pytest.raises(DatasetError) as caught:
        open_image_set(f"eurosat={tmp_path}")
    assert "has 1 classes that are none of EuroSAT (RGB); expected" in caught.value.message
    assert caught.value.message.endswith("such as 'AnnualCrop':\n  Canal")


def test_annotations_of_a_single_car_are_torchvisions_to_refuse(tmp_path):
    write_cars(tmp_path, TEST[:1], TRAIN)
    with pytest.raises(DatasetError) as caught:
        open_image_set(f"stanford-cars={tmp_path}")
    assert caught.value.message == (
        f"{tmp_path}: torchvision cannot read it as StanfordCars; one of"
        " cars_test_annos_withlabels.mat, devkit/cars_meta.mat is not of its form, or does not fit"
        " what lies there: TypeError: iteration over a 0-d array"
    )
    assert caught.value.hint == (
        "is the copy whole, and laid out as https://ai.stanford.edu/~jkrause/cars/car_dataset.html"
        " has it?"
    )


def test_a_reason_of_torchvisions_names_the_folder_and_not_the_link_to_it(tmp_path):
    (tmp_path / "ClassName.txt").mkdir()
    with pytest.raises(DatasetError) as caught:
        open_image_set(f"sun397={tmp_path}")
    assert caught.value.message == (
        f"{tmp_path}: torchvision cannot read it as SUN397: IsADirectoryError: [Errno 21] Is a"
        f" directory: '{tmp_path / 'ClassName.txt'}'"
    )


@pytest.mark.parametrize(
    ("name", "file", "text", "reason"),
    [
        ("food101", "meta/test.json", "[]", "AttributeError: 'list' object has no attribute"),
        ("food101", "meta/test.json", "", "JSONDecodeError: Expecting value: line 1 column 1"),
        ("dtd", "labels/test1.txt", "banded\n", "ValueError: not enough values to unpack"),
        ("sun397", "ClassName.txt", "/a/abbey\n", "KeyError: "),
    ],
)
def test_the_file_that_is_not_of_its_form_is_named_before_torchvisions_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, file: str, text: str, reason: str
):
    write(name, tmp_path, monkeypatch)
    (tmp_path / file).write_text(text)
    with pytest.raises(DatasetError) as caught:
        open_image_set(f"{name}={tmp_path}")
    title = {"food101": "Food101", "dtd": "DTD", "sun397": "SUN397"}[name]
    assert caught.value.message.startswith(
        f"{tmp_path}: torchvision cannot read it as {title}; {file} is not of its form, or does not"
        f" fit what lies there: {reason}"
    )


def test_a_folder_that_is_not_there_is_said_to_be_none(tmp_path):
    with pytest.raises(DatasetError, match="no is no folder, and no copy of Food-101: 2 of 2"):
        open_image_set(f"food101={tmp_path / 'no'}")


def test_flowers_with_another_md5_are_named(tmp_path, monkeypatch):
    write("flowers102", tmp_path, monkeypatch)
    savemat(tmp_path / "setid.mat", {"tstid": [[1]]})
    with pytest.raises(DatasetError) as caught:
        open_image_set(f"flowers102={tmp_path}")
    assert caught.value.message == (
        f"{tmp_path}: files are not the published ones by MD5:\n  setid.mat"
    )


def test_without_torchvision_the_package_is_named(tmp_path, monkeypatch):
    write_dtd(tmp_path, test=TEST)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(MissingDependencyError) as caught:
        open_image_set(f"dtd={tmp_path}")
    assert caught.value.message == "torchvision, which reads DTD, is not installed"
    assert caught.value.hint == "pip install torchvision"
