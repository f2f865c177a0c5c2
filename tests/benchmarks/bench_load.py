"""Compare loading a classifier with reading its file.

    python tests/benchmarks/bench_load.py [--models ViT-B-32 ...] [--repeats 7]

Checkpoints have random weights and are in the page cache. Both sides run alternately in one
process, after imports; medians are reported. Reading is `read()` of the whole file into memory.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from wiseft_cli.model.classifier import load_classifier
from wiseft_cli.model.zeroshot_checkpoint import build_zeroshot_checkpoint

MODELS = (
    "ViT-B-32",
    "ViT-L-14",
    "RN50",
    "convnext_base",
    "swin_base_patch4_window7_224",
    "EVA02-B-16",
    "ViTamin-B",
    "MobileCLIP-B",
)


def seconds_of(work: Callable[[], object]) -> float:
    """Return the wall time of one call."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def measure(model: str, folder: Path, repeats: int) -> tuple[float, float, float]:
    """Return the file's MiB, and the median seconds of reading and of loading it."""
    path = folder / f"{model}.safetensors"
    build_zeroshot_checkpoint(
        path, model=model, classes=["cat", "dog"], device="cpu", random_weights=True
    )
    load_classifier(path)  # the first call imports modules
    read, loaded = [], []
    for _ in range(repeats):
        read.append(seconds_of(path.read_bytes))
        loaded.append(seconds_of(lambda: load_classifier(path)))
    size = path.stat().st_size / 2**20
    path.unlink()
    return size, statistics.median(read), statistics.median(loaded)


def report(models: Sequence[str], repeats: int) -> None:
    """Print the table."""
    print("| model | MiB | read, s | load, s | times reading |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        for model in models:
            size, read, loaded = measure(model, Path(scratch), repeats)
            print(
                f"| {model} | {size:.0f} | {read:.2f} | {loaded:.2f} | {loaded / read:.2f} |",
                flush=True,
            )


def main() -> None:
    """Parse the options and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    report(options.models, options.repeats)


@pytest.mark.benchmark
@pytest.mark.timeout(0)
def test_report_loading_time() -> None:
    report(["ViT-B-32"], repeats=3)


if __name__ == "__main__":
    main()
