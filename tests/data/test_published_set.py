"""Published sets are opened by their cards; wrong folders are rejected, wrong counts reported."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.test_dataset_card import OWN
from tests.data.test_image_folder import put
from wiseft_cli.checkpoint.card import ClassEntry
from wiseft_cli.data.dataset_card import read_dataset_card
from wiseft_cli.data.image_set import data_fingerprint
from wiseft_cli.data.images import load_image_of
from wiseft_cli.data.label_join import join_image_set
from wiseft_cli.data.sources import open_image_set, open_image_sets, open_training_set
from wiseft_cli.errors import DatasetError, UsageError

IDS = read_dataset_card("imagenet").class_ids


def test_set_named_after_a_card_is_opened_by_it_with_a_warning_for_wrong_counts(
    tmp_path: Path,
) -> None:
    put(tmp_path / "down/imagenet-r", "n01443537/a.jpg", "n02510455/b.jpg")
    images = open_image_set(f"imagenet-r={tmp_path / 'down'}")
    assert (images.name, images.labels) == ("imagenet-r", ("n01443537", "n02510455"))
    assert images.root == tmp_path / "down/imagenet-r"
    assert images.warnings == (
        "image set 'imagenet-r': 2 images, but ImageNet-R (renditions), 200 classes has 30,000: the"
        " copy is incomplete, or not of this set",
        "image set 'imagenet-r': 2 classes, but ImageNet-R (renditions), 200 classes has 200: the"
        " copy is incomplete, or not of this set",
    )


def test_numbered_folders_are_positions_among_imagenets_ids(tmp_path: Path) -> None:
    put(tmp_path / "v2", "0/a.jpeg", "10/b.jpeg", "2/c.jpeg", "999/d.jpeg")
    images = open_image_set(f"shift={tmp_path / 'v2'}?card=imagenet-v2")
    assert {record.path: record.label for record in images.records} == {
        "0/a.jpeg": IDS[0],
        "10/b.jpeg": IDS[10],
        "2/c.jpeg": IDS[2],
        "999/d.jpeg": IDS[999],
    }
    assert images.name == "shift"


def test_folders_that_are_not_a_class_are_rejected_with_a_way_around(tmp_path: Path) -> None:
    put(tmp_path / "a", "cat/a.jpg", "n01443537/a.jpg")
    with pytest.raises(DatasetError) as caught:
        open_image_set(f"imagenet-r={tmp_path / 'a'}")
    assert caught.value.message == (
        f"image set 'imagenet-r': {tmp_path / 'a'} has folders that are not a class of ImageNet-R"
        " (renditions), 200 classes (expected class ids such as n01443537):\n  cat"
    )
    assert caught.value.hint == (
        "is it laid out as at https://github.com/hendrycks/imagenet-r? ?card=none reads it as a"
        " plain folder"
    )
    plain = open_image_set(f"imagenet-r={tmp_path / 'a'}?card=none")
    assert plain.labels == ("cat", "n01443537")
    put(tmp_path / "v2", "1000/a.jpeg")
    with pytest.raises(DatasetError, match="expected numbers from 0 to 999"):
        open_image_set(f"imagenet-v2={tmp_path / 'v2'}")


SOURCE = "https://github.com/hendrycks/imagenet-r"


def refusal(spec: str) -> tuple[str, str | None]:
    with pytest.raises(DatasetError) as caught:
        open_image_set(spec)
    return caught.value.message, caught.value.hint


@pytest.mark.parametrize(
    ("files", "found"),
    [([], "it is empty"), (["sets/imagenet-r/n01443537/a.jpg"], "found:\n  sets")],
)
def test_root_without_the_set_is_rejected_with_the_expected_folders(
    tmp_path: Path, files: list[str], found: str
) -> None:
    put(tmp_path, *files)
    assert refusal(f"imagenet-r={tmp_path}") == (
        f"image set 'imagenet-r': {tmp_path} is not a copy of ImageNet-R (renditions), 200 classes:"
        " it has no folder imagenet-r and no class folder (expected class ids such as n01443537);"
        f" {found}",
        "name the folder that the download was unpacked into, or the one with the class folders;"
        f" the set is at {SOURCE}",
    )


@pytest.mark.parametrize("place", [".", "imagenet-r"])
def test_packed_set_is_rejected_with_a_hint_to_unpack_it(tmp_path: Path, place: str) -> None:
    folder = tmp_path / place
    put(folder, "imagenet-r.tar")
    message, hint = refusal(f"imagenet-r={tmp_path}")
    assert message.startswith(f"image set 'imagenet-r': {folder} is not a copy of ImageNet-R")
    assert ("no folder imagenet-r" in message) == (place == ".")
    assert message.endswith("; found:\n  imagenet-r.tar")
    assert hint == (
        "unpack imagenet-r.tar, and name the folder that the download was unpacked into, or the one"
        f" with the class folders; the set is at {SOURCE}"
    )
    put(tmp_path / "dtd", "dtd-r1.0.1.tar.gz")
    assert (refusal(f"dtd={tmp_path / 'dtd'}")[1] or "").startswith(
        "unpack dtd-r1.0.1.tar.gz, or get it from https://www.robots.ox.ac.uk/~vgg/data/dtd/; it is"
    )


NO_TRAIN = (
    ", and has none of the folders train, ILSVRC2012_img_train, ILSVRC/Data/CLS-LOC/train,"
    " Data/CLS-LOC/train"
)


def test_folder_of_one_split_is_not_taken_for_another(tmp_path: Path) -> None:
    put(tmp_path / "val", f"{IDS[0]}/a.jpg")
    hint = (
        "choose the split with ?split=, one of val, train, or get this one from"
        " https://www.image-net.org/challenges/LSVRC/2012/"
    )
    title = "is not a copy of ImageNet-1k (ILSVRC 2012), split train: it "
    assert refusal(f"imagenet={tmp_path}?split=train") == (
        f"image set 'imagenet': {tmp_path} {title}has the folder val of split val{NO_TRAIN}",
        hint,
    )
    assert refusal(f"imagenet={tmp_path / 'val'}?split=train") == (
        f"image set 'imagenet': {tmp_path / 'val'} {title}is itself the folder of split"
        f" val{NO_TRAIN}",
        hint,
    )
    (tmp_path / "val").rename(tmp_path / "mine")  # a name that does not suggest a split
    images = open_image_set(f"imagenet={tmp_path / 'mine'}?split=train")
    assert images.labels == (IDS[0],)


def test_split_of_a_users_card_is_not_taken_from_the_root_of_another(tmp_path: Path) -> None:
    (tmp_path / "pets.txt").write_text("c\tcat\nd\tdog\n")
    splits = "splits: {val: {n_images: 2}, test: {n_images: 2, folders: [pets-test]}}\n"
    card = tmp_path / "pets.yaml"
    card.write_text(OWN.replace("n_images: 4\n", splits))
    root = put(tmp_path / "pets-val", "0/1.png", "1/1.png")
    assert open_image_set(f"{root}?card={card},split=val").labels == ("c", "d")
    message, hint = refusal(f"{root}?card={card},split=test")
    assert message == (
        f"image set 'pets': {root} is not a copy of Pets at home, split test: it is itself the"
        " folder of split val, and has no folder pets-test"
    )
    assert hint == (
        "choose the split with ?split=, one of val, test, or get this one from"
        " https://example.org/pets"
    )


def test_manifest_named_after_a_card_is_read_as_a_manifest(tmp_path: Path) -> None:
    put(tmp_path, "a.jpg")
    (tmp_path / "r.csv").write_text("path,label\na.jpg,n01443537\n")
    images = open_image_set(f"imagenet-r={tmp_path / 'r.csv'}")
    assert (images.labels, images.warnings) == (("n01443537",), ())


def test_option_that_contradicts_the_card_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"the card 'imagenet-r' .* labels_are_indices"):
        open_image_set(f"imagenet-r={tmp_path}?labels_are_indices=true")


def test_suite_finds_cards_in_its_own_folder(tmp_path: Path) -> None:
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


def write_pets(folder: Path) -> None:
    """Write a user's card with a map to other classes, and two splits."""
    (folder / "pets.txt").write_text("c\tcat\nd\tdog\nh\thorse\n")
    (folder / "map.yaml").write_text("kitten: c\npuppy: [d, h]\n")
    card = OWN.replace("index-folders", "id-folders").replace("n_images: 4\n", "map: map.yaml\n")
    splits = "splits: {val: {n_images: 2, folders: [v]}, test: {n_images: 1, n_classes: 1}}\n"
    (folder / "pets.yaml").write_text(card + splits)


