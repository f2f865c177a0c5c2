"""Methods that make better end points for a merge; each is off by default.

Every method compares with the anchor, the weights theta_0 that the run starts from. Two kinds act
on the weights: L2-SP on their gradients, SPD on their update. Distillation, CAR-FT and Lipsum-FT
add to the loss. The moving average of the weights has no influence on the run.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F

from wiseft_cli.errors import RecipeError
from wiseft_cli.merging.layers import find_block
from wiseft_cli.model.classifier import ImageClassifier
from wiseft_cli.training.recipe import ResolvedRecipe

if TYPE_CHECKING:
    from wiseft_cli.training.text import TextGuide

USES_ANCHOR = ("l2_sp", "spd", "distill", "car_ft", "lipsum_ft")
"""Recipe keys of methods that need the anchor."""

ADDS_LOSS = ("distill", "car_ft", "lipsum_ft")
"""Recipe keys of methods that add to the loss of each image."""

Tensors = Sequence[torch.Tensor]


class Outputs(NamedTuple):
    """The result of a forward pass: logits (B, C), and L2-normalized features (B, D)."""

    logits: torch.Tensor
    features: torch.Tensor


def forward_outputs(
    classifier: ImageClassifier, images: torch.Tensor, *, precision: str
) -> Outputs:
    """Return logits and features of preprocessed images (B, 3, H, W)."""
    features = classifier.encode_image(images, precision=precision)
    return Outputs(classifier.classification_head(features), features)


class AddedLoss:
    """The loss of an image besides cross-entropy.

    Distillation: X * KL(p_0 || p), the divergence of the predictions p from those of the anchor,
    p_0, at temperature 1 (Hinton et al. 2015, arXiv 1503.02531).

    CAR-FT: the same divergence of the distributions over the contexts, softmax(s * f @ T_c) of the
    features f, the features T_c of the class-free prompts, and s = exp(logit_scale) (Mao et al.
    2022, arXiv 2211.16175).

    Lipsum-FT: X / (2 K) times the sum over K random texts t of (s * f @ t - s * f_0 @ t)^2 (Nam et
    al. 2024, arXiv 2404.00860).

    Args:
        recipe: The strengths.
        anchor: The classifier at theta_0; it is put into evaluation mode.
        guide: Text features, for CAR-FT and Lipsum-FT.
    """

    def __init__(
        self, recipe: ResolvedRecipe, anchor: ImageClassifier, guide: TextGuide | None = None
    ) -> None:
        self._recipe = recipe
        self._anchor = anchor.eval().requires_grad_(False)
        self._guide = guide
        self._texts: tuple[int, torch.Tensor] | None = None

    def __call__(self, outputs: Outputs, images: torch.Tensor, step: int) -> torch.Tensor:
        """Return the sum over the images of a pass, shape ().

        Args:
            outputs: Of the classifier that trains.
            images: The same images (B, 3, H, W).
            step: The step, which decides the random texts.
        """
        recipe, guide = self._recipe, self._guide
        with torch.no_grad():
            before = forward_outputs(self._anchor, images, precision=recipe.precision)
        total = outputs.logits.new_zeros(())
        if recipe.distill:
            total = total + recipe.distill * divergence(before.logits, outputs.logits)
        if recipe.car_ft and guide and guide.contexts is not None:
            contexts = guide.scale * guide.contexts.to(before.features.dtype).T
            total = total + recipe.car_ft * divergence(
                before.features @ contexts, outputs.features @ contexts
            )
        if recipe.lipsum_ft and guide:
            texts = self._random_texts(guide, step).to(before.features.dtype)
            changes = guide.scale * (outputs.features - before.features) @ texts.T
            total = total + recipe.lipsum_ft * changes.square().sum() / (2 * len(texts))
        return total

    def _random_texts(self, guide: TextGuide, step: int) -> torch.Tensor:
        """Return the texts of a step; all passes of the step share them."""
        if self._texts is None or self._texts[0] != step:
            self._texts = step, guide.random_features(self._recipe.seed, step)
        return self._texts[1]


def divergence(target_logits: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Return the sum over rows of KL(softmax(target_logits) || softmax(logits)), shape ().

    Args:
        target_logits: Shape (B, K).
        logits: Shape (B, K).
    """
    return F.kl_div(
        F.log_softmax(logits, dim=1),
        F.log_softmax(target_logits, dim=1),
        reduction="sum",
        log_target=True,
    )


