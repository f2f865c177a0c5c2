"""Shell completion of names that ship with the package: recipes, templates, data sets, suites.

Where no name matches, nothing is returned and the shell completes file names.
"""

from __future__ import annotations

from pathlib import Path

from wiseft_cli.merging.methods import list_methods

_PACKAGE = Path(__file__).parents[1]


def complete_recipe(incomplete: str) -> list[str]:
    """Return the built-in recipes that start with a text."""
    return _starting_with(incomplete, _stems("training/presets"))


def complete_classes(incomplete: str) -> list[str]:
    """Return the data sets whose class lists ship with the package."""
    return _starting_with(incomplete, _stems("data/cards"))


def complete_templates(incomplete: str) -> list[str]:
    """Return the built-in template sets, and the data sets that have templates."""
    return _starting_with(incomplete, ["openai", "simple", *_stems("data/cards")])


def complete_data(incomplete: str) -> list[str]:
    """Return published image sets as `NAME=`, to be followed by a path."""
    return _starting_with(incomplete, [f"{name}=" for name in _stems("data/cards")])


def complete_method(incomplete: str) -> list[str]:
    """Return the merge methods that start with a text."""
    return _starting_with(incomplete, [row["name"] for row in list_methods()])


def complete_suite(incomplete: str) -> list[str]:
    """Return the suites that ship with the package."""
    return _starting_with(incomplete, _stems("data/suites"))


def _stems(folder: str) -> list[str]:
    return sorted(path.stem for path in (_PACKAGE / folder).glob("*.yaml"))


def _starting_with(incomplete: str, names: list[str]) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]
