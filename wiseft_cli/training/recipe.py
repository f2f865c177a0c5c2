"""The recipe of a fine-tuning run: its keys, their ranges and defaults, and what they resolve to.

The defaults are the paper's: Wortsman et al. 2021, arXiv 2109.01903, section D.2, and the
authors' code for what the section leaves open. It knows neither torch nor files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from wiseft_cli.errors import RecipeError

FREEZE = ("none", "encoder", "head")
AUGMENT = ("crop", "none")
BATCH_NORM = ("train", "frozen")

MAX_DEFAULT_WARMUP_STEPS = 500
FEW_STEPS = 100
MAX_SEED = 2**32 - 1
MAX_LR = 1e6
"""Far beyond sense, and small enough that AdamW's step is a float32."""

_RANGES: tuple[tuple[str, str, Callable[[Any], bool]], ...] = (
    ("epochs", "at least 1", lambda epochs: epochs >= 1),
    ("batch_size", "at least 1", lambda size: size >= 1),
    ("micro_batch_size", "at least 1", lambda size: size is None or size >= 1),
    ("lr", f"a number above 0, at most {MAX_LR:g}", lambda lr: 0 < lr <= MAX_LR),
    ("weight_decay", "a number of at least 0", lambda decay: 0 <= decay < math.inf),
    ("betas", "two numbers in [0, 1)", lambda betas: all(0 <= beta < 1 for beta in betas)),
    ("eps", "a number above 0", lambda eps: 0 < eps < math.inf),
    ("warmup", "at least 0 steps", lambda steps: steps is None or steps >= 0),
    ("clip_grad_norm", "at least 0 (0 for none)", lambda norm: 0 <= norm < math.inf),
    ("label_smoothing", "a number in [0, 1)", lambda share: 0 <= share < 1),
    ("freeze", f"one of {', '.join(FREEZE)}", lambda choice: choice in FREEZE),
    ("batch_norm", f"one of {', '.join(BATCH_NORM)}", lambda choice: choice in (None, *BATCH_NORM)),
    ("augment", f"one of {', '.join(AUGMENT)}", lambda choice: choice in (None, *AUGMENT)),
    ("seed", f"0 to {MAX_SEED}", lambda seed: 0 <= seed <= MAX_SEED),
)
"""Each key's range: the key, what is expected in words, and the test of it."""


@dataclass(frozen=True)
class Recipe:
    """What a person chooses; None leaves a key to the run (see `resolve`).

    Attributes:
        epochs: Passes over the training set.
        batch_size: Images of one optimizer step; the last batch of an epoch may be smaller.
        micro_batch_size: Images of one forward pass; gradients are summed over a step's passes.
        lr: Peak learning rate of AdamW.
        weight_decay: Decoupled weight decay on every trained tensor, biases and norms included.
        betas: Decay rates of AdamW's two moments.
        eps: Term that keeps AdamW's denominator from zero.
        warmup: Steps of linear warm-up.
        clip_grad_norm: Bound of the global gradient norm; 0 for none.
        label_smoothing: Share of the target spread evenly over the classes, in [0, 1).
        freeze: `none`; `encoder` trains a linear classifier; `head` trains the image encoder
            alone (PAINT, Ilharco et al. 2022, arXiv 2208.05592).
        batch_norm: `train` as the authors' code does; `frozen` keeps the running statistics
            (the affine weights still train).
        augment: `crop` is RandomResizedCrop(0.9 to 1); `none` is the preprocessing of `eval`.
        seed: Seeds shuffling, augmentation and stochastic layers.

    Raises:
        RecipeError: Names every key that is out of its range.
    """

    epochs: int = 10
    batch_size: int = 512
    micro_batch_size: int | None = None
    lr: float = 3e-5
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    warmup: int | None = None
    clip_grad_norm: float = 1.0
    label_smoothing: float = 0.0
    freeze: str = "none"
    batch_norm: str | None = None
    augment: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        faults = [
            f"{key} is {getattr(self, key)!r}, expected {expected}"
            for key, expected, fits in _RANGES
            if not fits(getattr(self, key))
        ]
        if self.micro_batch_size is not None and self.micro_batch_size > self.batch_size:
            faults.append(
                f"micro_batch_size is {self.micro_batch_size},"
                f" expected at most batch_size ({self.batch_size})"
            )
        if self.freeze == "encoder":
            faults += self._faults_of_a_frozen_encoder()
        _refuse(faults)

    def _faults_of_a_frozen_encoder(self) -> list[str]:
        faults = []
        if self.augment == "crop":
            faults.append(
                "augment is 'crop' with freeze 'encoder', expected 'none':"
                " each image's features are computed once"
            )
        if self.batch_norm == "train":
            faults.append(
                "batch_norm is 'train' with freeze 'encoder', expected 'frozen':"
                " the encoder is not trained"
            )
        return faults


