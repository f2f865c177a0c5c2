"""Six full-batch steps of fine-tuning with torch and open_clip alone, to compare with."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
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
    zeroshot: Path,
    train: Path,
    family: str,
    *,
    in_our_order: bool = True,
    loss: Callable[[PlainClassifier, PlainClassifier, torch.Tensor], torch.Tensor] | None = None,
    mix: Callable[[int, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
    | None = None,
    after: Callable[[PlainClassifier, PlainClassifier, PlainClassifier], None] | None = None,
    lr_scale: Callable[[str], float] = lambda _: 1.0,
    min_lr: float = 0.0,
    weight_decay: float = 0.1,
) -> PlainClassifier:
    """Return the trained classifier, in torch's default precision.

    Args:
        in_our_order: Whether the images of a step have the order of our batches; otherwise they
            are sorted by path.
        loss: From the model, the model at the start and the images to what is added to the loss.
        mix: From the step, the images and the class indices to other images and probabilities.
        after: Called with the model after a step, before it (with gradients), and at the start.
        lr_scale: Factor on the learning rate by the name of a tensor.
        min_lr: Learning rate at the end of the cosine.
    """
    model = PlainClassifier(zeroshot, family).to(torch.get_default_dtype()).train()
    start = copy.deepcopy(model).eval().requires_grad_(False)
    images, labels = load_all(train, family)
    groups = [
        {"params": [parameter], "scale": lr_scale(name)}
        for name, parameter in model.named_parameters()
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, weight_decay=weight_decay)
    recipe = resolve(Recipe(**KEYS), 12)
    for step in range(6):
        order = epoch_order(recipe, step) if in_our_order else torch.arange(12)
        for group in optimizer.param_groups:
            rate = min_lr + (1e-3 - min_lr) * 0.5 * (1 + math.cos(math.pi * step / 6))
            group["lr"] = rate * group["scale"]
        optimizer.zero_grad()
        inputs, targets = images[order], labels[order]
        if mix:
            inputs, targets = mix(step, inputs, targets)
        total = nn.CrossEntropyLoss()(model(inputs), targets)
        if loss:
            total = total + loss(model, start, inputs)
        total.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        before = copy.deepcopy(model)
        for parameter, trained in zip(before.parameters(), model.parameters(), strict=True):
            parameter.grad = trained.grad.clone()
        optimizer.step()
        if after:
            after(model, before, start)
    return model.eval()
