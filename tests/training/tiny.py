"""Tiny zero-shot checkpoints with random weights, and generated image folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from wiseft_cli.checkpoint.card import Card, ClassEntry, HistoryEntry, ModelSpec
from wiseft_cli.checkpoint.writer import write_checkpoint
from wiseft_cli.model.classifier import ImageClassifier, build_classification_head, state_arrays
from wiseft_cli.model.full_clip import build_untrained_clip

TEXT = {"context_length": 8, "vocab_size": 32, "width": 16, "heads": 2, "layers": 1}
VIT = {"image_size": 16, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16}
RESNET = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 16}
CONFIGS: dict[str, dict[str, Any]] = {
    "vit": {"embed_dim": 24, "vision_cfg": VIT, "text_cfg": TEXT},
    "vit-dropout": {
        "embed_dim": 24,
        "vision_cfg": {**VIT, "patch_dropout": 0.5},
        "text_cfg": TEXT,
    },
    "resnet": {"embed_dim": 24, "vision_cfg": RESNET, "text_cfg": TEXT},
}
CLASSES = (
    ClassEntry("n01", "tench"),
    ClassEntry("n02", "tree frog"),
    ClassEntry("n03", "lamp"),
)


def random_classifier(family: str, *, seed: int = 0) -> ImageClassifier:
    """A classifier over `CLASSES`; every parameter is away from its initial value."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        visual: Any = build_untrained_clip(CONFIGS[family]).visual
        with torch.no_grad():
            for parameter in visual.parameters():
                parameter += 0.05 * torch.randn(parameter.shape)
        weight = torch.nn.functional.normalize(torch.randn(len(CLASSES), 24), dim=-1)
    head = build_classification_head(10 * weight, torch.zeros(len(CLASSES)))
    return ImageClassifier(visual, head).eval()


def zeroshot_card(family: str) -> Card:
    size = CONFIGS[family]["vision_cfg"]["image_size"]
    return Card(
        role="zeroshot",
        model=ModelSpec(f"tiny-{family}", None, CONFIGS[family]),
        preprocess={"size": [size, size], "mode": "RGB", "mean": [0.5] * 3, "std": [0.25] * 3},
        classes=CLASSES,
        templates=("a photo of a {}.",),
        logit_scale=10.0,
        history=(HistoryEntry("zeroshot-head", "0.1.0", {"model": f"tiny-{family}"}, ()),),
    )


def write_zeroshot(path: Path, family: str = "vit") -> Path:
    write_checkpoint(path, state_arrays(random_classifier(family)), zeroshot_card(family))
    return path


def write_images(
    root: Path, counts: tuple[int, ...] = (4, 4, 4), *, seed: int = 0, size: int = 20
) -> Path:
    """An image folder with a subfolder for each of the first classes, named by its id."""
    generator = np.random.default_rng(seed)
    for entry, count in zip(CLASSES, counts, strict=False):
        (root / entry.id).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            pixels = generator.integers(0, 256, (size, size + 4, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / entry.id / f"{number:03}.png")
    return root
