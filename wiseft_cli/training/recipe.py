"""The recipe of a fine-tuning run: one table with each key's range, default and help.

Every field of `Recipe` is a row of the table. Recipe files, command-line options, validation,
`--print-recipe`, the printed plan and the card are derived from it, so a new key needs its row
here and the place where it acts. The defaults are the paper's (Wortsman et al. 2021,
arXiv 2109.01903, section D.2) and those of the authors' code. No torch is needed here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from fractions import Fraction
from typing import Any

from wiseft_cli.compute.precision import PRECISIONS
from wiseft_cli.errors import RecipeError, counted

DEFAULT_EPOCHS = 10
MAX_DEFAULT_WARMUP_STEPS = 500
FEW_STEPS = 100
SMALLEST_PROPOSED_BATCH = 8
MAX_SEED = 2**32 - 1
MAX_LR = 1e6
"""Far above any useful rate, and small enough that AdamW's step is finite in float32."""


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
    frozen_encoder: tuple[Any, str] | None = None
    name: str = ""

    @property
    def option(self) -> str:
        """The key as a command-line option."""
        return "--" + self.name.replace("_", "-")

    def allows(self, value: Any) -> bool:
        """Whether a recipe may hold this value."""
        return self.default is None if value is None else self.is_valid(value)


def describe_value(value: Any) -> str:
    """Return a value of a recipe as an option takes it: `3e-5`, `0.9 0.999`, `cosine`."""
    if isinstance(value, tuple):
        return " ".join(map(describe_value, value))
    return f"{value:g}".replace("e-0", "e-") if isinstance(value, float) else str(value)


def _key(default: Any, help_text: str, **columns: Any) -> Any:
    if default is not None:
        columns.setdefault("default_text", describe_value(default))
    return field(default=default, metadata={"key": RecipeKey(default, help_text, **columns)})


def _integer(
    default: int | None,
    help_text: str,
    *,
    minimum: int = 1,
    maximum: int | None = None,
    **more: Any,
) -> Any:
    return _key(
        default,
        help_text,
        parse=_parse_integer,
        is_valid=lambda value: minimum <= value <= (maximum or value),
        expected=f"an integer from {minimum} to {maximum}"
        if maximum
        else f"an integer of at least {minimum}",
        metavar="N",
        **more,
    )


def _number(default: float, help_text: str, **more: Any) -> Any:
    return _key(default, help_text, parse=float, metavar="X", **more)


def _choice(default: str | None, help_text: str, choices: tuple[str, ...], **more: Any) -> Any:
    expected = f"one of {', '.join(choices)}"
    more |= {"choices": choices, "metavar": "|".join(choices), "expected": expected}
    return _key(default, help_text, parse=str, is_valid=choices.__contains__, **more)


def _switch(help_text: str, **more: Any) -> Any:
    more |= {"expected": "true or false", "default_text": "off", "parse": _parse_switch}
    return _key(False, help_text, is_valid=lambda value: isinstance(value, bool), **more)


def _parse_integer(text: str) -> int:
    if not re.fullmatch(r"[+-]?[0-9]+", text):  # int() accepts 1_000 and digits of other scripts
        raise ValueError(text)
    return int(text)


def _parse_switch(text: str) -> bool:
    words = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
    if text.lower() not in words:
        raise ValueError(text)
    return words[text.lower()]


def _parse_betas(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in re.split(r"[\s,]+", text.strip("[]() ")))


def _parse_warmup(text: str) -> int | float:
    if re.fullmatch(r"[+-]?[0-9]+", text):
        return int(text)
    fraction = float(text)
    if fraction >= 1:
        raise ValueError(text)
    return fraction


