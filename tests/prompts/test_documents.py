"""YAML documents: aliases are read, and rejected if they stand for a billion values."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from wiseft_cli.errors import ClassNamesError, DatasetError, RecipeError
from wiseft_cli.prompts import documents
from wiseft_cli.prompts.class_names import read_class_names
from wiseft_cli.training.recipe_file import load_recipe

BOMB = "a: &a [x]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{below}'] * 100)}]\n"
    for below, name in zip("abcdefg", "bcdefgh", strict=True)
)


@pytest.mark.parametrize("text", [BOMB, "a: &a [*a]\n", "- &a\n  b: [*a, *a]\n"])
def test_aliases_for_very_many_values_are_rejected(text: str, tmp_path: Path) -> None:
    path = tmp_path / "case.yaml"
    path.write_text(text)
    with pytest.raises(DatasetError, match=r"case\.yaml: its aliases stand for too many values"):
        documents.read_yaml(path, DatasetError)
    with pytest.raises(ClassNamesError, match="aliases"):
        read_class_names(path)
    with pytest.raises(RecipeError, match="aliases"):
        load_recipe(str(path), {})


def test_aliases_that_programs_write_are_read(tmp_path: Path) -> None:
    path = tmp_path / "case.yaml"
    shared = ["a photo of it."]
    path.write_text(yaml.dump({f"n{n}": {"name": f"c{n}", "prompts": shared} for n in range(50)}))
    assert "*id001" in path.read_text()
    assert len(read_class_names(path).own_prompts) == 50


def test_asterisk_in_a_text_is_not_an_alias(tmp_path: Path) -> None:
    path = tmp_path / "case.yaml"
    path.write_text("- '*star'\n- a * b\n- C*\n")
    assert [entry.name for entry in read_class_names(path).entries] == ["*star", "a * b", "C*"]
