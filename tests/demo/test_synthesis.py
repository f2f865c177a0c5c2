"""Synthetic pictures and their captions: seeded, in range, and true to each other."""

from __future__ import annotations

import dataclasses
import random

import pytest
import torch

from wiseft_cli.demo import attributes as look
from wiseft_cli.demo.attributes import COLOR_NAMES, LUMINANCE, Attributes, sample_attributes
from wiseft_cli.demo.captions import DIGIT_NAMES, write_captions
from wiseft_cli.demo.glyphs import CHARACTERS, GlyphBank
from wiseft_cli.demo.pretrain import GROUP_SIZE, GROUPS, CaptionedPictures
from wiseft_cli.demo.synthesis import apply_stroke, blur, render_pictures, warp_masks


def many_attributes(size: int = 4000) -> Attributes:
    generator = torch.Generator().manual_seed(0)
    characters = torch.randint(len(CHARACTERS), (size,), generator=generator)
    return sample_attributes(characters, generator)


def test_the_same_seed_draws_the_same_pairs_and_another_seed_others(glyph_bank: GlyphBank):
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


def test_a_group_holds_every_digit_and_no_character_twice(glyph_bank: GlyphBank):
    drawn = CaptionedPictures.from_fonts(glyph_bank, seed=3).draw_attributes()
    for group in drawn.characters.split(GROUP_SIZE):
        assert len(set(group.tolist())) == GROUP_SIZE
        assert set(range(10)) <= set(group.tolist())


def test_foreground_and_background_can_be_told_apart():
    drawn = many_attributes()
    gap = (LUMINANCE[drawn.foreground] - LUMINANCE[drawn.background]).abs()
    assert gap.min() > 0.22


def test_captions_claim_only_what_is_true():
    drawn = many_attributes()
    claims = {
        "thin": drawn.stroke == look.THIN,
        "bold": drawn.stroke == look.BOLD,
        "outlined": drawn.stroke == look.OUTLINED,
        "pixelated": drawn.is_pixelated,
        "blurry": drawn.is_blurred,
        "noisy": drawn.is_noisy,
        "tilted": drawn.rotation.abs() > 0.35,
        "small": drawn.scale < 0.62,
        "large": drawn.scale > 0.93,
        "textured": drawn.texture == look.NOISE,
        "striped": drawn.texture == look.STRIPES,
        "checkered": drawn.texture == look.CHECKER,
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
def test_bare_captions_name_nothing_but_the_character(share: float):
    captions = write_captions(many_attributes(500), random.Random(0), bare_share=share)
    is_bare = [len(caption.split()) <= 3 and "of" not in caption.split() for caption in captions]
    assert all(is_bare) == (share == 1.0)


def test_strokes_thin_and_embolden():
    masks = torch.zeros(4, 1, 48, 48)
    masks[:, :, 10:38, 20:26] = 1
    plain, thin, bold, outlined = apply_stroke(masks, torch.arange(4))
    assert torch.equal(plain, masks[0])
    assert thin.sum() < plain.sum() < bold.sum()
    assert (outlined * masks[0]).sum() == 0
    assert outlined.sum() > 0


def test_an_upright_glyph_keeps_its_place_and_takes_its_scale():
    masks = torch.zeros(1, 1, 48, 48)
    masks[:, :, 6:42, 6:42] = 1  # a square of the glyph size
    zero, one = torch.zeros(1), torch.ones(1)
    placed = warp_masks(
        masks, scale=torch.tensor([0.5]), rotation=zero, shear=zero, aspect=one,
        shift=torch.zeros(1, 2), warp=zero, generator=torch.Generator(),
    )  # fmt: skip
    expected = torch.zeros(32, 32)
    expected[8:24, 8:24] = 1
    # Only the rim pixels differ, by interpolation.
    assert torch.equal(placed[0, 0, 9:23, 9:23], expected[9:23, 9:23])
    assert (placed[0, 0] - expected).abs().max() < 0.5
    assert placed.sum() == pytest.approx(256, rel=0.05)


def test_blur_keeps_the_mean_and_uses_each_images_own_sigma():
    images = torch.zeros(2, 3, 32, 32)
    images[:, :, 16, 16] = 1
    soft, softer = blur(images, torch.tensor([0.7, 1.8]))
    assert soft.sum() == pytest.approx(3, rel=1e-5)
    assert softer.sum() == pytest.approx(3, rel=1e-5)
    assert soft[0, 16, 16] > softer[0, 16, 16]
    weights = torch.exp(-(torch.arange(-3.0, 4.0) ** 2) / (2 * 0.7**2))
    weights /= weights.sum()
    assert torch.allclose(soft[0, 13:20, 13:20], torch.outer(weights, weights), atol=1e-6)


def test_a_gray_picture_has_no_color(glyph_bank: GlyphBank):
    generator = torch.Generator().manual_seed(0)
    drawn = sample_attributes(torch.arange(10), generator)
    gray = dataclasses.replace(drawn, is_gray=torch.ones(10, dtype=torch.bool))
    masks = torch.from_numpy(glyph_bank.masks[0, :10]).float().div(255)[:, None]
    pictures = render_pictures(masks, gray, generator)
    assert torch.equal(pictures[:, 0], pictures[:, 1])
    assert torch.equal(pictures[:, 0], pictures[:, 2])
