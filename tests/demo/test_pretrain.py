"""Pretraining is reproducible, its loss decreases, and open_clip loads its output."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import open_clip
import pytest
import torch
import torch.nn.functional as F

from tests.demo.makers.glyphs import GlyphBank
from tests.demo.makers.pretrain import GROUP_SIZE, grouped_contrastive_loss, pretrain


@dataclass(frozen=True)
class Run:
    folder: Path
    lines: list[str]

    @property
    def text_loss(self) -> float:
        return float(self.lines[0].rsplit(" ", 1)[1])


@pytest.fixture(scope="module")
def short_run(glyph_bank: GlyphBank, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two steps of each stage with seed 0."""
    run = Run(tmp_path_factory.mktemp("pretrained"), [])
    pretrain(glyph_bank, run.folder, steps=2, text_steps=2, on_progress=run.lines.append)
    return run


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_open_clip_loads_the_pretrained_resnet(short_run: Run):
    check_that_open_clip_loads(short_run)


def test_open_clip_loads_the_pretrained_vit(glyph_bank: GlyphBank, tmp_path: Path):
    run = Run(tmp_path, [])
    pretrain(
        glyph_bank,
        tmp_path,
        architecture="vit",
        steps=2,
        text_steps=2,
        on_progress=run.lines.append,
    )
    check_that_open_clip_loads(run)


def check_that_open_clip_loads(run: Run) -> None:
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{run.folder}")
    assert model.eval().encode_image(torch.zeros(1, 3, 32, 32)).shape == (1, 64)
    assert run.lines[-1].startswith("step 2/2: loss ")


def test_weights_depend_on_the_seed_only(short_run: Run, glyph_bank: GlyphBank, tmp_path: Path):
    for name, seed in (("again", 0), ("other", 1)):
        pretrain(glyph_bank, tmp_path / name, steps=2, text_steps=2, seed=seed)
    first, again, other = map(digests, (short_run.folder, tmp_path / "again", tmp_path / "other"))
    assert sorted(first) == ["bpe.txt.gz", "open_clip_config.json", "open_clip_model.safetensors"]
    assert first == again
    assert first["open_clip_model.safetensors"] != other["open_clip_model.safetensors"]


def test_loss_of_the_text_tower_decreases_without_touching_the_global_random_state(
    short_run: Run, glyph_bank: GlyphBank, tmp_path: Path
):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    longer = Run(tmp_path, [])
    pretrain(glyph_bank, tmp_path, steps=1, text_steps=12, on_progress=longer.lines.append)
    assert torch.equal(torch.rand(3), expected)
    assert longer.text_loss < 0.8 * short_run.text_loss


def test_loss_is_the_mean_of_open_clips_loss_over_groups():
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
