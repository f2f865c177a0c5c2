"""Inputs of the fine-tuning benchmarks: random weights, and generated images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import open_clip
import torch
from PIL import Image

from wiseft_cli.checkpoint.card import Card, ClassEntry, HistoryEntry, ModelSpec
from wiseft_cli.checkpoint.writer import write_checkpoint
from wiseft_cli.model.classifier import ImageClassifier, build_classification_head, state_arrays
from wiseft_cli.model.full_clip import build_untrained_clip


def write_random_checkpoint(path: Path, *, model: str, n_classes: int = 100) -> Path:
    """Write a zero-shot checkpoint of an open_clip model with random weights."""
    config = open_clip.get_model_config(model)
    assert config is not None, model
    torch.manual_seed(0)
    visual = build_untrained_clip(config).visual
    weight = torch.nn.functional.normalize(torch.randn(n_classes, config["embed_dim"]), dim=-1)
    head = build_classification_head(100 * weight, torch.zeros(n_classes))
    size = config["vision_cfg"]["image_size"]
    card = Card(
        role="zeroshot",
        model=ModelSpec(model, None, config),
        preprocess={"size": [size, size], "mode": "RGB"},
        classes=tuple(ClassEntry(f"c{at:04}", f"class {at}") for at in range(n_classes)),
        templates=("a photo of a {}.",),
        logit_scale=100.0,
        history=(HistoryEntry("zeroshot-head", "0.1.0", {"model": model}, ()),),
    )
    write_checkpoint(path, state_arrays(ImageClassifier(visual, head)), card)
    return path


def write_images(root: Path, *, count: int, size: int, ids: list[str]) -> Path:
    """Write square images into folders named by class id: JPEG as photos are, small ones PNG.

    A coarse random pattern with a little noise; as JPEG it has about the size of a photo.
    """
    generator = np.random.default_rng(0)
    for number in range(count):
        coarse = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC))
        noise = generator.integers(-12, 13, smooth.shape)
        pixels = np.clip(smooth + noise, 0, 255).astype(np.uint8)
        folder = root / ids[number % len(ids)]
        folder.mkdir(parents=True, exist_ok=True)
        ending = "png" if size < 100 else "jpg"
        Image.fromarray(pixels).save(folder / f"{number:05}.{ending}")
    return root
