"""Shipped cards have the published counts; the cards of users are validated."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from timm.data.imagenet_info import ImageNetInfo

from wiseft_cli.data.dataset_card import Split, dataset_card_names, read_dataset_card
from wiseft_cli.errors import DatasetError, UsageError

COUNTS = {
    "fmow": (11_327, 62),
    "cifar10": (10_000, 10),
    "cifar10.1": (2_000, 10),
    "cifar10.2": (2_000, 10),
    "cifar100": (10_000, 100),
    "dtd": (1_880, 47),
    "eurosat": (27_000, 10),
    "flowers102": (6_149, 102),
    "food101": (25_250, 101),
    "imagenet": (50_000, 1000),
    "imagenet-a": (7_500, 200),
    "imagenet-r": (30_000, 200),
    "imagenet-sketch": (50_889, 1000),
    "imagenet-v2": (10_000, 1000),
    "iwildcam": (8_154, 182),
    "imagenet-vid-robust": (22_179, 30),
    "objectnet": (18_574, 113),
    "ytbb-robust": (35_718, 23),
    "stanford-cars": (8_041, 196),
    "sun397": (19_850, 397),
}
"""Images of the first split, and labels, per set."""
OWN = """\
name: pets
title: Pets at home
source: https://example.org/pets
licence: CC0
citation: Doe 2020
layout: index-folders
classes: pets.txt
n_images: 4
n_classes: 2
"""


def test_shipped_cards_have_the_published_counts() -> None:
    found = {name: read_dataset_card(name) for name in dataset_card_names()}
    assert {
        name: (card.split().n_images, len(card.labels)) for name, card in found.items()
    } == COUNTS
    assert all(card.source.startswith("https://") for card in found.values())


@pytest.mark.parametrize(
    ("name", "subset"), [("imagenet", "1k"), ("imagenet-a", "a"), ("imagenet-r", "r")]
)
def test_class_ids_equal_those_of_timm(name: str, subset: str) -> None:
    known = {"1k": "imagenet-1k", "a": "imagenet-a", "r": "imagenet-r"}[subset]
    expected = ImageNetInfo(known).label_names() if subset == "1k" else timm_subset(known)
    assert list(read_dataset_card(name).class_ids) == list(expected)


def timm_subset(name: str) -> list[str]:
    """Return the ids of a subset as timm ships them, in a text file."""
    from importlib import resources

    text = (
        resources.files("timm.data") / "_info" / f"{name.replace('-', '_')}_synsets.txt"
    ).read_text()
    return text.split()


def test_objectnet_map_has_the_published_counts() -> None:
    card = read_dataset_card("objectnet")
    assert card.label_map is not None
    mapped, others = card.label_map.classes, card.label_map.leave_out
    assert (len(mapped), len(others), len({*mapped, *others})) == (113, 200, 313)
    ids = [class_id for of_folder in mapped.values() for class_id in of_folder]
    assert len(ids) == len(set(ids)) == 125
    assert set(ids) < set(read_dataset_card("imagenet").class_ids)
    assert Counter(map(len, mapped.values())) == {1: 104, 2: 6, 3: 3}
    assert [name for name in mapped if len(mapped[name]) == 3] == ["chair", "pen", "skirt"]
    names = ImageNetInfo("imagenet-1k")
    described = {
        folder: [names.label_name_to_description(class_id) for class_id in mapped[folder]]
        for folder in ("alarm_clock", "t-shirt")
    }
    assert described == {
        "alarm_clock": ["analog clock", "digital clock"],
        "t-shirt": ["jersey, T-shirt, tee shirt"],
    }
    assert card.class_ids == tuple(sorted(mapped))


def test_a_users_card_is_read_by_its_path(tmp_path: Path) -> None:
    (tmp_path / "pets.txt").write_text("c\tcat\nd\tdog\n")
    (tmp_path / "pets.yaml").write_text(OWN)
    card = read_dataset_card(str(tmp_path / "pets.yaml"))
    assert (card.class_ids, card.classes) == (("c", "d"), str(tmp_path / "pets.txt"))
    assert card.templates == "simple"
    assert card.splits == (Split("", (), n_images=4, n_classes=2, primary="top1"),)


def test_unknown_name_is_rejected_with_the_names_there_are() -> None:
    with pytest.raises(UsageError) as caught:
        read_dataset_card("imagenet-b")
    assert caught.value.message == (
        f"there is no data set card 'imagenet-b'; the cards are {', '.join(dataset_card_names())}"
    )
    with pytest.raises(UsageError) as caught:
        read_dataset_card("ImageNet_R")
    assert (caught.value.hint or "").startswith("did you mean imagenet-r or ")
    with pytest.raises(UsageError) as caught:
        read_dataset_card("something")
    assert caught.value.hint == "give your own card as the path of its .yaml file"


SPLITS = """
map: map.yaml
notes: [A note.]
folders: [both]
splits:
  val: {n_images: 4}
  test: {n_images: 9, n_classes: 1, primary: macro_f1, folders: [t, u], options: {column: y}}
  seen: {n_images: 2, n_classes: unknown}
