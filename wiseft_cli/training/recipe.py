"""The recipe of a fine-tuning run: one table with each key's range, default and help.

Every field of `Recipe` is a row of the table. Recipe files, command-line options, validation,
`--print-recipe`, the printed plan and the card are derived from it, so a new key needs its row
here and the place where it acts. The defaults are the paper's (Wortsman et al. 2021,
arXiv 2109.01903, section D.2) and those of the authors' code. No torch is needed here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from fractions import Fraction
from typing import Any

from wiseft_cli.compute.precision import PRECISIONS
from wiseft_cli.errors import RecipeError, counted
from wiseft_cli.training.recipe_keys import (
    Fault,
    RecipeKey,
    choice,
    find_contradictions,
    integer,
    number,
    parse_betas,
    parse_integer,
    parse_length,
    recipe_key,
    strength,
    switch,
)

DEFAULT_EPOCHS = 10
MAX_DEFAULT_WARMUP_STEPS = 500
FEW_STEPS = 100
SMALLEST_PROPOSED_BATCH = 8
MAX_SEED = 2**32 - 1
MAX_LR = 1e6
"""Far above any useful rate, and small enough that AdamW's step is finite in float32."""

_COMPUTED_ONCE = "each image's features are computed once"


@dataclass(frozen=True)
class Recipe:
    """The keys of a recipe; None leaves a value to `resolve`.

    Raises:
        RecipeError: Names every key that is out of range or contradicts another.
    """

    epochs: int | None = integer(
        None, "Passes over the training images.", default_text=f"{DEFAULT_EPOCHS}"
    )
    steps: int | None = integer(
        None, "Optimizer steps of the run, instead of epochs. The last epoch may be cut short."
    )
    batch_size: int = integer(
        512,
        "Images per optimizer step, over all processes. The last batch of an epoch may be smaller.",
    )
    micro_batch_size: int | None = integer(
        None,
        "Images per forward pass. Fewer images need less memory and make the same update.",
        default_text="the batch size",
    )
    lr: float = number(
        3e-5,
        "Peak learning rate.",
        is_valid=lambda lr: 0 < lr <= MAX_LR,
        expected=f"a number above 0, at most {MAX_LR:g}",
        in_plan=True,
    )
    optimizer: str = choice(
        "adamw",
        "Optimizer. Lion, from timm, takes a learning rate that is 3 to 10 times as small, and"
        " --betas 0.9 0.99 in its paper; it has no --eps.",
        ("adamw", "lion"),
        source="Loshchilov & Hutter 2019, arXiv 1711.05101; Chen et al. 2023, arXiv 2302.06675",
    )
    weight_decay: float = number(
        0.1,
        "Decoupled weight decay of every trainable tensor, biases and norms included.",
        is_valid=lambda decay: 0 <= decay < math.inf,
        expected="a number of at least 0",
        in_plan=True,
    )
    betas: tuple[float, float] = recipe_key(
        (0.9, 0.999),
        "Decay rates of the optimizer's two moments.",
        parse=parse_betas,
        is_valid=lambda betas: len(betas) == 2 and all(0 <= beta < 1 for beta in betas),
        expected="two numbers in [0, 1)",
        metavar="X X",
    )
    eps: float = number(
        1e-8,
        "Term that keeps AdamW's denominator away from zero.",
        is_valid=lambda eps: 0 < eps < math.inf,
        expected="a number above 0",
    )
    warmup: int | float | None = recipe_key(
        None,
        "Linear warm-up: a number of steps, or a fraction of the run below 1.",
        parse=parse_length,
        is_valid=lambda warmup: warmup >= 0 and (isinstance(warmup, int) or warmup < 1),
        expected="a number of steps, or a fraction of the run below 1",
        metavar="STEPS|FRACTION",
        default_text=f"0.1, at most {MAX_DEFAULT_WARMUP_STEPS} steps",
    )
    schedule: str = choice(
        "cosine",
        "Learning rate after the warm-up: a cosine to zero, or constant.",
        ("cosine", "constant"),
        in_plan=True,
    )
    clip_grad_norm: float = number(
        1.0,
        "Largest global gradient norm; larger gradients are scaled down to it. 0 for none.",
        is_valid=lambda norm: 0 <= norm < math.inf,
        expected="at least 0 (0 for none)",
        in_plan=True,
    )
    label_smoothing: float = number(
        0.0,
        "Part of the target that is spread evenly over the classes, in [0, 1).",
        is_valid=lambda share: 0 <= share < 1,
        expected="a number in [0, 1)",
        in_plan=True,
    )
    # `head` is PAINT: Ilharco et al. 2022, arXiv 2208.05592.
    freeze: str = choice(
        "none",
        "The part that is not trained. encoder: train a linear classifier on features that are"
        " computed once; head: train the image encoder alone.",
        ("none", "encoder", "head"),
    )
    batch_norm: str | None = choice(
        None,
        "Whether BatchNorm layers use the statistics of each batch, or keep their running"
        " statistics. Their affine weights train in both cases.",
        ("train", "frozen"),
        default_text="train; frozen with --freeze encoder",
        in_plan=True,
        frozen_encoder=("frozen", "the encoder is not trained"),
    )
    augment: str | None = choice(
        None,
        "Random crops of 90 to 100 % of the area, or the preprocessing of `wiseft eval`.",
        ("crop", "none"),
        default_text="crop; none with --freeze encoder",
        in_plan=True,
        frozen_encoder=("none", _COMPUTED_ONCE),
    )
    precision: str = choice(
        "fp32",
        "Precision of the image encoder's arithmetic. Weights, head and loss are always float32.",
        PRECISIONS,
    )
    grad_checkpointing: bool = switch(
        "Recompute activations in the backward pass: less memory, about a third more time.",
        frozen_encoder=(False, "no gradient passes through the encoder"),
    )
    # Methods, each off by default. `methods.py` and `optimizer.py` hold their formulas.
    min_lr: float = strength(
        "Learning rate at the end of the cosine.",
        "Loshchilov & Hutter 2017, arXiv 1608.03983",
        is_valid=lambda lr: 0 <= lr <= MAX_LR,
        expected=f"a number from 0 to {MAX_LR:g}",
    )
    layer_decay: float = strength(
        "Factor on the learning rate per block, from the head down to the first layer.",
        "Clark et al. 2020, arXiv 2003.10555; Bao et al. 2022, arXiv 2106.08254",
        off=1.0,
        is_valid=lambda decay: 0 < decay <= 1,
        expected="a number above 0, at most 1 (1 for none)",
        frozen_encoder=(1.0, "the head is the only layer that is trained"),
    )
    ema: int | float = strength(
        "Also write the moving average of the weights, as OUT-ema: its half-life in steps, or as"
        " a fraction of the run below 1.",
        "Polyak & Juditsky 1992; Wortsman et al. 2021, arXiv 2109.01903, section C.3",
        off=0,
        parse=parse_length,
        is_valid=lambda ema: ema >= 0 and (isinstance(ema, int) or ema < 1),
        expected="a number of steps, or a fraction of the run below 1 (0 for none)",
        metavar="STEPS|FRACTION",
    )
    l2_sp: float = strength(
        "Add X/2 times the squared distance from the starting weights to the loss.",
        "Li et al. 2018, arXiv 1802.01483",
    )
    spd: float = strength(
        "Pull a tensor back towards its starting weights in steps that lead away from them while"
        " the loss falls towards them; 1 is the paper's strength. It replaces weight decay.",
        "Tian et al. 2024, arXiv 2411.01713",
    )
    lp_ft: int = strength(
        "Epochs in which a linear classifier is trained first, as with --freeze encoder; both parts"
        " are then fine-tuned from it. It is kept as OUT-probe.",
        "Kumar et al. 2022, arXiv 2202.10054",
        off=0,
        parse=parse_integer,
        is_valid=lambda epochs: epochs >= 0,
        expected="an integer of at least 0 (0 for none)",
        metavar="N",
    )
    lp_lr: float = strength(
        "Peak learning rate of the linear classifier of --lp-ft.",
        "Kumar et al. 2022, arXiv 2202.10054",
        off=1e-3,
        is_valid=lambda lr: 0 < lr <= MAX_LR,
        expected=f"a number above 0, at most {MAX_LR:g}",
        default_text="0.001",
    )
    mixup: float = strength(
        "Blend images and labels with those of another image, by a share from Beta(X, X).",
        "Zhang et al. 2018, arXiv 1710.09412",
        frozen_encoder=(0.0, _COMPUTED_ONCE),
    )
    cutmix: float = strength(
        "Replace a box of each image by that of another image, and labels by area, with a share"
        " from Beta(X, X). With mixup, each is used in half of the steps.",
        "Yun et al. 2019, arXiv 1905.04899",
        frozen_encoder=(0.0, _COMPUTED_ONCE),
    )
    randaugment: int = strength(
        "Two random operations of torchvision's RandAugment on each image, with this magnitude.",
        "Cubuk et al. 2020, arXiv 1909.13719",
        off=0,
        parse=parse_integer,
        is_valid=lambda magnitude: 0 <= magnitude <= 30,
        expected="an integer from 0 to 30 (0 for none)",
        metavar="N",
        frozen_encoder=(0, _COMPUTED_ONCE),
    )
    random_erasing: float = strength(
        "Probability with which a random box of an image is set to the mean colour.",
        "Zhong et al. 2020, arXiv 1708.04896",
        is_valid=lambda probability: 0 <= probability <= 1,
        expected="a number from 0 to 1",
        frozen_encoder=(0.0, _COMPUTED_ONCE),
    )
    drop_path: float = strength(
        "Probability of leaving out the last residual branch of the encoder for an image; it"
        " grows linearly over the branches.",
        "Huang et al. 2016, arXiv 1603.09382",
        is_valid=lambda probability: 0 <= probability < 1,
        expected="a number in [0, 1)",
        frozen_encoder=(0.0, "the encoder is not trained"),
    )
    distill: float = strength(
        "Add X times the divergence of the predictions from those of the starting weights.",
        "Hinton et al. 2015, arXiv 1503.02531; Wortsman et al. 2021, arXiv 2109.01903, section C.3",
        frozen_encoder=(0.0, "the encoder is not trained"),
    )
    car_ft: float = strength(
        "Add X times the divergence of the images' distribution over contexts, the head's templates"
        " without a class, from that of the starting weights. Needs --model.",
        "Mao et al. 2022, arXiv 2211.16175",
        frozen_encoder=(0.0, "the encoder is not trained"),
    )
    lipsum_ft: float = strength(
        "Add X times half the mean squared change of the logits of 80 random texts, drawn anew for"
        " each step, from those of the starting weights. Needs --model.",
        "Nam et al. 2024, arXiv 2404.00860",
        frozen_encoder=(0.0, "the encoder is not trained"),
    )
    seed: int = integer(
        0,
        "Seed of shuffling, augmentation, random layers, --val-fraction and --shots.",
        minimum=0,
        maximum=MAX_SEED,
        in_plan=True,
    )
    deterministic: bool = switch(
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
        ema: Half-life of the average of the weights in steps; 0 for none.
    """

    n_images: int
    epochs: int
    steps: int
    micro_batch_size: int
    warmup: int
    ema: int
    batch_norm: str
    augment: str

    def __post_init__(self) -> None:
        """Accept both epochs and steps; the recipe was checked before it was resolved."""

    @property
    def methods(self) -> tuple[str, ...]:
        """Names of the methods that are on, in the order of the table."""
        return tuple(key for key, row in RECIPE_KEYS.items() if row.is_on(getattr(self, key)))

    @property
    def needs_text(self) -> bool:
        """Whether a method compares images with texts."""
        return bool(self.car_ft or self.lipsum_ft)

    @property
    def mixes_images(self) -> bool:
        """Whether each image is mixed with another one of its batch."""
        return bool(self.mixup or self.cutmix)

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
        values = {**asdict(self), "betas": list(self.betas)}
        values["warmup_steps"] = values.pop("warmup")
        del values["n_images"], values["seed"]
        off = [key for key, row in RECIPE_KEYS.items() if row.is_method and key not in self.methods]
        return {key: value for key, value in values.items() if key not in off}


def resolve(recipe: Recipe, n_images: int) -> ResolvedRecipe:
    """Choose the values that a recipe leaves open, for a training set of `n_images` images.

    The default warm-up is min(500, 10 % of the steps); the defaults of augmentation and BatchNorm
    depend on `freeze`.
    """
    steps_per_epoch = math.ceil(n_images / recipe.batch_size)
    steps = recipe.steps or (recipe.epochs or DEFAULT_EPOCHS) * steps_per_epoch
    is_probe = recipe.freeze == "encoder"
    chosen = {
        "epochs": math.ceil(steps / steps_per_epoch),
        "steps": steps,
        "warmup": _length_in_steps(recipe.warmup, steps)
        if recipe.warmup is not None
        else min(MAX_DEFAULT_WARMUP_STEPS, steps // 10),
        "ema": max(1, _length_in_steps(recipe.ema, steps)) if recipe.ema else 0,
        "micro_batch_size": recipe.micro_batch_size or recipe.batch_size,
        "batch_norm": recipe.batch_norm or ("frozen" if is_probe else "train"),
        "augment": recipe.augment or ("none" if is_probe else "crop"),
    }
    return ResolvedRecipe(n_images=n_images, **{**vars(recipe), **chosen})


def _length_in_steps(length: int | float, steps: int) -> int:
    if isinstance(length, int):
        return length
    # The decimal that was written: in binary, 0.29 of 100 steps would be 28.
    return int(Fraction(str(length)) * steps)


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
    return faults or find_contradictions(RECIPE_KEYS, values, names)


def probe_recipe(recipe: Recipe) -> Recipe:
    """Return the recipe of the linear classifier that `lp_ft` trains first.

    It has the batch size, the optimizer, the precision and the seed of the fine-tuning.
    """
    kept = "batch_size micro_batch_size optimizer weight_decay betas eps schedule clip_grad_norm"
    kept += " label_smoothing precision seed deterministic"
    values = {key: getattr(recipe, key) for key in kept.split()}
    if recipe.spd:  # the strength of SPD is in place of a decay
        values["weight_decay"] = Recipe.weight_decay
    return Recipe(epochs=recipe.lp_ft, lr=recipe.lp_lr, freeze="encoder", **values)


def recipe_warnings(recipe: ResolvedRecipe) -> tuple[str, ...]:
    """Return warnings about settings that are probably unintended: very few steps, a huge batch."""
    found = []
    if recipe.batch_size > recipe.n_images:
        found.append(
            f"the batch size {recipe.batch_size} is larger than the training set"
            f" ({recipe.n_images} images): every step uses all of it"
        )
    if recipe.warmup >= recipe.steps:
        peak = min(1.0, recipe.steps / recipe.warmup)
        found.append(
            f"the warm-up of {counted(recipe.warmup, 'step')} is not shorter than the run of"
            f" {recipe.steps}: the learning rate rises to {100 * peak:.3g} % of lr and never falls;"
            " --warmup 0.1 would be a tenth of the run"
        )
    if recipe.ema > recipe.steps:
        found.append(
            f"the half-life of ema, {recipe.ema} steps, is longer than the run of {recipe.steps}:"
            " the average is close to the plain mean of all steps"
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
