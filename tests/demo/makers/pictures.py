"""Synthetic pictures of characters with captions that are true of them.

An `Attributes` describes the appearance of a batch. `render_pictures` draws it and `write_captions`
puts it into words: a caption names the character, a digit as a word or as a numeral, and sometimes
a few attributes, but never an attribute that its picture does not have.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.demo.makers.glyphs import CHARACTERS
from wiseft_cli.demo.drawing import (
    COLOR_NAMES,
    GRADIENT,
    IMAGE_SIZE,
    SOLID,
    TEXTURE_NAMES,
    blur,
    render_background,
    sample_contrasting_colors,
    shaded,
    warp_masks,
)
from wiseft_cli.demo.embedded import DIGIT_NAMES

BLACK, WHITE = COLOR_NAMES.index("black"), COLOR_NAMES.index("white")
TEXTURE_SHARES = (0.55, 0.15, 0.14, 0.10, 0.06)

PLAIN, THIN, BOLD, OUTLINED = range(4)
STROKE_NAMES = ("plain", "thin", "bold", "outlined")
STROKE_SHARES = (0.63, 0.15, 0.15, 0.07)

PIXELATIONS = (
    (8, "bicubic"), (8, "bilinear"), (9, "nearest"), (10, "bicubic"),
    (12, "nearest"), (14, "bicubic"), (16, "bilinear"),
)  # fmt: skip
"""Side to which a picture is shrunk, and the mode by which it is enlarged again."""

OPENINGS = (
    "a photo of", "a picture of", "an image of", "a drawing of", "a sign with", "a scan of", "", "",
)  # fmt: skip


@dataclass(frozen=True)
class Attributes:
    """The appearance of B pictures; every tensor has shape (B,).

    Attributes:
        characters: Indices into `glyphs.CHARACTERS`, int64.
        stroke: Indices into `STROKE_NAMES`, int64.
        scale: Height of the glyph as a fraction of the picture's side.
        rotation: Radians.
        warp: Strength of the elastic distortion, in half picture sides.
        foreground: Indices into `COLOR_NAMES`, int64.
        background: Indices into `COLOR_NAMES`, int64.
        texture: Indices into `TEXTURE_NAMES`, int64.
        is_pixelated: Bool, like the next three.
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
    """Sample an appearance for each character.

    Args:
        characters: Indices into `glyphs.CHARACTERS`, shape (B,), int64.
        generator: The only source of randomness.
    """
    size = len(characters)

    def uniform() -> Tensor:
        return torch.rand(size, generator=generator)

    gentle = (0.16 * torch.randn(size, generator=generator)).clamp(-0.5, 0.5)
    tilted = (uniform() - 0.5) * 1.5  # up to 43 degrees
    foreground, background = _sample_colors(size, generator)
    degradation = uniform()
    return Attributes(
        characters=characters,
        stroke=_sample_categories(STROKE_SHARES, size, generator),
        scale=0.5 + 0.5 * uniform() ** 0.8,
        rotation=torch.where(uniform() < 0.15, tilted, gentle),
        warp=0.13 * uniform() * (uniform() < 0.6),
        foreground=foreground,
        background=background,
        texture=_sample_categories(TEXTURE_SHARES, size, generator),
        is_pixelated=degradation < 0.18,
        is_blurred=(degradation >= 0.18) & (degradation < 0.33),
        is_noisy=uniform() < 0.18,
        is_gray=uniform() < 0.10,
    )


