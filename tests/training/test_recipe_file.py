from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from wiseft_cli.errors import RecipeError, UsageError
from wiseft_cli.training.recipe import Recipe, resolve
from wiseft_cli.training.recipe_file import (
    _PRESETS,
    builtin_names,
    combine,
    read_recipe_file,
    render_recipe,
)


def write(folder: Path, text: str) -> str:
    (folder / "r.yaml").write_text(text)
    return str(folder / "r.yaml")


def test_default_recipe_file_has_the_defaults():
    assert combine(read_recipe_file("wise-ft"), {}) == Recipe(epochs=10)


@pytest.mark.parametrize("name", builtin_names())
def test_each_built_in_recipe_names_its_source(name):
    assert "arXiv" in yaml.safe_load((_PRESETS / f"{name}.yaml").read_text())["source"]
    assert combine(read_recipe_file(name), {}).lr > 0


def test_options_override_the_file_and_steps_replace_epochs(tmp_path):
    file = read_recipe_file(write(tmp_path, "epochs: 3\nlr: 1e-4\nseed: 5\n"))
    assert combine(file, {"steps": 7, "lr": 0.5}) == Recipe(steps=7, lr=0.5, seed=5)


def test_all_mistakes_of_a_file_are_listed_with_their_lines(tmp_path):
    path = write(tmp_path, "learning_rate: 3\nlr: abc\nlr: 3\nbatchsize: 4\nepochs: 0\n")
    with pytest.raises(RecipeError) as caught:
        read_recipe_file(path)
    assert caught.value.message == (
        "the recipe has 5 mistakes:\n"
        f"  {path}, line 1: unknown recipe key 'learning_rate'; did you mean 'lr'?\n"
        f"  {path}, line 2: lr is 'abc', expected a number above 0, at most 1e+06\n"
        f"  {path}, line 3: lr is set again (first in line 2)\n"
        f"  {path}, line 4: unknown recipe key 'batchsize'; did you mean 'batch_size'?\n"
        f"  {path}, line 5: epochs is 0, expected an integer of at least 1"
    )


def test_value_out_of_range_is_reported_with_its_line_or_option(tmp_path):
    file = read_recipe_file(write(tmp_path, "seed: 1\nlr: -1\n"))
    with pytest.raises(RecipeError) as caught:
        combine(file, {})
    assert caught.value.message == (
        f"{tmp_path}/r.yaml, line 2: lr is -1.0, expected a number above 0, at most 1e+06"
    )
    with pytest.raises(UsageError, match=r"^--batch-size is 0, expected an integer of at least 1$"):
        combine(read_recipe_file("wise-ft"), {"batch_size": 0})


def test_unknown_recipe_is_reported_with_the_nearest_name():
    with pytest.raises(UsageError) as caught:
        read_recipe_file("wise-fit")
    assert caught.value.message == (
        "--recipe wise-fit: not a file, and not a built-in recipe; did you mean 'wise-ft'?"
    )


@given(
    st.integers(1, 400),
    st.one_of(st.none(), st.integers(1, 50)),
    st.integers(1, 64),
    st.one_of(st.none(), st.floats(0, 0.99)),
    st.floats(1e-12, 1e3),
)
def test_printed_recipe_resolves_to_the_same_run(
    tmp_path_factory, n_images, steps, batch_size, warmup, lr
):
    recipe = Recipe(steps=steps, batch_size=batch_size, warmup=warmup, lr=lr)
    resolved = resolve(recipe, n_images)
    folder = tmp_path_factory.mktemp("recipe")
    for text in (render_recipe(recipe), render_recipe(recipe, resolved)):
        assert isinstance(yaml.safe_load(text)["lr"], float)
        again = combine(read_recipe_file(write(folder, text)), {})
        assert resolve(again, n_images) == resolved
