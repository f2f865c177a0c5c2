"""Render synthetic pictures of characters, a batch at a time.

A glyph mask is thinned, emboldened or outlined, warped, coloured over a background and degraded,
as an `Attributes` says. Which attributes are drawn, and how they are put into words, is decided
elsewhere.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from wiseft_cli.demo import attributes as look
from wiseft_cli.demo.attributes import COLORS, Attributes

IMAGE_SIZE = 32  # pixels a side, the embedded model's input
GLYPH_SHARE = 0.75  # of a mask's side that its glyph spans, as `glyphs` draws it
PIXELATIONS = (
    (8, "bicubic"), (8, "bilinear"), (9, "nearest"), (10, "bicubic"),
    (12, "nearest"), (14, "bicubic"), (16, "bilinear"),
)  # fmt: skip
"""Pixels a side that a picture is shrunk to, and how it is enlarged again."""


def render_pictures(masks: Tensor, attributes: Attributes, generator: torch.Generator) -> Tensor:
    """Draw the pictures that `attributes` describe.

    Args:
        masks: Glyph coverage in [0, 1], shape (B, 1, 48, 48).
        attributes: One value a picture.
        generator: Draws what the attributes leave open: shear, position, shades, textures.
    Returns:
        RGB in [0, 1], shape (B, 3, 32, 32), float32.
    """
    size = len(masks)
    coverage = warp_masks(
        apply_stroke(masks, attributes.stroke),
        scale=attributes.scale,
        rotation=attributes.rotation,
        shear=0.7 * (_uniform(size, generator) - 0.5),
        aspect=(0.12 * torch.randn(size, generator=generator)).exp(),
        shift=(2 * torch.rand(size, 2, generator=generator) - 1)
        * (0.65 * (1 - attributes.scale) + 0.05)[:, None],
        warp=attributes.warp,
        generator=generator,
    )
    background = render_background(attributes.background, attributes.texture, generator)
    foreground = _shaded(attributes.foreground, generator)
    is_translucent = _uniform(size, generator) < 0.3
    opacity = 1 - 0.25 * _uniform(size, generator) * is_translucent
    coverage = coverage * opacity[:, None, None, None]
    pictures = background * (1 - coverage) + foreground * coverage
    return _degrade(pictures, attributes, generator).clamp(0, 1)


def apply_stroke(masks: Tensor, stroke: Tensor) -> Tensor:
    """Thin, embolden or outline masks; shapes (B, 1, H, W) and (B,)."""
    dilated = F.max_pool2d(masks, 3, 1, 1)
    eroded = -F.max_pool2d(-masks, 3, 1, 1)
    outline = (F.max_pool2d(masks, 5, 1, 2) - masks).clamp(0, 1)
    variants = torch.stack([masks, 0.35 * masks + 0.65 * eroded, dilated, outline])
    return variants[stroke, torch.arange(len(masks))]


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
        masks: Shape (B, 1, 48, 48).
        scale: Glyph side as a fraction of the picture's side, shape (B,).
        rotation: Radians, shape (B,).
        shear: Horizontal shear, shape (B,).
        aspect: Width over height, shape (B,).
        shift: Of the centre in half picture sides, shape (B, 2).
        warp: Size of the displacement in half picture sides, shape (B,).
        generator: Draws the displacement.
    Returns:
        Coverage in [0, 1], shape (B, 1, 32, 32), averaged over 2 x 2 samples a pixel.
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


def render_background(colors: Tensor, texture: Tensor, generator: torch.Generator) -> Tensor:
    """Backgrounds of the given colours and textures.

    Args:
        colors: Index into `COLOR_NAMES`, shape (B,).
        texture: Index into `TEXTURE_NAMES`, shape (B,).
        generator: Draws shades, directions, frequencies and strengths.
    Returns:
        RGB, not clamped, shape (B, 3, 32, 32).
    """
    size = len(colors)

    def between(low: float, high: float) -> Tensor:
        return (low + (high - low) * _uniform(size, generator))[:, None, None]

    axis = torch.linspace(-1, 1, IMAGE_SIZE)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    angle = between(0, math.pi)
    ramp = x * angle.cos() + y * angle.sin()
    stripes = 0.6 * torch.sign(torch.sin(ramp * between(5, 16) + between(0, 6)))
    columns, rows = torch.sin(x * between(5, 12)), torch.sin(y * between(5, 12))
    patterns = torch.stack(
        [torch.zeros_like(ramp), ramp, stripes, 0.6 * torch.sign(columns * rows)]
    )
    place = torch.tensor([0, 1, 0, 2, 3])[texture]  # noise is drawn apart, in colour
    pattern = patterns[place, torch.arange(size)][:, None]
    amplitude = (torch.rand(size, 3, 1, 1, generator=generator) - 0.5) * between(0.3, 0.8)[:, None]
    blotches = _blotches(size, generator) * between(0.05, 0.16)[:, None]
    is_noise = (texture == look.NOISE)[:, None, None, None]
    return _shaded(colors, generator) + amplitude * pattern + blotches * is_noise


def blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur with one sigma (pixels) an image; shapes (B, C, H, W) and (B,)."""
    size, channels, height, width = images.shape
    offsets = torch.arange(-3.0, 4.0)
    kernel = torch.softmax(-(offsets**2) / (2 * sigma[:, None] ** 2), dim=1)
    kernel = kernel.repeat_interleave(channels, 0)[:, None]
    groups = size * channels
    flat = F.pad(images.reshape(1, groups, height, width), (3, 3, 3, 3), mode="replicate")
    flat = F.conv2d(flat, kernel[:, :, :, None], groups=groups)
    flat = F.conv2d(flat, kernel[:, :, None, :], groups=groups)
    return flat.reshape(images.shape)


