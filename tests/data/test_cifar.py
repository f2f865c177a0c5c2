"""CIFAR and its shifts: pickles that torchvision reads after MD5, arrays that are mapped."""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.official import (
    picture,
    publish_cifar,
    write_cifar10,
    write_cifar10_1,
    write_cifar10_2,
    write_cifar100,
    write_pickle,
)
from tests.data.test_dataset_card import OWN
from wiseft_cli.data.dataset_card import read_dataset_card
from wiseft_cli.data.image_set import ImageSet, data_fingerprint
from wiseft_cli.data.images import load_image_of
from wiseft_cli.data.sources import open_image_set
from wiseft_cli.errors import DatasetError, UsageError

IDS = read_dataset_card("cifar10").class_ids


def pixels(images: ImageSet, at: int) -> np.ndarray:
    return np.asarray(load_image_of(images, at))


def test_cifar10_gives_its_pictures_and_classes_split_by_split(tmp_path, monkeypatch):
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
    assert [record.label for record in train.records] == list(IDS)
    assert (pixels(train, 9) == picture(9, 4001)).all()  # the second of the fifth file
    assert data_fingerprint(train) != data_fingerprint(images)
    inner = open_image_set(f"x={folder}?card=cifar10")
    assert data_fingerprint(inner) == data_fingerprint(images)
    with pytest.raises(UsageError, match="no split 'val'; there are test, train"):
        open_image_set(f"cifar10={tmp_path}?split=val")


def test_cifar100_has_its_fine_labels(tmp_path, monkeypatch):
    folder = write_cifar100(tmp_path, test=[0, 1, 99], train=[5, 5])
    publish_cifar(monkeypatch, "CIFAR100", folder)
    images = open_image_set(f"cifar100={tmp_path}")
    assert [record.label for record in images.records] == ["apple", "aquarium_fish", "worm"]
    train = open_image_set(f"cifar100={tmp_path}?split=train")
    assert train.labels == ("bed",)


def test_a_folder_that_moved_is_read_through_a_link_that_is_gone_after(tmp_path, monkeypatch):
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


def test_files_with_another_md5_are_named_and_never_unpickled(tmp_path, monkeypatch):
    folder = write_cifar10(tmp_path, test=[1], train=[0] * 5)
    publish_cifar(monkeypatch, "CIFAR10", folder)

    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    write_pickle(folder / "test_batch", {"data": Bomb()})
    with pytest.raises(DatasetError) as caught:
        open_image_set(f"cifar10={tmp_path}")
    assert caught.value.message == (
        f"{folder}: files are not the published ones by MD5:\n  test_batch"
    )
    assert caught.value.hint == (
        "they are cut off, damaged or changed; get them from"
        " https://www.cs.toronto.edu/~kriz/cifar.html"
    )
    assert not (tmp_path / "ran").exists()


def test_what_is_missing_is_named_with_where_to_get_it(tmp_path):
    folder = write_cifar10(tmp_path, test=[1], train=[0] * 5)
    (folder / "data_batch_4").unlink()
    (folder / "batches.meta").unlink()
    with pytest.raises(DatasetError) as caught:
        open_image_set(f"cifar10={tmp_path}")
    assert caught.value.message == (
        f"image set 'cifar10': {folder} is no copy of CIFAR-10: 2 of 7 that it is read from are"
        " not there:\n  data_batch_4\n  batches.meta"
    )
    assert caught.value.hint == (
        "get it from https://www.cs.toronto.edu/~kriz/cifar.html; it is looked for in the folder"
        " that is named, or below it in cifar-10-batches-py/"
    )


def test_cifar10_1_is_mapped_and_a_process_that_is_sent_it_opens_its_own(tmp_path):
    write_cifar10_1(tmp_path / "datasets", [9, 0, 4])
    images = open_image_set(f"cifar10.1={tmp_path}")
    assert [record.label for record in images.records] == ["truck", "airplane", "deer"]
    assert images.records[0].container == "cifar10.1_v6_data.npy"
    assert isinstance(images.reader.pictures, np.memmap)
    sent = pickle.dumps(images)
    assert len(sent) < 2000  # and no picture in it
    assert (pixels(pickle.loads(sent), 2) == picture(4, 502)).all()
    assert isinstance(images.source(1), Image.Image)
    np.save(tmp_path / "datasets/cifar10.1_v6_data.npy", np.zeros((1, 32, 32, 3), np.uint8))
    with pytest.raises(DatasetError, match="has 1 pictures; it has changed since"):
        load_image_of(pickle.loads(sent), 2)


