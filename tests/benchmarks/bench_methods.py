"""Measure the time of an optimizer step with each method, as a ratio to a step without methods.

Run by hand: python tests/benchmarks/bench_methods.py [--repeats 5]
All variants take their steps in turn, in one process with one thread, on images in memory. CPU
seconds are counted, and the median ratio to the plain step of the same round is printed.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch

from wiseft_cli.data.loading import ImageBatch
from wiseft_cli.model.classifier import ImageClassifier, build_classification_head
from wiseft_cli.model.full_clip import build_untrained_clip
from wiseft_cli.model.text_encoder import TextEncoder
from wiseft_cli.training.batches import Draw
from wiseft_cli.training.methods import (
    ADDS_LOSS,
    AddedLoss,
    AnchoredWeights,
    forward_outputs,
    layer_lr_scales,
    update_average,
)
from wiseft_cli.training.mixing import Mixing
from wiseft_cli.training.modes import enable_drop_path
from wiseft_cli.training.optimizer import build_optimizer
from wiseft_cli.training.recipe import Recipe, resolve
from wiseft_cli.training.step import run_steps
from wiseft_cli.training.text import TextGuide, Vocabulary

CONFIG = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": 64, "patch_size": 16, "width": 192, "layers": 6, "head_width": 64},
    "text_cfg": {"context_length": 77, "vocab_size": 2000, "width": 128, "heads": 2, "layers": 4},
}
BATCH = 32
METHODS: dict[str, dict[str, Any]] = {
    "none": {},
    "ema": {"ema": 10},
    "l2_sp": {"l2_sp": 0.01},
    "spd": {"spd": 1.0, "weight_decay": 0.0},
    "distill": {"distill": 1.0},
    "car_ft": {"car_ft": 1.0},
    "lipsum_ft": {"lipsum_ft": 1.0},
    "layer_decay": {"layer_decay": 0.7},
    "mixup": {"mixup": 0.2},
    "cutmix": {"cutmix": 1.0},
    "drop_path": {"drop_path": 0.1},
    "lion": {"optimizer": "lion"},
}


def make_step(keys: dict[str, Any]) -> Callable[[], None]:
    """Return a function that takes one step with a method."""
    torch.manual_seed(0)
    clip: Any = build_untrained_clip(CONFIG).eval()
    head = build_classification_head(torch.randn(100, 128), torch.zeros(100))
    classifier = ImageClassifier(clip.visual, head)
    recipe = resolve(Recipe(steps=1000, batch_size=BATCH, **keys), BATCH)
    anchor = copy.deepcopy(classifier)
    if recipe.drop_path:
        enable_drop_path(classifier, recipe.drop_path)
    classifier.train()
    weights = list(classifier.parameters())
    guide = TextGuide("bench", None, 100.0, contexts=torch.randn(80, 128))
    if recipe.lipsum_ft:
        vocabulary = Vocabulary(1998, 1999, 1998, 8)
        encoder = TextEncoder(clip.requires_grad_(False))
        classifier.requires_grad_(True)
        guide = TextGuide("bench", None, 100.0, None, encoder, vocabulary)
    adds_loss = bool(set(recipe.methods) & set(ADDS_LOSS))
    named = [name for name, _ in classifier.named_parameters()]
    scales = layer_lr_scales(named, recipe.layer_decay) if recipe.layer_decay != 1 else None
    batch = ImageBatch(
        torch.randn(BATCH + 1, 3, 64, 64),
        torch.randint(100, (BATCH + 1,)),
        torch.arange(BATCH + 1),
        {},
    )
    mixing = Mixing(recipe, 100) if recipe.mixes_images else None
    draws = [Draw(0, at) for at in range(BATCH + 1)]

    def batches() -> Any:
        for step in range(recipe.steps):
            yield mixing(step, draws, batch) if mixing else (batch.images[1:], batch.targets[1:])

    steps = run_steps(
        partial(forward_outputs, classifier, precision="fp32") if adds_loss else classifier,
        build_optimizer(weights, recipe, lr_scales=scales),
        batches(),
        recipe,
        added_loss=AddedLoss(recipe, anchor, guide) if adds_loss else None,
        anchored=AnchoredWeights(recipe, weights, [at.detach() for at in anchor.parameters()])
        if recipe.l2_sp or recipe.spd
        else None,
    )
    average = {name: at.detach().clone() for name, at in classifier.named_parameters()}

    def take() -> None:
        report = next(steps)
        if recipe.ema:
            now = {name: at.detach() for name, at in classifier.named_parameters()}
            update_average(average, now, steps_done=report.step + 1, half_life=recipe.ema)

    return take


def main() -> None:
    """Print a table of ratios."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    variants = {name: make_step(keys) for name, keys in METHODS.items()}
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(repeats + 1):  # the first round warms up
        for name, take in variants.items():
            began = time.process_time()
            take()
            if number:
                seconds[name].append(time.process_time() - began)
    print(f"plain step: {median(seconds['none']):.3f} CPU seconds, batch of {BATCH}")
    for name, times in seconds.items():
        ratios = [mine / plain for mine, plain in zip(times, seconds["none"], strict=True)]
        print(f"| `{name}` | {median(ratios):.2f} |")


if __name__ == "__main__":
    main()
