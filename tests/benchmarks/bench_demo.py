"""Measure seconds and peak memory of each command of `wiseft demo`.

    python tests/benchmarks/bench_demo.py

Each command runs in its own process. The peak is the largest resident set size of the process or
of any of its workers. For comparison, the last row imports torch and open_clip only.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from wiseft_cli.demo.embedded import embedded_model_folder
from wiseft_cli.demo.image_folders import write_image_folders
from wiseft_cli.demo.pipeline import (
    eval_command,
    finetune_command,
    merge_command,
    plot_command,
    zeroshot_head_command,
)

# A small process in between: a child's peak starts at the size of the process that forks it.
LAUNCHER = """
import os, subprocess, sys, time
begin = time.perf_counter()
null = subprocess.DEVNULL
process = subprocess.Popen(sys.argv[1:], stdout=null, stderr=null)
_, status, usage = os.wait4(process.pid, 0)
process.returncode = os.waitstatus_to_exitcode(status)
print(process.returncode, time.perf_counter() - begin, usage.ru_maxrss / 1024)
"""


def measure(arguments: list[str]) -> tuple[float, float]:
    """Run a process and return its seconds and peak memory in MiB.

    `wait4` reports the maximum over the process and the children that it waited for.
    """
    launched = subprocess.run(
        [sys.executable, "-c", LAUNCHER, *arguments], capture_output=True, text=True, check=True
    )
    exit_code, seconds, peak_mib = launched.stdout.split()
    if exit_code != "0":
        raise SystemExit(f"{arguments} ended with exit code {exit_code}")
    return float(seconds), float(peak_mib)


def main() -> None:
    """Print one row per step and the total."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch)
        begin = time.perf_counter()
        data = write_image_folders(out)
        rows = [("write the image folders", time.perf_counter() - begin, float("nan"))]
        zeroshot, finetuned, merged = (out / f"{name}.safetensors" for name in "zfm")
        results = out / "results.jsonl"
        steps = (
            zeroshot_head_command(
                embedded_model_folder(),
                classes=data.classes,
                templates=data.templates,
                out=zeroshot,
            ),
            finetune_command(zeroshot, train=data.train, validation=data.validation, out=finetuned),
            merge_command(zeroshot, finetuned, out=merged),
            eval_command(zeroshot, finetuned, test=data.test, shifts=data.shifts, results=results),
            plot_command(results, out=out / "curve.png"),
        )
        for step in steps:
            rows.append(
                (f"wiseft {step[0]}", *measure([sys.executable, "-m", "wiseft_cli", *step]))
            )
    imports = measure([sys.executable, "-c", "import torch, open_clip"])
    print("| step | seconds | peak MiB |\n|---|---|---|")
    for name, seconds, peak in rows:
        print(f"| {name} | {seconds:.1f} | {'' if peak != peak else f'{peak:.0f}'} |")
    print(f"| all | {sum(row[1] for row in rows):.1f} | |")
    print(f"| (import torch, open_clip) | {imports[0]:.1f} | {imports[1]:.0f} |")


@pytest.mark.benchmark
def test_demo_steps() -> None:
    main()


if __name__ == "__main__":
    main()
