"""What a synthetic picture of a character looks like, drawn at random.

One `Attributes` describes a batch. `synthesis` renders it and `captions` puts it into words, so
that a caption is true of its picture. Nothing here touches pixels or text.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

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
BLACK, WHITE = COLOR_NAMES.index("black"), COLOR_NAMES.index("white")

PLAIN, THIN, BOLD, OUTLINED = range(4)
STROKE_NAMES = ("plain", "thin", "bold", "outlined")
STROKE_SHARES = (0.63, 0.15, 0.15, 0.07)

SOLID, GRADIENT, NOISE, STRIPES, CHECKER = range(5)
TEXTURE_NAMES = ("solid", "gradient", "textured", "striped", "checkered")
TEXTURE_SHARES = (0.55, 0.15, 0.14, 0.10, 0.06)


@dataclass(frozen=True)
class Attributes:
    """The appearance of B pictures; every tensor has shape (B,).

    Attributes:
        characters: Index into `glyphs.CHARACTERS`, int64.
        stroke: Index into `STROKE_NAMES`, int64.
        scale: Height of the glyph as a fraction of the picture's side.
        rotation: Radians.
        warp: Strength of the elastic distortion, in half picture sides.
        foreground: Index into `COLOR_NAMES`, int64.
        background: Index into `COLOR_NAMES`, int64.
        texture: Index into `TEXTURE_NAMES`, int64.
        is_pixelated: Bool, as the three below.
        is_blurred: Out of focus.
        is_noisy: Gaussian pixel noise.
        is_gray: Without colour.
    """

    characters: Tensor
    stroke: Tensor
    scale: Tensor
    rotation: Tensor
    warp: Tensor
    foreground: Tensor
    background: Tensor
    texture: Tensor
    is_pixelated: Tensor
    is_blurred: Tensor
    is_noisy: Tensor
    is_gray: Tensor


def sample_attributes(characters: Tensor, generator: torch.Generator) -> Attributes:
    """Draw an appearance for each character.

    Args:
        characters: Index into `glyphs.CHARACTERS`, shape (B,), int64.
        generator: The only source of randomness.
    """
    size = len(characters)

    def uniform() -> Tensor:
        return torch.rand(size, generator=generator)

    gentle = (0.16 * torch.randn(size, generator=generator)).clamp(-0.5, 0.5)
    tilted = (uniform() - 0.5) * 1.5  # up to 43 degrees
    foreground, background = sample_colors(size, generator)
    degradation = uniform()
    return Attributes(
        characters=characters,
        stroke=_draw(STROKE_SHARES, size, generator),
        scale=0.5 + 0.5 * uniform() ** 0.8,
        rotation=torch.where(uniform() < 0.15, tilted, gentle),
        warp=0.13 * uniform() * (uniform() < 0.6),
        foreground=foreground,
        background=background,
        texture=_draw(TEXTURE_SHARES, size, generator),
        is_pixelated=degradation < 0.18,
        is_blurred=(degradation >= 0.18) & (degradation < 0.33),
        is_noisy=uniform() < 0.18,
        is_gray=uniform() < 0.10,
    )


def sample_colors(size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw (foreground, background) colours, each of shape (size,), int64.

    A fifth is white on black, 15 % black on white, the rest any two named colours that differ
    enough in luminance to be told apart.
    """
    foreground, background = sample_contrasting_colors(size, generator, min_gap=0.22)
    draw = torch.rand(size, generator=generator)
    white_on_black, black_on_white = draw < 0.20, (draw >= 0.20) & (draw < 0.35)
    foreground[white_on_black], background[white_on_black] = WHITE, BLACK
    foreground[black_on_white], background[black_on_white] = BLACK, WHITE
    return foreground, background


def sample_contrasting_colors(
    size: int, generator: torch.Generator, *, min_gap: float
) -> tuple[Tensor, Tensor]:
    """Draw two colours whose luminances differ by more than `min_gap`; shapes (size,)."""
    first, second = torch.meshgrid(
        torch.arange(len(COLORS)), torch.arange(len(COLORS)), indexing="ij"
    )
    allowed = (LUMINANCE[first] - LUMINANCE[second]).abs() > min_gap
    pairs = torch.stack([first[allowed], second[allowed]])
    chosen = pairs[:, torch.randint(pairs.shape[1], (size,), generator=generator)]
    return chosen[0].clone(), chosen[1].clone()


def _draw(shares: tuple[float, ...], size: int, generator: torch.Generator) -> Tensor:
    """Category indices drawn with the given shares, shape (size,)."""
    return torch.multinomial(torch.tensor(shares), size, replacement=True, generator=generator)
