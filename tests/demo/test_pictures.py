"""Synthetic pictures and their captions are seeded, in range and consistent."""

from __future__ import annotations

import dataclasses
import random

import pytest
import torch

from tests.demo.makers.glyphs import CHARACTERS, GlyphBank
from tests.demo.makers.pictures import (
    BOLD,
    OUTLINED,
    THIN,
    Attributes,
    apply_stroke,
    render_pictures,
    sample_attributes,
    write_captions,
)
from tests.demo.makers.pretrain import GROUP_SIZE, GROUPS, CaptionedPictures
from wiseft_cli.demo.drawing import CHECKER, COLOR_NAMES, LUMINANCE, NOISE, STRIPES
from wiseft_cli.demo.embedded import DIGIT_NAMES


def many_attributes(size: int = 4000) -> Attributes:
    generator = torch.Generator().manual_seed(0)
    characters = torch.randint(len(CHARACTERS), (size,), generator=generator)
    return sample_attributes(characters, generator)


def test_pairs_depend_on_the_seed_only(glyph_bank: GlyphBank):
    def draw(seed: int) -> tuple[torch.Tensor, list[str]]:
        source = CaptionedPictures.from_fonts(glyph_bank, seed=seed)
        drawn = source.draw_attributes()
        return source.draw_pictures(drawn), source.draw_captions(drawn, bare_share=0.1)

    (pictures, captions), (again, captions_again), (other, _) = draw(0), draw(0), draw(1)
    assert torch.equal(pictures, again)
    assert captions == captions_again
    assert not torch.equal(pictures, other)
    assert pictures.shape == (GROUPS * GROUP_SIZE, 3, 32, 32)
    assert pictures.min() >= 0
    assert pictures.max() <= 1


def test_a_group_has_every_digit_and_no_character_twice(glyph_bank: GlyphBank):
    drawn = CaptionedPictures.from_fonts(glyph_bank, seed=3).draw_attributes()
    for group in drawn.characters.split(GROUP_SIZE):
        assert len(set(group.tolist())) == GROUP_SIZE
        assert set(range(10)) <= set(group.tolist())


def test_foreground_and_background_differ_in_luminance():
    drawn = many_attributes()
    gap = (LUMINANCE[drawn.foreground] - LUMINANCE[drawn.background]).abs()
    assert gap.min() > 0.22


def test_captions_name_only_attributes_of_their_picture():
    drawn = many_attributes()
    claims = {
        "thin": drawn.stroke == THIN,
        "bold": drawn.stroke == BOLD,
        "outlined": drawn.stroke == OUTLINED,
        "pixelated": drawn.is_pixelated,
        "blurry": drawn.is_blurred,
        "noisy": drawn.is_noisy,
        "tilted": drawn.rotation.abs() > 0.35,
        "small": drawn.scale < 0.62,
        "large": drawn.scale > 0.93,
        "textured": drawn.texture == NOISE,
        "striped": drawn.texture == STRIPES,
        "checkered": drawn.texture == CHECKER,
    }
    seen = dict.fromkeys(claims, 0)
    captions = write_captions(drawn, random.Random(0), bare_share=0.1)
    for row, caption in enumerate(captions):
        for word in set(caption.rstrip(".").split()) & set(claims):
            assert claims[word][row], caption
            seen[word] += 1
        colors = [word for word in caption.rstrip(".").split() if word in COLOR_NAMES]
        truth = {COLOR_NAMES[drawn.foreground[row]], COLOR_NAMES[drawn.background[row]]}
        assert set(colors) <= truth, caption
        assert not (colors and drawn.is_gray[row]), caption
    assert min(seen.values()) > 0


def test_every_caption_names_its_character():
    drawn = many_attributes(1000)
    for character, caption in zip(
        drawn.characters.tolist(),
        write_captions(drawn, random.Random(0), bare_share=0.5),
        strict=True,
    ):
        names = {CHARACTERS[character], *DIGIT_NAMES[character : character + 1]}
        assert names & set(caption.rstrip(".").split()), caption


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_bare_captions_name_only_the_character(share: float):
    captions = write_captions(many_attributes(500), random.Random(0), bare_share=share)
    is_bare = [len(caption.split()) <= 3 and "of" not in caption.split() for caption in captions]
    assert all(is_bare) == (share == 1.0)


def test_strokes_are_thinned_emboldened_and_outlined():
    masks = torch.zeros(4, 1, 48, 48)
    masks[:, :, 10:38, 20:26] = 1
    plain, thin, bold, outlined = apply_stroke(masks, torch.arange(4))
    assert torch.equal(plain, masks[0])
    assert thin.sum() < plain.sum() < bold.sum()
    assert (outlined * masks[0]).sum() == 0
    assert outlined.sum() > 0


def test_gray_pictures_have_equal_channels(glyph_bank: GlyphBank):
    generator = torch.Generator().manual_seed(0)
    drawn = sample_attributes(torch.arange(10), generator)
    gray = dataclasses.replace(drawn, is_gray=torch.ones(10, dtype=torch.bool))
    masks = torch.from_numpy(glyph_bank.masks[0, :10]).float().div(255)[:, None]
    pictures = render_pictures(masks, gray, generator)
    assert torch.equal(pictures[:, 0], pictures[:, 1])
    assert torch.equal(pictures[:, 0], pictures[:, 2])
