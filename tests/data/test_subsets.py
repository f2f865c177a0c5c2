from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wiseft_cli.data.image_set import ImageSet, data_fingerprint
from wiseft_cli.data.records import ImageRecord, ImageRecords
from wiseft_cli.data.subsets import few_shot, stratified_split
from wiseft_cli.errors import DatasetError, UsageError


def make_set(**counts: int) -> ImageSet:
    records = [
        ImageRecord(f"{label}/{at}.png", label, at + 1)
        for label, count in counts.items()
        for at in range(count)
    ]
    return ImageSet("train", Path("/data"), ImageRecords(records), ("a note",))


def paths(image_set: ImageSet) -> list[str]:
    return [record.path for record in image_set.records]


def per_label(image_set: ImageSet) -> Counter[str]:
    return Counter(record.label for record in image_set.records)


def test_a_split_keeps_the_fraction_per_class_and_every_image() -> None:
    whole = make_set(a=100, b=50, c=10)
    split = stratified_split(whole, 0.1, seed=0)
    assert per_label(split.val) == {"a": 10, "b": 5, "c": 1}
    assert sorted(paths(split.train) + paths(split.val)) == sorted(paths(whole))
    assert (split.train.name, split.val.name) == ("train", "train-val")
    assert (split.train.notes, split.val.notes) == (("a note",), ())
    assert split.record == {
        "val_fraction": 0.1,
        "seed": 0,
        "n_train": 144,
        "n_val": 16,
        "val_fingerprint": data_fingerprint(split.val),
    }


@given(
    st.dictionaries(st.sampled_from("abcdefgh"), st.integers(1, 40), min_size=1),
    st.floats(0.01, 0.99),
)
def test_a_split_is_close_to_the_fraction_and_leaves_a_training_image_per_class(
    counts: dict[str, int], fraction: float
) -> None:
    whole = make_set(**counts)
    try:
        split = stratified_split(whole, fraction, seed=1)
    except DatasetError:
        assert all(count == 1 or count * fraction < 1 for count in counts.values())
        return
    trained = per_label(split.train)
    validated = per_label(split.val)
    for label, count in counts.items():
        assert trained[label] >= 1
        assert trained[label] + validated[label] == count
        assert abs(validated[label] - count * fraction) < 1 or trained[label] == 1
    assert len(split.val.records) <= round(len(whole.records) * fraction)


@given(st.integers(0, 5), st.randoms())
def test_subsets_do_not_depend_on_the_order_of_records(seed: int, shuffler: random.Random) -> None:
    whole = make_set(a=12, b=7)
    records = list(whole.records)
    shuffler.shuffle(records)
    shuffled = replace(whole, records=ImageRecords(records))
    for select in (
        lambda images: few_shot(images, 3, seed).images,
        lambda images: stratified_split(images, 0.25, seed).val,
    ):
        assert sorted(paths(select(whole))) == sorted(paths(select(shuffled)))
    assert few_shot(whole, 3, seed).record == few_shot(shuffled, 3, seed).record


def test_the_seed_determines_the_images() -> None:
    whole = make_set(a=200, b=200)
    first, second, other = (few_shot(whole, 16, seed).images for seed in (0, 0, 1))
    assert paths(first) == paths(second)
    assert len(set(paths(first)) & set(paths(other))) < 10
    assert per_label(first) == {"a": 16, "b": 16}


def test_more_shots_include_fewer_shots_and_classes_are_independent() -> None:
    whole = make_set(a=40, b=40)
    four, sixteen = (set(paths(few_shot(whole, k, 3).images)) for k in (4, 16))
    assert four < sixteen
    alone = make_set(a=40)
    assert set(paths(few_shot(alone, 4, 3).images)) < four


def test_every_image_is_equally_likely() -> None:
    whole = make_set(a=10)
    taken = Counter(path for seed in range(400) for path in paths(few_shot(whole, 5, seed).images))
    assert all(150 < taken[path] < 250 for path in paths(whole))  # five deviations around 200


def test_records_stay_in_the_order_of_the_set() -> None:
    whole = make_set(a=9, b=9)
    order = paths(whole)
    for part in (few_shot(whole, 4, 0).images, stratified_split(whole, 0.5, 0).train):
        assert paths(part) == sorted(paths(part), key=order.index)


def test_classes_with_fewer_images_than_shots_are_listed() -> None:
    with pytest.raises(DatasetError) as caught:
        few_shot(make_set(a=16, b=15, c=1), 16, 0)
    assert caught.value.message == (
        "image set 'train': 2 of 3 classes have fewer than 16 images:\n  'b': 15\n  'c': 1"
    )


def test_classes_without_a_validation_image_are_noted() -> None:
    split = stratified_split(make_set(a=10, b=1), 0.2, seed=0)
    assert per_label(split.val) == {"a": 2}
    assert split.train.notes[1] == (
        "image set 'train': 1 of 2 classes have too few images for a validation image: 'b'"
    )


def test_empty_validation_sets_and_fractions_out_of_range_are_rejected() -> None:
    with pytest.raises(DatasetError) as caught:
        stratified_split(make_set(a=1, b=1), 0.5, 0)
    assert caught.value.message == (
        "image set 'train': a fraction of 0.5 of 2 images in 2 classes leaves none for validation"
    )
    for fraction in (0.0, 1.0, -0.1, float("nan")):
        with pytest.raises(UsageError, match=r"expected a number above 0 and below 1$"):
            stratified_split(make_set(a=5), fraction, 0)
    with pytest.raises(UsageError, match=r"^the number of images per class is 0"):
        few_shot(make_set(a=5), 0, 0)
