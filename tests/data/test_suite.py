"""Suites by name: where their sets are looked for, and what is said where they are not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.data.test_image_folder import put
from wiseft_cli.data.dataset_card import read_dataset_card
from wiseft_cli.data.sources import open_suite
from wiseft_cli.data.suite import find_suite, read_suite, suite_names
from wiseft_cli.errors import DatasetError, UsageError


@pytest.mark.parametrize("name", suite_names())
def test_every_suite_names_cards_and_splits_that_are_there(name: str) -> None:
    specs = read_suite(find_suite(name), root=Path("/data"))
    titles = [spec.title for spec in specs]
    assert len(set(titles)) == len(titles)
    for spec in specs:
        assert spec.options.card is not None
        card = read_dataset_card(spec.options.card)
        assert card.part(spec.options.split)


def test_a_suite_by_name_needs_a_root_and_says_what_lies_in_it() -> None:
    with pytest.raises(UsageError) as caught:
        open_suite("imagenet-shifts", None)
    assert caught.value.message == "the suite 'imagenet-shifts' needs --root"
    assert (caught.value.hint or "").startswith(
        "name the folder that contains imagenet, imagenet-v2,"
    )


def test_all_sets_that_are_not_there_are_named(tmp_path: Path) -> None:
    put(tmp_path / "imagenet/val", "n01440764/1.JPEG")
    with pytest.raises(DatasetError) as caught:
        open_suite("imagenet-shifts", tmp_path)
    first, second, *_ = caught.value.message.splitlines()
    n_sets = len(read_suite(find_suite("imagenet-shifts")))
    assert first == f"suite imagenet-shifts: {n_sets - 1} of {n_sets} sets are missing:"
    assert second == f"  imagenet-v2: {tmp_path / 'imagenet-v2'}"


def test_a_root_that_is_no_folder_is_said_to_be_none(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name, found in (("nope", "does not exist"), ("file", "is not a folder")):
        with pytest.raises(DatasetError) as caught:
            open_suite("imagenet-shifts", tmp_path / name)
        assert caught.value.message == (
            f"suite imagenet-shifts: the root {tmp_path / name} {found}"
        )


def test_an_unknown_suite_lists_the_names() -> None:
    with pytest.raises(UsageError) as caught:
        open_suite("imagenet-shift", None)
    assert caught.value.message == (
        f"unknown suite 'imagenet-shift'; the suites are {', '.join(suite_names())}"
    )


def test_a_suite_of_ones_own_starts_at_its_folder_or_at_the_root(tmp_path: Path) -> None:
    put(tmp_path / "here/photos", "cat/1.png")
    put(tmp_path / "there/photos", "dog/1.png")
    suite = tmp_path / "here/mine.yaml"
    suite.write_text("- {data: photos}\n")
    assert [images.labels for images in open_suite(str(suite), None)] == [("cat",)]
    assert [images.labels for images in open_suite(str(suite), tmp_path / "there")] == [("dog",)]


def test_a_set_may_lie_at_the_root_as_its_download_unpacks(tmp_path: Path) -> None:
    suite = tmp_path / "mine.yaml"
    suite.write_text("- {data: imagenet-sketch, card: imagenet-sketch}\n")
    put(tmp_path / "data/sketch", "n01440764/1.JPEG")
    (images,) = open_suite(str(suite), tmp_path / "data")
    assert (images.name, images.root) == ("imagenet-sketch", tmp_path / "data/sketch")
    put(tmp_path / "data/imagenet-sketch", "n01443537/1.JPEG")  # called as the set is: before that
    (images,) = open_suite(str(suite), tmp_path / "data")
    assert images.labels == ("n01443537",)
