"""Costs of fine-tuning beside its steps: the start, the states, the memory.

    python -m tests.benchmarks.bench_finetune_costs CHECKPOINT|MODEL [--images 64]
        [--image-size 28] [--batch-size 16] [--workers 0] [--threads 1] [--repeats 5]

MODEL is an open_clip model name; its weights are random. Each measurement starts new processes, the
sides in turns, and prints medians:

- start: from the start of the process to the request for the first batch, and the part of it in
  which the data are listed; compared with a process that imports torch and open_clip and reads
  every tensor of the checkpoint into memory with safetensors.
- states: the seconds to save one state, and their share of the ten minutes between two states at
  the default interval.
- memory: the largest resident set of `wiseft finetune` over three steps, each with a state; the
  same of a process that only imports torch and open_clip; and the estimate of `--dry-run` for
  weights, gradients, moments and activations. The rest is threads, decoding, one buffer per state,
  and memory that allocators keep.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.benchmarks.finetune_inputs import write_images, write_random_checkpoint
from wiseft_cli.checkpoint.reader import read_card
from wiseft_cli.training.saving import DEFAULT_INTERVAL

FIRST_BATCH = """
import os, sys, time
from wiseft_cli.cli.app import main
from wiseft_cli.training import batches, plan
listing = 0.0
def timed(function):
    def call(*values, **named):
        global listing
        begin = time.perf_counter()
        try:
            return function(*values, **named)
        finally:
            listing += time.perf_counter() - begin
    return call
plan._open_images, plan.data_fingerprint = timed(plan._open_images), timed(plan.data_fingerprint)
def leave(_batches):
    print(listing, flush=True)
    os._exit(0)
batches.MicroBatches.__iter__ = leave
sys.exit(main(sys.argv[1:]))
"""

# Neither side includes the teardown of the interpreter.
IMPORT_AND_READ = """
import os, sys, torch, open_clip
from safetensors.torch import load_file
tensors = {name: tensor.clone() for name, tensor in load_file(sys.argv[1]).items()}
os._exit(0)
"""

# Not from getrusage, whose peak a process inherits from the one that started it.
PEAK = """
import sys
{body}
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(int(status["VmHWM"].split()[0]) * 1024, file=sys.stderr)
"""
IMPORTS = PEAK.format(body="import torch, open_clip")
COMMAND = PEAK.format(body="from wiseft_cli.cli.app import main\nassert main(sys.argv[1:]) == 0")

SAVE = """
import sys, time
from pathlib import Path
import torch
from wiseft_cli.compute.process_group import SINGLE_PROCESS
from wiseft_cli.training.plan import DataOptions, make_plan
from wiseft_cli.training.recipe import Recipe
from wiseft_cli.training.saving import DEFAULT_INTERVAL, StateSaver
from wiseft_cli.training.state import open_run
from wiseft_cli.training.state_dir import remove_states
torch.set_num_threads(int(sys.argv[4]))
plan = make_plan(parent=Path(sys.argv[1]), data=DataOptions(sys.argv[2]), output=Path(sys.argv[3]),
                 recipe=Recipe())
run = open_run(plan, SINGLE_PROCESS)
run.make_moments({f"step.{name}" for name in run.trainable})
saver = StateSaver(plan.output, plan.card, DEFAULT_INTERVAL, state_bytes=run.state_bytes)
for run.steps_done in range(1, 4):
    begin = time.perf_counter()
    assert saver.save(run) is None
    print(run.state_bytes, time.perf_counter() - begin)
remove_states(plan.output)
"""


def python(program: str, *words: object) -> tuple[float, str, str]:
    """Run a program in a process of its own; return its seconds, its stdout and its stderr."""
    begin = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, words)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return time.perf_counter() - begin, done.stdout, done.stderr


def measure_start(words: Sequence[object], checkpoint: Path, *, repeats: int) -> None:
    """Print how long it takes to request the first batch."""
    rounds = []
    for repeat in range(repeats + 1):
        ours, listing, _ = python(FIRST_BATCH, *words)
        bare = python(IMPORT_AND_READ, checkpoint)[0]
        if repeat:  # the first round fills the page cache
            rounds.append((ours, float(listing), bare))
    ours, listing, bare = (statistics.median(column) for column in zip(*rounds, strict=True))
    ratio = statistics.median((mine - its) / other for mine, its, other in rounds)
    print(
        f"start     {ours:.2f} s to the first batch, {listing:.3f} s of it listing the data;"
        f" imports and reading alone {bare:.2f} s: {ratio:.3f} times without the listing"
    )


def measure_states(checkpoint: Path, train: Path, *, threads: int, repeats: int) -> None:
    """Print the time to save a state."""
    seconds = []
    for _ in range(repeats):
        lines = python(SAVE, checkpoint, train, train.parent / "state-of", threads)[1].splitlines()
        seconds += [float(line.split()[1]) for line in lines]
    size, median = int(lines[0].split()[0]), statistics.median(seconds)
    interval = DEFAULT_INTERVAL.seconds or 0
    print(
        f"states    {size / 1e6:.1f} MB in {median:.2f} s ({min(seconds):.2f} to"
        f" {max(seconds):.2f}), {median / interval:.3%} of {interval:.0f} s"
    )


def measure_memory(words: Sequence[object], *, repeats: int) -> None:
    """Print the memory of a run, beside the estimate."""
    estimated = json.loads(python(COMMAND, *words, "--dry-run", "--json")[1])["memory_bytes"]
    imports, peaks = [], []
    for _ in range(repeats):
        imports.append(int(python(IMPORTS)[2]))
        stderr = python(COMMAND, *words, "--save-every", 1, "--force")[2]
        peaks.append(int(stderr.splitlines()[-1]))
    peak, bare = statistics.median(peaks), statistics.median(imports)
    print(
        f"memory    peak {peak / 1e6:.0f} MB = imports {bare / 1e6:.0f} MB"
        f" + weights, gradients, moments and activations {estimated / 1e6:.0f} MB"
        f" + {(peak - bare - estimated) / 1e6:.0f} MB"
    )


def main(words: list[str] | None = None) -> None:
    """Print what starting, saving and remembering cost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", metavar="CHECKPOINT|MODEL")
    for name, default in (
        ("images", 64),
        ("image-size", 28),
        ("batch-size", 16),
        ("workers", 0),
        ("threads", 1),
        ("repeats", 5),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as name:
        folder, checkpoint = Path(name), Path(options.checkpoint)
        if not checkpoint.exists():
            checkpoint = write_random_checkpoint(folder / "zeroshot", model=options.checkpoint)
        ids = [entry.id for entry in read_card(checkpoint).classes]
        train = write_images(
            folder / "train", count=options.images, size=options.image_size, ids=ids
        )
        command = ["finetune", checkpoint, "--train", train, "-o", folder / "out", "--steps", 3]
        command += ["--batch-size", options.batch_size, "--workers", options.workers]
        command += ["--threads", options.threads, "--device", "cpu"]
        measure_start(command, checkpoint, repeats=options.repeats)
        measure_states(checkpoint, train, threads=options.threads, repeats=options.repeats)
        measure_memory(command, repeats=options.repeats)


@pytest.mark.benchmark
def test_the_costs_of_a_run_are_measured(tmp_path: Path) -> None:
    from tests.training.tiny import write_zeroshot

    main([str(write_zeroshot(tmp_path / "zeroshot.safetensors")), "--repeats", "1"])


if __name__ == "__main__":
    main()
