"""Published sets that torchvision reads: folders, splits, labels, and rejected copies."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torchvision
from scipy.io import savemat

from tests.data.published_copies import (
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
    write_pickle,
    write_sun397,
)
from tests.data.test_dataset_card import OWN
from wiseft_cli.data.dataset_card import read_dataset_card
from wiseft_cli.data.image_set import ImageSet, data_fingerprint
from wiseft_cli.data.images import load_image_of
from wiseft_cli.data.sources import open_image_set, open_suite
from wiseft_cli.errors import DatasetError, MissingDependencyError, UsageError
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
"""Numbers of classes and templates per set in openai/CLIP's data/prompts.md."""

TEST: Where = [(7, 1), (2, 2), (9, 3), (2, 4)]
TRAIN: Where = [(2, 11), (5, 12)]


def write(name: str, folder: Path, patch: pytest.MonkeyPatch) -> Path:
    """Write a copy of a set with the images of TEST and, if it has that split, of TRAIN."""
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
CIFAR10_IDS = read_dataset_card("cifar10").class_ids
SETS = list(dict.fromkeys(name for name, _ in PLACES))


def pixels(images: ImageSet, at: int) -> np.ndarray:
    return np.asarray(load_image_of(images, at))


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


def test_flower_classes_equal_those_of_torchvision():
    assert read_dataset_card("flowers102").class_ids == tuple(
        torchvision.datasets.Flowers102.classes
    )


