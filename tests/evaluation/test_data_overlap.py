"""Sets that choose and report on the same images, and sets that a checkpoint was trained on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.evaluation.tiny import make_checkpoint, make_images
from tests.reporting.lines import digest, line, sweep_lines
from wiseft_cli.checkpoint.card import Card, HistoryEntry
from wiseft_cli.checkpoint.reader import read_card
from wiseft_cli.data.image_folder import list_image_folder
from wiseft_cli.data.image_set import ImageSet, data_fingerprint
from wiseft_cli.data.subsets import few_shot, stratified_split
from wiseft_cli.evaluation.data_overlap import (
    contains_training_images,
    overlap_warnings,
    trained_on_warnings,
    training_records,
)
from wiseft_cli.evaluation.weight_sets import NamedCheckpoint


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    folder = tmp_path_factory.mktemp("overlap") / "train"
    return list_image_folder(make_images(folder, ["a", "b"], per_class=4, size=8))


def test_separate_sets_give_no_warning() -> None:
    assert overlap_warnings([]) == []
    assert overlap_warnings(sweep_lines()) == []
    assert overlap_warnings(sweep_lines(select_on="shift-a")) == []


def test_reference_that_chooses_alpha_is_reported() -> None:
    (warning,) = overlap_warnings(sweep_lines(select_on="val"))
    assert warning.startswith("image set 'val' both chooses alpha and is the in-distribution set")


@pytest.mark.parametrize(
    ("fields", "effect"),
    [
        ({}, "they are counted more than once"),
        ({"reference": True}, "they are counted more than once"),
        ({"selection": True}, "alpha is chosen on images that are also reported"),
    ],
)
def test_sets_with_the_same_images_are_reported(fields: dict[str, Any], effect: str) -> None:
    shared = {"data_fingerprint": digest("f")}
    lines = [line("a", 5, **shared, **fields), line("b", 5, **shared), line("c", 5)]
    (warning,) = overlap_warnings(lines)
    assert warning.startswith("image sets 'a' and 'b' have the same data fingerprint")
    assert warning.endswith(effect)


def _split_record(images: ImageSet) -> dict[str, Any]:
    split = stratified_split(images, 0.25, 3)
    return {"fingerprint": data_fingerprint(split.train), "split": dict(split.record)}


def _few_shot_record(images: ImageSet) -> dict[str, Any]:
    selection = few_shot(images, 2, 5)
    record = dict(selection.record)
    return {"fingerprint": data_fingerprint(selection.images), "selection": record}


def test_training_set_is_recognised_whole_and_before_its_selection(images: ImageSet) -> None:
    whole = {"fingerprint": data_fingerprint(images)}
    for record in (whole, _split_record(images), _few_shot_record(images)):
        assert contains_training_images(images, [{"fingerprint": "x"}, record])
    split = stratified_split(images, 0.25, 3)
    assert contains_training_images(split.train, [_split_record(images)])
    assert not contains_training_images(split.val, [_split_record(images), whole])


def test_other_sets_and_incomplete_records_do_not_match(images: ImageSet) -> None:
    other = replace(images, records=images.records[:3])
    records = [_split_record(images), _few_shot_record(images), {"split": {"seed": 1}}, {}]
    assert not contains_training_images(other, records)


def test_every_training_run_of_a_history_counts(tmp_path: Path, images: ImageSet) -> None:
    path = make_checkpoint(tmp_path / "a.safetensors", seed=0)
    card = read_card(path)
    runs = [
        HistoryEntry("finetune", "0.1.0", {"train": {"fingerprint": of}}, ())
        for of in (data_fingerprint(images), digest("e"))
    ]
    trained: Card = replace(card, history=(*card.history, *runs))
    assert [record["fingerprint"] for record in training_records(trained)] == [
        data_fingerprint(images),
        digest("e"),
    ]
    untouched, tuned = (
        NamedCheckpoint(path, name, at, "", {}, {})
        for name, at in (("zeroshot", card), ("tuned", trained))
    )
    (warning,) = trained_on_warnings([(images, [untouched, tuned]), (images, [tuned])])
    assert warning.startswith("image set 'train' contains the images that tuned was trained on")