class AnchoredWeights:
    """The trainable weights theta of a run, and the anchor theta_0 of each.

    Args:
        recipe: The strengths of L2-SP and SPD.
        weights: The trainable parameters.
        anchors: A tensor of the same shape for each.
    """

    def __init__(
        self, recipe: ResolvedRecipe, weights: Sequence[torch.nn.Parameter], anchors: Tensors
    ) -> None:
        self._l2_sp, self._spd = recipe.l2_sp, recipe.spd
        self._weights, self._anchors = weights, anchors
        self._distances: Tensors = ()
        self._rises: Tensors = ()

    @torch.no_grad()
    def add_gradients(self) -> None:
        """Add the gradient of the L2-SP term, X * (theta - theta_0), to each gradient.

        The term is X/2 * ||theta - theta_0||^2 (Li et al. 2018, arXiv 1802.01483).
        """
        if not self._l2_sp:
            return
        for weight, anchor in zip(self._weights, self._anchors, strict=True):
            if weight.grad is not None:
                weight.grad.add_(weight - anchor, alpha=self._l2_sp)

    @torch.no_grad()
    def before_update(self) -> None:
        """Remember what SPD compares the update with: the distances and the gradients."""
        if self._spd:
            deviations = self._deviations()
            self._distances = torch._foreach_norm(deviations)
            self._rises = [
                deviation.new_zeros(()) if weight.grad is None else (weight.grad * deviation).sum()
                for weight, deviation in zip(self._weights, deviations, strict=True)
            ]

    @torch.no_grad()
    def after_update(self) -> None:
        """Pull tensors back towards their anchors, by SPD.

        A tensor is pulled if the loss rises along its deviation, <g, theta - theta_0> > 0, by the
        share X * clip((d_new - d_old) / d_new, 0, 1) of its new deviation, where d is its norm
        (Tian et al. 2024, arXiv 2411.01713).
        """
        if not self._spd:
            return
        deviations = self._deviations()
        distances = torch._foreach_norm(deviations)
        rows = (self._weights, deviations, distances, self._distances, self._rises)
        for weight, deviation, new, old, rise in zip(*rows, strict=True):
            share = ((new - old) / new).clamp(0, 1)  # NaN at the anchor itself, where new is 0
            share = torch.where((rise > 0) & (new > 0), self._spd * share, torch.zeros_like(share))
            weight.sub_(share * deviation)

    def _deviations(self) -> list[torch.Tensor]:
        return list(torch._foreach_sub(list(self._weights), list(self._anchors)))


@torch.no_grad()
def update_average(
    average: Mapping[str, torch.Tensor],
    weights: Mapping[str, torch.Tensor],
    *,
    steps_done: int,
    half_life: int,
) -> None:
    """Move the average of the weights towards the weights after a step.

    With the decay d = 2^(-1/half_life), the average after t steps is the sum of d^(t-s) * theta_s
    over the steps s = 1..t, divided by the sum of d^(t-s). Thus it is debiased: theta_0 has no
    part in it. Integers are copied.

    Args:
        average: Tensors by name, which are changed; their values do not matter before step 1.
        weights: The weights after the step.
        steps_done: Number of the step, from 1.
        half_life: In steps.
    """
    log_decay = -math.log(2) / half_life
    share = math.expm1(log_decay) / math.expm1(steps_done * log_decay)
    floats = [name for name, tensor in average.items() if tensor.is_floating_point()]
    torch._foreach_lerp_([average[at] for at in floats], [weights[at] for at in floats], share)
    for name in average.keys() - set(floats):
        average[name].copy_(weights[name])


_STEM = r"visual\.(trunk\.)?(conv\d|bn\d|stem|patch\w*|\w*embed\w*|\w*token\w*|ln_pre|norm_pre)\b"


def layer_lr_scales(names: Iterable[str], decay: float) -> list[float]:
    """Return the factor on the learning rate of each tensor: decay^(L + 1 - layer).

    The stem is layer 0, the L blocks are layers 1 to L, and all that follows them, head included,
    is layer L + 1 and has the factor 1 (Bao et al. 2022, arXiv 2106.08254).

    Args:
        names: Names of tensors of a classifier, at least one of each block.
        decay: Factor per layer.
    Raises:
        RecipeError: No name has the number of a block.
    """
    names = list(names)
    blocks = _paths_of_blocks(names)
    order = sorted({block for block in blocks if block is not None})
    if not order:
        raise RecipeError(
            "layer_decay: the image encoder has no numbered blocks",
            hint="train without it; --lr applies to all layers",
        )
    layers = []
    for name, block in zip(names, blocks, strict=True):
        is_stem = block is None and re.match(_STEM, name)
        layers.append(0 if is_stem else len(order) + 1 if block is None else order.index(block) + 1)
    return [decay ** (len(order) + 1 - layer) for layer in layers]


def _paths_of_blocks(names: Sequence[str]) -> list[tuple[int, ...] | None]:
    """Return the numbers of every tensor's block, outermost first; None outside blocks."""
    found = [find_block(name) for name in names]
    stages = {block.path[:end] for block in found if block for end in range(1, len(block.path))}
    paths: list[tuple[int, ...] | None] = []
    for block in found:
        path = block.path if block else None
        while path in stages:  # a tensor of a stage outside its blocks belongs to its first block
            path = (*path, 0)
        paths.append(path)
    return paths