@dataclass(frozen=True)
class Recipe:
    """The keys of a recipe; None leaves a value to `resolve`.

    Raises:
        RecipeError: Names every key that is out of range or contradicts another.
    """

    epochs: int | None = _integer(
        None, "Passes over the training images.", default_text=f"{DEFAULT_EPOCHS}"
    )
    steps: int | None = _integer(
        None, "Optimizer steps of the run, instead of epochs. The last epoch may be cut short."
    )
    batch_size: int = _integer(
        512,
        "Images per optimizer step, over all processes. The last batch of an epoch may be smaller.",
    )
    micro_batch_size: int | None = _integer(
        None,
        "Images per forward pass. Fewer images need less memory and make the same update.",
        default_text="the batch size",
    )
    lr: float = _number(
        3e-5,
        "Peak learning rate of AdamW.",
        is_valid=lambda lr: 0 < lr <= MAX_LR,
        expected=f"a number above 0, at most {MAX_LR:g}",
        in_plan=True,
    )
    weight_decay: float = _number(
        0.1,
        "Decoupled weight decay of every trainable tensor, biases and norms included.",
        is_valid=lambda decay: 0 <= decay < math.inf,
        expected="a number of at least 0",
        in_plan=True,
    )
    betas: tuple[float, float] = _key(
        (0.9, 0.999),
        "Decay rates of AdamW's two moments.",
        parse=_parse_betas,
        is_valid=lambda betas: len(betas) == 2 and all(0 <= beta < 1 for beta in betas),
        expected="two numbers in [0, 1)",
        metavar="X X",
    )
    eps: float = _number(
        1e-8,
        "Term that keeps AdamW's denominator away from zero.",
        is_valid=lambda eps: 0 < eps < math.inf,
        expected="a number above 0",
    )
    warmup: int | float | None = _key(
        None,
        "Linear warm-up: a number of steps, or a fraction of the run below 1.",
        parse=_parse_warmup,
        is_valid=lambda warmup: warmup >= 0 and (isinstance(warmup, int) or warmup < 1),
        expected="a number of steps, or a fraction of the run below 1",
        metavar="STEPS|FRACTION",
        default_text=f"0.1, at most {MAX_DEFAULT_WARMUP_STEPS} steps",
    )
    schedule: str = _choice(
        "cosine",
        "Learning rate after the warm-up: a cosine to zero, or constant.",
        ("cosine", "constant"),
        in_plan=True,
    )
    clip_grad_norm: float = _number(
        1.0,
        "Largest global gradient norm; larger gradients are scaled down to it. 0 for none.",
        is_valid=lambda norm: 0 <= norm < math.inf,
        expected="at least 0 (0 for none)",
        in_plan=True,
    )
    label_smoothing: float = _number(
        0.0,
        "Part of the target that is spread evenly over the classes, in [0, 1).",
        is_valid=lambda share: 0 <= share < 1,
        expected="a number in [0, 1)",
        in_plan=True,
    )
    # `head` is PAINT: Ilharco et al. 2022, arXiv 2208.05592.
    freeze: str = _choice(
        "none",
        "The part that is not trained. encoder: train a linear classifier on features that are"
        " computed once; head: train the image encoder alone.",
        ("none", "encoder", "head"),
    )
    batch_norm: str | None = _choice(
        None,
        "Whether BatchNorm layers use the statistics of each batch, or keep their running"
        " statistics. Their affine weights train in both cases.",
        ("train", "frozen"),
        default_text="train; frozen with --freeze encoder",
        in_plan=True,
        frozen_encoder=("frozen", "the encoder is not trained"),
    )
    augment: str | None = _choice(
        None,
        "Random crops of 90 to 100 % of the area, or the preprocessing of `wiseft eval`.",
        ("crop", "none"),
        default_text="crop; none with --freeze encoder",
        in_plan=True,
        frozen_encoder=("none", "each image's features are computed once"),
    )
    precision: str = _choice(
        "fp32",
        "Precision of the image encoder's arithmetic. Weights, head and loss are always float32.",
        PRECISIONS,
    )
    grad_checkpointing: bool = _switch(
        "Recompute activations in the backward pass: less memory, about a third more time.",
        frozen_encoder=(False, "no gradient passes through the encoder"),
    )
    seed: int = _integer(
        0,
        "Seed of shuffling, augmentation, random layers, --val-fraction and --shots.",
        minimum=0,
        maximum=MAX_SEED,
        in_plan=True,
    )
    deterministic: bool = _switch(
        "Use deterministic algorithms on a GPU. A CPU always gives the same result."
    )

    def __post_init__(self) -> None:
        faults = [fault.text for fault in find_faults(vars(self))]
        if len(faults) == 1:
            raise RecipeError(f"recipe: {faults[0]}")
        if faults:
            raise RecipeError(f"recipe: {len(faults)} keys are wrong", faults=faults)