def _sample_colors(size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Sample foreground and background colours.

    20 % are white on black, 15 % black on white, and the rest any two named colours with a clear
    difference in luminance.
    """
    foreground, background = sample_contrasting_colors(size, generator, min_gap=0.22)
    draw = torch.rand(size, generator=generator)
    white_on_black, black_on_white = draw < 0.20, (draw >= 0.20) & (draw < 0.35)
    foreground[white_on_black], background[white_on_black] = WHITE, BLACK
    foreground[black_on_white], background[black_on_white] = BLACK, WHITE
    return foreground, background


def _sample_categories(shares: tuple[float, ...], size: int, generator: torch.Generator) -> Tensor:
    return torch.multinomial(torch.tensor(shares), size, replacement=True, generator=generator)


def render_pictures(masks: Tensor, attributes: Attributes, generator: torch.Generator) -> Tensor:
    """Render the pictures that `attributes` describe.

    Args:
        masks: Glyph coverage in [0, 1], shape (B, 1, 48, 48).
        attributes: One value per picture.
        generator: Draws what the attributes do not determine: shear, position, shades, textures.
    Returns:
        RGB in [0, 1], shape (B, 3, 32, 32), float32.
    """
    size = len(masks)
    coverage = warp_masks(
        apply_stroke(masks, attributes.stroke),
        scale=attributes.scale,
        rotation=attributes.rotation,
        shear=0.7 * (torch.rand(size, generator=generator) - 0.5),
        aspect=(0.12 * torch.randn(size, generator=generator)).exp(),
        shift=(2 * torch.rand(size, 2, generator=generator) - 1)
        * (0.65 * (1 - attributes.scale) + 0.05)[:, None],
        warp=attributes.warp,
        generator=generator,
    )
    background = render_background(attributes.background, attributes.texture, generator)
    foreground = shaded(attributes.foreground, generator)
    is_translucent = torch.rand(size, generator=generator) < 0.3
    opacity = 1 - 0.25 * torch.rand(size, generator=generator) * is_translucent
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


def _degrade(pictures: Tensor, attributes: Attributes, generator: torch.Generator) -> Tensor:
    """Pixelate, blur, add noise and remove colour, as the attributes say."""
    size = len(pictures)
    kind = torch.randint(len(PIXELATIONS), (size,), generator=generator)
    for index, (side, mode) in enumerate(PIXELATIONS):
        chosen = attributes.is_pixelated & (kind == index)
        if chosen.any():
            small = F.interpolate(pictures[chosen], size=(side, side), mode="area")
            pictures[chosen] = F.interpolate(small, size=(IMAGE_SIZE, IMAGE_SIZE), mode=mode)
    sigma = 0.7 + 1.1 * torch.rand(size, generator=generator)
    blurred = attributes.is_blurred
    if blurred.any():
        pictures[blurred] = blur(pictures[blurred], sigma[blurred])
    strength = 0.04 + 0.2 * torch.rand(size, generator=generator)
    noise = torch.randn(pictures.shape, generator=generator) * strength[:, None, None, None]
    pictures = pictures + noise * attributes.is_noisy[:, None, None, None]
    gray = pictures.mean(1, keepdim=True).expand_as(pictures)
    return torch.where(attributes.is_gray[:, None, None, None], gray, pictures)


def write_captions(attributes: Attributes, rng: random.Random, *, bare_share: float) -> list[str]:
    """Write one caption per picture.

    Args:
        attributes: The appearance of B pictures.
        rng: Chooses the words and which attributes to mention.
        bare_share: Fraction of captions that name only the character.
    Returns:
        B captions, such as "a photo of a bold orange 4.".
    """
    captions = []
    for row, character in enumerate(attributes.characters.tolist()):
        if rng.random() < bare_share:
            captions.append(_bare_caption(character, rng))
        else:
            captions.append(_full_caption(attributes, row, character, rng))
    return captions


def _bare_caption(character: int, rng: random.Random) -> str:
    nouns = ("digit", "number", "") if character < 10 else ("letter", "")
    words = (rng.choice(("", "the", "a")), rng.choice(nouns), _name(character, rng))
    return " ".join(filter(None, words))


def _full_caption(attributes: Attributes, row: int, character: int, rng: random.Random) -> str:
    adjectives = [word for word in _adjectives(attributes, row, rng) if rng.random() < 0.4][:2]
    is_colored = not bool(attributes.is_gray[row])
    if is_colored and rng.random() < 0.35:
        adjectives.append(COLOR_NAMES[attributes.foreground[row]])
    if character < 10:
        noun = rng.choice(("digit", "number", "numeral", ""))
    else:
        noun = rng.choice(("letter", "capital letter", "character"))
    described = " ".join(filter(None, (*adjectives, noun, _name(character, rng))))
    article = "an" if described[0] in "aeiou8" else "a"
    if not adjectives and rng.random() < 0.6:
        article = "the"
    caption = " ".join(filter(None, (rng.choice(OPENINGS), article, described)))
    if is_colored and rng.random() < 0.25:
        caption += f" on a {_background_words(attributes, row)} background"
    return caption + rng.choice((".", ""))


def _adjectives(attributes: Attributes, row: int, rng: random.Random) -> list[str]:
    """Return every adjective that is true of picture `row`."""
    scale = float(attributes.scale[row])
    stroke = int(attributes.stroke[row])
    candidates = (
        (stroke != PLAIN, STROKE_NAMES[stroke]),
        (bool(attributes.is_pixelated[row]), "pixelated"),
        (bool(attributes.is_blurred[row]), "blurry"),
        (bool(attributes.is_noisy[row]), "noisy"),
        (abs(float(attributes.rotation[row])) > 0.35, "tilted"),
        (float(attributes.warp[row]) > 0.07, rng.choice(("handwritten", "wobbly"))),
        (scale < 0.62, "small"),
        (scale > 0.93, "large"),
    )
    return [word for is_true, word in candidates if is_true]


def _background_words(attributes: Attributes, row: int) -> str:
    texture = int(attributes.texture[row])
    color = COLOR_NAMES[attributes.background[row]]
    return color if texture in (SOLID, GRADIENT) else f"{TEXTURE_NAMES[texture]} {color}"


def _name(character: int, rng: random.Random) -> str:
    """Return the character, or the word for a digit."""
    if character < 10 and rng.random() < 0.5:
        return DIGIT_NAMES[character]
    return CHARACTERS[character]
