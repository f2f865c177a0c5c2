"""Read recipes from YAML files and options, and print them as YAML.

A mistake is reported where it was made: at a line of a file, or at an option.
"""

from __future__ import annotations

import difflib
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from wiseft_cli.errors import RecipeError, UsageError, did_you_mean_path
from wiseft_cli.prompts import documents
from wiseft_cli.training.recipe import (
    DEFAULT_EPOCHS,
    RECIPE_KEYS,
    Recipe,
    ResolvedRecipe,
    find_faults,
)
from wiseft_cli.training.recipe_keys import Fault, RecipeKey

DEFAULT_RECIPE = "wise-ft"
SOURCE = "source"
"""Key of a recipe file that names the publication; it has no effect."""

_PRESETS = Path(__file__).parent / "presets"
_OTHER_NAMES = {
    "learning_rate": "lr",
    "wd": "weight_decay",
    "ls": "label_smoothing",
    "warmup_steps": "warmup",
    "warmup_length": "warmup",
    "max_grad_norm": "clip_grad_norm",
    "dtype": "precision",
    "amp": "precision",
}
"""Names that other programs use for some keys."""


@dataclass(frozen=True)
class RecipeFile:
    """The keys that a file sets.

    Attributes:
        name: Name of the built-in recipe, or the path as it was given.
        values: Value by key; None if the file leaves the value open.
        lines: Place of each key, such as `line 3`.
    """

    name: str
    values: Mapping[str, Any] = field(default_factory=dict)
    lines: Mapping[str, str] = field(default_factory=dict)


def builtin_names() -> list[str]:
    """Return the names of the built-in recipes, the default first."""
    names = sorted(path.stem for path in _PRESETS.glob("*.yaml"))
    return sorted(names, key=lambda name: name != DEFAULT_RECIPE)


def load_recipe(name: str | None, options: Mapping[str, Any]) -> Recipe:
    """Return the recipe of `--recipe` with options in place of its keys.

    Args:
        name: A built-in recipe or a file; the default recipe if None.
        options: Text by key as it was given on the command line; values that are not texts are
            taken as they are.
    Raises:
        UsageError: The recipe does not exist, or an option's value is wrong or contradicts another.
        RecipeError: The same for values of the file.
    """
    values, faults = {}, []
    for key, value in options.items():
        try:
            values[key] = RECIPE_KEYS[key].parse(value) if isinstance(value, str) else value
        except ValueError:
            row = RECIPE_KEYS[key]
            faults.append(f"{row.option} is {value!r}, expected {row.expected}")
    if faults:
        raise _error_of(faults, UsageError)
    return combine(read_recipe_file(name or DEFAULT_RECIPE), values)


def read_recipe_file(text: str) -> RecipeFile:
    """Read a built-in recipe or a recipe file.

    Args:
        text: Name of a built-in recipe or a path; `./NAME` is always a path.
    Raises:
        UsageError: Neither a built-in recipe nor a file has this name.
        RecipeError: The file is not YAML, has unknown or repeated keys, or wrong values; all
            faults are listed with their lines.
    """
    if text in builtin_names():
        path = _PRESETS / f"{text}.yaml"
    else:
        path = Path(text)
        if not path.exists():
            raise UsageError(
                f"--recipe {text}: not a file, and not a built-in recipe"
                f"{_suggest(text, builtin_names())}",
                hint=did_you_mean_path(text)
                or f"the built-in recipes are {', '.join(builtin_names())}",
            )
    root = documents.read_yaml(path, RecipeError)
    if not isinstance(root, documents.Mapping):
        found = "nothing" if root is None else documents.describe(root)
        raise RecipeError(
            f"{text}: holds {found}, expected a mapping of recipe keys",
            hint="`wiseft finetune --print-recipe` prints a recipe to start from",
        )
    return _read_members(text, root)


def _read_members(name: str, root: documents.Mapping) -> RecipeFile:
    values: dict[str, Any] = {}
    lines: dict[str, str] = {}
    faults: list[str] = []
    for node, value in root.members:
        where = f"{name}, {node.where}"
        key = node.text if isinstance(node, documents.Text) else ""
        if key == SOURCE:
            continue
        if key not in RECIPE_KEYS:
            faults.append(f"{where}: unknown recipe key {key!r}{_suggest(key, RECIPE_KEYS)}")
        elif key in lines:
            faults.append(f"{where}: {key} is set again (first in {lines[key]})")
        else:
            lines[key] = node.where
            try:
                values[key] = _read_value(key, value)
            except ValueError as error:
                faults.append(f"{where}: {error}")
    if faults:
        readable = {key: value for key, value in values.items() if value is not None}
        for fault in find_faults(readable):
            faults.append(f"{name}, {lines[fault.keys[0]]}: {fault.text}")
        raise _error_of(faults, RecipeError, hint=f"the keys are {', '.join(RECIPE_KEYS)}")
    return RecipeFile(name, values, lines)


