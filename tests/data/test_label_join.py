from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wiseft_cli.checkpoint.card import ClassEntry
from wiseft_cli.data.label_join import join_labels, normalize_name
from wiseft_cli.data.label_map import LabelMap, read_label_map
from wiseft_cli.errors import DatasetError

ANIMALS = (
    ClassEntry("n01", "great white shark"),
    ClassEntry("n02", "crane"),
    ClassEntry("n03", "crane"),
    ClassEntry("n04", "Café cat"),
)
words = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=8)
HEAD = tuple(ClassEntry(f"n{at}", f"class {at}") for at in range(6))


def read_map(tmp_path: Path, text: str) -> LabelMap:
    (tmp_path / "map.yaml").write_text(text)
    return read_label_map(tmp_path / "map.yaml")


def test_ids_join_even_if_names_are_ambiguous() -> None:
    join = join_labels(["n03", "n01"], ANIMALS, set_name="val")
    assert (join.kind, join.index, join.class_indices) == ("id", {"n03": 2, "n01": 0}, (0, 2))


def test_names_join_if_ids_do_not() -> None:
    join = join_labels(["great white shark", "Café cat"], ANIMALS, set_name="val")
    assert (join.kind, join.class_indices) == ("name", (0, 3))


@pytest.mark.parametrize(
    "label",
    ["Great_White_Shark", "great-white  shark", " GREAT white_-_shark", "great\u00a0white shark"],
)
def test_case_space_underscore_and_hyphen_make_no_difference(label: str) -> None:
    join = join_labels([label], ANIMALS, set_name="val")
    assert (join.kind, join.index) == ("normalized-name", {label: 0})


def test_decomposed_accents_match() -> None:
    assert join_labels(["cafe\u0301_cat"], ANIMALS, set_name="val").class_indices == (3,)


@pytest.mark.parametrize("text", ["café", "żółw", "ガラス", "Ångström"])
def test_ids_match_in_another_unicode_form(text: str) -> None:
    nfc, nfd = (unicodedata.normalize(form, text) for form in ("NFC", "NFD"))
    for head_id, label in ((nfc, nfd), (nfd, nfc)):
        classes = (ClassEntry("x", "other"), ClassEntry(head_id, "the same"))
        join = join_labels([label, "x"], classes, set_name="val")
        assert (join.kind, join.index) == ("id", {label: 1, "x": 0})


def test_labels_match_a_map_in_another_unicode_form(tmp_path: Path) -> None:
    label_map = read_map(tmp_path, "café: n1\nthé: n2\n")
    labels = [unicodedata.normalize("NFD", label) for label in ("café", "thé")]
    join = join_labels(labels, HEAD, set_name="val", label_map=label_map)
    assert join.index == {labels[0]: 1, labels[1]: 2}


@pytest.mark.parametrize(
    ("label", "similar"),
    [("cran", "crane"), ("Great White Shrk", "great white shark"), ("cafe cat", "Café cat")],
)
def test_an_unknown_label_is_shown_with_the_class_that_it_resembles(
    label: str, similar: str
) -> None:
    with pytest.raises(DatasetError) as caught:
        join_labels([label], ANIMALS, set_name="val")
    assert caught.value.message.endswith(f"  {label!r} (did you mean {similar!r}?)")


def test_ids_with_other_numbers_are_not_suggested() -> None:
    for label in ("n05", "n0", "m12"):
        with pytest.raises(DatasetError) as caught:
            join_labels([label], ANIMALS, set_name="val")
        assert "did you mean" not in caught.value.message


def test_ids_and_names_are_not_mixed_in_one_join() -> None:
    with pytest.raises(DatasetError) as caught:
        join_labels(["n01", "crane"], ANIMALS, set_name="val")
    assert caught.value.message == (
        "image set 'val': 1 of 2 labels are not classes of the head (4 classes, the first 'n01'):\n"
        "  'crane'"
    )


def test_ten_unknown_labels_are_listed_and_the_rest_counted() -> None:
    with pytest.raises(DatasetError) as caught:
        join_labels([f"x{at:04d}" for at in range(1002)], ANIMALS, set_name="val")
    lines = caught.value.message.splitlines()
    assert lines[0].startswith("image set 'val': 1002 of 1002 labels are not classes of the head")
    assert lines[1:] == [*(f"  'x{at:04d}'" for at in range(10)), "  ... and 992 more"]
    assert "wiseft inspect CHECKPOINT --json" in str(caught.value.hint)


def test_a_label_that_matches_two_classes_is_rejected_with_both_ids() -> None:
    with pytest.raises(DatasetError) as caught:
        join_labels(["crane"], ANIMALS, set_name="val")
    assert caught.value.message == (
        "image set 'val': the labels do not match one class each:\n"
        "  'crane' matches the classes with ids 'n02', 'n03'"
    )


