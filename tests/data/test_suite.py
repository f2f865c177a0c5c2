"""Suites: YAML files of image sets, and the suites that ship with the package."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.data.test_image_folder import put
from wiseft_cli.data.dataset_card import read_dataset_card
from wiseft_cli.data.sources import open_image_set, open_image_sets, open_suite
from wiseft_cli.data.suite import find_suite, read_suite, suite_names
from wiseft_cli.errors import DatasetError, UsageError


@pytest.mark.parametrize("name", suite_names())
def test_every_suite_names_existing_cards_and_splits(name: str) -> None:
    specs = read_suite(find_suite(name), root=Path("/data"))
    titles = [spec.title for spec in specs]
    assert len(set(titles)) == len(titles)
    for spec in specs:
        assert spec.options.card is not None
        card = read_dataset_card(spec.options.card)
        assert card.split(spec.options.split)


def test_a_suite_by_name_needs_a_root_and_lists_its_folders() -> None:
    with pytest.raises(UsageError) as caught:
        open_suite("imagenet-shifts", None)
    assert caught.value.message == "the suite 'imagenet-shifts' needs --root"
    assert (caught.value.hint or "").startswith(
        "name the folder that contains imagenet, imagenet-v2,"
    )


def test_all_missing_sets_are_listed(tmp_path: Path) -> None:
    put(tmp_path / "imagenet/val", "n01440764/1.JPEG")
    with pytest.raises(DatasetError) as caught:
        open_suite("imagenet-shifts", tmp_path)
    first, second, *_ = caught.value.message.splitlines()
    n_sets = len(read_suite(find_suite("imagenet-shifts")))
    assert first == f"suite imagenet-shifts: {n_sets - 1} of {n_sets} sets are missing:"
    assert second == f"  imagenet-v2: {tmp_path / 'imagenet-v2'}"


def test_a_root_that_is_not_a_folder_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name, found in (("nope", "does not exist"), ("file", "is not a folder")):
        with pytest.raises(DatasetError) as caught:
            open_suite("imagenet-shifts", tmp_path / name)
        assert caught.value.message == (
            f"suite imagenet-shifts: the root {tmp_path / name} {found}"
        )


def test_an_unknown_suite_is_rejected_with_the_known_names() -> None:
    with pytest.raises(UsageError) as caught:
        open_suite("imagenet-shift", None)
    assert caught.value.message == (
        f"unknown suite 'imagenet-shift'; the suites are {', '.join(suite_names())}"
    )


def test_paths_of_a_users_suite_are_relative_to_its_folder_or_to_the_root(tmp_path: Path) -> None:
    put(tmp_path / "here/photos", "cat/1.png")
    put(tmp_path / "there/photos", "dog/1.png")
    suite = tmp_path / "here/mine.yaml"
    suite.write_text("- {data: photos}\n")
    assert [images.labels for images in open_suite(str(suite), None)] == [("cat",)]
    assert [images.labels for images in open_suite(str(suite), tmp_path / "there")] == [("dog",)]


def test_a_set_may_be_unpacked_directly_in_the_root(tmp_path: Path) -> None:
    suite = tmp_path / "mine.yaml"
    suite.write_text("- {data: imagenet-sketch, card: imagenet-sketch}\n")
    put(tmp_path / "data/sketch", "n01440764/1.JPEG")
    (images,) = open_suite(str(suite), tmp_path / "data")
    assert (images.name, images.root) == ("imagenet-sketch", tmp_path / "data/sketch")
    put(
        tmp_path / "data/imagenet-sketch", "n01443537/1.JPEG"
    )  # a folder named like the set takes precedence
    (images,) = open_suite(str(suite), tmp_path / "data")
    assert images.labels == ("n01443537",)


def write_suite(tmp_path: Path, text: str) -> str:
    (tmp_path / "suite.yaml").write_text(text)
    return str(tmp_path / "suite.yaml")


def test_paths_in_a_suite_are_relative_to_its_folder(tmp_path: Path) -> None:
    put(tmp_path / "val", "a/1.png", "b/1.png")
    (tmp_path / "labels.csv").write_text("path,kind,split\nval/a/1.png,n1,test\nx,n2,train\n")
    (tmp_path / "m.yaml").write_text("a: n1\nb: n2\n")
    suite = write_suite(
        tmp_path,
        "- data: val\n  map: m.yaml\n"
        "- {name: shift, data: labels.csv, split: test, label: kind, primary: worst_group}\n"
        "- data: val\n  name: indices\n  labels_are_indices: true\n",
    )
    val, shift, indices = open_image_sets(suite)
    assert (val.name, shift.name, indices.name) == ("val", "shift", "indices")
    assert val.join_options.label_map is not None
    assert val.join_options.label_map.path == tmp_path / "m.yaml"
    assert [(record.path, record.label) for record in shift.records] == [("val/a/1.png", "n1")]
    assert shift.join_options.primary == "worst_group"
    assert indices.join_options.labels_are_indices


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", ": contains nothing, expected a list of image sets"),
        ("data: val\n", ": contains a mapping, expected a list of image sets"),
        ("- val\n", ", line 1: expected an image set, found a text"),
        ("- name: x\n", ", line 1: the image set has no `data:`"),
        ("- data: v\n  mpa: x\n", ", line 2: unknown key 'mpa'"),
        ("- data: v\n  data: w\n", ", line 2: 'data' occurs more than once"),
        ("- data: [v]\n", ", line 1: the value of data is not text"),
        ("- data: o.yaml\n", ", line 1: 'o.yaml' is a suite; a suite lists only image sets"),
        (
            "- data: v\n- data: v\n  all_classes: 1\n",
            ", line 2: all_classes is '1'; expected true or false",
        ),
    ],
)
def test_faults_of_a_suite_are_reported_with_their_line(
    tmp_path: Path, text: str, message: str
) -> None:
    suite = write_suite(tmp_path, text)
    with pytest.raises(DatasetError) as caught:
        open_image_sets(suite)
    assert caught.value.message == suite + message


def test_a_suite_is_rejected_as_a_single_set_or_with_a_name(tmp_path: Path) -> None:
    suite = write_suite(tmp_path, "- data: val\n")
    with pytest.raises(UsageError, match=r"is a suite of several sets; expected one set: a folder"):
        open_image_set(suite, option="--train")
    with pytest.raises(UsageError, match=r"the sets of a suite have their own names and options$"):
        open_image_sets(f"x={suite}")
