"""Synonyms and per-class prompts in class files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wiseft_cli.checkpoint.card import ClassEntry
from wiseft_cli.errors import ClassNamesError
from wiseft_cli.prompts.class_names import read_class_names

DOCUMENT = {
    "n01": "tench",
    "n02": ["crane bird", "crane"],
    "n03": {"name": "crane", "prompts": ["a crane at work", "{} braces {0}"]},
    "n04": {"prompts": ["an owl at night"]},
    "n05": {"name": ["sea lion", "seal"]},
    "n06": {"name": "plain"},
}


@pytest.fixture(params=["c.json", "c.yaml"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path: Path = tmp_path / request.param
    dump = json.dumps if path.suffix == ".json" else yaml.safe_dump
    path.write_text(dump(DOCUMENT))
    return path


def test_first_synonym_is_the_name_and_every_synonym_fills_every_template(path: Path) -> None:
    found = read_class_names(path)
    assert found.entries == (
        ClassEntry("n01", "tench"),
        ClassEntry("n02", "crane bird"),
        ClassEntry("n03", "crane"),
        ClassEntry("n04", "n04"),
        ClassEntry("n05", "sea lion"),
        ClassEntry("n06", "plain"),
    )
    prompts = list(found.prompts(["a {}.", "{}!"]))
    assert [text for index, text in prompts if index == 0] == ["a tench.", "tench!"]
    assert [text for index, text in prompts if index == 1] == [
        "a crane bird.",
        "crane bird!",
        "a crane.",
        "crane!",
    ]
    assert [text for index, text in prompts if index == 4][-1] == "seal!"
    assert [index for index, _ in prompts] == sorted(index for index, _ in prompts)


def test_own_prompts_are_used_verbatim_in_place_of_templates(path: Path) -> None:
    found = read_class_names(path)
    prompts = list(found.prompts(["a {}."]))
    assert [text for index, text in prompts if index == 2] == ["a crane at work", "{} braces {0}"]
    assert [text for index, text in prompts if index == 3] == ["an owl at night"]
    assert found.needs_templates
    assert found.has_own_wording


def test_templates_are_not_needed_when_every_class_has_prompts(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("owl:\n  prompts: [an owl at night]\ncat: {prompts: [a cat, one cat]}\n")
    found = read_class_names(path)
    assert not found.needs_templates
    assert list(found.prompts([])) == [(0, "an owl at night"), (1, "a cat"), (1, "one cat")]


def test_plain_list_has_no_own_wording(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("n01: tench\nn02: [owl]\n")
    found = read_class_names(path)
    assert not found.has_own_wording
    assert list(found.prompts(["a {}"])) == [(0, "a tench"), (1, "a owl")]


def test_empty_duplicate_and_unused_entries_are_all_reported(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(
        "a: []\n"
        "b: [owl, '']\n"
        "c: {prompts: []}\n"
        "d: {prompts: [x, ' ']}\n"
        "e: {name: [one, two], prompts: [x]}\n"
        "f: [owl, cat, owl]\n"
        "g: {prompts: [x, x]}\n"
    )
    with pytest.raises(ClassNamesError) as caught:
        read_class_names(path)
    assert caught.value.message == (
        f"{path}: not a valid class list:\n"
        "  line 1: the list of names is empty\n"
        "  line 2: the name is empty\n"
        "  line 3: the list of prompts is empty\n"
        "  line 4: the prompt is empty\n"
        "  line 5: synonyms have no effect on a class with its own prompts\n"
        "  line 6: duplicate name 'owl'\n"
        "  line 7: duplicate prompt 'x'"
    )


def test_overlong_names_and_prompts_are_reported_with_their_line(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(
        f"a: [cat, {'x' * 251}]\nb: {{prompts: [ok, {'y' * 2001}]}}\n{'z' * 251}: owl\n"
    )
    with pytest.raises(ClassNamesError) as caught:
        read_class_names(path)
    assert caught.value.message == (
        f"{path}: not a valid class list:\n"
        "  line 1: the name has 251 characters, at most 250 are allowed\n"
        "  line 2: the prompt has 2001 characters, at most 2000 are allowed\n"
        "  line 3: the id has 251 characters, at most 250 are allowed"
    )


def test_prompts_may_span_several_lines(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("a:\n  prompts:\n  - |\n    a cat\n    in the sun\n")
    assert list(read_class_names(path).prompts([])) == [(0, "a cat\nin the sun")]


texts = st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=20).filter(
    lambda text: text.strip() == text
)
values = st.one_of(
    st.lists(texts, min_size=1, max_size=3, unique=True),
    st.fixed_dictionaries(
        {"name": texts, "prompts": st.lists(texts, min_size=1, max_size=3, unique=True)}
    ),
)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.dictionaries(texts, values, min_size=1, max_size=4))
def test_yaml_and_json_give_the_same_classes(tmp_path: Path, document: dict[str, object]) -> None:
    (tmp_path / "c.json").write_text(json.dumps(document))
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
    from_json, from_yaml = (read_class_names(tmp_path / name) for name in ("c.json", "c.yaml"))
    assert from_json.entries == from_yaml.entries
    assert list(from_json.prompts(["a {}"])) == list(from_yaml.prompts(["a {}"]))
