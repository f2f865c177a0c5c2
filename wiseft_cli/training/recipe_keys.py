"""The keys of a recipe: how the text of each is read, and what it may be.

It knows no defaults (`recipe.py`) and no files (`recipe_file.py`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

FREEZE = ("none", "encoder", "head")
AUGMENT = ("crop", "none")
BATCH_NORM = ("train", "frozen")
SCHEDULE = ("cosine", "constant")
PRECISION = ("fp32", "bf16", "fp16")

MAX_SEED = 2**32 - 1
MAX_LR = 1e6
"""Far beyond sense, and small enough that AdamW's step is a float32."""


@dataclass(frozen=True)
class RecipeKey:
    """One key.

    Attributes:
        name: As it stands in a file; the option is `--name` with hyphens.
        expected: The range, in words.
        fits: Whether a value of the right type is in the range.
        read: The value that a text stands for; raises ValueError where it stands for none.
        may_be_unset: Whether None leaves the key to the run.
    """

    name: str
    expected: str
    fits: Callable[[Any], bool]
    read: Callable[[str], Any]
    may_be_unset: bool = False

    @property
    def option(self) -> str:
        """The key as a command-line option."""
        return "--" + self.name.replace("_", "-")


@dataclass(frozen=True)
class Fault:
    """What is wrong with a recipe: the keys it takes to see it, and the sentence."""

    keys: tuple[str, ...]
    text: str


def read_warmup(text: str) -> int | float:
    """Return a number of steps, or a fraction of the run: `500` or `0.1`.

    Raises:
        ValueError: The text is no number, or not whole although it is 1 or more.
    """
    if re.fullmatch(r"[+-]?[0-9]+", text):
        return int(text)
    share = float(text)
    if share >= 1:
        raise ValueError(text)
    return share


def _read_int(text: str) -> int:
    if not re.fullmatch(r"[+-]?[0-9]+", text):  # int() would take 1_000 and other scripts' digits
        raise ValueError(text)
    return int(text)


def _read_bool(text: str) -> bool:
    words = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
    if text.lower() not in words:
        raise ValueError(text)
    return words[text.lower()]


def _read_betas(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in re.split(r"[\s,]+", text.strip("[]() ")))


def _fits_betas(betas: Any) -> bool:
    return len(betas) == 2 and all(0 <= beta < 1 for beta in betas)


def _choice(name: str, choices: tuple[str, ...], *, may_be_unset: bool = False) -> RecipeKey:
    expected = f"one of {', '.join(choices)}"
    return RecipeKey(name, expected, lambda value: value in choices, str, may_be_unset)


def _switch(name: str) -> RecipeKey:
    return RecipeKey(name, "true or false", lambda value: isinstance(value, bool), _read_bool)


RECIPE_KEYS: Mapping[str, RecipeKey] = {
    key.name: key
    for key in (
        RecipeKey("epochs", "at least 1", lambda epochs: epochs >= 1, _read_int, True),
        RecipeKey("steps", "at least 1", lambda steps: steps >= 1, _read_int, True),
        RecipeKey("batch_size", "at least 1", lambda size: size >= 1, _read_int),
        RecipeKey("micro_batch_size", "at least 1", lambda size: size >= 1, _read_int, True),
        RecipeKey(
            "lr", f"a number above 0, at most {MAX_LR:g}", lambda lr: 0 < lr <= MAX_LR, float
        ),
        RecipeKey(
            "weight_decay", "a number of at least 0", lambda decay: 0 <= decay < math.inf, float
        ),
        RecipeKey("betas", "two numbers in [0, 1)", _fits_betas, _read_betas),
        RecipeKey("eps", "a number above 0", lambda eps: 0 < eps < math.inf, float),
        RecipeKey(
            "warmup",
            "a number of steps, or a fraction of the run below 1",
            lambda warmup: warmup >= 0 and (isinstance(warmup, int) or warmup < 1),
            read_warmup,
            True,
        ),
        _choice("schedule", SCHEDULE),
        RecipeKey(
            "clip_grad_norm", "at least 0 (0 for none)", lambda norm: 0 <= norm < math.inf, float
        ),
        RecipeKey("label_smoothing", "a number in [0, 1)", lambda share: 0 <= share < 1, float),
        _choice("freeze", FREEZE),
        _choice("batch_norm", BATCH_NORM, may_be_unset=True),
        _choice("augment", AUGMENT, may_be_unset=True),
        _choice("precision", PRECISION),
        _switch("grad_checkpointing"),
        RecipeKey("seed", f"0 to {MAX_SEED}", lambda seed: 0 <= seed <= MAX_SEED, _read_int),
        _switch("deterministic"),
    )
}
"""Every key, in the order in which a recipe is printed."""


def find_faults(
    values: Mapping[str, Any], *, names: Mapping[str, str] | None = None
) -> list[Fault]:
    """Return all that is wrong with the values of a recipe, alone and together.

    Args:
        values: A value of the right type for each key that is set.
        names: What to call keys in the sentences, such as by their options; a key's own name
            where absent.
    """
    names = names or {}
    called = {key: names.get(key, key) for key in RECIPE_KEYS}
    faults = [
        Fault((key,), f"{called[key]} is {values[key]!r}, expected {spec.expected}")
        for key, spec in RECIPE_KEYS.items()
        if key in values and not _is_in_range(spec, values[key])
    ]
    if not faults:  # values that are out of range cannot be compared
        faults = _find_contradictions(values, called)
    return faults


def _is_in_range(spec: RecipeKey, value: Any) -> bool:
    return spec.may_be_unset if value is None else spec.fits(value)


def _find_contradictions(values: Mapping[str, Any], called: Mapping[str, str]) -> list[Fault]:
    faults = []
    epochs, steps = values.get("epochs"), values.get("steps")
    if epochs is not None and steps is not None:
        text = f"{called['epochs']} is {epochs} and {called['steps']} is {steps}"
        faults.append(Fault(("steps", "epochs"), f"{text}, expected one of the two"))
    micro, batch = values.get("micro_batch_size"), values.get("batch_size")
    if micro is not None and batch is not None and micro > batch:
        text = f"{called['micro_batch_size']} is {micro}"
        text += f", expected at most {called['batch_size']} ({batch})"
        faults.append(Fault(("micro_batch_size", "batch_size"), text))
    if values.get("freeze") == "encoder":
        faults += _contradictions_of_a_frozen_encoder(values, called)
    return faults


def _contradictions_of_a_frozen_encoder(
    values: Mapping[str, Any], called: Mapping[str, str]
) -> list[Fault]:
    wrong = (
        ("augment", "crop", "none", "each image's features are computed once"),
        ("batch_norm", "train", "frozen", "the encoder is not trained"),
        ("grad_checkpointing", True, False, "no gradient passes through the encoder"),
    )
    return [
        Fault(
            (key, "freeze"),
            f"{called[key]} is {found!r} with {called['freeze']} 'encoder',"
            f" expected {expected!r}: {reason}",
        )
        for key, found, expected, reason in wrong
        if values.get(key) == found
    ]
