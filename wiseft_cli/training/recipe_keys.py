"""The rows of the recipe table: what a key's value may be, and how a text is read.

`recipe.py` holds the table. No torch is needed here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
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


@dataclass(frozen=True)
class Fault:
    """What is wrong with a recipe: the keys involved, and a sentence."""

    keys: tuple[str, ...]
    text: str


def find_contradictions(
    keys: Mapping[str, RecipeKey], values: Mapping[str, Any], names: Mapping[str, str]
) -> list[Fault]:
    """Return every pair of values of a recipe that contradict each other.

    Args:
        keys: Every key by name.
        values: A value in its range for each key that is set.
        names: Names of keys in the sentences.
    """
    faults = []
    epochs, steps = values.get("epochs"), values.get("steps")
    if epochs is not None and steps is not None:
        text = f"{names['epochs']} is {epochs} and {names['steps']} is {steps}"
        faults.append(Fault(("steps", "epochs"), f"{text}; give one of the two, not both"))
    micro, batch = values.get("micro_batch_size"), values.get("batch_size")
    if micro is not None and batch is not None and micro > batch:
        text = f"{names['micro_batch_size']} is {micro}"
        text += f", expected at most {names['batch_size']} ({batch})"
        faults.append(Fault(("micro_batch_size", "batch_size"), text))
    for key, row in keys.items():
        if values.get("freeze") == "encoder" and row.frozen_encoder and values.get(key) is not None:
            expected, reason = row.frozen_encoder
            if values[key] != expected:
                text = f"{names[key]} is {values[key]!r} with {names['freeze']} 'encoder'"
                text += f", expected {expected!r}: {reason}"
                faults.append(Fault((key, "freeze"), text))
    return faults + _find_conflicts(keys, values, names)


_Contradicts = Callable[[Mapping[str, Any]], bool]
_CONFLICTS: tuple[tuple[str, str, _Contradicts, str], ...] = (
    ("min_lr", "schedule", lambda at: at["schedule"] == "constant", "there is no cosine to end"),
    ("min_lr", "lr", lambda at: at["min_lr"] > at["lr"], "the cosine falls"),
    ("lp_ft", "freeze", lambda at: at["freeze"] != "none", "both parts train after the probe"),
    ("lp_lr", "lp_ft", lambda at: not at["lp_ft"], "there is no linear classifier before"),
    ("spd", "weight_decay", lambda at: at["weight_decay"] > 0, "SPD replaces weight decay"),
    ("spd", "l2_sp", lambda at: at["l2_sp"] > 0, "SPD is the selective form of L2-SP"),
)
"""A method, another key, whether their values contradict each other, and why."""


def _find_conflicts(
    keys: Mapping[str, RecipeKey], values: Mapping[str, Any], names: Mapping[str, str]
) -> list[Fault]:
    return [
        Fault(
            (method, other),
            f"{names[method]} is {describe_value(values[method])} with {names[other]}"
            f" {describe_value(values[other])}: {reason}",
        )
        for method, other, contradicts, reason in _CONFLICTS
        if keys[method].is_on(values.get(method))
        and values.get(other) is not None
        and contradicts(values)
    ]
