"""YAML and JSON documents: aliases, which can stand for a billion values, are rejected."""

from __future__ import annotations

from pathlib import Path

import pytest

from wiseft_cli.errors import ClassNamesError, DatasetError, RecipeError
from wiseft_cli.prompts import documents
from wiseft_cli.prompts.class_names import read_class_names
from wiseft_cli.training.recipe_file import load_recipe

BOMB = "a: &a [x]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{below}'] * 100)}]\n"
    for below, name in zip("abcdefg", "bcdefgh", strict=True)
)


@pytest.mark.parametrize("text", [BOMB, "a: &a [*a]\n", "lr: &x 1e-5\neps: *x\n"])
def test_alias_is_rejected_with_its_line(text: str, tmp_path: Path) -> None:
    path = tmp_path / "case.yaml"
    path.write_text(text)
    with pytest.raises(DatasetError, match=r"case\.yaml, line [12]: has the alias \*[ax]"):
        documents.read_yaml(path, DatasetError)
    with pytest.raises(ClassNamesError, match="alias"):
        read_class_names(path)
    with pytest.raises(RecipeError, match="alias"):
        load_recipe(str(path), {})


def test_asterisk_in_a_text_is_not_an_alias(tmp_path: Path) -> None:
    path = tmp_path / "case.yaml"
    path.write_text("- '*star'\n- a * b\n- C*\n")
    assert [entry.name for entry in read_class_names(path).entries] == ["*star", "a * b", "C*"]
