"""Published sets in their layouts: what a spec opens, what is refused, what is only said."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.data.test_dataset_card import OWN
from tests.data.test_image_folder import put
from wiseft_cli.data.dataset_card import read_dataset_card
from wiseft_cli.data.spec import open_image_set, open_image_sets
from wiseft_cli.errors import DatasetError, UsageError

IDS = read_dataset_card("imagenet").class_ids


def test_a_set_named_after_a_card_is_opened_by_it_and_differing_counts_are_said(
    tmp_path: Path,
) -> None:
    put(tmp_path / "down/imagenet-r", "n01443537/a.jpg", "n02510455/b.jpg")
    images = open_image_set(f"imagenet-r={tmp_path / 'down'}")
    assert (images.name, images.labels) == ("imagenet-r", ("n01443537", "n02510455"))
    assert images.root == tmp_path / "down/imagenet-r"
    assert images.warnings == (
        "image set 'imagenet-r': 2 images, ImageNet-R (renditions), 200 classes has 30,000: the"
        " copy is not complete, or another set",
        "image set 'imagenet-r': 2 classes, ImageNet-R (renditions), 200 classes has 200: the"
        " copy is not complete, or another set",
    )


def test_numeric_folders_are_positions_among_imagenets_ids_not_text_order(tmp_path: Path) -> None:
    put(tmp_path / "v2", "0/a.jpeg", "10/b.jpeg", "2/c.jpeg", "999/d.jpeg")
    images = open_image_set(f"shift={tmp_path / 'v2'}?card=imagenet-v2")
    assert {record.path: record.label for record in images.records} == {
        "0/a.jpeg": IDS[0],
        "10/b.jpeg": IDS[10],
        "2/c.jpeg": IDS[2],
        "999/d.jpeg": IDS[999],
    }
    assert images.name == "shift"


def test_folders_that_are_no_class_are_refused_with_the_way_around(tmp_path: Path) -> None:
    put(tmp_path / "a", "cat/a.jpg", "n01443537/a.jpg")
    with pytest.raises(DatasetError) as caught:
        open_image_set(f"imagenet-r={tmp_path / 'a'}")
    assert caught.value.message == (
        f"image set 'imagenet-r': {tmp_path / 'a'} has 1 folders that are no class of ImageNet-R"
        " (renditions), 200 classes; expected class ids such as n01443537:\n  cat"
    )
    assert "?card=none" in (caught.value.hint or "")
    plain = open_image_set(f"imagenet-r={tmp_path / 'a'}?card=none")
    assert plain.labels == ("cat", "n01443537")
    put(tmp_path / "v2", "1000/a.jpeg")
    with pytest.raises(DatasetError, match="expected numbers from 0 to 999"):
        open_image_set(f"imagenet-v2={tmp_path / 'v2'}")


def test_a_manifest_that_is_named_as_a_card_is_a_manifest(tmp_path: Path) -> None:
    put(tmp_path, "a.jpg")
    (tmp_path / "r.csv").write_text("path,label\na.jpg,n01443537\n")
    images = open_image_set(f"imagenet-r={tmp_path / 'r.csv'}")
    assert (images.labels, images.warnings) == (("n01443537",), ())


def test_what_the_card_says_cannot_be_said_again(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        open_image_set(f"imagenet-r={tmp_path}?labels_are_indices=true")
    assert caught.value.message == (
        f"{tmp_path}: the card 'imagenet-r' says what labels_are_indices would"
    )


def test_a_suite_names_cards_from_its_own_folder(tmp_path: Path) -> None:
    put(tmp_path / "pets", "0/1.png", "0/2.png", "1/1.png", "1/2.png")
    (tmp_path / "pets.txt").write_text("d\tdog\nc\tcat\n")
    (tmp_path / "pets.yaml").write_text(OWN)
    (tmp_path / "suite.yaml").write_text(
        "- {data: pets, card: pets.yaml, primary: mean_per_class, all_classes: true}\n"
    )
    (images,) = open_image_sets(str(tmp_path / "suite.yaml"))
    assert (images.name, images.labels, images.warnings) == ("pets", ("c", "d"), ())
    assert [record.label for record in images.records] == ["d", "d", "c", "c"]
    assert (images.join_options.primary, images.join_options.all_classes) == (
        "mean_per_class",
        True,
    )