@dataclass(frozen=True)
class ResolvedRecipe:
    """A recipe with nothing left open, for a training set of known size.

    Attributes:
        n_images: Size of the training set.
        steps: Optimizer steps of the whole run.
        warmup_steps: Those of them with a rising learning rate.
    """

    n_images: int
    epochs: int
    steps: int
    batch_size: int
    micro_batch_size: int
    lr: float
    weight_decay: float
    betas: tuple[float, float]
    eps: float
    warmup_steps: int
    clip_grad_norm: float
    label_smoothing: float
    freeze: str
    batch_norm: str
    augment: str
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one pass over the training set."""
        return self.steps // self.epochs

    @property
    def last_batch_size(self) -> int:
        """Images of the last batch of an epoch."""
        return self.n_images - (self.steps_per_epoch - 1) * self.batch_size

    def as_mapping(self) -> Mapping[str, Any]:
        """Return what the card stores: all that affects the result but the data and the seed."""
        values = {**asdict(self), "betas": list(self.betas)}
        del values["n_images"], values["seed"]
        return {**values, "optimizer": "adamw", "schedule": "cosine", "precision": "fp32"}


def resolve(recipe: Recipe, n_images: int) -> ResolvedRecipe:
    """Settle what a recipe leaves open, for a training set of `n_images` images.

    Warm-up unset is min(500, 10 % of the steps); augmentation and BatchNorm unset follow
    `freeze`.

    Raises:
        RecipeError: The warm-up is not shorter than the run.
    """
    steps = recipe.epochs * math.ceil(n_images / recipe.batch_size)
    warmup_steps = recipe.warmup
    if warmup_steps is None:
        warmup_steps = min(MAX_DEFAULT_WARMUP_STEPS, steps // 10)
    elif warmup_steps >= steps:
        raise RecipeError(
            f"warmup is {warmup_steps} steps, expected fewer than the run's {steps}"
            f" ({recipe.epochs} epochs of {n_images} images, batch size {recipe.batch_size})",
            hint="leave --warmup out for 10 % of the run, train longer, or use smaller batches",
        )
    linear = recipe.freeze == "encoder"
    return ResolvedRecipe(
        n_images=n_images,
        epochs=recipe.epochs,
        steps=steps,
        batch_size=recipe.batch_size,
        micro_batch_size=recipe.micro_batch_size or recipe.batch_size,
        lr=recipe.lr,
        weight_decay=recipe.weight_decay,
        betas=recipe.betas,
        eps=recipe.eps,
        warmup_steps=warmup_steps,
        clip_grad_norm=recipe.clip_grad_norm,
        label_smoothing=recipe.label_smoothing,
        freeze=recipe.freeze,
        batch_norm=recipe.batch_norm or ("frozen" if linear else "train"),
        augment=recipe.augment or ("none" if linear else "crop"),
        seed=recipe.seed,
    )


def doubts(recipe: ResolvedRecipe) -> tuple[str, ...]:
    """Return what is allowed but seldom meant, one sentence each: very few steps, a huge batch."""
    found = []
    if recipe.batch_size > recipe.n_images:
        found.append(
            f"the batch size {recipe.batch_size} is larger than the training set"
            f" ({recipe.n_images} images): every step is over all of it"
        )
    if recipe.steps < FEW_STEPS:
        found.append(f"only {recipe.steps} optimizer steps; {_more_steps(recipe)}")
    return tuple(found)


def _more_steps(recipe: ResolvedRecipe) -> str:
    """Propose the largest power of two as batch size, else the epochs, that make 100 steps."""
    batch_size = 2 ** int(math.log2(recipe.batch_size))
    while batch_size > 1 and _steps(recipe, batch_size) < FEW_STEPS:
        batch_size //= 2
    steps = _steps(recipe, batch_size)
    if steps >= FEW_STEPS:
        return f"--batch-size {batch_size} would make {steps}"
    epochs = math.ceil(FEW_STEPS / recipe.n_images)
    return f"--batch-size 1 --epochs {epochs} would make {epochs * recipe.n_images}"


def _steps(recipe: ResolvedRecipe, batch_size: int) -> int:
    return recipe.epochs * math.ceil(recipe.n_images / batch_size)


def _refuse(faults: list[str]) -> None:
    if len(faults) == 1:
        raise RecipeError(f"recipe: {faults[0]}")
    if faults:
        raise RecipeError("\n  ".join([f"recipe: {len(faults)} keys are wrong", *faults]))
