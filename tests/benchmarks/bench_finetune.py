"""Images per second of fine-tuning: this package against a plain torch loop, and its ceiling.

    python -m tests.benchmarks.bench_finetune CHECKPOINT|MODEL [--images 512] [--image-size 28]
        [--batch-size 64] [--epochs 2] [--workers 0] [--threads 1] [--repeats 6]

MODEL is an open_clip model name; its weights are random. Three sides share the model, the
batch size, the transform, the number of workers and the generated images (JPEG from 100 pixels per
side on):

- wiseft: the command's training loop (`training/loop.py`), with its seeding and checks, its
  progress and log lines and its states at the default interval;
- plain loop: the same steps as in a script, with the same kind of DataLoader;
- ready tensors: the plain loop on one batch in memory, which is the limit of the hardware.

The sides take turns in one process, so that other load on the machine affects all of them. The
output has the medians over the rounds of the seconds and of the ratio to the plain loop of the same
round, and the same ratio of this process's CPU time, which other load affects less (workers are not
included). The start of worker processes is included.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from tests.benchmarks.finetune_inputs import write_images, write_random_checkpoint
from wiseft_cli.checkpoint.reader import read_card
from wiseft_cli.cli.finetune_log import RunLog
from wiseft_cli.cli.finetune_report import Reporter
from wiseft_cli.compute.process_group import SINGLE_PROCESS
from wiseft_cli.data.loading import ImageDataset, collate_images
from wiseft_cli.model.transforms import train_transform
from wiseft_cli.training.callbacks import Callbacks
from wiseft_cli.training.loop import train
from wiseft_cli.training.plan import DataOptions, FinetunePlan, make_plan
from wiseft_cli.training.recipe import Recipe
from wiseft_cli.training.saving import DEFAULT_INTERVAL, StateSaver
from wiseft_cli.training.state import Run, open_run


def run_ours(run: Run, plan: FinetunePlan, workers: int) -> None:
    """Run the loop of `wiseft finetune`, from its first batch to its last state."""
    saver = StateSaver(plan.output, plan.card, DEFAULT_INTERVAL, state_bytes=run.state_bytes)
    with (
        RunLog(plan.output.with_name("log.jsonl"), plan, appends=True) as log,
        torch.random.fork_rng(devices=[]),
    ):
        reporter = Reporter(plan, lambda n=1, note="": None, log)
        callbacks = Callbacks(on_step=reporter.report_step)
        assert train(run, plan, workers=workers, callbacks=callbacks, saver=saver)


def run_plain(run: Run, plan: FinetunePlan, workers: int) -> None:
    """Take the same steps in a plain loop."""
    loader = DataLoader(
        _dataset(plan),
        batch_size=plan.recipe.batch_size,
        shuffle=True,
        num_workers=workers,
        collate_fn=collate_images,
        persistent_workers=workers > 0,
    )
    epochs = range(plan.recipe.epochs)
    train_plainly(run, ((batch.images, batch.targets) for _ in epochs for batch in loader))


def run_ready(run: Run, plan: FinetunePlan, workers: int) -> None:
    """Run the plain loop on the tensors of the first batch only."""
    images = _dataset(plan)
    batch = collate_images([images[index] for index in range(plan.recipe.batch_size)])
    train_plainly(run, ((batch.images, batch.targets) for _ in range(plan.recipe.steps)))


def train_plainly(run: Run, batches: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Take AdamW steps with clipping over batches of images and class indices."""
    run.classifier.train()
    parameters = list(run.classifier.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=3e-5, weight_decay=0.1)
    criterion = torch.nn.CrossEntropyLoss()
    for images, targets in batches:
        optimizer.zero_grad()
        loss = criterion(run.classifier(images), targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        loss.item()


def _dataset(plan: FinetunePlan) -> ImageDataset:
    transform = train_transform(plan.card.preprocess or {}, augment="crop")
    return ImageDataset(plan.train.images, plan.train.targets, transform)


SIDES: dict[str, Callable[[Run, FinetunePlan, int], None]] = {
    "wiseft": run_ours,
    "plain loop": run_plain,
    "ready tensors": run_ready,
}


@dataclass(frozen=True)
class Cost:
    """Time of one run: wall-clock seconds, and CPU seconds of this process."""

    wall: float
    cpu: float


def compare(options: argparse.Namespace, folder: Path) -> dict[str, list[Cost]]:
    """Return the time of each side in each round."""
    torch.set_num_threads(options.threads)
    checkpoint = Path(options.checkpoint)
    if not checkpoint.exists():
        checkpoint = write_random_checkpoint(folder / "zeroshot", model=options.checkpoint)
    ids = [entry.id for entry in read_card(checkpoint).classes]
    write_images(folder / "train", count=options.images, size=options.image_size, ids=ids)
    plan = make_plan(
        parent=checkpoint,
        data=DataOptions(str(folder / "train")),
        output=folder / "out",
        recipe=Recipe(epochs=options.epochs, batch_size=options.batch_size),
    )
    orders = list(itertools.permutations(SIDES))
    costs: dict[str, list[Cost]] = {side: [] for side in SIDES}
    for repeat in range(options.repeats + 1):
        # Every order in turn, because a side is affected by the one before it.
        for side in orders[repeat % len(orders)]:
            run = open_run(plan, SINGLE_PROCESS)
            wall, cpu = time.perf_counter(), time.process_time()
            SIDES[side](run, plan, options.workers)
            if repeat:  # the first round warms up
                cost = Cost(time.perf_counter() - wall, time.process_time() - cpu)
                costs[side].append(cost)
    return costs


def main(words: list[str] | None = None) -> dict[str, list[Cost]]:
    """Print the table and return the time of each side in each round."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", metavar="CHECKPOINT|MODEL")
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
