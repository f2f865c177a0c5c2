"""Render the characters 0-9 and A-Z of font files into small masks.

The tiny CLIP is pretrained on the masks of most font families; the digits of held-out families are
one of the demo's test sets. Colours, backgrounds and distortions are added by `pictures`. Fonts are
not shipped, only masks rendered from them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from fontTools.ttLib import TTFont, TTLibError  # type: ignore[import-untyped]
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from wiseft_cli.errors import DatasetError

CHARACTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
MASK_SIZE = 48  # pixels per side
GLYPH_SIZE = 36  # pixels of the longer side of a glyph in its mask
FONT_SUFFIXES = (".ttf", ".otf", ".ttc")
RENDER_POINTS = 80
CANVAS = 220  # large enough for a glyph at RENDER_POINTS; glyphs that reach the edge are dropped


@dataclass(frozen=True)
class GlyphBank:
    """Character masks of F fonts.

    Attributes:
        masks: Coverage, shape (F, 36, 48, 48), uint8; axis 1 is in the order of `CHARACTERS`.
        is_legible: Whether a mask looks like its character, shape (F, 36).
        families: Family key of each font, for `split_by_family`.
        names: Full name of each font.
    """

    masks: NDArray[np.uint8]
    is_legible: NDArray[np.bool_]
    families: tuple[str, ...]
    names: tuple[str, ...]

    def select(self, rows: Sequence[int]) -> GlyphBank:
        """Return the fonts at `rows`, in that order."""
        index = np.asarray(rows, dtype=np.int64)
        return GlyphBank(
            self.masks[index],
            self.is_legible[index],
            tuple(self.families[row] for row in rows),
            tuple(self.names[row] for row in rows),
        )


@dataclass(frozen=True)
class _Font:
    family: str
    name: str
    path: Path


def render_glyph_bank(
    folders: Sequence[Path],
    *,
    max_per_family: int = 16,
    seed: int = 0,
    on_progress: Callable[[str], None] | None = None,
) -> GlyphBank:
    """Render every usable font below `folders`, sorted by family and name.

    A font is usable if it maps all 36 characters to different glyphs, all of them can be drawn,
    and enough of them resemble the average of the other fonts (`_find_legible`). The result does
    not depend on the paths of the fonts.

    Args:
        folders: Searched recursively for .ttf, .otf and .ttc files.
        max_per_family: Maximum number of fonts per family, chosen by `seed`.
        seed: Seed of that choice.
        on_progress: Called with one line of text from time to time.
    Raises:
        DatasetError: A folder is missing, or none of the fonts is usable.
    """
    fonts = _choose(_find_fonts(folders), max_per_family, seed)
    kept: list[_Font] = []
    masks: list[NDArray[np.uint8]] = []
    seen: set[bytes] = set()
    for count, font in enumerate(fonts, start=1):
        rendered = _render_font(font.path)
        if rendered is not None:
            content = hashlib.sha256(rendered[:10].tobytes()).digest()
            if content not in seen:  # the same design packaged twice
                seen.add(content)
                kept.append(font)
                masks.append(rendered)
        if on_progress is not None and count % 200 == 0:
            on_progress(f"rendered {count} of {len(fonts)} fonts")
    if not masks:
        places = ", ".join(map(str, folders))
        raise DatasetError(
            f"no usable font below {places}: {len(fonts)} font files have all of {CHARACTERS}",
            hint="install some Debian font packages, or use matplotlib's mpl-data/fonts/ttf",
        )
    bank = np.stack(masks)
    legible, is_kept = _find_legible(bank)
    whole = GlyphBank(
        bank, legible, tuple(font.family for font in kept), tuple(font.name for font in kept)
    )
    return whole.select(np.flatnonzero(is_kept).tolist())


def split_by_family(
    bank: GlyphBank, *, held_out_fraction: float = 0.15, seed: int = 0
) -> tuple[GlyphBank, GlyphBank]:
    """Split a bank into (training, held-out) fonts by a hash of the family.

    Unlike with a shuffle, adding or removing a font does not move any other family.
    """
    held_out = [_family_draw(family, seed) < held_out_fraction for family in bank.families]
    rows = range(len(held_out))
    return (
        bank.select([row for row in rows if not held_out[row]]),
        bank.select([row for row in rows if held_out[row]]),
    )


def _family_draw(family: str, seed: int) -> float:
    """Return a number in [0, 1) that depends only on the family's name and the seed."""
    digest = hashlib.sha256(f"{seed}:{family}".encode()).digest()
    return int.from_bytes(digest[:4], "big") / 2**32


def _find_fonts(folders: Sequence[Path]) -> list[_Font]:
    """Return the fonts with all characters, sorted by family and name."""
    fonts = []
    for folder in folders:
        if not folder.is_dir():
            raise DatasetError(f"{folder} is not a folder")
        for path in folder.rglob("*"):
            if path.suffix.lower() in FONT_SUFFIXES and path.is_file():
                font = _describe(path)
                if font is not None:
                    fonts.append(font)
    return sorted(fonts, key=lambda font: (font.family, font.name, font.path.name))


