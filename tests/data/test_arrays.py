"""CIFAR-10.1 and CIFAR-10.2 are read from NumPy's files without unpickling anything."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.published_copies import picture, write_cifar10_1, write_cifar10_2
from tests.data.test_dataset_card import OWN
from wiseft_cli.data.images import load_image_of
from wiseft_cli.data.sources import open_image_set
from wiseft_cli.errors import DatasetError

PICTURES = np.zeros((2, 32, 32, 3), np.uint8)
DATA, LABELS, NPZ = "cifar10.1_v6_data.npy", "cifar10.1_v6_labels.npy", "cifar102_test.npz"


def test_npy_file_is_mapped_and_opened_anew_in_another_process(tmp_path):
    write_cifar10_1(tmp_path / "datasets", [9, 0, 4])
    images = open_image_set(f"cifar10.1={tmp_path}")
    assert [record.label for record in images.records] == ["truck", "airplane", "deer"]
    assert images.records[0].container == DATA
    assert isinstance(images.reader.pictures, np.memmap)
    sent = pickle.dumps(images)
    assert len(sent) < 2000  # without pictures
    assert (np.asarray(load_image_of(pickle.loads(sent), 2)) == picture(4, 502)).all()
    assert isinstance(images.source(1), Image.Image)
    np.save(tmp_path / "datasets" / DATA, np.zeros((1, 32, 32, 3), np.uint8))
    with pytest.raises(DatasetError, match="has 1 pictures; it has changed since"):
        load_image_of(pickle.loads(sent), 2)


def test_npz_file_is_read(tmp_path):
    write_cifar10_2(tmp_path, [2, 2, 7])
    write_cifar10_2(tmp_path, [5], split="train")
    images = open_image_set(f"cifar10.2={tmp_path}")
    assert [record.label for record in images.records] == ["bird", "bird", "horse"]
    copied = pickle.loads(pickle.dumps(images))
    assert (np.asarray(load_image_of(copied, 2)) == picture(7, 602)).all()
    assert open_image_set(f"cifar10.2={tmp_path}?split=train").labels == ("dog",)


def test_pickled_form_of_cifar10_2_is_not_read(tmp_path):
    held = np.array({"images": np.zeros((1, 32, 32, 3), np.uint8), "labels": [0]}, dtype=object)
    np.save(tmp_path / "cifar102_test.npy", held, allow_pickle=True)
    with pytest.raises(DatasetError, match="1 required files are missing") as caught:
        open_image_set(f"cifar10.2={tmp_path}")
    assert "https://github.com/modestyachts/cifar-10.2" in (caught.value.hint or "")


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
        (PICTURES, np.array([{}, 1], object), "_labels.npy: cannot be read: Array can't be mem"),
    ],
)
def test_arrays_of_another_form_are_rejected(tmp_path, data, labels, message):
    np.save(tmp_path / DATA, data)
    np.save(tmp_path / LABELS, labels, allow_pickle=True)
    with pytest.raises(DatasetError) as caught:
        open_image_set(f"cifar10.1={tmp_path}")
    assert f"{tmp_path}/cifar10.1_v6{message}" in caught.value.message


def saved(save: Callable[..., None], *arrays: np.ndarray, **named: np.ndarray) -> bytes:
    file = io.BytesIO()
    save(file, *arrays, **named)
    return file.getvalue()


class Bomb:
    """Fails the test if it is unpickled."""

    def __reduce__(self):
        return pytest.fail, ("unpickled",)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 6144128\n"
WHOLE = saved(np.save, PICTURES)
HUGE = WHOLE.replace(b"(2, 32, 32, 3), ", b"(9999999999999,)")
BOMB = np.array([Bomb()], dtype=object)
ARCHIVE = saved(np.savez, images=PICTURES, labels=np.zeros(2, int))


@pytest.mark.parametrize(
    "content",
    [
        POINTER,
        b"<html>not found</html>",
        b"",
        pickle.dumps(Bomb()),
        saved(np.savez, images=PICTURES),
        WHOLE[:-1],
        WHOLE[:50],
        WHOLE[:7],
        WHOLE.replace(b"NUMPY\1", b"NUMPY\7"),
        HUGE,
        saved(np.save, BOMB),
    ],
)
def test_damaged_or_other_npy_file_is_rejected_with_its_source(tmp_path: Path, content: bytes):
    np.save(tmp_path / LABELS, np.zeros(2, int))
    (tmp_path / DATA).write_bytes(content)
    with pytest.raises(DatasetError) as caught:
        open_image_set(f"cifar10.1={tmp_path}")
    assert caught.value.message.startswith(f"{tmp_path / DATA}: cannot be read: ")
    assert f"get {DATA} from https://github.com/modestyachts/CIFAR-10.1" in (
        caught.value.hint or ""
    )


@pytest.mark.parametrize(
    ("content", "member"),
    [
        (ARCHIVE[:3000], "images"),
        (POINTER, "images"),
        (WHOLE, "images"),
        (saved(np.savez, data=PICTURES, y=PICTURES), "images"),
        (saved(np.savez, images=PICTURES), "labels"),
        (saved(np.savez, images=BOMB), "images"),
        (ARCHIVE.replace(b"\0" * 100, b"\1" * 100, 1), "images"),
        (ARCHIVE.replace(b"(2, 32, 32, 3), ", b"(9999999999999,)"), "images"),
    ],
)
def test_damaged_or_other_npz_file_is_rejected_with_its_source(
    tmp_path: Path, content: bytes, member: str
):
    (tmp_path / NPZ).write_bytes(content)
    with pytest.raises(DatasetError) as caught:
        open_image_set(f"cifar10.2={tmp_path}")
    assert caught.value.message.startswith(f"{tmp_path / NPZ}, {member}: cannot be read: ")
    assert f"get {NPZ} from https://github.com/modestyachts/cifar-10.2" in (caught.value.hint or "")


def test_users_card_names_the_files_of_its_arrays(tmp_path: Path):
    np.save(tmp_path / "x.npy", np.stack([picture(0, 0, size=8), picture(1, 0, size=8)]))
    np.save(tmp_path / "y.npy", np.array([1, 0], np.uint8))
    (tmp_path / "pets.txt").write_text("c\tcat\nd\tdog\n")
    card = tmp_path / "pets.yaml"
    arrays = OWN.replace("index-folders", "arrays")
    card.write_text(arrays + "options: {images: x.npy, labels: y.npy}\n")
    images = open_image_set(f"{tmp_path}?card={card}")
    assert [record.label for record in images.records] == ["d", "c"]
    card.write_text(arrays)
    with pytest.raises(DatasetError, match="the card does not name the files of the arrays"):
        open_image_set(f"{tmp_path}?card={card}")