def test_split_is_selected_by_an_option(tmp_path: Path) -> None:
    write_pets(tmp_path)
    put(tmp_path / "v", "kitten/1.png", "puppy/1.png")
    put(tmp_path / "other", "puppy/1.png")
    card = f"card={tmp_path / 'pets.yaml'}"
    images = open_image_set(f"{tmp_path}?{card}")
    assert (images.root, images.labels, images.warnings) == (
        tmp_path / "v",
        ("kitten", "puppy"),
        (),
    )
    images = open_image_set(f"{tmp_path / 'other'}?{card},split=test")
    assert (images.labels, images.warnings) == (("puppy",), ())
    with pytest.raises(UsageError, match="no split 'train'"):
        open_image_set(f"{tmp_path}?{card},split=train")


def test_labels_join_through_the_cards_map_or_as_classes_of_the_head(tmp_path: Path) -> None:
    write_pets(tmp_path)
    put(tmp_path / "other", "puppy/1.png")
    images = open_image_set(f"{tmp_path / 'other'}?card={tmp_path / 'pets.yaml'},split=test")
    fine = [ClassEntry(id, id) for id in ("h", "x", "d", "c")]
    join = join_image_set(images, fine)
    assert (join.kind, join.columns, join.accepted) == ("map", ((0, 2), (3,)), {"puppy": (0,)})
    own = [ClassEntry(id, id) for id in ("kitten", "x", "puppy")]
    join = join_image_set(images, own)
    assert (join.columns, join.accepted) == (((0,), (2,)), {"puppy": (1,)})


