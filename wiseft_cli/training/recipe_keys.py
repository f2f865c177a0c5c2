"""The rows of the recipe table: what a key's value may be, and how a text is read.

`recipe.py` holds the table. No torch is needed here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class RecipeKey:
    """A row of the table.

    Attributes:
        default: Value of a recipe that does not set the key; None if `resolve` chooses it.
        help: Help text of the option.
        parse: Returns the value that a text stands for, or raises ValueError.
        is_valid: Whether a value of the right type is in range.
        expected: The range in words.
        metavar: Placeholder of the value in the help; empty for a switch.
        default_text: The default as the help shows it; empty for none.
        choices: The allowed words; empty if the value is not one of a few words.
        in_plan: Whether the recipe line of a printed plan has the key.
        source: Publication that a method is from.
        is_method: Whether the key switches a method on that is off by default. At its default it
            is in no card and no printed plan.
        frozen_encoder: The only value that `freeze: encoder` allows, and the reason.
        name: Name of the key in a file; the option is `--name` with hyphens.
    """

    default: Any
    help: str
    parse: Callable[[str], Any]
    is_valid: Callable[[Any], bool]
    expected: str
    metavar: str = ""
    default_text: str = ""
    choices: tuple[str, ...] = ()
    in_plan: bool = False
    source: str = ""
    is_method: bool = False
    frozen_encoder: tuple[Any, str] | None = None
    name: str = ""

    @property
    def option(self) -> str:
        """The key as a command-line option."""
        return "--" + self.name.replace("_", "-")

    def is_on(self, value: Any) -> bool:
        """Whether a value switches the key's method on."""
        return self.is_method and value is not None and value != self.default

    def allows(self, value: Any) -> bool:
        """Whether a recipe may hold this value."""
        return self.default is None if value is None else self.is_valid(value)


def describe_value(value: Any) -> str:
    """Return a value of a recipe as an option takes it: `3e-5`, `0.9 0.999`, `cosine`."""
    if isinstance(value, tuple):
        return " ".join(map(describe_value, value))
    return f"{value:g}".replace("e-0", "e-") if isinstance(value, float) else str(value)


def recipe_key(default: Any, help_text: str, **columns: Any) -> Any:
    if default is not None:
        columns.setdefault("default_text", describe_value(default))
    return field(default=default, metadata={"key": RecipeKey(default, help_text, **columns)})


def integer(
    default: int | None,
    help_text: str,
    *,
    minimum: int = 1,
    maximum: int | None = None,
    **more: Any,
) -> Any:
    return recipe_key(
        default,
        help_text,
        parse=parse_integer,
        is_valid=lambda value: minimum <= value <= (maximum or value),
        expected=f"an integer from {minimum} to {maximum}"
        if maximum
        else f"an integer of at least {minimum}",
        metavar="N",
        **more,
    )


def number(default: float, help_text: str, **more: Any) -> Any:
    return recipe_key(default, help_text, parse=float, metavar="X", **more)


def choice(default: str | None, help_text: str, choices: tuple[str, ...], **more: Any) -> Any:
    expected = f"one of {', '.join(choices)}"
    more |= {"choices": choices, "metavar": "|".join(choices), "expected": expected}
    return recipe_key(default, help_text, parse=str, is_valid=choices.__contains__, **more)


def switch(help_text: str, **more: Any) -> Any:
    more |= {"expected": "true or false", "default_text": "off", "parse": parse_switch}
    return recipe_key(False, help_text, is_valid=lambda value: isinstance(value, bool), **more)


def strength(
    help_text: str,
    source: str,
    *,
    off: float = 0.0,
    is_valid: Callable[[Any], bool] = lambda value: 0 <= value < math.inf,
    expected: str = "a number of at least 0 (0 for none)",
    **more: Any,
) -> Any:
    """Describe the strength of a method that is off by default."""
    more = {"parse": float, "metavar": "X", "default_text": "off", **more}
    return recipe_key(
        off, help_text, source=source, is_method=True, is_valid=is_valid, expected=expected, **more
    )


def parse_integer(text: str) -> int:
    if not re.fullmatch(r"[+-]?[0-9]+", text):  # int() accepts 1_000 and digits of other scripts
        raise ValueError(text)
    return int(text)


def parse_switch(text: str) -> bool:
    words = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
    if text.lower() not in words:
        raise ValueError(text)
    return words[text.lower()]


def parse_betas(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in re.split(r"[\s,]+", text.strip("[]() ")))


def parse_length(text: str) -> int | float:
    if re.fullmatch(r"[+-]?[0-9]+", text):
        return int(text)
    fraction = float(text)
    if fraction >= 1:
        raise ValueError(text)
    return fraction
