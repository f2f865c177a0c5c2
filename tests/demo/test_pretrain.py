"""The pretraining script runs, learns, repeats itself, and its loss is CLIP's."""

from __future__ import annotations

import hashlib
from pathlib import Path

import open_clip
import pytest
import torch
import torch.nn.functional as F

from wiseft_cli.demo.glyphs import GlyphBank
from wiseft_cli.demo.pretrain import GROUP_SIZE, grouped_contrastive_loss, pretrain


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.mark.parametrize("architecture", ["resnet", "vit"])
def test_a_few_steps_write_a_folder_that_open_clip_loads(
    glyph_bank: GlyphBank, tmp_path: Path, architecture: str
):
    lines: list[str] = []
    pretrain(
        glyph_bank, tmp_path, architecture=architecture, steps=2, text_steps=2, report=lines.append
    )
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}")
    assert model.eval().encode_image(torch.zeros(1, 3, 32, 32)).shape == (1, 64)
    assert lines[-1].startswith("step 2/2: loss ")


def test_the_same_command_writes_the_same_bytes_and_another_seed_others(
    glyph_bank: GlyphBank, tmp_path: Path
):
    for name, seed in (("first", 0), ("again", 0), ("other", 1)):
        pretrain(glyph_bank, tmp_path / name, steps=2, text_steps=2, seed=seed)
    first, again, other = (digests(tmp_path / name) for name in ("first", "again", "other"))
    assert sorted(first) == ["bpe.txt.gz", "open_clip_config.json", "open_clip_model.safetensors"]
    assert first == again
    assert first["open_clip_model.safetensors"] != other["open_clip_model.safetensors"]


def test_pretraining_leaves_the_global_random_state_alone(glyph_bank: GlyphBank, tmp_path: Path):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    pretrain(glyph_bank, tmp_path, steps=1, text_steps=1)
    assert torch.equal(torch.rand(3), expected)


def test_the_text_tower_learns_in_its_warm_up(glyph_bank: GlyphBank, tmp_path: Path):
    losses = []
    for text_steps in (2, 12):
        lines: list[str] = []
        pretrain(glyph_bank, tmp_path, steps=1, text_steps=text_steps, report=lines.append)
        losses.append(float(lines[0].rsplit(" ", 1)[1]))
    assert losses[1] < 0.8 * losses[0]


def test_the_loss_is_the_mean_over_groups_of_open_clips_loss():
    generator = torch.Generator().manual_seed(0)
    left, right = (
        F.normalize(
            torch.randn(3 * GROUP_SIZE, 64, generator=generator, dtype=torch.float64), dim=1
        )
        for _ in range(2)
    )
    groups = zip(left.split(GROUP_SIZE), right.split(GROUP_SIZE), strict=True)
    expected = torch.stack([open_clip.ClipLoss()(a, b, 14.3) for a, b in groups]).mean()
    assert grouped_contrastive_loss(left, right, 14.3).item() == pytest.approx(
        expected.item(), abs=1e-12
    )