def test_cifar10_2_is_read_from_its_plain_archive(tmp_path):
    write_cifar10_2(tmp_path, [2, 2, 7])
    write_cifar10_2(tmp_path, [5], split="train")
    images = open_image_set(f"cifar10.2={tmp_path}")
    assert [record.label for record in images.records] == ["bird", "bird", "horse"]
    assert (pixels(pickle.loads(pickle.dumps(images)), 2) == picture(7, 602)).all()
    assert open_image_set(f"cifar10.2={tmp_path}?split=train").labels == ("dog",)


def test_the_pickled_form_of_cifar10_2_is_refused_with_the_other(tmp_path):
    held = np.array({"images": np.zeros((1, 32, 32, 3), np.uint8), "labels": [0]}, dtype=object)
    np.save(tmp_path / "cifar102_test.npy", held, allow_pickle=True)
    with pytest.raises(DatasetError) as caught:
        open_image_set(f"cifar10.2={tmp_path}")
    assert caught.value.message == (
        f"image set 'cifar10.2': {tmp_path / 'cifar102_test.npy'} is a pickled dictionary, which"
        " can run any program when it is opened; nothing is unpickled here"
    )
    assert caught.value.hint == (
        "get cifar102_test.npz from https://github.com/modestyachts/cifar-10.2, which has the"
        " same images as plain arrays"
    )


PICTURES = np.zeros((2, 32, 32, 3), np.uint8)


@pytest.mark.parametrize(
    ("data", "labels", "message"),
    [
        (PICTURES[..., 0], [0, 1], "_data.npy: holds uint8 of shape (2, 32, 32), expected pictur"),
        (PICTURES / 1, [0, 1], "_data.npy: holds float64 of shape (2, 32, 32, 3), expected"),
        (PICTURES, [0], "_labels.npy: holds int64 of shape (1,), expected labels: integers of"),
        (PICTURES, [0, 10], "_labels.npy: has labels from 0 to 10, expected positions among the"),
        (PICTURES, [-1, 1], "_labels.npy: has labels from -1 to 1, expected positions"),
        (PICTURES, [0.5, 1], "_labels.npy: holds float64 of shape (2,), expected labels"),
        (PICTURES[:0], [], "_labels.npy: holds float64 of shape (0,), expected labels"),
        (PICTURES, np.array([{}, 1], object), "_labels.npy: holds Python objects, a pickle, which"),
    ],
)
def test_arrays_of_another_form_are_refused(tmp_path, data, labels, message):
    np.save(tmp_path / "cifar10.1_v6_data.npy", data)
    np.save(tmp_path / "cifar10.1_v6_labels.npy", labels, allow_pickle=True)
    with pytest.raises(DatasetError) as caught:
        open_image_set(f"cifar10.1={tmp_path}")
    assert f"{tmp_path}/cifar10.1_v6{message}" in caught.value.message


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 6144128\n"
DATA, NPZ = "cifar10.1_v6_data.npy", "cifar102_test.npz"


def saved(save: Callable[..., None], *arrays: np.ndarray, **named: np.ndarray) -> bytes:
    file = io.BytesIO()
    save(file, *arrays, **named)
    return file.getvalue()


