"""Time of an evaluation at eleven alphas, compared with one alpha, eleven merges and plain loops.

    python tests/benchmarks/bench_eval.py ZEROSHOT FINETUNED [--images 48] [--repeats 3]
        [--size 1600] [--workers 0] [--threads 1] [--sides '1 alpha,11 alphas']
    python tests/benchmarks/bench_eval.py ZEROSHOT FINETUNED --memory

The images are JPEGs of smooth noise with SIZE pixels per side, so that decoding dominates. The
sides take turns in one process, with the same model, images, batch size and workers:

    1 alpha         one point between the two checkpoints
    11 alphas       alphas 0 to 1
    11 merges       the same rows, each merged to a file and evaluated alone
    1 checkpoint    a single checkpoint
    bare loop       torchvision's ImageFolder, a DataLoader and the forward pass
    CLIP_benchmark  its `run_classification` over that loader, if it is installed

Medians over the rounds are printed: of the seconds, and of the ratios within one round. Start and
imports of a command are not included; they would make eleven merges slower still. `--memory` runs
evaluations as commands and prints the peak memory of each process.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import default_loader

from wiseft_cli.data.image_folder import list_image_folder
from wiseft_cli.evaluation.plan import plan_jobs
from wiseft_cli.evaluation.sweep import SweepSettings, sweep
from wiseft_cli.evaluation.weight_sets import plan_weight_sets, read_checkpoints
from wiseft_cli.merging.alpha import parse_alphas
from wiseft_cli.merging.merge import merge_checkpoints
from wiseft_cli.model.classifier import load_classifier
from wiseft_cli.model.transforms import eval_transform

ELEVEN = "0:1:0.1"
BATCH_SIZE = 16


@dataclass(frozen=True)
class Setting:
    """Inputs and settings of all sides."""

    zeroshot: Path
    finetuned: Path
    images: Path
    workers: int


def write_jpegs(root: Path, labels: Sequence[str], *, count: int, size: int) -> Path:
    """Write `count` smooth images into class folders."""
    generator = np.random.default_rng(0)
    for number in range(count):
        folder = root / labels[number % len(labels)]
        folder.mkdir(parents=True, exist_ok=True)
        coarse = generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)
        picture.save(folder / f"{number}.jpg", quality=90)
    return root


def run_sweep(setting: Setting, paths: Sequence[Path], alphas: str | None = None) -> list[float]:
    rows = plan_weight_sets(read_checkpoints(paths), parse_alphas([alphas]) if alphas else ())
    jobs = plan_jobs(rows, [list_image_folder(setting.images)])
    settings = SweepSettings(BATCH_SIZE, setting.workers, torch.device("cpu"))
    return [line.value for lines in sweep(jobs, settings) for line in lines.values()]


def run_one_alpha(setting: Setting) -> list[float]:
    return run_sweep(setting, (setting.zeroshot, setting.finetuned), "0.5")


def run_eleven_alphas(setting: Setting) -> list[float]:
    return run_sweep(setting, (setting.zeroshot, setting.finetuned), ELEVEN)


def run_eleven_merges(setting: Setting) -> list[float]:
    values = []
    with tempfile.TemporaryDirectory() as folder:
        for alpha in parse_alphas([ELEVEN]):
            merged = Path(folder) / f"{alpha.text}.safetensors"
            merge_checkpoints(setting.zeroshot, setting.finetuned, [(alpha, merged)])
            values += run_sweep(setting, [merged])
    return values


def run_one_checkpoint(setting: Setting) -> list[float]:
    return run_sweep(setting, [setting.zeroshot])


def plain_loader(
    setting: Setting, open_image: Callable[[str], Any]
) -> tuple[Any, DataLoader[Any], dict[int, int]]:
    """Return the classifier, a plain loader, and the head's class of each target."""
    classifier, card = load_classifier(setting.zeroshot)
    transform = eval_transform(card.preprocess or {})
    images = ImageFolder(str(setting.images), transform, loader=open_image)
    class_of = {entry.id: at for at, entry in enumerate(card.classes)}
    targets = {at: class_of[label] for label, at in images.class_to_idx.items()}
    loader = DataLoader(images, batch_size=BATCH_SIZE, num_workers=setting.workers)
    return classifier, loader, targets


def run_bare_loop(setting: Setting) -> list[float]:
    # The transform converts to RGB after it has resized, which is cheaper.
    classifier, loader, targets = plain_loader(setting, Image.open)
    n_right = n_images = 0
    with torch.inference_mode():
        for images, labels in loader:
            predicted = classifier(images).argmax(dim=1)
            wanted = torch.tensor([targets[int(label)] for label in labels])
            n_right += int((predicted == wanted).sum())
            n_images += len(labels)
    return [n_right / n_images]


