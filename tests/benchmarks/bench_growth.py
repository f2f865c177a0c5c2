"""Measure how time and memory grow with the size of an input: a tenth of it, and all of it.

    python tests/benchmarks/bench_growth.py [--folder DIR] [NAME...]

Each case runs as a process of its own, first at a tenth of the size. Growth is the ratio of
the two times.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tests.evaluation.tiny import make_checkpoint, make_images
from tests.reporting.lines import line
from wiseft_cli.checkpoint.writer import write_checkpoint
from wiseft_cli.reporting.results import add_result_lines


@dataclass(frozen=True)
class Case:
    """Something that grows.

    Attributes:
        size: The full size.
        prepare: Writes the input of a size into a folder, and returns the program to measure: the
            words after `wiseft`, or Python code.
    """

    size: int
    prepare: Callable[[Path, int], list[str] | str]


def manifest(folder: Path, size: int) -> str:
    """Images in one manifest, in folders of a thousand."""
    with (folder / "images.csv").open("w") as file:
        file.write("path,label\n")
        for number in range(size):
            path = f"{number // 1000:05}/{number:07}.jpg"
            if number % 1000 == 0:
                (folder / path).parent.mkdir()
            (folder / path).touch()
            file.write(f"{path},{number % 1000}\n")
    return (
        "from pathlib import Path; from wiseft_cli.data.manifest import list_manifest;"
        f"assert len(list_manifest(Path('images.csv'), name='x').records) == {size}"
    )


def classes(folder: Path, size: int) -> list[str]:
    """Classes of a zero-shot head of the embedded model."""
    (folder / "classes.txt").write_text("".join(f"thing number {n}\n" for n in range(size)))
    words = ["zeroshot-head", "--model", "tiny-clip", "--classes", "classes.txt"]
    return [*words, "--device", "cpu", "-o", "head.safetensors"]


def tensors(folder: Path, size: int) -> list[str]:
    """Tensors of a merge."""
    for name in ("a", "b"):
        arrays = {f"block.{n}.weight": np.full(16, ord(name) + n, np.float32) for n in range(size)}
        write_checkpoint(folder / f"{name}.safetensors", arrays, None)
    return ["merge", "a.safetensors", "b.safetensors", "-o", "out.safetensors"]


def checkpoints(folder: Path, size: int) -> list[str]:
    """Checkpoints of one uniform soup, of 40 kB each."""
    generator = np.random.default_rng(0)
    names = [f"{number:04}.safetensors" for number in range(size)]
    for name in names:
        arrays = {f"w{n}": generator.standard_normal(1000).astype(np.float32) for n in range(10)}
        write_checkpoint(folder / name, arrays, None)
    return ["soup", *names, "-o", "out.safetensors"]


def sets(folder: Path, size: int) -> list[str]:
    """Image sets of one evaluation, of six images each."""
    words = ["eval", str(make_checkpoint(folder / "model.safetensors", seed=0))]
    for number in range(size):
        make_images(folder / f"set{number}", ["n00", "n01"], per_class=3, seed=number)
        words += ["--data", f"set{number}"]
    return [*words, "--workers", "0", "--device", "cpu"]


def lines(folder: Path, size: int) -> list[str]:
    """Results lines of one report: a hundredth as many sets, each at a hundred alphas."""
    found = [
        line(f"set{n // 100}", 500 + n % 97, alpha=f"{n % 100 / 100:g}", reference=n < 100)
        for n in range(size)
    ]
    add_result_lines(folder / "results.jsonl", found)
    return ["report", "results.jsonl", "-o", "report.html"]


CASES = {
    "manifest": Case(1_000_000, manifest),
    "classes": Case(100_000, classes),
    "tensors": Case(100_000, tensors),
    "checkpoints": Case(32, checkpoints),
    "sets": Case(200, sets),
    "lines": Case(10_000, lines),
}


def measure(case: Case, size: int, folder: Path) -> tuple[float, float]:
    """Return the seconds and the peak memory in MiB of a case at a size."""
    folder.mkdir()
    program = case.prepare(folder, size)
    words = ["-c", program] if isinstance(program, str) else ["-m", "wiseft_cli", *program]
    began = time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [sys.executable, *words],
        cwd=folder,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"{words[:6]} failed")
    return time.perf_counter() - began, usage.ru_maxrss / 1024


def run(names: list[str], root: Path) -> None:
    """Print one row per case."""
    print(f"{'case':12} {'size':>9} {'seconds':>16} {'growth':>7} {'peak MiB':>14}")
    for name in names:
        case = CASES[name]
        small = measure(case, case.size // 10, root / f"{name}-small")
        large = measure(case, case.size, root / name)
        print(
            f"{name:12} {case.size:>9,} {small[0]:>7.1f} {large[0]:>8.1f}"
            f" {large[0] / small[0]:>7.1f} {small[1]:>6.0f} {large[1]:>7.0f}",
            flush=True,
        )


@pytest.mark.benchmark
@pytest.mark.timeout(3600)
def test_growth(tmp_path: Path) -> None:
    run(list(CASES), tmp_path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        run(options.names, Path(scratch))