WHOLE = saved(np.save, PICTURES)
OBJECTS = np.array([{}, 1], dtype=object)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (POINTER, "is a Git LFS pointer (`git lfs pull` fetches the file), expected {NPY}"),
        (
            b"<html>not found</html>",
            "is a file that begins with b'<html>not found<', expected {NPY}",
        ),
        (b"", "is empty, expected {NPY}"),
        (
            pickle.dumps([1]),
            "is a pickle, which can run any program when it is opened, expected {NPY}",
        ),
        (saved(np.savez, images=PICTURES), "is a .npz archive, expected {NPY}"),
        (WHOLE[:-1], "is cut off: it has 6,271 bytes of 6,272"),
        (WHOLE[:50], "is cut off or damaged: its header is not whole"),
        (WHOLE[:7], "{HEADER}"),
        (WHOLE.replace(b"NUMPY\1", b"NUMPY\7"), "{HEADER}"),
        (
            saved(np.save, OBJECTS),
            "holds Python objects, a pickle, which can run any program when it is opened; nothing"
            " is unpickled here",
        ),
    ],
)
def test_a_file_that_is_no_array_is_told_in_words_of_our_own(
    tmp_path: Path, content: bytes, fault: str
):
    np.save(tmp_path / "cifar10.1_v6_labels.npy", np.zeros(2, int))
    (tmp_path / DATA).write_bytes(content)
    with pytest.raises(DatasetError) as caught:
        open_image_set(f"cifar10.1={tmp_path}")
    header = "has a header that no array of numbers has; the file is damaged"
    whole = fault.format(NPY="a .npy file of one array", HEADER=header)
    assert caught.value.message == f"{tmp_path / DATA}: {whole}"
    assert caught.value.hint == (f"get {DATA} from https://github.com/modestyachts/CIFAR-10.1")


ARCHIVE = saved(np.savez, images=PICTURES, labels=np.zeros(2, int))


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (
            ARCHIVE[:3000],
            "images: the archive is cut off or damaged: its list of members is missing",
        ),
        (
            POINTER,
            "images: is a Git LFS pointer (`git lfs pull` fetches the file), expected a .npz"
            " archive of arrays",
        ),
        (WHOLE, "images: is a .npy file of one array, expected a .npz archive of arrays"),
        (
            saved(np.savez, data=PICTURES, y=PICTURES),
            "images: no array of that name is in the archive; it has 'data', 'y'",
        ),
        (
            saved(np.savez, images=PICTURES),
            "labels: no array of that name is in the archive; it has 'images'",
        ),
        (
            saved(np.savez, images=OBJECTS),
            "images: holds Python objects, a pickle, which can run any program when it is opened;"
            " nothing is unpickled here",
        ),
        (
            ARCHIVE.replace(b"\0" * 100, b"\1" * 100, 1),
            "images: the archive is damaged: Bad CRC-32 for file 'images.npy'",
        ),
    ],
)
def test_an_archive_that_lacks_its_arrays_is_told_what_it_has(
    tmp_path: Path, content: bytes, fault: str
):
    (tmp_path / NPZ).write_bytes(content)
    with pytest.raises(DatasetError) as caught:
        open_image_set(f"cifar10.2={tmp_path}")
    assert caught.value.message == f"{tmp_path / NPZ}, {fault}"
    assert caught.value.hint == (f"get {NPZ} from https://github.com/modestyachts/cifar-10.2")


def test_a_card_of_ones_own_names_its_arrays(tmp_path: Path):
    np.save(tmp_path / "x.npy", np.stack([picture(0, 0, size=8), picture(1, 0, size=8)]))
    np.save(tmp_path / "y.npy", np.array([1, 0], np.uint8))
    (tmp_path / "pets.txt").write_text("c\tcat\nd\tdog\n")
    card = tmp_path / "pets.yaml"
    arrays = OWN.replace("index-folders", "arrays")
    card.write_text(arrays + "options: {images: x.npy, labels: y.npy}\n")
    images = open_image_set(f"{tmp_path}?card={card}")
    assert [record.label for record in images.records] == ["d", "c"]
    card.write_text(arrays)
    with pytest.raises(DatasetError) as caught:
        open_image_set(f"{tmp_path}?card={card}")
    assert caught.value.message == ("the card 'pets' does not say which files its arrays are in")
    card.write_text(OWN.replace("index-folders", "torchvision") + "options: {class: KMNIST}\n")
    with pytest.raises(DatasetError) as caught:
        open_image_set(f"{tmp_path}?card={card}")
    assert caught.value.message == (
        "the card 'pets' has a split '', torchvision's KMNIST has test, train"
    )