RECIPE_KEYS: Mapping[str, RecipeKey] = {
    row.name: replace(row.metadata["key"], name=row.name) for row in fields(Recipe)
}
"""Every key by name, in the order of the table, which is the order of a printed recipe."""


@dataclass(frozen=True, kw_only=True)
class ResolvedRecipe(Recipe):
    """A recipe in which every value is set, for a training set of known size.

    Attributes:
        n_images: Size of the training set.
        epochs: Passes over the training set; `steps` may cut the last one short.
        steps: Optimizer steps of the whole run.
        warmup: Steps with a rising learning rate.
    """

    n_images: int
    epochs: int
    steps: int
    micro_batch_size: int
    warmup: int
    batch_norm: str
    augment: str

    def __post_init__(self) -> None:
        """Accept both epochs and steps; the recipe was checked before it was resolved."""

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one whole pass over the training set."""
        return math.ceil(self.n_images / self.batch_size)

    @property
    def last_batch_size(self) -> int:
        """Images of the last batch of a whole epoch."""
        return self.n_images - (self.steps_per_epoch - 1) * self.batch_size

    def images_drawn(self, steps: int) -> int:
        """Return how many images the first `steps` steps draw, repetitions included."""
        epochs, rest = divmod(steps, self.steps_per_epoch)
        return epochs * self.n_images + min(rest * self.batch_size, self.n_images)

    def as_mapping(self) -> Mapping[str, Any]:
        """Return what the card stores: all that affects the result except data and seed."""
        values = {**asdict(self), "betas": list(self.betas), "optimizer": "adamw"}
        values["warmup_steps"] = values.pop("warmup")
        del values["n_images"], values["seed"]
        return values


def resolve(recipe: Recipe, n_images: int) -> ResolvedRecipe:
    """Choose the values that a recipe leaves open, for a training set of `n_images` images.

    The default warm-up is min(500, 10 % of the steps); the defaults of augmentation and BatchNorm
    depend on `freeze`.

    Raises:
        RecipeError: The warm-up is not shorter than the run.
    """
    steps_per_epoch = math.ceil(n_images / recipe.batch_size)
    steps = recipe.steps or (recipe.epochs or DEFAULT_EPOCHS) * steps_per_epoch
    is_probe = recipe.freeze == "encoder"
    chosen = {
        "epochs": math.ceil(steps / steps_per_epoch),
        "steps": steps,
        "warmup": _warmup_steps(recipe, steps, n_images),
        "micro_batch_size": recipe.micro_batch_size or recipe.batch_size,
        "batch_norm": recipe.batch_norm or ("frozen" if is_probe else "train"),
        "augment": recipe.augment or ("none" if is_probe else "crop"),
    }
    return ResolvedRecipe(n_images=n_images, **{**vars(recipe), **chosen})


def _warmup_steps(recipe: Recipe, steps: int, n_images: int) -> int:
    if recipe.warmup is None:
        return min(MAX_DEFAULT_WARMUP_STEPS, steps // 10)
    if isinstance(recipe.warmup, float):
        # The decimal that was written: in binary, 0.29 of 100 steps would be 28.
        return int(Fraction(str(recipe.warmup)) * steps)
    if recipe.warmup < steps:
        return recipe.warmup
    length = "" if recipe.steps else f"{counted(recipe.epochs or DEFAULT_EPOCHS, 'epoch')} of "
    raise RecipeError(
        f"warmup is {recipe.warmup} steps, expected fewer than the run's {steps}"
        f" ({length}{n_images} images, batch size {recipe.batch_size})",
        hint="give --warmup as a fraction of the run, such as 0.1, train longer, or use smaller"
        " batches",
    )


@dataclass(frozen=True)
class Fault:
    """What is wrong with a recipe: the keys involved, and a sentence."""

    keys: tuple[str, ...]
    text: str


def find_faults(
    values: Mapping[str, Any], *, names: Mapping[str, str] | None = None
) -> list[Fault]:
    """Return every value of a recipe that is out of range or contradicts another.

    Args:
        values: A value of the right type for each key that is set.
        names: Names of keys in the sentences, for example their options; a key's own name if
            absent.
    """
    names = {key: key for key in RECIPE_KEYS} | dict(names or {})
    faults = [
        Fault((key,), f"{names[key]} is {values[key]!r}, expected {row.expected}")
        for key, row in RECIPE_KEYS.items()
        if key in values and not row.allows(values[key])
    ]
    return faults or _find_contradictions(values, names)


def _find_contradictions(values: Mapping[str, Any], names: Mapping[str, str]) -> list[Fault]:
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
    for key, row in RECIPE_KEYS.items():
        if values.get("freeze") == "encoder" and row.frozen_encoder and values.get(key) is not None:
            expected, reason = row.frozen_encoder
            if values[key] != expected:
                text = f"{names[key]} is {values[key]!r} with {names['freeze']} 'encoder'"
                text += f", expected {expected!r}: {reason}"
                faults.append(Fault((key, "freeze"), text))
    return faults


def recipe_warnings(recipe: ResolvedRecipe) -> tuple[str, ...]:
    """Return warnings about settings that are probably unintended: very few steps, a huge batch."""
    found = []
    if recipe.batch_size > recipe.n_images:
        found.append(
            f"the batch size {recipe.batch_size} is larger than the training set"
            f" ({recipe.n_images} images): every step uses all of it"
        )
    if recipe.steps < FEW_STEPS:
        steps = counted(recipe.steps, "optimizer step")
        found.append(f"only {steps}; {_propose_more_steps(recipe)}")
    return tuple(found)


def _propose_more_steps(recipe: ResolvedRecipe) -> str:
    """Propose the largest power of two as batch size that makes 100 steps, else epochs or steps.

    A batch below 8 is never proposed: its gradients are noisy, and a single image has no batch
    statistics. If the recipe counts steps, their number does not depend on the batch size.
    """
    if recipe.steps % recipe.steps_per_epoch:
        return f"--steps {FEW_STEPS} would make {FEW_STEPS}"

    def steps_of(batch_size: int) -> int:
        return recipe.epochs * math.ceil(recipe.n_images / batch_size)

    batch_size = recipe.batch_size
    if batch_size > SMALLEST_PROPOSED_BATCH:
        batch_size = 2 ** int(math.log2(batch_size))
    while batch_size > SMALLEST_PROPOSED_BATCH and steps_of(batch_size) < FEW_STEPS:
        batch_size //= 2
    if steps_of(batch_size) >= FEW_STEPS:
        return f"--batch-size {batch_size} would make {steps_of(batch_size)}"
    steps_per_epoch = math.ceil(recipe.n_images / batch_size)
    epochs = math.ceil(FEW_STEPS / steps_per_epoch)
    proposed = "" if batch_size == recipe.batch_size else f"--batch-size {batch_size} "
    return f"{proposed}--epochs {epochs} would make {epochs * steps_per_epoch}"