def _degrade(pictures: Tensor, attributes: Attributes, generator: torch.Generator) -> Tensor:
    """Pixelate, blur, add noise and drop colour, where the attributes say so."""
    size = len(pictures)
    kind = torch.randint(len(PIXELATIONS), (size,), generator=generator)
    for index, (side, mode) in enumerate(PIXELATIONS):
        chosen = attributes.is_pixelated & (kind == index)
        if chosen.any():
            small = F.interpolate(pictures[chosen], size=(side, side), mode="area")
            pictures[chosen] = F.interpolate(small, size=(IMAGE_SIZE, IMAGE_SIZE), mode=mode)
    sigma = 0.7 + 1.1 * _uniform(size, generator)
    blurred = attributes.is_blurred
    if blurred.any():
        pictures[blurred] = blur(pictures[blurred], sigma[blurred])
    strength = 0.04 + 0.2 * _uniform(size, generator)
    noise = torch.randn(pictures.shape, generator=generator) * strength[:, None, None, None]
    pictures = pictures + noise * attributes.is_noisy[:, None, None, None]
    gray = pictures.mean(1, keepdim=True).expand_as(pictures)
    return torch.where(attributes.is_gray[:, None, None, None], gray, pictures)


def _blotches(size: int, generator: torch.Generator) -> Tensor:
    """Smooth coloured noise of two grains, shape (size, 3, 32, 32)."""
    fields = []
    for cells in (3, 7):
        noise = torch.randn(size, 3, cells, cells, generator=generator)
        target = (IMAGE_SIZE, IMAGE_SIZE)
        fields.append(F.interpolate(noise, size=target, mode="bicubic", align_corners=True))
    is_fine = (_uniform(size, generator) < 0.5)[:, None, None, None]
    return torch.where(is_fine, fields[1], fields[0])


def _shaded(colors: Tensor, generator: torch.Generator) -> Tensor:
    """Named colours, each a little off, shape (B, 3, 1, 1)."""
    shade = 0.12 * (torch.rand(len(colors), 3, generator=generator) - 0.5)
    return (COLORS[colors] + shade)[:, :, None, None]


def _matrix(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """Stack four tensors of shape (B,) to matrices [[a, b], [c, d]], shape (B, 2, 2)."""
    return torch.stack([torch.stack([a, b], -1), torch.stack([c, d], -1)], -2)


def _uniform(size: int, generator: torch.Generator) -> Tensor:
    return torch.rand(size, generator=generator)