def test_all_classes_of_a_published_set_compete_and_no_others(tmp_path: Path) -> None:
    put(tmp_path / "imagenet-r", f"{IDS[1]}/a.jpg")
    images = open_image_set(f"imagenet-r={tmp_path}")
    head = [ClassEntry(class_id, "x") for class_id in IDS]
    join = join_image_set(images, head)
    assert [head[at].id for at in join.class_indices] == list(
        read_dataset_card("imagenet-r").labels
    )
    others = set(IDS) - set(read_dataset_card("imagenet-r").labels)
    some = [ClassEntry(class_id, "x") for class_id in IDS[:10]]  # a head with some of the classes
    assert join_image_set(images, some).class_indices == tuple(
        at for at in range(10) if IDS[at] not in others
    )
    assert len(join_image_set(images, some).class_indices) > 1


def test_crop_border_cuts_every_image_and_changes_the_fingerprint(tmp_path: Path) -> None:
    pixels = np.zeros((8, 10, 3), np.uint8)
    pixels[2:-2, 2:-2] = 200
    (tmp_path / "a").mkdir()
    Image.fromarray(pixels).save(tmp_path / "a/1.png")
    plain, cut = (open_image_set(f"{tmp_path}{ask}") for ask in ("", "?crop_border=2"))
    assert load_image_of(plain, 0).size == (10, 8)
    inner = np.asarray(load_image_of(cut, 0))
    assert inner.shape == (4, 6, 3)
    assert (inner == 200).all()
    assert data_fingerprint(plain) != data_fingerprint(cut)
    with pytest.raises(DatasetError, match=r"a/1\.png: 10 x 8 pixels"):
        load_image_of(open_image_set(f"{tmp_path}?crop_border=4"), 0)
    with pytest.raises(UsageError, match="crop_border is '-1'"):
        open_image_set(f"{tmp_path}?crop_border=-1")


def test_training_set_needs_an_explicit_split(tmp_path: Path) -> None:
    write_pets(tmp_path)
    card = tmp_path / "pets.yaml"
    card.write_text(card.read_text().replace("test: {", "train: {"))
    put(tmp_path / "v", "kitten/1.png", "puppy/1.png")
    spec = f"{tmp_path}?card={card}"
    with pytest.raises(UsageError) as caught:
        open_training_set(spec)
    assert spec in caught.value.message
    assert "val, train" in caught.value.message
    assert repr(f"{spec},split=train") in (caught.value.hint or "")
    assert open_training_set(f"{spec},split=val").labels == ("kitten", "puppy")
    put(tmp_path / "sketch", "n01443537/1.jpg")
    with pytest.raises(UsageError) as caught:
        open_training_set(f"imagenet={tmp_path}")
    assert f"'imagenet={tmp_path}?split=train'" in (caught.value.hint or "")
    images = open_training_set(f"imagenet-sketch={tmp_path}")
    assert "'imagenet-sketch' has no training split" in images.warnings[-1]


def test_name_similar_to_a_published_set_is_noted(tmp_path: Path) -> None:
    put(tmp_path / "r", "n01443537/1.jpg")
    images = open_image_set(f"ImageNet_R={tmp_path / 'r'}")
    (note,) = images.notes
    assert "'ImageNet_R'" in note
    assert "?card=imagenet-r" in note
    assert open_image_set(f"ImageNet_R={tmp_path / 'r'}?card=none").notes == ()
    with pytest.raises(UsageError) as caught:
        open_image_set("imagenet-shifts")
    assert "wiseft eval --suite imagenet-shifts --root DIR" in (caught.value.hint or "")


def test_head_of_other_classes_is_rejected_with_the_command_that_builds_one(tmp_path: Path) -> None:
    put(tmp_path / "r", f"{IDS[1]}/1.jpg")
    with pytest.raises(DatasetError) as caught:
        join_image_set(open_image_set(f"imagenet-r={tmp_path / 'r'}"), [ClassEntry("c", "cat")])
    assert "`wiseft zeroshot-head --classes NAME`" in (caught.value.hint or "")
