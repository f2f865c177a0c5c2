"""Distribution shifts of digits, as functions from pictures to pictures.

There are two kinds, which are never averaged without saying so. Independent sets contain other
digits: other people's handwriting, and fonts. Derived sets are altered in-distribution test images.
The tiny CLIP saw fonts in other colours, inverted, noisy and rotated during pretraining;
fine-tuning shows it none of these. Labels never change.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from wiseft_cli.demo.drawing import (
    COLORS,
    IMAGE_SIZE,
    SOLID,
    TEXTURE_NAMES,
    blur,
    render_background,
    sample_contrasting_colors,
    warp_masks,
)

FONT_SCALE = 0.75  # fraction of the picture's side


def enlarge_optdigits(images: Tensor) -> Tensor:
    """Enlarge 8 x 8 digits to 28 x 28 by cubic interpolation and add 2 pixels of border.

    Args:
        images: Grayscale in [0, 1], shape (N, 1, 8, 8).
    Returns:
        Grayscale in [0, 1], shape (N, 1, 32, 32).
    """
    large = F.interpolate(images, size=(28, 28), mode="bicubic", align_corners=False)
    return F.pad(large.clamp(0, 1), (2, 2, 2, 2))


def enlarge_mnist(images: Tensor) -> Tensor:
    """Enlarge 28 x 28 digits by cubic interpolation to shape (N, 1, 32, 32)."""
    size = (IMAGE_SIZE, IMAGE_SIZE)
    return F.interpolate(images, size=size, mode="bicubic", align_corners=False).clamp(0, 1)


def print_fonts(masks: Tensor, generator: torch.Generator) -> Tensor:
    """Draw font masks black on white, upright and slightly off centre."""
    return 1 - _place(masks, generator, rotation=0.0, shear=0.0)


def paint_fonts(masks: Tensor, generator: torch.Generator) -> Tensor:
    """Draw font masks in colour on textured backgrounds, rotated and sheared."""
    return color(_place(masks, generator, rotation=0.2, shear=0.2), generator)


def invert(images: Tensor, generator: torch.Generator) -> Tensor:
    """Turn white on black into black on white."""
    return 1 - images


def color(images: Tensor, generator: torch.Generator) -> Tensor:
    """Colour digits and put them on a textured background of another colour.

    Args:
        images: Grayscale, shape (N, 1, H, W).
        generator: Draws colours and textures.
    Returns:
        RGB, shape (N, 3, H, W).
    """
    size = len(images)
    foreground, background = sample_contrasting_colors(size, generator, min_gap=0.25)
    texture = torch.randint(len(TEXTURE_NAMES), (size,), generator=generator)
    texture[torch.rand(size, generator=generator) < 0.5] = SOLID
    ground = render_background(background, texture, generator)
    return ground * (1 - images) + COLORS[foreground][:, :, None, None] * images


def rotate(images: Tensor, generator: torch.Generator) -> Tensor:
    """Rotate by 20 to 45 degrees in either direction."""
    size = len(images)
    angle = (20 + 25 * torch.rand(size, generator=generator)) * math.pi / 180
    angle = angle * torch.where(torch.rand(size, generator=generator) < 0.5, -1.0, 1.0)
    cosine, sine, zero = angle.cos(), angle.sin(), torch.zeros(size)
    rows = [torch.stack([cosine, sine, zero], -1), torch.stack([-sine, cosine, zero], -1)]
    grid = F.affine_grid(torch.stack(rows, -2), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def degrade(images: Tensor, generator: torch.Generator) -> Tensor:
    """Blur by 1.3 pixels, reduce the contrast to 0.8 and add noise of standard deviation 0.25."""
    blurred = 0.8 * blur(images, torch.full((len(images),), 1.3))
    return blurred + 0.25 * torch.randn(images.shape, generator=generator)


def outline(images: Tensor, generator: torch.Generator) -> Tensor:
    """Keep the edges of the strokes only, one pixel wide."""
    return 1.3 * (F.max_pool2d(images, 3, 1, 1) - 1.15 * images).clamp(0, 1)


def thin(images: Tensor, generator: torch.Generator) -> Tensor:
    """Remove one pixel on each side of the strokes and brighten the rest."""
    return -1.2 * F.max_pool2d(-(1.3 * images).clamp(0, 1), 3, 1, 1)


def shrink(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shrink to 18 of 32 pixels, centred."""
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
    """Place font masks with random rotation and shear up to the given limits."""
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
