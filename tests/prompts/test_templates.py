"""Templates must contain the placeholder, and only the placeholder is replaced."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wiseft_cli.errors import TemplatesError
from wiseft_cli.prompts.templates import (
    DEFAULT_TEMPLATES,
    fill_template,
    read_templates,
)


def sets(name: str) -> list[str]:
    return [f"{name} 1 {{}}", f"{name} 2 {{}}"]


def read(sources: list[Path], inline: list[str]) -> tuple[str, ...]:
    return read_templates([str(source) for source in sources], inline, load_set=sets)


def error_of(path: Path) -> TemplatesError:
    with pytest.raises(TemplatesError) as caught:
        read([path], [])
    return caught.value


def test_default_template_is_used_only_when_none_is_given() -> None:
    assert read([], []) == DEFAULT_TEMPLATES == ("a photo of a {}.",)
    assert read([], ["{}"]) == ("{}",)


def test_templates_of_files_precede_inline_templates(tmp_path: Path) -> None:
    first, second = tmp_path / "1.txt", tmp_path / "2.txt"
    first.write_text("a {}.\n\n  the {} \r\n")
    second.write_text("one {}")
    found = read([second, first], ["{}!", "{}?"])
    assert found == ("one {}", "a {}.", "the {}", "{}!", "{}?")


@given(st.text(), st.text())
def test_only_the_placeholder_is_replaced(before: str, name: str) -> None:
    template = before.replace("{}", "") + "{0} {name!r} {{x}} {} %s"
    expected = name.join(template.split("{}"))
    assert fill_template(template, name) == expected


def test_braces_in_a_class_name_are_literal() -> None:
    assert fill_template("{} and {}", "{}{0}") == "{}{0} and {}{0}"


def test_all_templates_without_placeholder_are_reported(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text("a {}\na {c}\n")
    with pytest.raises(TemplatesError) as caught:
        read([path], ["photo"])
    assert caught.value.message == (
        "each template must contain {}, which stands for the class name:\n"
        f"  {path}, line 2: 'a {{c}}'\n"
        "  --template: 'photo'"
    )
    assert caught.value.hint == "for example: 'a photo of a {}.'"


def test_long_text_in_an_error_is_shortened(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text("x" * 5000)
    assert error_of(path).message.endswith(f"\n  {path}, line 1: '{'x' * 97}...'")


def test_missing_and_empty_files_are_rejected(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    with pytest.raises(TemplatesError) as caught:
        read([path], [])
    assert caught.value.message == f"{path}: cannot be read: No such file or directory"
    path.write_text("\n \n")
    with pytest.raises(TemplatesError) as caught:
        read([path], [])
    assert caught.value.message == f"{path}: contains no templates, expected one per line"


def test_built_in_sets_and_files_keep_their_order(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text("a {}\n")
    found = read_templates(["simple", str(path), "openai"], [], load_set=sets)
    assert found == ("simple 1 {}", "simple 2 {}", "a {}", "openai 1 {}", "openai 2 {}")


def test_path_to_a_file_with_a_built_in_name_reads_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "openai").write_text("mine {}\n")
    monkeypatch.chdir(tmp_path)
    assert read_templates(["./openai"], [], load_set=sets) == ("mine {}",)


@pytest.mark.parametrize("suffix", [".yaml", ".YML"])
def test_yaml_lists_give_templates_verbatim(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"t{suffix}"
    path.write_text("# prompts\n- a photo of a {}.\n- '{} in the snow'\n- no {}\n")
    assert read([path], []) == ("a photo of a {}.", "{} in the snow", "no {}")


def test_yaml_that_is_not_a_list_of_texts_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "t.yaml"
    path.write_text("a: photo of a {}\n")
    error = error_of(path)
    assert error.message == f"{path}: expected a list of templates, found a mapping"
    assert error.hint == (
        "write a list, and quote a template that begins with {}: - '{} in the snow'"
    )
    path.write_text("- a {}\n- {}\n")
    assert error_of(path).message == (f"{path}, line 2: expected a template, found a mapping")
    path.write_text("# none yet\n")
    assert error_of(path).message == f"{path}: contains no templates, expected a list"


def test_yaml_template_without_placeholder_is_reported_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "t.yaml"
    path.write_text("- a {}\n- a photo\n")
    assert error_of(path).message.endswith(f"\n  {path}, line 2: 'a photo'")
