"""Recipes as YAML: built in or a person's own, overridden by options, and printed again.

What a mistake is called depends on where it was made: a line of a file, or an option. It knows
the keys from `recipe_keys.py` and nothing of training data.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from wiseft_cli.errors import RecipeError, UsageError, list_some
from wiseft_cli.prompts import documents
from wiseft_cli.training.recipe import DEFAULT_EPOCHS, Recipe, ResolvedRecipe
from wiseft_cli.training.recipe_keys import RECIPE_KEYS, Fault, find_faults

DEFAULT_RECIPE = "wise-ft"
SOURCE = "source"
"""Key of a recipe file that says where the recipe is from; it changes nothing."""

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
"""What other programs call some keys."""


@dataclass(frozen=True)
class RecipeFile:
    """The keys that a file sets.

    Attributes:
        name: The built-in recipe's name, or the path as it was given.
        values: Value by key; None where the file leaves a key to the run.
        lines: Where each key stands, such as `line 3`.
        source: Where the recipe is from, in the file's own words; empty where it does not say.
    """

    name: str
    values: Mapping[str, Any] = field(default_factory=dict)
    lines: Mapping[str, str] = field(default_factory=dict)
    source: str = ""


def builtin_names() -> list[str]:
    """Return the names of the built-in recipes, the default first."""
    names = sorted(path.stem for path in _PRESETS.glob("*.yaml"))
    return sorted(names, key=lambda name: name != DEFAULT_RECIPE)


def read_recipe_file(text: str) -> RecipeFile:
    """Read the recipe that `--recipe` names: a built-in one, else a file.

    Args:
        text: A built-in recipe's name or a path; `./NAME` is always a path.
    Raises:
        UsageError: Neither a built-in recipe nor a file.
        RecipeError: Not YAML, unknown or repeated keys, or values that cannot be read; all of
            them, with their lines.
    """
    if text in builtin_names():
        path = _PRESETS / f"{text}.yaml"
    else:
        path = Path(text)
        if not path.exists():
            raise UsageError(
                f"--recipe {text}: no file and no built-in recipe{_guess(text, builtin_names())}",
                hint=f"built in are {', '.join(builtin_names())}; or name a YAML file",
            )
    root = documents.read_yaml(path, RecipeError)
    if not isinstance(root, documents.Mapping):
        found = "nothing" if root is None else documents.describe(root)
        raise RecipeError(
            f"{text}: holds {found}, expected a mapping of recipe keys",
            hint="`wiseft finetune --print-recipe` prints one to start from",
        )
    return _read_members(text, root)


def combine(base: RecipeFile, options: Mapping[str, Any]) -> Recipe:
    """Return the recipe of a file with options in place of its keys.

    `epochs` given as an option displaces the file's `steps`, and the other way round.

    Args:
        base: The file.
        options: Value by key, for the keys given as options.
    Raises:
        UsageError: A value given as an option is out of range, or contradicts another.
        RecipeError: The same for values that all come from the file.
    """
    displaced = {key for key in ("epochs", "steps") if {"epochs", "steps"} & options.keys()}
    kept = {key: value for key, value in base.values.items() if key not in displaced}
    values = {**kept, **options}
    names = {key: RECIPE_KEYS[key].option for key in options}
    faults = find_faults({**_defaults(), **values}, names=names)
    if faults:
        raise _describe_faults(faults, base, options.keys())
    return Recipe(**values)


def render_recipe(recipe: Recipe, resolved: ResolvedRecipe | None = None) -> str:
    """Return a recipe as YAML that `read_recipe_file` reads back to the same run.

    Args:
        resolved: What it resolves to where the training data are known; otherwise keys that
            depend on them are null.
    """
    values = {key: getattr(recipe, key) for key in RECIPE_KEYS}
    if resolved is not None:
        values |= {key: getattr(resolved, key) for key in RECIPE_KEYS if key != "warmup"}
        values["warmup"] = resolved.warmup_steps
    if recipe.steps:
        del values["epochs"]
    else:
        values["epochs"] = recipe.epochs or DEFAULT_EPOCHS
        del values["steps"]
    return "".join(f"{key}: {_render_value(value)}\n" for key, value in values.items())


def _render_value(value: Any) -> str:
    plain = list(value) if isinstance(value, tuple) else value
    text = yaml.safe_dump(plain, default_flow_style=True, width=1000)
    return text.removesuffix("\n").removesuffix("\n...")


def _defaults() -> dict[str, Any]:
    return dict(vars(Recipe()))


def _read_members(name: str, root: documents.Mapping) -> RecipeFile:
    values: dict[str, Any] = {}
    lines: dict[str, str] = {}
    source = ""
    faults: list[str] = []
    for key, node in root.members:
        where = f"{name}, {key.where}"
        text = key.text if isinstance(key, documents.Text) else ""
        if text == SOURCE:
            source = node.text if isinstance(node, documents.Text) else ""
        elif text not in RECIPE_KEYS:
            faults.append(f"{where}: {text!r} is no recipe key{_guess(text, list(RECIPE_KEYS))}")
        elif text in values:
            faults.append(f"{where}: {text} stands twice (first in {lines[text]})")
        else:
            lines[text] = key.where
            try:
                values[text] = _read_value(text, node)
            except ValueError as error:
                faults.append(f"{where}: {error}")
                values[text] = None
    if faults:  # all of them at once, those of values that can be read too
        readable = {key: value for key, value in values.items() if value is not None}
        for fault in find_faults(readable):
            faults.append(f"{name}, {lines[fault.keys[0]]}: {fault.text}")
        raise _join_lines(faults, hint=f"the keys are {', '.join(RECIPE_KEYS)}")
    return RecipeFile(name, values, lines, source)


def _read_value(key: str, node: documents.Node) -> Any:
    """Return the value that a node stands for; ValueError with the sentence where none."""
    spec = RECIPE_KEYS[key]
    if isinstance(node, documents.Text):
        text = node.text
    elif isinstance(node, documents.Listing) and key == "betas":
        parts = [item.text if isinstance(item, documents.Text) else "?" for item in node.items]
        text = ", ".join(parts)
    else:
        raise ValueError(f"{key} is {documents.describe(node)}, expected {spec.expected}")
    if spec.may_be_unset and text.lower() in ("", "null", "~"):
        return None
    try:
        return spec.read(text)
    except ValueError:
        raise ValueError(f"{key} is {text!r}, expected {spec.expected}") from None


def _guess(found: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(found.lower().replace("-", "_"), known, n=1, cutoff=0.5)
    near = near or difflib.get_close_matches(found.lower(), known, n=1, cutoff=0.5)
    other = _OTHER_NAMES.get(found.lower().replace("-", "_"))
    if other is not None and other in known:
        near = [other]
    return f"; did you mean {near[0]!r}?" if near else ""


def _describe_faults(
    faults: Sequence[Fault], base: RecipeFile, given: Any
) -> UsageError | RecipeError:
    """Say of each fault where it was made; one that an option has a part in is one of usage."""
    lines, has_option = [], False
    for fault in faults:
        places = [base.lines[key] for key in fault.keys if key in base.lines and key not in given]
        has_option |= any(key in given for key in fault.keys)
        if places and fault.keys[0] not in given:
            lines.append(f"{base.name}, {places[0]}: {fault.text}")
        else:
            lines.append(fault.text)
    return UsageError(_lines(lines)) if has_option else _join_lines(lines)


def _join_lines(lines: Sequence[str], *, hint: str | None = None) -> RecipeError:
    return RecipeError(_lines(lines), hint=hint)


def _lines(lines: Sequence[str]) -> str:
    if len(lines) == 1:
        return lines[0]
    return "\n  ".join([f"the recipe has {len(lines)} mistakes", *list_some(lines)])