def _describe(path: Path) -> _Font | None:
    """Return a font's names, or None if it is broken or lacks characters."""
    try:
        with path.open("rb") as file, TTFont(file, fontNumber=0, lazy=True) as font:
            character_map = font.getBestCmap() or {}
            glyphs = {character_map.get(ord(character)) for character in CHARACTERS}
            names = font["name"]
            family = names.getDebugName(16) or names.getDebugName(1)
            full_name = names.getDebugName(4) or family
    except (TTLibError, OSError, KeyError, AssertionError):
        return None  # Debian's packages contain a few files that fontTools rejects
    if None in glyphs or len(glyphs) < len(CHARACTERS) or not family:
        return None
    # The first word ("DejaVu", "Lato") keeps a superfamily on one side of the split.
    first_word = re.match(r"[\W\d_]*([^\W\d_]+)", str(family))
    return _Font(first_word[1].lower() if first_word else str(family), str(full_name), path)


def _choose(fonts: list[_Font], max_per_family: int, seed: int) -> list[_Font]:
    """Choose at most `max_per_family` fonts per family by a hash of their names."""
    by_family: dict[str, list[_Font]] = {}
    for font in fonts:
        by_family.setdefault(font.family, []).append(font)
    chosen = []
    for members in by_family.values():
        drawn = sorted(members, key=lambda font: (_family_draw(font.name, seed), font.name))
        chosen += drawn[:max_per_family]
    return sorted(chosen, key=lambda font: (font.family, font.name, font.path.name))


def _render_font(path: Path) -> NDArray[np.uint8] | None:
    """Render all characters, shape (36, 48, 48), or return None if one cannot be drawn."""
    try:
        font = ImageFont.truetype(path, RENDER_POINTS, layout_engine=ImageFont.Layout.BASIC)
        masks = [_render_character(font, character) for character in CHARACTERS]
    except OSError:
        return None
    drawn = [mask for mask in masks if mask is not None]
    return np.stack(drawn) if len(drawn) == len(CHARACTERS) else None


def _render_character(font: ImageFont.FreeTypeFont, character: str) -> NDArray[np.uint8] | None:
    """Render one character, cropped, scaled to GLYPH_SIZE and centred in its mask."""
    canvas = Image.new("L", (CANVAS, CANVAS))
    ImageDraw.Draw(canvas).text((60, 40), character, fill=255, font=font)
    box = canvas.getbbox()
    if box is None or max(box[2] - box[0], box[3] - box[1]) < 12 or max(box[2:]) >= CANVAS - 1:
        return None
    glyph = canvas.crop(box)
    factor = GLYPH_SIZE / max(glyph.size)
    width, height = (max(1, round(side * factor)) for side in glyph.size)
    method = Image.Resampling.LANCZOS if factor < 1 else Image.Resampling.BICUBIC
    mask = Image.new("L", (MASK_SIZE, MASK_SIZE))
    mask.paste(
        glyph.resize((width, height), method),
        ((MASK_SIZE - width) // 2, (MASK_SIZE - height) // 2),
    )
    return np.asarray(mask)


def _find_legible(masks: NDArray[np.uint8]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Find masks that resemble their character, and fonts with enough of them.

    Symbol fonts map letters to ornaments. A mask is legible if its correlation with the mean mask
    of its character exceeds 0.35 and is among the six highest of all characters; a font is kept if
    it has 8 legible digits and 18 legible letters. The means are taken over kept fonts, so this is
    repeated three times.

    Args:
        masks: Shape (F, 36, 48, 48).
    Returns:
        Whether a mask is legible, shape (F, 36), and whether a font is kept, shape (F,).
    """
    n_fonts, n_characters = masks.shape[:2]
    blocks = masks.reshape(n_fonts, n_characters, 12, 4, 12, 4).mean((3, 5))
    features = _normalized(blocks.reshape(n_fonts, n_characters, 144))
    is_kept = np.ones(n_fonts, dtype=np.bool_)
    legible = np.ones((n_fonts, n_characters), dtype=np.bool_)
    for _ in range(3):
        if not is_kept.any():
            break
        means = _normalized(features[is_kept].mean(0))
        similarity = np.einsum("fcd,kd->fck", features, means)
        own = np.einsum("fcc->fc", similarity)
        rank = (similarity > own[..., None]).sum(-1)
        legible = (rank <= 5) & (own > 0.35)
        is_kept = (legible[:, :10].sum(1) >= 8) & (legible[:, 10:].sum(1) >= 18)
    return legible, is_kept


def _normalized(features: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scale rows to zero mean and unit length."""
    centred = features - features.mean(-1, keepdims=True)
    scaled: NDArray[np.float64] = centred / (np.linalg.norm(centred, axis=-1, keepdims=True) + 1e-6)
    return scaled
