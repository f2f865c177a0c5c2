"""The recipe of a fine-tuning run: its defaults, and what it resolves to for a training set.

The defaults are the paper's: Wortsman et al. 2021, arXiv 2109.01903, section D.2, and the
authors' code for what the section leaves open. The keys' ranges are `recipe_keys.py`. It knows
neither torch nor files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

from wiseft_cli.errors import RecipeError
from wiseft_cli.training.recipe_keys import Fault, find_faults

DEFAULT_EPOCHS = 10
MAX_DEFAULT_WARMUP_STEPS = 500
FEW_STEPS = 100
SMALLEST_PROPOSED_BATCH = 8


@dataclass(frozen=True)
class Recipe:
    """What a person chooses; None leaves a key to the run (see `resolve`).

    Attributes:
        epochs: Passes over the training set; 10 where neither epochs nor steps are given.
        steps: Optimizer steps of the run, instead of epochs; the last epoch may be cut short.
        batch_size: Images of one optimizer step, over all processes; the last batch of an epoch
            may be smaller.
        micro_batch_size: Images of one forward pass; gradients are summed over a step's passes.
        lr: Peak learning rate of AdamW.
        weight_decay: Decoupled weight decay on every trained tensor, biases and norms included.
        betas: Decay rates of AdamW's two moments.
        eps: Term that keeps AdamW's denominator from zero.
        warmup: Linear warm-up: a number of steps, or a fraction of the run below 1.
        schedule: After the warm-up, `cosine` to zero or `constant`.
        clip_grad_norm: Bound of the global gradient norm; 0 for none.
        label_smoothing: Share of the target spread evenly over the classes, in [0, 1).
        freeze: `none`; `encoder` trains a linear classifier; `head` trains the image encoder
            alone (PAINT, Ilharco et al. 2022, arXiv 2208.05592).
        batch_norm: `train` as the authors' code does; `frozen` keeps the running statistics
            (the affine weights still train).
        augment: `crop` is RandomResizedCrop(0.9 to 1); `none` is the preprocessing of `eval`.
        precision: Of the image encoder's arithmetic; weights, head and loss are always float32.
        grad_checkpointing: Whether activations are computed again in the backward pass instead
            of kept: less memory, the same update, about a third more time.
        seed: Seeds shuffling, augmentation, stochastic layers, and the choice of images.
        deterministic: Whether torch is asked for deterministic algorithms; a CPU needs no asking.

    Raises:
        RecipeError: Names every key that is out of its range.
    """

    epochs: int | None = None
    steps: int | None = None
    batch_size: int = 512
    micro_batch_size: int | None = None
    lr: float = 3e-5
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    warmup: int | float | None = None
    schedule: str = "cosine"
    clip_grad_norm: float = 1.0
    label_smoothing: float = 0.0
    freeze: str = "none"
    batch_norm: str | None = None
    augment: str | None = None
    precision: str = "fp32"
    grad_checkpointing: bool = False
    seed: int = 0
    deterministic: bool = False

    def __post_init__(self) -> None:
        _refuse(find_faults(vars(self)))


@dataclass(frozen=True)
class ResolvedRecipe:
    """A recipe with nothing left open, for a training set of known size.

    Attributes:
        n_images: Size of the training set.
        epochs: Passes over the training set; `steps` may cut the last one short.
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
    schedule: str
    clip_grad_norm: float
    label_smoothing: float
    freeze: str
    batch_norm: str
    augment: str
    precision: str
    grad_checkpointing: bool
    seed: int
    deterministic: bool

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one whole pass over the training set."""
        return math.ceil(self.n_images / self.batch_size)

    @property
    def last_batch_size(self) -> int:
        """Images of the last batch of a whole epoch."""
        return self.n_images - (self.steps_per_epoch - 1) * self.batch_size

    @property
    def n_draws(self) -> int:
        """Images of the whole run, each as often as it is drawn."""
        whole, rest = divmod(self.steps, self.steps_per_epoch)
        return whole * self.n_images + min(rest * self.batch_size, self.n_images)

    def as_mapping(self) -> Mapping[str, Any]:
        """Return what the card stores: all that affects the result but the data and the seed."""
        values = {**asdict(self), "betas": list(self.betas)}
        del values["n_images"], values["seed"]
        return {**values, "optimizer": "adamw"}


def resolve(recipe: Recipe, n_images: int) -> ResolvedRecipe:
    """Settle what a recipe leaves open, for a training set of `n_images` images.

    Warm-up unset is min(500, 10 % of the steps); augmentation and BatchNorm unset follow
    `freeze`.

    Raises:
        RecipeError: The warm-up is not shorter than the run.
    """
    steps_per_epoch = math.ceil(n_images / recipe.batch_size)
    steps = recipe.steps or (recipe.epochs or DEFAULT_EPOCHS) * steps_per_epoch
    epochs = math.ceil(steps / steps_per_epoch)
    linear = recipe.freeze == "encoder"
    settled = {
        "epochs": epochs,
        "steps": steps,
        "warmup_steps": _warmup_steps(recipe, steps, n_images),
        "micro_batch_size": recipe.micro_batch_size or recipe.batch_size,
        "batch_norm": recipe.batch_norm or ("frozen" if linear else "train"),
        "augment": recipe.augment or ("none" if linear else "crop"),
    }
    kept = {key: value for key, value in vars(recipe).items() if key != "warmup"}
    return ResolvedRecipe(n_images=n_images, **{**kept, **settled})


def default_warmup_steps(steps: int) -> int:
    """Return the warm-up of a run of so many steps where none is given."""
    return min(MAX_DEFAULT_WARMUP_STEPS, steps // 10)


def _warmup_steps(recipe: Recipe, steps: int, n_images: int) -> int:
    if recipe.warmup is None:
        return default_warmup_steps(steps)
    if isinstance(recipe.warmup, float):
        # As the decimal it was written: in binary, 0.29 of 100 steps would be 28.
        return int(Fraction(str(recipe.warmup)) * steps)
    if recipe.warmup < steps:
        return recipe.warmup
    length = "" if recipe.steps else f"{recipe.epochs or DEFAULT_EPOCHS} epochs of "
    raise RecipeError(
        f"warmup is {recipe.warmup} steps, expected fewer than the run's {steps}"
        f" ({length}{n_images} images, batch size {recipe.batch_size})",
        hint="give --warmup as a fraction of the run, such as 0.1, train longer, or use smaller"
        " batches",
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
    """Propose what makes 100 steps: the largest power of two as batch size, else epochs or steps.

    No batch below 8 is proposed: few images make noisy gradients, and one has no batch statistics.
    Where the recipe counts steps, a batch size does not change how many there are.
    """
    if recipe.steps % recipe.steps_per_epoch:
        return f"--steps {FEW_STEPS} would make {FEW_STEPS}"
    batch_size = recipe.batch_size
    if batch_size > SMALLEST_PROPOSED_BATCH:
        batch_size = 2 ** int(math.log2(batch_size))
    while batch_size > SMALLEST_PROPOSED_BATCH and _steps(recipe, batch_size) < FEW_STEPS:
        batch_size //= 2
    steps = _steps(recipe, batch_size)
    if steps >= FEW_STEPS:
        return f"--batch-size {batch_size} would make {steps}"
    steps_per_epoch = math.ceil(recipe.n_images / batch_size)
    epochs = math.ceil(FEW_STEPS / steps_per_epoch)
    proposed = "" if batch_size == recipe.batch_size else f"--batch-size {batch_size} "
    return f"{proposed}--epochs {epochs} would make {epochs * steps_per_epoch}"


def _steps(recipe: ResolvedRecipe, batch_size: int) -> int:
    return recipe.epochs * math.ceil(recipe.n_images / batch_size)


def _refuse(faults: list[Fault]) -> None:
    if len(faults) == 1:
        raise RecipeError(f"recipe: {faults[0].text}")
    if faults:
        lines = [fault.text for fault in faults]
        raise RecipeError("\n  ".join([f"recipe: {len(lines)} keys are wrong", *lines]))
