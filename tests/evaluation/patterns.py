"""A classifier that recognizes a coarse pattern for each class, and pictures of the patterns.

Pictures mix the pattern of a class with noise, so that some are classified right and some wrong.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from tests.evaluation.tiny import VIT as CONFIG
from tests.evaluation.tiny import make_checkpoint, random_tensors
from wiseft_cli.checkpoint.card import ClassEntry
from wiseft_cli.checkpoint.reader import read_card
from wiseft_cli.checkpoint.writer import write_checkpoint
from wiseft_cli.model.classifier import load_classifier
from wiseft_cli.model.transforms import eval_transform

SIZE = 40


def pattern(text: str) -> npt.NDArray[np.float64]:
    """Return the coarse pattern of a text, in [0, 255]."""
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
    return np.random.default_rng(seed).uniform(0, 255, (4, 4, 3))


def picture(class_id: str, *, noise: float = 0.0, seed: str = "") -> Image.Image:
    mixed = (1 - noise) * pattern(class_id) + noise * pattern(f"{class_id} {seed}")
    coarse = Image.fromarray(mixed.round().astype(np.uint8))
    return coarse.resize((SIZE, SIZE + 2), Image.Resampling.BICUBIC)


def draw(path: Path, class_id: str, *, noise: float) -> Path:
    """Write a picture of a class with its own noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(class_id, noise=noise, seed=path.name).save(path)
    return path


def make_pattern_checkpoint(
    path: Path, classes: Sequence[ClassEntry], *, pattern_ids: Sequence[str] = (), seed: int = 1
) -> Path:
    """Write a classifier whose head holds the image features of each class's pattern.

    Args:
        pattern_ids: The class whose pattern each class has; by default its own.
    """
    make_checkpoint(path, seed=seed, classes=classes)
    classifier, card = load_classifier(path)
    transform = eval_transform(card.preprocess)
    ids = pattern_ids or [entry.id for entry in classes]
    with torch.no_grad():
        features = torch.cat(
            [
                classifier.encode_image(torch.stack([transform(picture(at)) for at in part]))
                for part in (ids[start : start + 256] for start in range(0, len(ids), 256))
            ]
        ).double()
    apart = features - features.mean(dim=0)
    weight = 50 * apart / apart.norm(dim=1, keepdim=True)
    tensors = random_tensors(CONFIG, n_classes=len(classes), seed=seed)
    tensors["classification_head.weight"] = weight.float().numpy()
    tensors["classification_head.bias"] = -(weight @ features.mean(dim=0)).float().numpy()
    write_checkpoint(path, tensors, read_card(path), force=True)
    return path


def logits_of(checkpoint: Path, images: Sequence[Path], *, border: int = 0) -> npt.NDArray[Any]:
    """Return the logits of each image over all classes, computed one image at a time."""
    classifier, card = load_classifier(checkpoint)
    transform = eval_transform(card.preprocess)
    rows = []
    for path in images:
        image = Image.open(path)
        inner = image.crop((border, border, image.width - border, image.height - border))
        with torch.no_grad():
            rows.append(classifier.eval()(transform(inner)[None])[0].numpy())
    return np.stack(rows)
