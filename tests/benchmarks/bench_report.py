"""Measure `wiseft report` on 11 alphas and 10 image sets with predictions of 50,000 images.

    python -m tests.benchmarks.bench_report [--images 5000] [--sets 10]

Prints the CPU seconds and the elapsed seconds of the command, in its own process, and the size of
the page.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from tests.reporting.report_inputs import write_inputs
from wiseft_cli.reporting.results import add_result_lines

ALPHAS = [f"{at / 10:g}" for at in range(11)]


def measure(folder: Path, *, n_sets: int, n_images: int) -> tuple[float, float, int]:
    """Return CPU seconds, elapsed seconds and the size of the page in bytes.

    Args:
        n_images: Images per set.
    """
    sets = [f"set-{at}" for at in range(n_sets)]
    classes = [f"class {at:04}" for at in range(1000)]
    lines = write_inputs(
        folder / "predictions", alphas=ALPHAS, sets=sets, n_images=n_images, class_names=classes
    )
    add_result_lines(folder / "r.jsonl", lines)
    words = ["report", "r.jsonl", "-o", "report.html", "--predictions", "predictions"]
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}
    subprocess.run(
        [sys.executable, "-m", "wiseft_cli", *words], cwd=folder, env=environment, check=True
    )
    elapsed, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return cpu, elapsed, (folder / "report.html").stat().st_size


@pytest.mark.benchmark
def test_report_of_50000_images_takes_less_than_10_seconds_and_5_megabytes(tmp_path: Path) -> None:
    cpu, elapsed, n_bytes = measure(tmp_path, n_sets=10, n_images=5000)
    print(f"{cpu:.1f} s CPU, {elapsed:.1f} s elapsed, {n_bytes / 1e6:.2f} MB")
    assert cpu < 10
    assert n_bytes < 5e6


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=5000, help="images per set")
    parser.add_argument("--sets", type=int, default=10)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        done = measure(Path(folder), n_sets=options.sets, n_images=options.images)
        print(f"{done[0]:.1f} s CPU, {done[1]:.1f} s elapsed, {done[2] / 1e6:.2f} MB")
