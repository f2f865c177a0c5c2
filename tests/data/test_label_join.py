from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wiseft_cli.checkpoint.card import ClassEntry
from wiseft_cli.data.label_join import join_labels, normalize_name
from wiseft_cli.errors import DatasetError

ANIMALS = (
    ClassEntry("n01", "great white shark"),
    ClassEntry("n02", "crane"),
    ClassEntry("n03", "crane"),
    ClassEntry("n04", "Café cat"),
)
words = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=8)


def test_ids_join_even_where_names_are_ambiguous() -> None:
    join = join_labels(["n03", "n01"], ANIMALS, set_name="val")
    assert (join.kind, join.index, join.class_indices) == ("id", {"n03": 2, "n01": 0}, (0, 2))


def test_names_join_where_no_id_does() -> None:
    join = join_labels(["great white shark", "Café cat"], ANIMALS, set_name="val")
    assert (join.kind, join.class_indices) == ("name", (0, 3))


@pytest.mark.parametrize(
    "label",
    ["Great_White_Shark", "great-white  shark", " GREAT white_-_shark", "great\u00a0white shark"],
)
def test_case_space_underscore_and_hyphen_make_no_difference(label: str) -> None:
    join = join_labels([label], ANIMALS, set_name="val")
    assert (join.kind, join.index) == ("normalized-name", {label: 0})


def test_decomposed_accents_join() -> None:
    assert join_labels(["cafe\u0301_cat"], ANIMALS, set_name="val").class_indices == (3,)


def test_one_kind_serves_all_labels() -> None:
    with pytest.raises(DatasetError) as caught:
        join_labels(["n01", "crane"], ANIMALS, set_name="val")
    assert caught.value.message == (
        "image set 'val': 1 of 2 labels are not classes of the head (4 classes, the first 'n01'):\n"
        "  'crane'"
    )


def test_unknown_labels_are_all_listed_and_beyond_a_thousand_counted() -> None:
    with pytest.raises(DatasetError) as caught:
        join_labels([f"x{at:04d}" for at in range(1002)], ANIMALS, set_name="val")
    lines = caught.value.message.splitlines()
    assert lines[0].startswith("image set 'val': 1002 of 1002 labels are not classes of the head")
    assert lines[1:] == [*(f"  'x{at:04d}'" for at in range(1000)), "  ... and 2 more"]
    assert "wiseft inspect CHECKPOINT" in str(caught.value.hint)


def test_a_label_that_fits_two_classes_is_refused_with_both_ids() -> None:
    with pytest.raises(DatasetError) as caught:
        join_labels(["crane"], ANIMALS, set_name="val")
    assert caught.value.message == (
        "image set 'val': the labels do not match one class each:\n"
        "  'crane' matches the classes with ids 'n02', 'n03'"
    )


def test_two_labels_of_one_class_are_refused() -> None:
    with pytest.raises(DatasetError, match=r"'Great_white_shark', 'great_white_shark' all match"):
        join_labels(["great_white_shark", "Great_white_shark"], ANIMALS, set_name="val")


def test_each_class_is_a_column_and_the_one_accepted() -> None:
    join = join_labels(["n03", "n01"], ANIMALS, set_name="val")
    assert join.columns == ((0,), (2,))
    assert join.accepted == {"n01": (0,), "n03": (1,)}


def test_all_classes_score_over_the_whole_head() -> None:
    join = join_labels(["n03", "n01"], ANIMALS, set_name="val", all_classes=True)
    assert join.class_indices == (0, 1, 2, 3)
    assert join.columns == ((0,), (1,), (2,), (3,))
    assert join.accepted == {"n03": (2,), "n01": (0,)}
    assert join.index == {"n03": 2, "n01": 0}


def test_numbers_never_join_by_position_unasked() -> None:
    with pytest.raises(DatasetError, match=r"4 of 4 labels are not classes") as caught:
        join_labels(["0", "1", "2", "3"], ANIMALS, set_name="val")
    assert "--labels-are-indices" in str(caught.value.hint)
    for labels in (["0", "4"], ["0", "n01"], ["0", "x"]):  # not all of them could be positions
        with pytest.raises(DatasetError) as caught:
            join_labels(labels, ANIMALS, set_name="val")
        assert "--labels-are-indices" not in str(caught.value.hint)


def test_numbers_join_by_position_when_asked() -> None:
    join = join_labels(["3", "000"], ANIMALS, set_name="val", labels_are_indices=True)
    assert (join.kind, join.index, join.class_indices) == ("index", {"3": 3, "000": 0}, (0, 3))


def test_ids_that_are_numbers_join_as_ids_whatever_their_order() -> None:
    classes = [ClassEntry(str(9 - at), f"digit {9 - at}") for at in range(10)]
    join = join_labels(["0", "1"], classes, set_name="val")
    assert (join.kind, join.index) == ("id", {"0": 9, "1": 8})


def test_labels_that_are_no_index_are_listed() -> None:
    with pytest.raises(DatasetError) as caught:
        join_labels(["0", "4", "-1", "n01", "²"], ANIMALS, set_name="v", labels_are_indices=True)
    assert caught.value.message == (
        "image set 'v': 4 of 5 labels are not indices of the head's classes, 0 to 3:\n"
        "  '-1'\n  '4'\n  'n01'\n  '²'"
    )


def test_two_spellings_of_one_index_are_refused() -> None:
    with pytest.raises(DatasetError) as caught:
        join_labels(["1", "01", "2"], ANIMALS, set_name="v", labels_are_indices=True)
    assert (
        caught.value.message == "image set 'v': different labels are the same index:\n  '01', '1'"
    )


@given(st.lists(words, min_size=1, max_size=12, unique=True), st.data())
def test_a_permuted_subset_of_the_ids_finds_its_own_rows(
    ids: list[str], data: st.DataObject
) -> None:
    classes = [ClassEntry(id, "same name") for id in ids]
    labels = data.draw(st.lists(st.sampled_from(ids), min_size=1, unique=True))
    join = join_labels(labels, classes, set_name="s")
    assert join.kind == "id"
    assert all(classes[join.index[label]].id == label for label in labels)
    assert join.class_indices == tuple(sorted(ids.index(label) for label in labels))


@given(
    st.lists(words, min_size=1, max_size=8, unique=True),
    st.lists(words, min_size=1, max_size=8, unique=True),
)
def test_a_join_is_total_and_injective_or_refused(names: list[str], labels: list[str]) -> None:
    classes = [ClassEntry(f"id/{at}", name) for at, name in enumerate(names)]
    try:
        join = join_labels(labels, classes, set_name="s")
    except DatasetError:
        # Refused only where the normal forms of the labels are not distinct classes' own.
        forms = [normalize_name(label) for label in labels]
        known = [normalize_name(name) for name in names]
        exact = set(labels) <= set(names)
        assert not exact
        assert len(set(forms)) < len(forms) or any(known.count(form) != 1 for form in forms)
    else:
        assert set(join.index) == set(labels)
        assert len(set(join.index.values())) == len(labels)
        for label, at in join.index.items():
            assert normalize_name(label) == normalize_name(names[at])


@given(words)
def test_the_normal_form_is_its_own_normal_form(name: str) -> None:
    assert normalize_name(normalize_name(name)) == normalize_name(name)
