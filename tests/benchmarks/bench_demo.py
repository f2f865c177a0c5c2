"""`wiseft demo` step by step: seconds and peak memory of each command.

    python tests/benchmarks/bench_demo.py

The commands are the demo's own, each in a process of its own; the peak is the largest
resident set of the process or of any one of its workers. Beside each stands the time of
importing torch and open_clip alone, which no command that computes can do without.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from wiseft_cli.demo import commands
from wiseft_cli.demo.image_folders import write_image_folders
from wiseft_cli.demo.tiny_clip import embedded_model_folder

# A process of a few megabytes in between: a child's peak begins at the size of what forked it.
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
    """Run a process; return its seconds and its peak memory in MiB.

    `wait4` reports the largest of the process and of the children it waited for.
    """
    launched = subprocess.run(
        [sys.executable, "-c", LAUNCHER, *arguments], capture_output=True, text=True, check=True
    )
    exit_code, seconds, peak_mib = launched.stdout.split()
    if exit_code != "0":
        raise SystemExit(f"{arguments} ended with exit code {exit_code}")
    return float(seconds), float(peak_mib)


def main() -> None:
    """Print one row a step, and the whole."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch)
        begin = time.perf_counter()
        data = write_image_folders(out)
        rows = [("write the image folders", time.perf_counter() - begin, float("nan"))]
        zeroshot, finetuned, merged = (out / f"{name}.safetensors" for name in "zfm")
        results = out / "results.jsonl"
        steps = (
            commands.zeroshot_head_command(
                model=embedded_model_folder(),
                classes=data.classes,
                templates=data.templates,
                out=zeroshot,
            ),
            commands.finetune_command(
                zeroshot, train=data.train, validation=data.validation, out=finetuned
            ),
            commands.merge_command(zeroshot, finetuned, out=merged),
            commands.eval_command(
                zeroshot, finetuned, test=data.test, shifts=data.shifts, results=results
            ),
            commands.plot_command(results, out=out / "curve.png"),
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
