"""Distribution shifts of digits: what the demo tests on besides its own distribution.

Two kinds, never averaged without saying so. Independent sets are other digits altogether: other
people's handwriting, fonts. Derived sets are the in-distribution test images, altered. Colour,
inversion, noise and rotation are alterations the embedded model saw in pretraining, on characters
of fonts; none of them was seen in fine-tuning. Labels never change.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from wiseft_cli.demo.attributes import (
    COLORS,
    SOLID,
    TEXTURE_NAMES,
    sample_contrasting_colors,
)
from wiseft_cli.demo.synthesis import IMAGE_SIZE, blur, render_background, warp_masks

FONT_SCALE = 0.75  # of the picture's side


def enlarge_optdigits(images: Tensor) -> Tensor:
    """8 x 8 counts to the model's size: 28 x 28 by cubic interpolation, 2 pixels of border.

    Args:
        images: Gray in [0, 1], shape (N, 1, 8, 8).
    Returns:
        Gray in [0, 1], shape (N, 1, 32, 32).
    """
    large = F.interpolate(images, size=(28, 28), mode="bicubic", align_corners=False)
    return F.pad(large.clamp(0, 1), (2, 2, 2, 2))


def enlarge_mnist(images: Tensor) -> Tensor:
    """28 x 28 to the model's size by cubic interpolation; shape (N, 1, 32, 32)."""
    size = (IMAGE_SIZE, IMAGE_SIZE)
    return F.interpolate(images, size=size, mode="bicubic", align_corners=False).clamp(0, 1)


def print_fonts(masks: Tensor, generator: torch.Generator) -> Tensor:
    """Fonts as in a book: black on white, upright, a little off centre."""
    return 1 - _place(masks, generator, rotation=0.0, shear=0.0)


def paint_fonts(masks: Tensor, generator: torch.Generator) -> Tensor:
    """Fonts as on a poster: coloured on a textured background, tilted and sheared."""
    return color(_place(masks, generator, rotation=0.2, shear=0.2), generator)


def invert(images: Tensor, generator: torch.Generator) -> Tensor:
    """Black on white."""
    return 1 - images


def color(images: Tensor, generator: torch.Generator) -> Tensor:
    """A named colour on a textured background of another; (N, 1, H, W) to (N, 3, H, W)."""
    size = len(images)
    foreground, background = sample_contrasting_colors(size, generator, min_gap=0.25)
    texture = torch.randint(len(TEXTURE_NAMES), (size,), generator=generator)
    texture[torch.rand(size, generator=generator) < 0.5] = SOLID
    ground = render_background(background, texture, generator)
    return ground * (1 - images) + COLORS[foreground][:, :, None, None] * images


def rotate(images: Tensor, generator: torch.Generator) -> Tensor:
    """20 to 45 degrees, to either side."""
    size = len(images)
    angle = (20 + 25 * torch.rand(size, generator=generator)) * math.pi / 180
    angle = angle * torch.where(torch.rand(size, generator=generator) < 0.5, -1.0, 1.0)
    cosine, sine, zero = angle.cos(), angle.sin(), torch.zeros(size)
    rows = [torch.stack([cosine, sine, zero], -1), torch.stack([-sine, cosine, zero], -1)]
    grid = F.affine_grid(torch.stack(rows, -2), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def degrade(images: Tensor, generator: torch.Generator) -> Tensor:
    """Blur of 1.3 pixels at four fifths of the contrast, and noise of a quarter of the range."""
    blurred = 0.8 * blur(images, torch.full((len(images),), 1.3))
    return blurred + 0.25 * torch.randn(images.shape, generator=generator)


def outline(images: Tensor, generator: torch.Generator) -> Tensor:
    """The rim of the strokes, one pixel wide."""
    return 1.3 * (F.max_pool2d(images, 3, 1, 1) - 1.15 * images).clamp(0, 1)


def thin(images: Tensor, generator: torch.Generator) -> Tensor:
    """Strokes one pixel thinner on each side, the rest brightened."""
    return -1.2 * F.max_pool2d(-(1.3 * images).clamp(0, 1), 3, 1, 1)


def shrink(images: Tensor, generator: torch.Generator) -> Tensor:
    """18 of 32 pixels, in the centre."""
    return F.pad(F.interpolate(images, size=(18, 18), mode="area"), (7, 7, 7, 7))


DERIVATIONS: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "inverted": invert,
    "colored": color,
    "rotated": rotate,
    "noisy": degrade,
    "outlined": outline,
    "thin": thin,
    "small": shrink,
}


def _place(masks: Tensor, generator: torch.Generator, *, rotation: float, shear: float) -> Tensor:
    """Put font masks into pictures, with random pose up to the given rotation and shear."""
    size = len(masks)

    def within(limit: float) -> Tensor:
        return limit * (2 * torch.rand(size, generator=generator) - 1)

    return warp_masks(
        masks,
        scale=torch.full((size,), FONT_SCALE),
        rotation=within(rotation),
        shear=within(shear),
        aspect=torch.ones(size),
        shift=torch.stack([within(0.05), within(0.05)], -1),
        warp=torch.zeros(size),
        generator=generator,
    )