@pytest.mark.parametrize(("name", "place"), PLACES)
def test_copy_is_found_where_torchvision_or_the_archive_puts_it(
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
def test_fingerprint_does_not_depend_on_the_folder_of_the_copy(tmp_path, monkeypatch, name):
    places = [place for of, place in PLACES if of == name]
    found = set()
    for at, place in enumerate(places):
        with pytest.MonkeyPatch.context() as patch:
            write(name, tmp_path / str(at) / place, patch)
            found.add(data_fingerprint(open_image_set(f"{name}={tmp_path / str(at)}")))
    assert len(found) == 1


@pytest.mark.parametrize("name", ["stanford-cars", "dtd", "sun397", "food101", "flowers102"])
def test_train_split_is_labelled_by_class_name_not_by_number(tmp_path, monkeypatch, name):
    write(name, tmp_path, monkeypatch)
    images = open_image_set(f"{name}={tmp_path}?split=train")
    # In DTD's and Food-101's lists, a split with two classes numbers them 0 and 1.
    assert sorted(class_numbers(images)) == [2, 5]


def test_sun397_does_not_depend_on_the_order_of_folder_entries(tmp_path, monkeypatch):
    write_sun397(tmp_path, test=TEST)
    expected = open_image_set(f"sun397={tmp_path}").records
    whole = Path.rglob
    monkeypatch.setattr(Path, "rglob", lambda path, pattern: list(whole(path, pattern))[::-1])
    assert open_image_set(f"sun397={tmp_path}").records == expected


@pytest.mark.parametrize("place", ["", "Partitions", "..", "../Partitions"])
def test_partition_of_sun397_is_read_from_its_listing(tmp_path: Path, place: str):
    folder = write_sun397(tmp_path / "SUN397", test=TEST)
    (folder / "Testing_01.txt").unlink()
    paths = [record.path for record in open_image_set(f"sun397={tmp_path}?split=all").records]
    with pytest.raises(DatasetError) as caught:
        open_image_set(f"sun397={tmp_path}")
    assert caught.value.message == (
        "image set 'sun397': Testing_01.txt, which lists the images of this split, is not in"
        f" {folder}, beside it or in Partitions/"
    )
    assert (caught.value.hint or "").endswith(", or choose another split")
    listing = folder / place / "Testing_01.txt"
    listing.parent.mkdir(exist_ok=True)
    listing.write_text(f"/{paths[2]}\n/{paths[0]}\n")
    images = open_image_set(f"sun397={tmp_path}?split=test")
    assert [record.path for record in images.records] == [paths[0], paths[2]]
    listing.write_text(f"/{paths[2]}\n/a/abbey/sun_b.jpg\n")
    with pytest.raises(DatasetError) as caught:
        open_image_set(f"sun397={tmp_path}?split=test")
    assert caught.value.message.endswith(f"are not in {folder}:\n  a/abbey/sun_b.jpg")


def test_torchvisions_root_works_as_the_root_of_the_suite(tmp_path, monkeypatch):
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


def test_flowers_are_labelled_by_number_if_torchvision_has_no_names(tmp_path, monkeypatch):
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
def test_folder_without_the_set_is_rejected_with_the_missing_files(
    tmp_path: Path, name: str, lacking: str
):
    with pytest.raises(DatasetError) as caught:
        open_image_set(f"{name}={tmp_path}")
    card, files = read_dataset_card(name), lacking.split(", ")
    assert caught.value.message == "\n".join(
        [
            f"image set {name!r}: {tmp_path} is not a copy of {card.title}: {len(files)} of"
            f" {len(files)} required files are missing:",
            *(f"  {file}" for file in files),
        ]
    )
    below = " or ".join(f"{folder}/" for folder in card.split().folders)
    assert caught.value.hint == (
        f"get it from {card.source}; it is expected in the folder that you name, or below it in"
        f" {below}"
    )
    assert not list(tmp_path.iterdir())


def test_missing_images_are_reported(tmp_path):
    write_dtd(tmp_path, test=TEST)
    ids = read_dataset_card("dtd").class_ids
    lost = f"images/{ids[9]}/{ids[9]}_0003.jpg"
    (tmp_path / lost).unlink()
    with pytest.raises(DatasetError) as caught:
        open_image_set(f"dtd={tmp_path}")
    assert caught.value.message == (
        f"image set 'dtd': 1 of 4 listed images are not in {tmp_path}:\n  {lost}:"
        " No such file or directory"
    )
    assert caught.value.hint == "unpack the images beside the lists"


def test_unknown_class_is_rejected(tmp_path):
    write_eurosat(tmp_path, TEST)
    (tmp_path / "Residential").rename(tmp_path / "Canal")
    with pytest.raises(DatasetError) as caught:
        open_image_set(f"eurosat={tmp_path}")
    assert "has classes that EuroSAT (RGB) does not have" in caught.value.message
    assert caught.value.message.endswith("such as 'AnnualCrop'):\n  Canal")


def test_files_that_torchvision_rejects_are_named_with_its_reason(tmp_path):
    write_cars(tmp_path, TEST[:1], TRAIN)
    with pytest.raises(DatasetError) as caught:
        open_image_set(f"stanford-cars={tmp_path}")
    assert caught.value.message == (
        f"image set 'stanford-cars': torchvision cannot read {tmp_path} as StanfordCars:"
        " TypeError: iteration over a 0-d array"
    )
    assert caught.value.hint == (
        "is cars_test_annos_withlabels.mat or devkit/cars_meta.mat damaged? Compare the copy with"
        " https://ai.stanford.edu/~jkrause/cars/car_dataset.html"
    )


def test_reason_of_torchvision_names_the_folder_instead_of_the_temporary_link(tmp_path):
    (tmp_path / "ClassName.txt").mkdir()
    with pytest.raises(DatasetError) as caught:
        open_image_set(f"sun397={tmp_path}")
    assert caught.value.message == (
        f"image set 'sun397': torchvision cannot read {tmp_path} as SUN397: IsADirectoryError:"
        f" [Errno 21] Is a directory: '{tmp_path / 'ClassName.txt'}'"
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
def test_invalid_file_is_named_beside_torchvisions_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, file: str, text: str, reason: str
):
    write(name, tmp_path, monkeypatch)
    (tmp_path / file).write_text(text)
    with pytest.raises(DatasetError) as caught:
        open_image_set(f"{name}={tmp_path}")
    title = {"food101": "Food101", "dtd": "DTD", "sun397": "SUN397"}[name]
    assert caught.value.message.startswith(
        f"image set {name!r}: torchvision cannot read {tmp_path} as {title}: {reason}"
    )
    assert f"is {file} damaged? " in (caught.value.hint or "")


def test_missing_folder_is_reported(tmp_path):
    with pytest.raises(DatasetError, match="no is not a folder with a copy of Food-101: 2 of 2"):
        open_image_set(f"food101={tmp_path / 'no'}")


def test_flowers_with_another_md5_are_rejected(tmp_path, monkeypatch):
    write("flowers102", tmp_path, monkeypatch)
    savemat(tmp_path / "setid.mat", {"tstid": [[1]]})
    with pytest.raises(DatasetError) as caught:
        open_image_set(f"flowers102={tmp_path}")
    assert caught.value.message == (
        f"image set 'flowers102': {tmp_path} has files whose MD5 is not that of the published"
        " ones:\n  setid.mat"
    )


def test_missing_torchvision_is_reported_with_the_command_that_installs_it(tmp_path, monkeypatch):
    write_dtd(tmp_path, test=TEST)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(MissingDependencyError) as caught:
        open_image_set(f"dtd={tmp_path}")
    assert caught.value.message == "torchvision, which reads DTD, is not installed"
    assert caught.value.hint == "pip install torchvision"


def test_cifar10_is_read_split_by_split(tmp_path, monkeypatch):
    folder = write_cifar10(tmp_path, test=[3, 3, 9], train=list(range(10)))
    publish_cifar(monkeypatch, "CIFAR10", folder)
    images = open_image_set(f"cifar10={tmp_path}")
    assert [record.label for record in images.records] == ["cat", "cat", "truck"]
    assert [record.path for record in images.records] == ["test/0", "test/1", "test/2"]
    assert (pixels(images, 2) == picture(9, 9002)).all()
    first = images.records[0]
    assert (images.root / (first.container or "")).is_file()
    assert first.size_bytes == 3072
    train = open_image_set(f"cifar10={tmp_path}?split=train")
    assert [record.label for record in train.records] == list(CIFAR10_IDS)
    assert (pixels(train, 9) == picture(9, 4001)).all()  # the second picture of the fifth file
    assert data_fingerprint(train) != data_fingerprint(images)
    inner = open_image_set(f"x={folder}?card=cifar10")
    assert data_fingerprint(inner) == data_fingerprint(images)
    with pytest.raises(UsageError, match="no split 'val'"):
        open_image_set(f"cifar10={tmp_path}?split=val")


def test_cifar100_has_fine_labels(tmp_path, monkeypatch):
    folder = write_cifar100(tmp_path, test=[0, 1, 99], train=[5, 5])
    publish_cifar(monkeypatch, "CIFAR100", folder)
    images = open_image_set(f"cifar100={tmp_path}")
    assert [record.label for record in images.records] == ["apple", "aquarium_fish", "worm"]
    train = open_image_set(f"cifar100={tmp_path}?split=train")
    assert train.labels == ("bed",)


def test_folder_elsewhere_is_read_through_a_link_that_is_removed(tmp_path, monkeypatch):
    folder = write_cifar10(tmp_path, test=[1, 2], train=[0] * 5)
    publish_cifar(monkeypatch, "CIFAR10", folder)
    moved = folder.rename(tmp_path / "batches")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "links"))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "links").mkdir()
    images = open_image_set(f"cifar10={moved}")
    assert not list((tmp_path / "links").iterdir())
    assert (images.root, images.labels) == (moved, ("automobile", "bird"))
    assert (pixels(images, 1) == picture(2, 9001)).all()


