"""`torchvision:NAME`: every set that it stands for, what others are told, how labels join."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torchvision

from tests.data.official import picture, write_dtd
from tests.data.official_torchvision import WRITERS, grey
from wiseft_cli.checkpoint.card import ClassEntry
from wiseft_cli.data.dataset_card import read_dataset_card
from wiseft_cli.data.from_torchvision.card import OWN_CARDS, torchvision_classes
from wiseft_cli.data.from_torchvision.sets import REFUSED, TORCHVISION_SETS
from wiseft_cli.data.images import load_image_of
from wiseft_cli.data.label_join import join_image_set
from wiseft_cli.data.sources import open_image_set
from wiseft_cli.errors import ClassNamesError, DatasetError, MissingDependencyError, UsageError


def test_every_set_is_torchvisions_and_has_a_card_or_a_test():
    assert set(WRITERS) | set(OWN_CARDS) == set(TORCHVISION_SETS)
    assert not set(REFUSED) & set(TORCHVISION_SETS)
    for name in (*TORCHVISION_SETS, *REFUSED):
        assert hasattr(torchvision.datasets, name)


@pytest.mark.parametrize("name", WRITERS)
def test_a_set_is_read_with_its_classes_and_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    labels = WRITERS[name](tmp_path, monkeypatch)
    images = open_image_set(f"torchvision:{name}={tmp_path}")
    assert images.name == f"torchvision:{name}"
    assert sorted(record.label for record in images.records) == sorted(labels)
    n_known = len(read_dataset_card(f"torchvision:{name}").class_ids)
    assert len(images.warnings) == (n_known > 2)  # of the classes that this copy lacks
    for at, record in enumerate(images.records):
        image = load_image_of(images, at)
        assert (images.root / (record.container or record.path)).is_file()
        if images.reader is not None:
            assert record.size_bytes == len(image.tobytes())
    again = pickle.loads(pickle.dumps(images))
    assert (np.asarray(load_image_of(again, 1)) == np.asarray(load_image_of(images, 1))).all()


@pytest.mark.parametrize("name", WRITERS)
def test_a_copy_that_is_not_there_is_told_what_it_lacks_and_nothing_is_made(
    tmp_path: Path, name: str
):
    with pytest.raises(DatasetError) as caught:
        open_image_set(f"torchvision:{name}={tmp_path}")
    first, second, *_ = caught.value.message.splitlines()
    needs = next(iter(TORCHVISION_SETS[name].splits.values())).needs
    assert first == (
        f"image set 'torchvision:{name}': {tmp_path} is no copy of {name} as torchvision reads it:"
        f" {len(needs)} of {len(needs)} that it is read from are not there:"
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
def test_files_that_are_not_the_published_ones_are_named(tmp_path: Path, name: str, file: str):
    with pytest.MonkeyPatch.context() as patch:  # and the published sums are back behind it
        WRITERS[name](tmp_path, patch)
    with pytest.raises(DatasetError) as caught:
        open_image_set(f"torchvision:{name}={tmp_path}")
    first, second, *_ = caught.value.message.splitlines()
    assert first.endswith(": files are not the published ones by MD5:")
    assert second == f"  {file}"


def test_pictures_are_upright_and_in_their_colours(tmp_path, monkeypatch):
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


def test_a_class_of_traffic_signs_is_its_folders_number_whatever_others_are_there(
    tmp_path, monkeypatch
):
    WRITERS["GTSRB"](tmp_path, monkeypatch)
    images = open_image_set(f"torchvision:GTSRB={tmp_path}?split=train")
    assert images.labels == ("1", "16")  # torchvision counts 0 and 1


def test_labels_without_names_join_as_numbers_do(tmp_path, monkeypatch):
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


def test_names_that_only_the_data_has_compete_too(tmp_path, monkeypatch):
    WRITERS["FGVCAircraft"](tmp_path, monkeypatch)
    images = open_image_set(f"torchvision:FGVCAircraft={tmp_path}")
    head = [ClassEntry(name, name) for name in ("Yak-42", "A380", "727-200", "707-320")]
    assert join_image_set(images, head).class_indices == (0, 2, 3)


def test_a_set_with_a_card_of_its_own_is_that(tmp_path):
    write_dtd(tmp_path, test=[(3, 1)])
    images = open_image_set(f"torchvision:DTD={tmp_path}")
    assert images.labels == (read_dataset_card("dtd").class_ids[3],)
    assert len(images.join_options.competing) == 47
    for name, card in OWN_CARDS.items():
        assert read_dataset_card(f"torchvision:{name}") == read_dataset_card(card)
        assert read_dataset_card(card).part().options == {"class": name}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "FashionMnist2",
            "torchvision has no set of classes 'FashionMnist2' that is known here; near it are"
            " FashionMNIST",
        ),
        (
            "CelebA",
            "torchvision's CelebA cannot be taken as images with one class each: each of its"
            " images has forty attributes",
        ),
        (
            "ImageNet",
            "torchvision's ImageNet cannot be taken as images with one class each: it unpacks"
            " archives where it is pointed at; the set goes by the name imagenet",
        ),
    ],
)
def test_a_name_that_stands_for_no_such_set_is_refused(tmp_path: Path, name: str, message: str):
    with pytest.raises(UsageError) as caught:
        open_image_set(f"torchvision:{name}={tmp_path}")
    assert caught.value.message.startswith(message)


def test_a_split_that_the_set_has_not_is_refused_with_those_it_has(tmp_path):
    with pytest.raises(UsageError, match=r"no split 'dev'; there are test, train, val, trainval"):
        open_image_set(f"torchvision:FGVCAircraft={tmp_path}?split=dev")
    with pytest.raises(UsageError, match="card 'torchvision:KMNIST' already determines map"):
        open_image_set(f"torchvision:KMNIST={tmp_path}?map=x.yaml")


def test_classes_are_known_without_data_or_it_is_said_how_to_write_them():
    assert [entry.id for entry in torchvision_classes("torchvision:KMNIST").entries][:2] == [
        "o",
        "ki",
    ]
    first = torchvision_classes("torchvision:Imagenette").entries[0]
    assert first == ClassEntry("n01440764", "tench")
    with pytest.raises(ClassNamesError) as caught:
        torchvision_classes("torchvision:GTSRB")
    assert caught.value.message == (
        "torchvision:GTSRB: torchvision does not know the names of its classes without the data"
    )
    assert (caught.value.hint or "").startswith("write them into a file, ID<TAB>NAME a line, ")


def test_an_older_torchvision_is_told_apart_from_none(tmp_path, monkeypatch):
    WRITERS["KMNIST"](tmp_path, monkeypatch)
    monkeypatch.delattr(torchvision.datasets, "KMNIST")
    with pytest.raises(MissingDependencyError) as caught:
        open_image_set(f"torchvision:KMNIST={tmp_path}")
    assert caught.value.message == f"torchvision {torchvision.__version__} has no KMNIST"
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(MissingDependencyError, match="reads KMNIST, is not installed"):
        open_image_set(f"torchvision:KMNIST={tmp_path}")


def test_a_set_whose_files_are_opened_later_must_lie_where_torchvision_looks(tmp_path, monkeypatch):
    WRITERS["PCAM"](tmp_path, monkeypatch)
    (tmp_path / "pcam").rename(tmp_path / "patches")
    with pytest.raises(DatasetError) as caught:
        open_image_set(f"torchvision:PCAM={tmp_path / 'patches'}")
    assert caught.value.message == (
        f"{tmp_path / 'patches'}: torchvision reads PCAM only out of a folder pcam"
    )


def test_labels_that_are_not_published_are_refused(tmp_path, monkeypatch):
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
        f"{tmp_path / 'fer2013'}: torchvision finds images without a label there"
    )
