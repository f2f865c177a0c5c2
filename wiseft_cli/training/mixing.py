"""Mixup and CutMix: blend each image with another one of its batch, and their labels alike.

The partner of an image is the one before it in the batch; the first image's is the last. Both the
partners and the random numbers are functions of the seed and the step, so the images of a step do
not depend on the number of workers, processes or forward passes. For that, a forward pass draws
the partner of its first image too (`MicroBatches`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from wiseft_cli.data.loading import ImageBatch
from wiseft_cli.training.batches import Draw, Purpose, derive_seed
from wiseft_cli.training.recipe import ResolvedRecipe


@dataclass(frozen=True)
class Mix:
    """How the images x of one step are mixed with their partners.

    Attributes:
        share: Part of x in the result, in [0, 1].
        box: Part of the image that is cut from the partner, as fractions (top, bottom, left,
            right) of the sides; None to blend whole images.
    """

    share: float
    box: tuple[float, float, float, float] | None = None


def draw_mix(recipe: ResolvedRecipe, step: int) -> Mix:
    """Draw the mix of a step.

    The share is from Beta(X, X), with X the value of `mixup` or `cutmix`; if both are on, each is
    used in half of the steps. CutMix cuts a box with 1 - share of the area and a random centre;
    parts of it may be outside the image (Zhang et al. 2018, arXiv 1710.09412; Yun et al. 2019,
    arXiv 1905.04899).
    """
    numbers = np.random.default_rng(derive_seed(recipe.seed, Purpose.MIXING, step))
    cuts = bool(recipe.cutmix) and (not recipe.mixup or numbers.random() < 0.5)
    alpha = recipe.cutmix if cuts else recipe.mixup
    share = float(numbers.beta(alpha, alpha))
    if not cuts:
        return Mix(share)
    half = 0.5 * math.sqrt(1 - share)
    (row, column) = numbers.random(2)
    return Mix(share, (row - half, row + half, column - half, column + half))


def mix_images(
    images: torch.Tensor, partners: torch.Tensor, mix: Mix
) -> tuple[torch.Tensor, float]:
    """Return the mixed images, and the part of each that is its own.

    Args:
        images: Shape (B, 3, H, W).
        partners: The partner of each.
        mix: The mix of the step.
    """
    if mix.box is None:
        return mix.share * images + (1 - mix.share) * partners, mix.share
    height, width = images.shape[2:]
    top, bottom, left, right = (
        min(max(round(fraction * side), 0), side)
        for fraction, side in zip(mix.box, (height, height, width, width), strict=True)
    )
    mixed = images.clone()
    mixed[:, :, top:bottom, left:right] = partners[:, :, top:bottom, left:right]
    return mixed, 1 - (bottom - top) * (right - left) / (height * width)


class Mixing:
    """Mixes the images of a forward pass.

    Args:
        recipe: The recipe, with mixup or cutmix.
        n_classes: Number of classes C.
    """

    def __init__(self, recipe: ResolvedRecipe, n_classes: int) -> None:
        self._recipe = recipe
        self._n_classes = n_classes

    def __call__(
        self, step: int, draws: list[Draw], batch: ImageBatch
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mixed images (B, 3, H, W) and their labels as probabilities (B, C).

        An image whose partner cannot be read stays as it is.

        Args:
            step: The step.
            draws: The partner of the first image, then the images of the pass.
            batch: The readable ones among them, in the same order.
        """
        is_readable = [draw.image not in batch.unreadable for draw in draws]
        rows = np.cumsum(is_readable) - 1
        own = [at for at in range(1, len(draws)) if is_readable[at]]
        targets = F.one_hot(batch.targets, self._n_classes).to(torch.get_default_dtype())
        if not own:
            return batch.images[:0], targets[:0]
        # A partner that cannot be read is replaced by the image itself.
        partners = [rows[at - 1] if is_readable[at - 1] else rows[at] for at in own]
        mine = torch.from_numpy(rows[own]).to(batch.images.device)
        others = torch.tensor(np.array(partners)).to(batch.images.device)
        mix = draw_mix(self._recipe, step)
        images, share = mix_images(batch.images[mine], batch.images[others], mix)
        return images, share * targets[mine] + (1 - share) * targets[others]