def _read_value(key: str, node: documents.Node) -> Any:
    row = RECIPE_KEYS[key]
    if isinstance(node, documents.Text):
        text = node.text
    elif isinstance(node, documents.Listing) and isinstance(row.default, tuple):
        parts = [item.text if isinstance(item, documents.Text) else "?" for item in node.items]
        text = ", ".join(parts)
    else:
        raise ValueError(f"{key} is {documents.describe(node)}, expected {row.expected}")
    if row.default is None and text.lower() in ("", "null", "~"):
        return None
    try:
        return row.parse(text)
    except ValueError:
        raise ValueError(f"{key} is {text!r}, expected {row.expected}") from None


def combine(base: RecipeFile, options: Mapping[str, Any]) -> Recipe:
    """Return the recipe of a file with options in place of its keys.

    The option `epochs` replaces the file's `steps`, and the other way round.

    Args:
        base: The file.
        options: Value by key.
    Raises:
        UsageError: The value of an option is out of range, or contradicts another.
        RecipeError: The same for values that all come from the file.
    """
    replaced = {key for key in ("epochs", "steps") if {"epochs", "steps"} & options.keys()}
    kept = {key: value for key, value in base.values.items() if key not in replaced}
    values = {**kept, **options}
    names = {key: RECIPE_KEYS[key].option for key in options}
    faults = find_faults({**vars(Recipe()), **values}, names=names)
    if faults:
        lines = [_locate(fault, base, options) for fault in faults]
        has_option = any(key in options for fault in faults for key in fault.keys)
        raise _error_of(lines, UsageError if has_option else RecipeError)
    return Recipe(**values)


def _locate(fault: Fault, base: RecipeFile, options: Mapping[str, Any]) -> str:
    """Return the fault's sentence, with file and line unless an option made it."""
    places = [base.lines[key] for key in fault.keys if key in base.lines and key not in options]
    if places and fault.keys[0] not in options:
        return f"{base.name}, {places[0]}: {fault.text}"
    return fault.text


def _error_of(
    faults: Sequence[str], kind: type[RecipeError | UsageError], *, hint: str | None = None
) -> RecipeError | UsageError:
    if len(faults) == 1:
        return kind(faults[0], hint=hint)
    return kind(f"the recipe has {len(faults)} mistakes", faults=faults, hint=hint)


def _suggest(found: str, known: Iterable[str]) -> str:
    name, known = found.lower(), list(known)
    key = name.replace("-", "_")
    near = [_OTHER_NAMES[key]] if _OTHER_NAMES.get(key) in known else []
    for spelling in (key, name):
        near = near or difflib.get_close_matches(spelling, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def render_recipe(recipe: Recipe, resolved: ResolvedRecipe | None = None) -> str:
    """Return a recipe as YAML that `read_recipe_file` reads back to the same run.

    A comment above each key explains it.

    Args:
        recipe: The recipe.
        resolved: The recipe resolved for known training data; without it, values that depend on
            the data are null.
    """
    values = {key: getattr(resolved or recipe, key) for key in RECIPE_KEYS}
    if recipe.steps:
        del values["epochs"]
    else:
        values["epochs"] = recipe.epochs or DEFAULT_EPOCHS
        del values["steps"]
    return "".join(
        f"{_render_comment(RECIPE_KEYS[key])}{key}: {_render_value(value)}\n"
        for key, value in values.items()
    )


def _render_comment(key: RecipeKey) -> str:
    text = f"{key.help} ({key.source})" if key.source else key.help
    lines = textwrap.wrap(text, width=98, break_long_words=False, break_on_hyphens=False)
    return "".join(f"# {line}\n" for line in lines)


def _render_value(value: Any) -> str:
    plain = list(value) if isinstance(value, tuple) else value
    text = yaml.safe_dump(plain, default_flow_style=True, width=1000)
    return text.removesuffix("\n").removesuffix("\n...")
