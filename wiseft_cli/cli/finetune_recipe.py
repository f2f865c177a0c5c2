"""The recipe of `wiseft finetune` on the command line: from options to a recipe, and printed.

It trains nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from wiseft_cli.cli.console import print_result
from wiseft_cli.errors import UsageError
from wiseft_cli.training.recipe import Recipe


def check_device_name(text: str) -> None:
    """Refuse what can be no device before any data is listed; whether it is there shows later.

    Raises:
        UsageError: Not `auto`, and not of the form `cpu`, `cuda` or `cuda:1`.
    """
    if not re.fullmatch(r"auto|(cpu|cuda|mps|xpu|hpu|mtia)(:[0-9]+)?", text):
        raise UsageError(
            f"--device {text}: unknown device", hint="use auto, cpu, cuda, cuda:N or mps"
        )


def recipe_from_options(name: str | None, given: Mapping[str, Any]) -> Recipe:
    """Return the recipe of `--recipe` with the options that were given in place of its keys.

    Args:
        name: A built-in recipe or a file; the paper's recipe where None.
        given: Value by parameter name; names that are no recipe keys are left out.
    Raises:
        UsageError: An option's value is out of range, or contradicts another.
        RecipeError: The same in the file.
    """
    # lazy: yaml costs time that --help need not spend
    from wiseft_cli.training.recipe_file import DEFAULT_RECIPE, combine, read_recipe_file
    from wiseft_cli.training.recipe_keys import RECIPE_KEYS, read_warmup

    options = {key: given[key] for key in RECIPE_KEYS if key in given}
    if "warmup" in options:
        try:
            options["warmup"] = read_warmup(options["warmup"])
        except ValueError:
            raise UsageError(
                f"--warmup is {options['warmup']!r}, expected {RECIPE_KEYS['warmup'].expected}"
            ) from None
    return combine(read_recipe_file(name or DEFAULT_RECIPE), options)


def show_recipe(recipe: Recipe, *, train: str | None) -> None:
    """Print a recipe as YAML that `--recipe` reads; with training data, nothing is left open.

    Raises:
        DatasetError: The training set cannot be listed.
        RecipeError: The warm-up is not shorter than the run.
    """
    # lazy: yaml costs time that --help need not spend
    from wiseft_cli.data.sources import open_training_set
    from wiseft_cli.training.recipe import resolve
    from wiseft_cli.training.recipe_file import render_recipe

    resolved = None
    if train is not None:
        resolved = resolve(recipe, len(open_training_set(train).records))
    print_result(render_recipe(recipe, resolved).rstrip())
