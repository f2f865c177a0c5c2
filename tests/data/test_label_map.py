from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wiseft_cli.checkpoint.card import ClassEntry
from wiseft_cli.data.label_join import join_labels
from wiseft_cli.data.label_map import LabelMap, read_label_map
from wiseft_cli.errors import DatasetError

HEAD = tuple(ClassEntry(f"n{at}", f"class {at}") for at in range(6))


def read(tmp_path: Path, text: str, name: str = "map.yaml") -> LabelMap:
    (tmp_path / name).write_text(text)
    return read_label_map(tmp_path / name)


def refusal(tmp_path: Path, text: str, name: str = "map.yaml") -> str:
    with pytest.raises(DatasetError) as caught:
        read(tmp_path, text, name)
    assert caught.value.message.startswith(f"{tmp_path / name}")
    return caught.value.message.removeprefix(f"{tmp_path / name}")


def test_a_flat_mapping_gives_each_label_its_classes(tmp_path: Path) -> None:
    label_map = read(tmp_path, "dog: [n1, n2]\ncat: n3\n")
    assert label_map.classes == {"dog": ("n1", "n2"), "cat": ("n3",)}
    assert (label_map.any_of, label_map.leave_out) == ({}, ())


def test_yaml_and_json_say_the_same(tmp_path: Path) -> None:
    document = {"classes": {"no": ["n1"]}, "any_of": {"x": ["no", "n4"]}, "leave_out": ["y"]}
    from_json = read(tmp_path, json.dumps(document), "map.json")
    from_yaml = read(
        tmp_path, "classes: {no: n1}\nany_of:\n  x: [no, n4]\nleave_out:\n- y\n", "map.yml"
    )
    assert from_json.classes == from_yaml.classes == {"no": ("n1",)}
    assert from_json.any_of == from_yaml.any_of == {"x": ("no", "n4")}
    assert from_json.leave_out == from_yaml.leave_out == ("y",)


def test_every_fault_of_a_map_is_told_with_its_place(tmp_path: Path) -> None:
    assert refusal(tmp_path, "- a\n") == ": contains a list, expected a mapping of labels"
    assert refusal(tmp_path, "") == ": contains nothing, expected a mapping of labels"
    assert refusal(tmp_path, "a: [\n").startswith(", line 2: is not YAML: ")
    text = "classes:\n  a: []\n  b: [n1, '']\n  b: n2\nany_of: {b: n1}\nextra: {}\nleave_out: {}\n"
    assert refusal(tmp_path, text) == (
        ": not a valid label map:\n"
        "  line 6: unknown key 'extra', expected classes, any_of, unmapped, leave_out\n"
        "  line 2: 'a' has no classes\n"
        "  line 3: expected an id or name, found empty text\n"
        "  line 4: label 'b' occurs more than once\n"
        "  line 7: expected an id or name, found a mapping\n"
        "  label 'b' occurs more than once"
    )
    assert "expected an id or name, found a number" in refusal(tmp_path, '{"a": [3]}', "map.json")


def test_a_column_is_all_classes_of_a_label(tmp_path: Path) -> None:
    label_map = read(tmp_path, "dog: [n4, n1]\ncat: [n3]\n")
    join = join_labels(["cat", "dog"], HEAD, set_name="s", label_map=label_map)
    assert join.kind == "map"
    assert join.columns == ((1, 4), (3,))
    assert join.accepted == {"cat": (1,), "dog": (0,)}
    assert join.class_indices == (1, 3, 4)
    assert join.index == {"cat": 3}  # dog is no one class, so there is nothing to train on


def test_columns_without_an_image_compete_too(tmp_path: Path) -> None:
    label_map = read(tmp_path, "dog: [n4, n1]\ncat: [n3]\n")
    join = join_labels(["cat"], HEAD, set_name="s", label_map=label_map)
    assert (join.columns, join.accepted) == (((1, 4), (3,)), {"cat": (1,)})