def test_two_labels_of_one_class_are_rejected() -> None:
    with pytest.raises(DatasetError, match=r"'Great_white_shark', 'great_white_shark' all match"):
        join_labels(["great_white_shark", "Great_white_shark"], ANIMALS, set_name="val")


def test_each_class_is_a_column_and_accepted_for_its_label() -> None:
    join = join_labels(["n03", "n01"], ANIMALS, set_name="val")
    assert join.columns == ((0,), (2,))
    assert join.accepted == {"n01": (0,), "n03": (1,)}


def test_all_classes_score_over_the_whole_head() -> None:
    join = join_labels(["n03", "n01"], ANIMALS, set_name="val", all_classes=True)
    assert join.class_indices == (0, 1, 2, 3)
    assert join.columns == ((0,), (1,), (2,), (3,))
    assert join.accepted == {"n03": (2,), "n01": (0,)}
    assert join.index == {"n03": 2, "n01": 0}


def test_numbers_are_not_joined_by_position_by_default() -> None:
    with pytest.raises(DatasetError, match=r"4 of 4 labels are not classes") as caught:
        join_labels(["0", "1", "2", "3"], ANIMALS, set_name="val")
    assert "--labels-are-indices" in str(caught.value.hint)
    for labels in (["0", "4"], ["0", "n01"], ["0", "x"]):  # not all of them could be positions
        with pytest.raises(DatasetError) as caught:
            join_labels(labels, ANIMALS, set_name="val")
        assert "--labels-are-indices" not in str(caught.value.hint)


def test_numbers_are_joined_by_position_on_request() -> None:
    join = join_labels(["3", "000"], ANIMALS, set_name="val", labels_are_indices=True)
    assert (join.kind, join.index, join.class_indices) == ("index", {"3": 3, "000": 0}, (0, 3))


def test_numeric_ids_join_as_ids_in_any_order() -> None:
    classes = [ClassEntry(str(9 - at), f"digit {9 - at}") for at in range(10)]
    join = join_labels(["0", "1"], classes, set_name="val")
    assert (join.kind, join.index) == ("id", {"0": 9, "1": 8})


def test_labels_that_are_not_indices_are_listed() -> None:
    with pytest.raises(DatasetError) as caught:
        join_labels(["0", "4", "-1", "n01", "²"], ANIMALS, set_name="v", labels_are_indices=True)
    assert caught.value.message == (
        "image set 'v': 4 of 5 labels are not indices of the head's classes, 0 to 3:\n"
        "  '-1'\n  '4'\n  'n01'\n  '²'"
    )


def test_two_spellings_of_one_index_are_rejected() -> None:
    with pytest.raises(DatasetError) as caught:
        join_labels(["1", "01", "2"], ANIMALS, set_name="v", labels_are_indices=True)
    assert (
        caught.value.message == "image set 'v': different labels are the same index:\n  '01', '1'"
    )


