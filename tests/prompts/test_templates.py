"""Templates are data: the placeholder is replaced literally, and it must be there."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wiseft_cli.errors import TemplatesError
from wiseft_cli.prompts.templates import (
    DEFAULT_TEMPLATES,
    class_prompts,
    fill_template,
    read_templates,
)


def test_default_is_used_only_when_nothing_is_given(tmp_path: Path) -> None:
    assert read_templates([], []) == DEFAULT_TEMPLATES == ("a photo of a {}.",)
    assert read_templates([], ["{}"]) == ("{}",)


def test_files_come_first_then_inline_templates_in_order(tmp_path: Path) -> None:
    first, second = tmp_path / "1.txt", tmp_path / "2.txt"
    first.write_text("a {}.\n\n  the {} \r\n")
    second.write_text("one {}")
    found = read_templates([second, first], ["{}!", "{}?"])
    assert found == ("one {}", "a {}.", "the {}", "{}!", "{}?")


@given(st.text(), st.text())
def test_only_the_placeholder_is_replaced(before: str, name: str) -> None:
    template = before.replace("{}", "") + "{0} {name!r} {{x}} {} %s"
    expected = name.join(template.split("{}"))
    assert fill_template(template, name) == expected


def test_class_name_with_braces_is_not_filled_again() -> None:
    assert fill_template("{} and {}", "{}{0}") == "{}{0} and {}{0}"


def test_prompts_go_class_after_class() -> None:
    assert list(class_prompts(["a", "b"], ["{}.", "{}!"])) == [
        (0, "a."),
        (0, "a!"),
        (1, "b."),
        (1, "b!"),
    ]


def test_templates_without_placeholder_are_all_named(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text("a {}\na {c}\n")
    with pytest.raises(TemplatesError) as caught:
        read_templates([path], ["photo"])
    assert caught.value.message == (
        "2 templates have no {}, where the class name goes\n"
        f"  {path}, line 2: 'a {{c}}'\n"
        "  --template 'photo'"
    )
    assert caught.value.hint == "write each as in 'a photo of a {}.'"


def test_empty_and_missing_files_are_errors(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    with pytest.raises(TemplatesError) as caught:
        read_templates([path], [])
    assert caught.value.message == f"{path}: cannot be read: No such file or directory"
    path.write_text("\n \n")
    with pytest.raises(TemplatesError) as caught:
        read_templates([path], [])
    assert caught.value.message == f"{path}: holds no template, expected one a line"
