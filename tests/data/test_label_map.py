from __future__ import annotations

import json
from pathlib import Path

import pytest

from wiseft_cli.data.label_map import LabelMap, read_label_map
from wiseft_cli.errors import DatasetError


def read(tmp_path: Path, text: str, name: str = "map.yaml") -> LabelMap:
    (tmp_path / name).write_text(text)
    return read_label_map(tmp_path / name)


def refusal(tmp_path: Path, text: str, name: str = "map.yaml") -> str:
    with pytest.raises(DatasetError) as caught:
        read(tmp_path, text, name)
    assert caught.value.message.startswith(f"{tmp_path / name}")
    return caught.value.message.removeprefix(f"{tmp_path / name}")


def test_a_flat_mapping_maps_labels_to_classes(tmp_path: Path) -> None:
    label_map = read(tmp_path, "dog: [n1, n2]\ncat: n3\n")
    assert label_map.classes == {"dog": ("n1", "n2"), "cat": ("n3",)}
    assert (label_map.any_of, label_map.leave_out) == ({}, ())


def test_yaml_and_json_maps_are_equivalent(tmp_path: Path) -> None:
    document = {"classes": {"no": ["n1"]}, "any_of": {"x": ["no", "n4"]}, "leave_out": ["y"]}
    from_json = read(tmp_path, json.dumps(document), "map.json")
    from_yaml = read(
        tmp_path, "classes: {no: n1}\nany_of:\n  x: [no, n4]\nleave_out:\n- y\n", "map.yml"
    )
    assert from_json.classes == from_yaml.classes == {"no": ("n1",)}
    assert from_json.any_of == from_yaml.any_of == {"x": ("no", "n4")}
    assert from_json.leave_out == from_yaml.leave_out == ("y",)


def test_every_fault_of_a_map_is_listed_with_its_place(tmp_path: Path) -> None:
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


def test_a_label_in_two_sections_is_a_fault(tmp_path: Path) -> None:
    text = "classes: {dog: [n1, n2]}\nunmapped: [cow]\nleave_out: [cow]\n"
    assert "label 'cow' occurs more than once" in refusal(tmp_path, text)


def test_unmapped_labels_are_labels_of_the_map(tmp_path: Path) -> None:
    label_map = read(tmp_path, "classes: {dog: [n1, n2]}\nunmapped: [cow, elk]\n")
    assert label_map.labels == ("dog", "cow", "elk")
