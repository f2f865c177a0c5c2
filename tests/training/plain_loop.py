"""Six full-batch steps of fine-tuning with torch and open_clip alone, to compare with."""

from __future__ import annotations

import math
from pathlib import Path

import open_clip
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from tests.training.tiny import CLASSES, CONFIGS
from wiseft_cli.training.batches import epoch_order
from wiseft_cli.training.recipe import Recipe, resolve

KEYS = {"epochs": 6, "batch_size": 12, "lr": 1e-3, "augment": "none"}
"""The recipe of the loop, for twelve images."""


class PlainClassifier(nn.Module):
    """An open_clip image encoder and a linear head on its normalised features."""

    def __init__(self, checkpoint: Path, family: str) -> None:
        super().__init__()
        self.visual = open_clip.CLIP(**CONFIGS[family]).visual
        self.classification_head = nn.Linear(24, len(CLASSES))
        self.load_state_dict(load_file(checkpoint))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.visual(images)
        logits: torch.Tensor = self.classification_head(
            features / features.norm(dim=-1, keepdim=True)
        )
        return logits


def load_all(train: Path, family: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the images of a folder and their class indices, sorted by path."""
    size = CONFIGS[family]["vision_cfg"]["image_size"]
    transform = open_clip.image_transform(size, is_train=False, mean=(0.5,) * 3, std=(0.25,) * 3)
    paths = sorted(train.glob("*/*.png"))
    ids = [entry.id for entry in CLASSES]
    images = torch.stack([transform(Image.open(path)) for path in paths])
    return images, torch.tensor([ids.index(path.parent.name) for path in paths])


def train_plainly(
    zeroshot: Path, train: Path, family: str, *, in_our_order: bool
) -> PlainClassifier:
    """Return the trained classifier, in torch's default precision.

    Args:
        in_our_order: Whether the images of a step have the order of our batches; otherwise they
            are sorted by path.
    """
    model = PlainClassifier(zeroshot, family).to(torch.get_default_dtype()).train()
    images, labels = load_all(train, family)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    recipe = resolve(Recipe(**KEYS), 12)
    for step in range(6):
        order = epoch_order(recipe, step) if in_our_order else torch.arange(12)
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * 0.5 * (1 + math.cos(math.pi * step / 6))
        optimizer.zero_grad()
        nn.CrossEntropyLoss()(model(images[order]), labels[order]).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model.eval()
