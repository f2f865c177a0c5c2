"""Warped glyphs and blurred images have the expected pixels."""

from __future__ import annotations

import pytest
import torch

from wiseft_cli.demo.drawing import blur, warp_masks


def test_upright_glyphs_are_centred_and_scaled():
    masks = torch.zeros(1, 1, 48, 48)
    masks[:, :, 6:42, 6:42] = 1  # a square of the size of a glyph
    zero, one = torch.zeros(1), torch.ones(1)
    placed = warp_masks(
        masks, scale=torch.tensor([0.5]), rotation=zero, shear=zero, aspect=one,
        shift=torch.zeros(1, 2), warp=zero, generator=torch.Generator(),
    )  # fmt: skip
    expected = torch.zeros(32, 32)
    expected[8:24, 8:24] = 1
    # Only the edge pixels differ, by interpolation.
    assert torch.equal(placed[0, 0, 9:23, 9:23], expected[9:23, 9:23])
    assert (placed[0, 0] - expected).abs().max() < 0.5
    assert placed.sum() == pytest.approx(256, rel=0.05)


def test_blur_keeps_the_mean_and_uses_one_sigma_per_image():
    images = torch.zeros(2, 3, 32, 32)
    images[:, :, 16, 16] = 1
    soft, softer = blur(images, torch.tensor([0.7, 1.8]))
    assert soft.sum() == pytest.approx(3, rel=1e-5)
    assert softer.sum() == pytest.approx(3, rel=1e-5)
    assert soft[0, 16, 16] > softer[0, 16, 16]
    weights = torch.exp(-(torch.arange(-3.0, 4.0) ** 2) / (2 * 0.7**2))
    weights /= weights.sum()
    assert torch.allclose(soft[0, 13:20, 13:20], torch.outer(weights, weights), atol=1e-6)