"""


def test_splits_inherit_the_values_of_the_card_and_a_map_gives_the_labels(tmp_path: Path) -> None:
    (tmp_path / "pets.txt").write_text("c\tcat\nd\tdog\n")
    (tmp_path / "map.yaml").write_text("kitten: c\npuppy: [d]\n")
    (tmp_path / "pets.yaml").write_text(OWN.replace("n_images: 4\n", "") + SPLITS)
    card = read_dataset_card(str(tmp_path / "pets.yaml"))
    assert card.labels == ("kitten", "puppy")
    assert card.notes == ("A note.",)
    assert card.split() == card.split("val") == Split("val", ("both",), 4, 2, "top1")
    assert card.split("seen").n_classes is None
    assert card.split("test") == Split("test", ("t", "u"), 9, 1, "macro_f1", {"column": "y"})
    with pytest.raises(UsageError, match="'pets' has no split 'train'") as caught:
        card.split("train")
    assert caught.value.hint == "its splits are val, test, seen"


KEYS = (
    "name, title, source, licence, citation, layout, classes, class_ids, map, templates, folders,"
    " primary, n_images, n_classes, n_anchors, options,"
    " exif_orientation, splits, notes"
)


@pytest.mark.parametrize(
    ("old", "new", "message", "hint"),
    [
        (OWN, "", "{card}: holds nothing, expected a data set card", KEYS),
        ("licence:", "license:", "{card}, line 4: unknown key 'license'", KEYS),
        ("licence: CC0", "name: x", "{card}, line 4: the key 'name' is repeated", None),
        ("licence: CC0\n", "", "{card}: a data set card needs licence", None),
        ("index-folders", "flat", "is 'flat', expected one of id-folders, index-folders", None),
        ("n_images: 4\n", "", "{card}: n_images is missing for the set", None),
        (
            "n_images: 4",
            "splits: {a: {n_image: 4}}",
            "line 8: unknown key 'n_image'",
            "folders, primary, n_images, n_classes, n_anchors, options",
        ),
        ("n_images: 4", "splits: [a]", "line 8: splits is a list, expected a mapping", None),
        ("n_images: 4", "splits: {a: 4}", "split a is '4', expected a mapping", None),
        ("n_images: 4", "options: {a: [b]}", "line 8: a is a list, expected a text", None),
        ("n_images: 4", "n_images: many", "line 8: n_images is 'many', expected a number", None),
        ("n_classes: 2", "n_classes: unknown", "n_classes is 'unknown', expected a number", None),
        (
            "licence: CC0",
            "licence: CC0\ntemplates: smple",
            "{card}: templates is 'smple', which is neither a file beside the card nor a built-in",
            "built-in sets: openai, simple",
        ),
        ("n_classes: 2", "n_classes: 3", "n_classes is 3, but the card names 2 classes", None),
        ("name: pets", "name: [a]", "name is a list, expected a text", None),
        (
            "licence: CC0",
            "licence: CC0\nclass_ids: [c, x]",
            "class_ids: x is not a class of pets.txt",
            None,
        ),
        (
            "licence: CC0",
            "licence: CC0\nclass_ids: [c, c]",
            "class_ids: an id is listed twice",
            None,
        ),
        (
            "licence: CC0",
            "licence: CC0\nfolders: [{a: b}]",
            "an item of folders is a mapping, expected a text",
            None,
        ),
    ],
)
def test_invalid_card_is_rejected_with_its_line(
    tmp_path: Path, old: str, new: str, message: str, hint: str | None
) -> None:
    (tmp_path / "pets.txt").write_text("c\tcat\nd\tdog\n")
    path = tmp_path / "pets.yaml"
    assert old in OWN
    path.write_text(OWN.replace(old, new))
    with pytest.raises(DatasetError) as caught:
        read_dataset_card(str(path))
    assert message.format(card=path) in caught.value.message
    assert (hint or "") in (caught.value.hint or "")