def run_clip_benchmark(setting: Setting) -> list[float]:
    from clip_benchmark.metrics.zeroshot_classification import run_classification

    classifier, loader, targets = plain_loader(setting, default_loader)  # as it does itself
    head = classifier.classification_head.weight.detach().T / 100
    logits, labels = run_classification(classifier, head, loader, "cpu", amp=False)
    wanted = torch.tensor([targets[int(label)] for label in labels])
    return [float((logits.argmax(dim=1) == wanted).double().mean())]  # its own fails on numpy 2.4


def sides() -> dict[str, Callable[[Setting], list[float]]]:
    found = {
        "1 alpha": run_one_alpha,
        "11 alphas": run_eleven_alphas,
        "11 merges": run_eleven_merges,
        "1 checkpoint": run_one_checkpoint,
        "bare loop": run_bare_loop,
    }
    if importlib.util.find_spec("clip_benchmark"):
        found["CLIP_benchmark"] = run_clip_benchmark
    return found


RATIOS = (
    ("11 alphas take, times 1 alpha", "11 alphas", "1 alpha"),
    ("11 merges take, times 11 alphas", "11 merges", "11 alphas"),
    ("speed of 1 checkpoint, of the bare loop", "bare loop", "1 checkpoint"),
    ("speed of 1 checkpoint, of CLIP_benchmark", "CLIP_benchmark", "1 checkpoint"),
)


def compare(setting: Setting, names: Sequence[str], repeats: int) -> dict[str, list[float]]:
    """Return the seconds of each side in each round."""
    seconds: dict[str, list[float]] = {side: [] for side in names}
    values: dict[str, list[float]] = {}
    for repeat in range(repeats + 1):
        for side in names if repeat % 2 else names[::-1]:
            begin = time.perf_counter()
            values[side] = sides()[side](setting)
            if repeat:  # the first round warms up
                seconds[side].append(time.perf_counter() - begin)
    if "11 merges" in values and "11 alphas" in values:
        assert values["11 alphas"] == values["11 merges"], "a row of a sweep is that of its merge"
    return seconds


def print_table(seconds: dict[str, list[float]], n_images: int) -> None:
    for side, rounds in seconds.items():
        median = statistics.median(rounds)
        print(f"{side:16}{median:8.2f} s {n_images / median:8.1f} images/s")
    for text, slow, fast in RATIOS:
        if slow in seconds and fast in seconds:
            ratios = [a / b for a, b in zip(seconds[slow], seconds[fast], strict=True)]
            print(f"{text:44}{statistics.median(ratios):6.2f}")


def print_memory(setting: Setting, folder: Path) -> None:
    """Print the peak memory of evaluations as commands."""
    labels = [entry.id for entry in load_classifier(setting.zeroshot)[1].classes]
    for count, alphas in ((256, "0.5"), (256, ELEVEN), (256, "0:1:0.01"), (2048, ELEVEN)):
        images = folder / str(count)
        if not images.exists():
            write_jpegs(images, labels, count=count, size=64)
        words = ["eval", setting.zeroshot, setting.finetuned, "--data", images, "--alpha", alphas]
        program = (
            "import resource, sys\n"
            "from wiseft_cli.cli.app import main\n"
            "code = main(sys.argv[1:])\n"
            "peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
            "print(peak // 1024, file=open('peak', 'w'))\n"
            "sys.exit(code)\n"
        )
        subprocess.run(
            [sys.executable, "-c", program, *map(str, words), "--workers", "0"],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            check=True,
            capture_output=True,
        )
        n_alphas = len(parse_alphas([alphas]))
        print(f"{count:5} images, {n_alphas:3} alphas: {(folder / 'peak').read_text().strip()} MiB")


def main(words: list[str] | None = None) -> dict[str, list[float]]:
    """Print the tables and return the seconds of each side in each round."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("zeroshot", type=lambda text: Path(text).resolve())
    parser.add_argument("finetuned", type=lambda text: Path(text).resolve())
    for name, default in (
        ("images", 48),
        ("size", 1600),
        ("repeats", 3),
        ("workers", 0),
        ("threads", 1),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--sides", default=",".join(sides()))
    options = parser.parse_args(words)
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder) / "images"
        setting = Setting(options.zeroshot, options.finetuned, images, options.workers)
        if options.memory:
            print_memory(setting, Path(folder))
            return {}
        labels = [entry.id for entry in load_classifier(options.zeroshot)[1].classes]
        write_jpegs(images, labels, count=options.images, size=options.size)
        seconds = compare(setting, options.sides.split(","), options.repeats)
    print_table(seconds, options.images)
    return seconds


@pytest.mark.benchmark
def test_eleven_alphas_cost_little_more_than_one(tmp_path: Path) -> None:
    from tests.evaluation.tiny import make_pair

    seconds = main([*map(str, make_pair(tmp_path)), "--images", "24", "--repeats", "1"])
    assert all(len(rounds) == 1 for rounds in seconds.values())


if __name__ == "__main__":
    main()
