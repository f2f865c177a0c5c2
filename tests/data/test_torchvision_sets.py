"""`torchvision:NAME` reads every set in the table; other names are rejected."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torchvision

from tests.data.published_copies import picture, write_dtd
from tests.data.torchvision_copies import WRITERS, grey
from wiseft_cli.checkpoint.card import ClassEntry
from wiseft_cli.data.dataset_card import (
    dataset_card_names,
    read_dataset_card,
    torchvision_classes,
)
from wiseft_cli.data.images import load_image_of
from wiseft_cli.data.label_join import join_image_set
from wiseft_cli.data.sources import open_image_set
from wiseft_cli.data.torchvision_sets import TORCHVISION_SETS
from wiseft_cli.errors import ClassNamesError, DatasetError, MissingDependencyError, UsageError

CARDS = {
    card.split().options["class"]: name
    for name in dataset_card_names()
    for card in [read_dataset_card(name)]
    if card.layout == "torchvision"
}
"""Shipped cards of torchvision's sets, by torchvision's class."""


def test_every_set_is_one_of_torchvisions_and_has_a_card_or_a_test():
    assert set(WRITERS) | set(CARDS) == set(TORCHVISION_SETS)
    assert list(TORCHVISION_SETS) == sorted(TORCHVISION_SETS)
    for name in TORCHVISION_SETS:
        assert hasattr(torchvision.datasets, name)


@pytest.mark.parametrize("name", WRITERS)
def test_set_is_read_with_its_classes_and_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    labels = WRITERS[name](tmp_path, monkeypatch)
    images = open_image_set(f"torchvision:{name}={tmp_path}")
    assert images.name == f"torchvision:{name}"
    assert sorted(record.label for record in images.records) == sorted(labels)
    n_known = len(read_dataset_card(f"torchvision:{name}").class_ids)
    assert len(images.warnings) == (n_known > 2)  # about the classes that this copy lacks
    for at, record in enumerate(images.records):
        image = load_image_of(images, at)
        assert (images.root / (record.container or record.path)).is_file()
        if images.reader is not None:
            assert record.size_bytes == len(image.tobytes())
    again = pickle.loads(pickle.dumps(images))
    assert (np.asarray(load_image_of(again, 1)) == np.asarray(load_image_of(images, 1))).all()


@pytest.mark.parametrize("name", WRITERS)
def test_missing_copy_is_rejected_and_nothing_is_created(tmp_path: Path, name: str):
    with pytest.raises(DatasetError) as caught:
        open_image_set(f"torchvision:{name}={tmp_path}")
    first, second, *_ = caught.value.message.splitlines()
    needs = next(iter(TORCHVISION_SETS[name].splits.values())).files
    assert first == (
        f"image set 'torchvision:{name}': {tmp_path} is not a copy of {name} of torchvision:"
        f" {len(needs)} of {len(needs)} required files are missing:"
    )
    assert second == f"  {needs[0]}"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("FER2013", "fer2013.csv"),
        ("LFWPeople", "peopleDevTest.txt"),
        ("Omniglot", "images_evaluation.zip"),
        ("Places365", "categories_places365.txt"),
        ("SEMEION", "semeion.data"),
        ("STL10", "train_X.bin"),
        ("SVHN", "test_32x32.mat"),
    ],
)
def test_files_with_another_md5_are_rejected(tmp_path: Path, name: str, file: str):
    with pytest.MonkeyPatch.context() as patch:  # restores the published sums
        WRITERS[name](tmp_path, patch)
    with pytest.raises(DatasetError) as caught:
        open_image_set(f"torchvision:{name}={tmp_path}")
    first, second, *_ = caught.value.message.splitlines()
    assert first.endswith(" has files whose MD5 is not that of the published ones:")
    assert second == f"  {file}"


def test_pictures_have_their_orientation_and_colours(tmp_path, monkeypatch):
    WRITERS["STL10"](tmp_path / "s", monkeypatch)
    stl10 = open_image_set(f"torchvision:STL10={tmp_path / 's'}")
    assert (np.asarray(load_image_of(stl10, 0)) == picture(2, 0, size=96)).all()
    WRITERS["FashionMNIST"](tmp_path / "f", monkeypatch)
    fashion = open_image_set(f"x={tmp_path / 'f'}?card=torchvision:FashionMNIST,split=train")
    assert (fashion.name, fashion.records[1].path) == ("x", "train/1")
    assert fashion.records[1].container == "train-images-idx3-ubyte"
    assert (np.asarray(load_image_of(fashion, 1)) == grey(9)).all()
    inner = open_image_set(f"torchvision:FashionMNIST={tmp_path / 'f/FashionMNIST/raw'}")
    assert inner.labels == ("Ankle boot", "Dress")


def test_traffic_signs_are_labelled_by_folder_number_in_an_incomplete_copy(tmp_path, monkeypatch):
    WRITERS["GTSRB"](tmp_path, monkeypatch)
    images = open_image_set(f"torchvision:GTSRB={tmp_path}?split=train")
    assert images.labels == ("1", "16")  # torchvision numbers them 0 and 1


def test_labels_without_names_join_as_numbers(tmp_path, monkeypatch):
    WRITERS["SVHN"](tmp_path, monkeypatch)
    digits = [ClassEntry(f"d{at}", f"digit {at}") for at in range(10)]
    images = open_image_set(f"torchvision:SVHN={tmp_path}")
    with pytest.raises(DatasetError) as caught:
        join_image_set(images, digits)
    assert "--labels-are-indices" in (caught.value.hint or "")
    images = open_image_set(f"torchvision:SVHN={tmp_path}?labels_are_indices=true")
    assert join_image_set(images, digits).index == {"0": 0, "5": 5}
    (tmp_path / "map.yaml").write_text("'0': digit 0\n'5': digit 5\n'6': digit 6\n")
    images = open_image_set(f"torchvision:SVHN={tmp_path}?map={tmp_path / 'map.yaml'}")
    join = join_image_set(images, digits)
    assert (join.kind, join.index, join.class_indices) == ("map", {"0": 0, "5": 5}, (0, 5, 6))


def test_class_names_known_only_from_the_data_compete(tmp_path, monkeypatch):
    WRITERS["FGVCAircraft"](tmp_path, monkeypatch)
    images = open_image_set(f"torchvision:FGVCAircraft={tmp_path}")
    head = [ClassEntry(name, name) for name in ("Yak-42", "A380", "727-200", "707-320")]
    assert join_image_set(images, head).class_indices == (0, 2, 3)


def test_set_with_a_shipped_card_is_read_by_that_card(tmp_path):
    write_dtd(tmp_path, test=[(3, 1)])
    images = open_image_set(f"torchvision:DTD={tmp_path}")
    assert images.labels == (read_dataset_card("dtd").class_ids[3],)
    assert len(images.join_options.competing) == 47
    for name, card in CARDS.items():
        assert read_dataset_card(f"torchvision:{name}") == read_dataset_card(card)
        assert read_dataset_card(card).split().options == {"class": name}


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("FashionMnist2", "similar names: FashionMNIST"),
        ("CelebA", "list the images of another set in a manifest"),
        ("CocoDetection", "its sets: CIFAR10, CIFAR100, "),
    ],
)
def test_other_names_are_rejected(tmp_path: Path, name: str, hint: str):
    with pytest.raises(UsageError) as caught:
        open_image_set(f"torchvision:{name}={tmp_path}")
    assert caught.value.message == f"torchvision has no set {name!r} with one class per image"
    assert hint in (caught.value.hint or "")


def test_unknown_split_is_rejected_with_the_splits_there_are(tmp_path):
    with pytest.raises(UsageError, match="no split 'dev'") as caught:
        open_image_set(f"torchvision:FGVCAircraft={tmp_path}?split=dev")
    assert caught.value.hint == "its splits are test, train, val, trainval"
    with pytest.raises(UsageError, match="'torchvision:KMNIST'"):
        open_image_set(f"torchvision:KMNIST={tmp_path}?map=x.yaml")


def test_classes_are_read_without_data_where_torchvision_names_them():
    assert [entry.id for entry in torchvision_classes("torchvision:KMNIST").entries][:2] == [
        "o",
        "ki",
    ]
    first = torchvision_classes("torchvision:Imagenette").entries[0]
    assert first == ClassEntry("n01440764", "tench")
    with pytest.raises(ClassNamesError) as caught:
        torchvision_classes("torchvision:GTSRB")
    assert caught.value.message == (
        "torchvision:GTSRB: torchvision does not know the class names without the data"
    )
    assert "ID<TAB>NAME per class" in (caught.value.hint or "")


def test_older_torchvision_is_distinguished_from_a_missing_one(tmp_path, monkeypatch):
    WRITERS["KMNIST"](tmp_path, monkeypatch)
    monkeypatch.delattr(torchvision.datasets, "KMNIST")
    with pytest.raises(MissingDependencyError) as caught:
        open_image_set(f"torchvision:KMNIST={tmp_path}")
    assert caught.value.message == f"torchvision {torchvision.__version__} has no KMNIST"
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(MissingDependencyError, match="reads KMNIST, is not installed"):
        open_image_set(f"torchvision:KMNIST={tmp_path}")


def test_set_with_lazily_opened_files_must_be_in_torchvisions_folder(tmp_path, monkeypatch):
    WRITERS["PCAM"](tmp_path, monkeypatch)
    (tmp_path / "pcam").rename(tmp_path / "patches")
    with pytest.raises(DatasetError) as caught:
        open_image_set(f"torchvision:PCAM={tmp_path / 'patches'}")
    assert caught.value.message == (
        "image set 'torchvision:PCAM': torchvision reads PCAM only from a folder named pcam, not"
        f" from {tmp_path / 'patches'}"
    )


def test_unpublished_labels_are_rejected(tmp_path, monkeypatch):
    WRITERS["FER2013"](tmp_path, monkeypatch)
    facts = torchvision.datasets.FER2013
    whole = facts.__init__

    def without_labels(self, *args, **options):
        whole(self, *args, **options)
        self._samples = [(pixels, None) for pixels, _ in self._samples]

    monkeypatch.setattr(facts, "__init__", without_labels)
    with pytest.raises(DatasetError) as caught:
        open_image_set(f"torchvision:FER2013={tmp_path}")
    assert caught.value.message == (
        "image set 'torchvision:FER2013': torchvision finds images without a label in"
        f" {tmp_path / 'fer2013'}"
    )