def test_labels_of_the_same_classes_share_a_column_and_can_be_trained_on(tmp_path: Path) -> None:
    label_map = read(tmp_path, "beagle: n1\nhusky: class_1\n")
    with pytest.raises(DatasetError, match="1 of 2 classes that it names are not classes"):
        join_labels(["beagle"], HEAD, set_name="s", label_map=label_map)  # one kind for all
    label_map = read(tmp_path, "beagle: class 1\nhusky: class_1\npug: [Class 2, class-3]\n")
    join = join_labels(["husky", "beagle", "pug"], HEAD, set_name="s", label_map=label_map)
    assert join.columns == ((1,), (2, 3))
    assert join.index == {"husky": 1, "beagle": 1}
    assert join.accepted == {"husky": (0,), "beagle": (0,), "pug": (1,)}


def test_any_of_labels_accept_several_columns(tmp_path: Path) -> None:
    label_map = read(
        tmp_path, "classes: {dog: [n1, n2]}\nany_of: {both: [dog, n5], either: [n0, n5]}\n"
    )
    join = join_labels(["both", "either"], HEAD, set_name="s", label_map=label_map)
    assert join.columns == ((0,), (1, 2), (5,))
    assert join.accepted == {"both": (1, 2), "either": (0, 2)}
    assert join.index == {}


def test_unmapped_labels_have_no_column_and_are_no_answer(tmp_path: Path) -> None:
    text = "classes: {dog: [n1, n2]}\nany_of: {both: [dog, cow]}\nunmapped: [cow, elk]\n"
    label_map = read(tmp_path, text)
    assert label_map.labels == ("dog", "cow", "elk")
    join = join_labels(["both", "cow"], HEAD, set_name="s", label_map=label_map)
    assert join.columns == ((1, 2),)
    assert join.accepted == {"both": (0,), "cow": ()}
    assert join.index == {}
    assert "label 'cow' occurs more than once" in refusal(tmp_path, text + "leave_out: [cow]\n")


def test_unknown_classes_of_a_map_are_listed(tmp_path: Path) -> None:
    label_map = read(tmp_path, "a: [n1, n8]\nb: n9\n")
    with pytest.raises(DatasetError) as caught:
        join_labels(["a"], HEAD, set_name="s", label_map=label_map)
    assert caught.value.message == (
        f"{tmp_path}/map.yaml: 2 of 3 classes that it names are not classes of the head"
        " (6 classes, the first 'n0'):\n  'n8'\n  'n9'"
    )


def test_labels_without_an_entry_are_listed(tmp_path: Path) -> None:
    label_map = read(tmp_path, "a: n1\n")
    with pytest.raises(DatasetError) as caught:
        join_labels(["a", "c", "b"], HEAD, set_name="s", label_map=label_map)
    assert caught.value.message == (
        f"image set 's': 2 of 3 labels are not in {tmp_path}/map.yaml:\n  'b'\n  'c'"
    )


def test_a_class_of_two_columns_is_refused(tmp_path: Path) -> None:
    label_map = read(tmp_path, "classes: {animal: [n1, n2], dog: n1, pet: n1}\nany_of: {x: [n2]}\n")
    with pytest.raises(DatasetError) as caught:
        join_labels(["dog"], HEAD, set_name="s", label_map=label_map)
    assert caught.value.message == (
        f"{tmp_path}/map.yaml: 2 classes of the head belong to more than one column:\n"
        "  'n1' is in 'dog / pet', 'animal'\n"
        "  'n2' is in 'animal', 'any_of alone'"
    )


def test_joins_differ_by_digest_where_they_score_differently() -> None:
    plain = join_labels(["n1", "n2"], HEAD, set_name="s")
    everything = join_labels(["n1", "n2"], HEAD, set_name="s", all_classes=True)
    again = join_labels(["n2", "n1"], HEAD, set_name="t")
    assert plain.digest == again.digest != everything.digest


@given(st.data())
def test_columns_part_the_classes_whatever_the_order_of_the_map(data: st.DataObject) -> None:
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