def test_files_with_another_md5_are_rejected_and_never_unpickled(tmp_path, monkeypatch):
    folder = write_cifar10(tmp_path, test=[1], train=[0] * 5)
    publish_cifar(monkeypatch, "CIFAR10", folder)

    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    write_pickle(folder / "test_batch", {"data": Bomb()})
    with pytest.raises(DatasetError) as caught:
        open_image_set(f"cifar10={tmp_path}")
    assert caught.value.message == (
        f"image set 'cifar10': {folder} has files whose MD5 is not that of the published ones:\n"
        "  test_batch"
    )
    assert "https://www.cs.toronto.edu/~kriz/cifar.html" in (caught.value.hint or "")
    assert not (tmp_path / "ran").exists()


def test_missing_files_are_reported_with_their_source(tmp_path):
    folder = write_cifar10(tmp_path, test=[1], train=[0] * 5)
    (folder / "data_batch_4").unlink()
    (folder / "batches.meta").unlink()
    with pytest.raises(DatasetError) as caught:
        open_image_set(f"cifar10={tmp_path}")
    assert caught.value.message == (
        f"image set 'cifar10': {folder} is not a copy of CIFAR-10: 2 of 7 required files are"
        " missing:\n  data_batch_4\n  batches.meta"
    )
    assert "https://www.cs.toronto.edu/~kriz/cifar.html" in (caught.value.hint or "")


def test_split_that_torchvision_does_not_have_is_rejected(tmp_path):
    card = tmp_path / "pets.yaml"
    (tmp_path / "pets.txt").write_text("c\tcat\nd\tdog\n")
    card.write_text(OWN.replace("index-folders", "torchvision") + "options: {class: KMNIST}\n")
    with pytest.raises(DatasetError) as caught:
        open_image_set(f"{tmp_path}?card={card}")
    assert caught.value.message == (
        "image set 'pets': the card has a split '', but torchvision's KMNIST has test, train"
    )