@given(st.lists(words, min_size=1, max_size=12, unique=True), st.data())
def test_a_permuted_subset_of_the_ids_joins_its_own_rows(
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
def test_a_join_is_total_and_injective_or_an_error(names: list[str], labels: list[str]) -> None:
    classes = [ClassEntry(f"id/{at}", name) for at, name in enumerate(names)]
    try:
        join = join_labels(labels, classes, set_name="s")
    except DatasetError:
        # An error only if the normalized labels are not the names of distinct classes.
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
def test_name_normalization_is_idempotent(name: str) -> None:
    assert normalize_name(normalize_name(name)) == normalize_name(name)


def test_the_classes_of_a_label_form_one_column(tmp_path: Path) -> None:
    label_map = read_map(tmp_path, "dog: [n4, n1]\ncat: [n3]\n")
    join = join_labels(["cat", "dog"], HEAD, set_name="s", label_map=label_map)
    assert join.kind == "map"
    assert join.columns == ((1, 4), (3,))
    assert join.accepted == {"cat": (1,), "dog": (0,)}
    assert join.class_indices == (1, 3, 4)
    assert join.index == {"cat": 3}  # dog stands for two classes and cannot be trained on


def test_columns_without_an_image_are_scored(tmp_path: Path) -> None:
    label_map = read_map(tmp_path, "dog: [n4, n1]\ncat: [n3]\n")
    join = join_labels(["cat"], HEAD, set_name="s", label_map=label_map)
    assert (join.columns, join.accepted) == (((1, 4), (3,)), {"cat": (1,)})


def test_labels_of_one_class_share_a_column_and_can_be_trained_on(tmp_path: Path) -> None:
    label_map = read_map(tmp_path, "beagle: n1\nhusky: class_1\n")
    with pytest.raises(DatasetError, match="1 of 2 classes that it names are not classes"):
        join_labels(
            ["beagle"], HEAD, set_name="s", label_map=label_map
        )  # ids and names are not mixed
    label_map = read_map(tmp_path, "beagle: class 1\nhusky: class_1\npug: [Class 2, class-3]\n")
    join = join_labels(["husky", "beagle", "pug"], HEAD, set_name="s", label_map=label_map)
    assert join.columns == ((1,), (2, 3))
    assert join.index == {"husky": 1, "beagle": 1}
    assert join.accepted == {"husky": (0,), "beagle": (0,), "pug": (1,)}


def test_any_of_labels_accept_several_columns(tmp_path: Path) -> None:
    label_map = read_map(
        tmp_path, "classes: {dog: [n1, n2]}\nany_of: {both: [dog, n5], either: [n0, n5]}\n"
    )
    join = join_labels(["both", "either"], HEAD, set_name="s", label_map=label_map)
    assert join.columns == ((0,), (1, 2), (5,))
    assert join.accepted == {"both": (1, 2), "either": (0, 2)}
    assert join.index == {}


def test_unmapped_labels_have_no_column_and_are_never_correct(tmp_path: Path) -> None:
    text = "classes: {dog: [n1, n2]}\nany_of: {both: [dog, cow]}\nunmapped: [cow, elk]\n"
    label_map = read_map(tmp_path, text)
    assert label_map.labels == ("dog", "cow", "elk")
    join = join_labels(["both", "cow"], HEAD, set_name="s", label_map=label_map)
    assert join.columns == ((1, 2),)
    assert join.accepted == {"both": (0,), "cow": ()}
    assert join.index == {}


def test_unknown_classes_of_a_map_are_listed(tmp_path: Path) -> None:
    label_map = read_map(tmp_path, "a: [n1, n8]\nb: n9\n")
    with pytest.raises(DatasetError) as caught:
        join_labels(["a"], HEAD, set_name="s", label_map=label_map)
    assert caught.value.message == (
        f"{tmp_path}/map.yaml: 2 of 3 classes that it names are not classes of the head"
        " (6 classes, the first 'n0'):\n  'n8'\n  'n9'"
    )


def test_labels_without_an_entry_are_listed(tmp_path: Path) -> None:
    label_map = read_map(tmp_path, "a: n1\n")
    with pytest.raises(DatasetError) as caught:
        join_labels(["a", "c", "b"], HEAD, set_name="s", label_map=label_map)
    assert caught.value.message == (
        f"image set 's': 2 of 3 labels are not in {tmp_path}/map.yaml:\n  'b'\n  'c'"
    )


def test_a_class_in_two_columns_is_rejected(tmp_path: Path) -> None:
    label_map = read_map(
        tmp_path, "classes: {animal: [n1, n2], dog: n1, pet: n1}\nany_of: {x: [n2]}\n"
    )
    with pytest.raises(DatasetError) as caught:
        join_labels(["dog"], HEAD, set_name="s", label_map=label_map)
    assert caught.value.message == (
        f"{tmp_path}/map.yaml: 2 classes of the head in more than one column:\n"
        "  'n1' is in 'dog / pet', 'animal'\n"
        "  'n2' is in 'animal', 'any_of alone'"
    )


def test_joins_that_score_differently_have_different_digests() -> None:
    plain = join_labels(["n1", "n2"], HEAD, set_name="s")
    everything = join_labels(["n1", "n2"], HEAD, set_name="s", all_classes=True)
    again = join_labels(["n2", "n1"], HEAD, set_name="t")
    assert plain.digest == again.digest != everything.digest


@given(st.data())
def test_columns_do_not_depend_on_the_order_of_the_map(data: st.DataObject) -> None:
    owners = data.draw(st.lists(st.sampled_from("abc."), min_size=6, max_size=6))
    entries = {
        label: data.draw(st.permutations([f"n{at}" for at in range(6) if owners[at] == label]))
        for label in data.draw(st.permutations("abc"))
        if label in owners
    }
    if not entries:
        return
    label_map = LabelMap(Path("map"), {label: tuple(names) for label, names in entries.items()})
    join = join_labels(sorted(entries), HEAD, set_name="s", label_map=label_map)
    for label, (column,) in join.accepted.items():
        assert join.columns[column] == tuple(at for at in range(6) if owners[at] == label)
    assert join.columns == tuple(sorted(join.columns))
    assert len(join.columns) == len(entries)
