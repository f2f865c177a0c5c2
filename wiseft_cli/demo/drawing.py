"""Draw characters: named colours, textured backgrounds, affine warps and blur.

The distribution shifts of the demo and the pretraining pictures of the tiny CLIP share these
functions. All of them work on batches and draw random numbers from the given generator only.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

IMAGE_SIZE = 32  # pixels per side, the input size of the tiny CLIP
GLYPH_SHARE = 0.75  # fraction of a mask's side that its glyph spans

COLOR_NAMES = (
    "red", "green", "blue", "yellow", "orange", "purple",
    "pink", "brown", "cyan", "gray", "black", "white",
)  # fmt: skip
COLORS = torch.tensor(
    [
        (0.85, 0.10, 0.10), (0.10, 0.65, 0.20), (0.10, 0.20, 0.85), (0.95, 0.85, 0.10),
        (0.95, 0.50, 0.05), (0.50, 0.10, 0.65), (0.95, 0.55, 0.70), (0.45, 0.25, 0.10),
        (0.10, 0.80, 0.85), (0.50, 0.50, 0.50), (0.03, 0.03, 0.03), (0.97, 0.97, 0.97),
    ]
)  # fmt: skip
"""RGB in [0, 1], shape (12, 3)."""
LUMINANCE = COLORS @ torch.tensor([0.30, 0.59, 0.11])

SOLID, GRADIENT, NOISE, STRIPES, CHECKER = range(5)
TEXTURE_NAMES = ("solid", "gradient", "textured", "striped", "checkered")


def sample_contrasting_colors(
    size: int, generator: torch.Generator, *, min_gap: float
) -> tuple[Tensor, Tensor]:
    """Sample pairs of colours whose luminances differ by more than `min_gap`.

    Returns:
        Two tensors of indices into `COLORS`, each of shape (size,), int64.
    """
    first, second = torch.meshgrid(
        torch.arange(len(COLORS)), torch.arange(len(COLORS)), indexing="ij"
    )
    allowed = (LUMINANCE[first] - LUMINANCE[second]).abs() > min_gap
    pairs = torch.stack([first[allowed], second[allowed]])
    chosen = pairs[:, torch.randint(pairs.shape[1], (size,), generator=generator)]
    return chosen[0].clone(), chosen[1].clone()


def shaded(colors: Tensor, generator: torch.Generator) -> Tensor:
    """Return RGB values of colour indices, each slightly varied, shape (B, 3, 1, 1)."""
    shade = 0.12 * (torch.rand(len(colors), 3, generator=generator) - 0.5)
    return (COLORS[colors] + shade)[:, :, None, None]


def render_background(colors: Tensor, texture: Tensor, generator: torch.Generator) -> Tensor:
    """Render backgrounds with the given colours and textures.

    Args:
        colors: Indices into `COLORS`, shape (B,).
        texture: Indices into `TEXTURE_NAMES`, shape (B,).
        generator: Draws shades, directions, frequencies and strengths.
    Returns:
        RGB, not clamped, shape (B, 3, 32, 32).
    """
    size = len(colors)

    def between(low: float, high: float) -> Tensor:
        return (low + (high - low) * torch.rand(size, generator=generator))[:, None, None]

    axis = torch.linspace(-1, 1, IMAGE_SIZE)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    angle = between(0, math.pi)
    ramp = x * angle.cos() + y * angle.sin()
    stripes = 0.6 * torch.sign(torch.sin(ramp * between(5, 16) + between(0, 6)))
    columns, rows = torch.sin(x * between(5, 12)), torch.sin(y * between(5, 12))
    patterns = torch.stack(
        [torch.zeros_like(ramp), ramp, stripes, 0.6 * torch.sign(columns * rows)]
    )
    pattern_of_texture = torch.tensor([0, 1, 0, 2, 3])  # noise is coloured and added separately
    pattern = patterns[pattern_of_texture[texture], torch.arange(size)][:, None]
    amplitude = (torch.rand(size, 3, 1, 1, generator=generator) - 0.5) * between(0.3, 0.8)[:, None]
    noise = _smooth_noise(size, generator) * between(0.05, 0.16)[:, None]
    is_noise = (texture == NOISE)[:, None, None, None]
    return shaded(colors, generator) + amplitude * pattern + noise * is_noise


def warp_masks(
    masks: Tensor,
    *,
    scale: Tensor,
    rotation: Tensor,
    shear: Tensor,
    aspect: Tensor,
    shift: Tensor,
    warp: Tensor,
    generator: torch.Generator,
) -> Tensor:
    """Place glyphs in pictures by an affine map and a smooth random displacement.

    Args:
        masks: Coverage in [0, 1], shape (B, 1, 48, 48).
        scale: Glyph side as a fraction of the picture's side, shape (B,).
        rotation: Radians, shape (B,).
        shear: Horizontal shear, shape (B,).
        aspect: Width divided by height, shape (B,).
        shift: Offset of the centre in half picture sides, shape (B, 2).
        warp: Size of the displacement in half picture sides, shape (B,).
        generator: Draws the displacement.
    Returns:
        Coverage in [0, 1], shape (B, 1, 32, 32), averaged over 2 x 2 samples per pixel.
    """
    size, fine = len(masks), 2 * IMAGE_SIZE
    cosine, sine = rotation.cos(), rotation.sin()
    one, zero = torch.ones(size), torch.zeros(size)
    rotate = _matrix(cosine, sine, -sine, cosine)
    skew = _matrix(one, shear, zero, one)
    zoom = GLYPH_SHARE / scale
    stretch = _matrix(zoom / aspect, zero, zero, zoom * aspect)
    to_mask = stretch @ skew @ rotate  # picture coordinates to mask coordinates
    offset = -(to_mask @ shift[..., None])
    grid = F.affine_grid(
        torch.cat([to_mask, offset], -1), [size, 1, fine, fine], align_corners=False
    )
    bumps = torch.randn(size, 2, 4, 4, generator=generator)
    displacement = F.interpolate(bumps, size=(fine, fine), mode="bicubic", align_corners=True)
    grid = grid + displacement.permute(0, 2, 3, 1) * warp[:, None, None, None]
    sampled = F.grid_sample(masks, grid, padding_mode="zeros", align_corners=False)
    return F.avg_pool2d(sampled, 2).clamp(0, 1)


def blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Apply a Gaussian blur with one sigma (in pixels) per image.

    Args:
        images: Shape (B, C, H, W).
        sigma: Shape (B,).
    """
    size, channels, height, width = images.shape
    offsets = torch.arange(-3.0, 4.0)
    kernel = torch.softmax(-(offsets**2) / (2 * sigma[:, None] ** 2), dim=1)
    kernel = kernel.repeat_interleave(channels, 0)[:, None]
    groups = size * channels
    flat = F.pad(images.reshape(1, groups, height, width), (3, 3, 3, 3), mode="replicate")
    flat = F.conv2d(flat, kernel[:, :, :, None], groups=groups)
    flat = F.conv2d(flat, kernel[:, :, None, :], groups=groups)
    return flat.reshape(images.shape)


def _smooth_noise(size: int, generator: torch.Generator) -> Tensor:
    """Coarse or fine coloured noise, shape (size, 3, 32, 32)."""
    fields = []
    for cells in (3, 7):
        noise = torch.randn(size, 3, cells, cells, generator=generator)
        target = (IMAGE_SIZE, IMAGE_SIZE)
        fields.append(F.interpolate(noise, size=target, mode="bicubic", align_corners=True))
    is_fine = (torch.rand(size, generator=generator) < 0.5)[:, None, None, None]
    return torch.where(is_fine, fields[1], fields[0])


def _matrix(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """Stack four tensors of shape (B,) into matrices [[a, b], [c, d]], shape (B, 2, 2)."""
    return torch.stack([torch.stack([a, b], -1), torch.stack([c, d], -1)], -2)
