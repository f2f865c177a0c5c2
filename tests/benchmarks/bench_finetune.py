"""Images per second of fine-tuning: this package against a plain torch loop, and its ceiling.

    python tests/benchmarks/bench_finetune.py CHECKPOINT [--images 512] [--batch-size 64]
        [--workers 0] [--repeats 6] [--threads 1] [--image-size 28]

Three sides share the model, the batch size, the transform, the number of workers and the images
(random PNGs, made on the spot): the package's loop with its seeding and checks, a loop written
out with the same DataLoader, and the same loop on one batch of ready tensors, which is what the
hardware gives when images cost nothing. The sides take turns in one process, so that load on
the machine meets all. Printed are the medians over the rounds of the seconds and of the ratio to
the plain loop of the same round, and the same ratio of this process's CPU time, which a loaded
machine disturbs less (workers are not in it). The start of worker processes counts.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from wiseft_cli.data.dataset import ImageDataset, collate_images
from wiseft_cli.data.image_folder import list_image_folder
from wiseft_cli.model.classifier import ImageClassifier, load_classifier
from wiseft_cli.model.transforms import train_transform
from wiseft_cli.training.batches import MicroBatches
from wiseft_cli.training.images import load_batches
from wiseft_cli.training.optimization import build_optimizer, run_steps
from wiseft_cli.training.recipe import Recipe, ResolvedRecipe, resolve

CPU = torch.device("cpu")


def write_random_images(root: Path, *, count: int, size: int, n_classes: int) -> Path:
    """Write `count` square PNGs into folders named by class index."""
    generator = np.random.default_rng(0)
    for number in range(count):
        folder = root / f"{number % n_classes:04}"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 256, (size, size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return root


def run_ours(
    classifier: ImageClassifier, images: ImageDataset, recipe: ResolvedRecipe, workers: int
) -> None:
    """One run of the package's own loop."""
    batches = load_batches(
        images, MicroBatches(recipe), seed=recipe.seed, workers=workers, device=CPU
    )
    optimizer = build_optimizer(list(classifier.parameters()), recipe)
    with torch.random.fork_rng(devices=[]):
        for _ in run_steps(classifier, optimizer, batches, recipe, device=CPU):
            pass


def run_plain(
    classifier: ImageClassifier, images: ImageDataset, recipe: ResolvedRecipe, workers: int
) -> None:
    """The same steps as anyone would write them."""
    loader = DataLoader(
        images,
        batch_size=recipe.batch_size,
        shuffle=True,
        num_workers=workers,
        collate_fn=collate_images,
        persistent_workers=workers > 0,
    )
    batches = ((b.images, b.targets) for _ in range(recipe.epochs) for b in loader)
    train_plainly(classifier, batches)


def run_ready(
    classifier: ImageClassifier, images: ImageDataset, recipe: ResolvedRecipe, workers: int
) -> None:
    """The plain loop on the first batch's tensors, again and again."""
    batch = collate_images([images[index] for index in range(recipe.batch_size)])
    train_plainly(classifier, ((batch.images, batch.targets) for _ in range(recipe.steps)))


def train_plainly(classifier: ImageClassifier, batches) -> None:  # type: ignore[no-untyped-def]
    parameters = list(classifier.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=3e-5, weight_decay=0.1)
    criterion = torch.nn.CrossEntropyLoss()
    for images, targets in batches:
        optimizer.zero_grad()
        loss = criterion(classifier(images), targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        loss.item()


SIDES: dict[str, Callable[[ImageClassifier, ImageDataset, ResolvedRecipe, int], None]] = {
    "wiseft": run_ours,
    "plain loop": run_plain,
    "ready tensors": run_ready,
}


@dataclass(frozen=True)
class Cost:
    """What one run took: seconds on the clock, and CPU seconds of this process."""

    wall: float
    cpu: float


def compare(options: argparse.Namespace, folder: Path) -> dict[str, list[Cost]]:
    """Return what each side took in each round."""
    torch.set_num_threads(options.threads)
    classifier, card = load_classifier(options.checkpoint)
    classifier.train()
    root = write_random_images(
        folder, count=options.images, size=options.image_size, n_classes=len(card.classes)
    )
    image_set = list_image_folder(root)
    images = ImageDataset(
        image_set,
        [int(record.label) for record in image_set.records],
        train_transform(card.preprocess or {}, augment="crop"),
    )
    recipe = resolve(Recipe(epochs=options.epochs, batch_size=options.batch_size), options.images)
    orders = list(itertools.permutations(SIDES))
    costs: dict[str, list[Cost]] = {side: [] for side in SIDES}
    for repeat in range(options.repeats + 1):
        # Every order in turn: a side also pays for what the one before it left behind.
        sides = orders[repeat % len(orders)]
        for side in sides:
            wall, cpu = time.perf_counter(), time.process_time()
            SIDES[side](classifier, images, recipe, options.workers)
            if repeat:  # the first round warms up
                cost = Cost(time.perf_counter() - wall, time.process_time() - cpu)
                costs[side].append(cost)
    return costs


def main(words: list[str] | None = None) -> dict[str, list[Cost]]:
    """Print the table and return what each side took in each round."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    for name, default in (
        ("images", 512),
        ("batch-size", 64),
        ("epochs", 2),
        ("workers", 0),
        ("repeats", 6),
        ("threads", 1),
        ("image-size", 28),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as folder:
        costs = compare(options, Path(folder))
    for side, rounds in costs.items():
        pairs = list(zip(costs["plain loop"], rounds, strict=True))
        seconds = statistics.median(cost.wall for cost in rounds)
        wall = statistics.median(plain.wall / own.wall for plain, own in pairs)
        cpu = statistics.median(plain.cpu / own.cpu for plain, own in pairs)
        rate = options.images * options.epochs / seconds
        print(
            f"{side:14} {seconds:8.3f} s {rate:9.1f} images/s,"
            f" {wall:.3f} of the plain loop ({cpu:.3f} by CPU time)"
        )
    return costs


@pytest.mark.benchmark
def test_fine_tuning_is_as_fast_as_a_plain_loop(tmp_path: Path) -> None:
    from tests.training.tiny import write_zeroshot

    costs = main([str(write_zeroshot(tmp_path / "zeroshot.safetensors"))])
    assert all(len(rounds) == 6 for rounds in costs.values())


if __name__ == "__main__":
    main()
