"""Same contracts: what holds for every command on the CPU must hold on the device."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from tests.gpu.commands import (
    Command,
    Context,
    Result,
    read_accuracies,
    read_log,
    run,
    side_by_side,
)

N_HINTS = 6
N_STEPS_BEFORE_SIGNAL = 15
DENIED = 77
SMALL_SHM = f"""
import ctypes, os, sys
libc = ctypes.CDLL(None)
NEW_MOUNTS, NEW_USER, PRIVATE = 0x20000, 0x10000000, 0x44000
if (
    libc.unshare(NEW_MOUNTS if os.geteuid() == 0 else NEW_MOUNTS | NEW_USER)
    or libc.mount(b"none", b"/", None, PRIVATE, None)
    or libc.mount(b"tmpfs", b"/dev/shm", b"tmpfs", 0, b"size=256k")
):
    sys.exit({DENIED})
"""
"""Gives a process a tiny /dev/shm of its own."""
LITTLE_MEMORY = {
    "cuda": """
import torch
total = torch.cuda.get_device_properties(0).total_memory
torch.cuda.set_per_process_memory_fraction({0} / total)
""",
    "cpu": """
import torch
forward = torch.nn.Conv2d.forward
def bounded(self, images):
    if len(images) > 150:
        raise torch.OutOfMemoryError("out of memory, as a GPU says it")
    return forward(self, images)
torch.nn.Conv2d.forward = bounded
""",
}
"""Leaves a process so many bytes; on the CPU, an imitation that depends on the batch."""


def measure(context: Context) -> None:
    """Check every contract."""
    checks = {
        "repeat, resume, merge": check_runs,
        "out of memory": check_out_of_memory,
        "small /dev/shm": check_small_shm,
        "deterministic ViT": check_deterministic_vit,
    }
    side_by_side(context, {name: partial(check, context) for name, check in checks.items()})


def finetune_words(context: Context, *more: object) -> list[object]:
    """Return a command that fine-tunes the embedded model on digits."""
    train = context.work / "digits" / "data" / "mnist" / "train"
    words = ["finetune", context.work / "digits.safetensors", "--train", train, "--lr", "1e-3"]
    return [*words, "--batch-size", 32, *_options(context), *more]


def eval_words(context: Context, *more: object) -> list[object]:
    """Return a command that evaluates on digits."""
    val = context.work / "digits" / "data" / "mnist" / "val"
    return ["eval", "--data", f"mnist={val}", *_options(context), *more]


def _options(context: Context) -> list[object]:
    return ["--workers", 0, "--threads", 1, "--device", context.device]


def check_runs(context: Context) -> None:
    """Check that runs repeat, that killed ones resume, and that a row equals its merge."""
    folder = context.folder("runs")
    fixed = ["--steps", 26 if context.is_reduced else 150, "--save-every", 10, "--deterministic"]

    def words(name: str, *more: object) -> list[object]:
        return finetune_words(context, *fixed, "-o", folder / name, *more)

    names = ("first", "second", "SIGKILL", "SIGTERM")
    jobs = {name: partial(run, context, words(name)) for name in names[:2]}
    jobs |= {
        name: partial(end_by_signal, context, words(name, "--log", folder / f"{name}.log"))
        for name in names[2:]
    }
    results = side_by_side(context, jobs)
    for name, code in (("SIGKILL", -signal.SIGKILL), ("SIGTERM", 143)):
        states = list(folder.glob(f"{name}.state/step-*"))
        passed = results[name].exit_code == code and bool(states) and not (folder / name).exists()
        note = f"exit code {results[name].exit_code}, {len(states)} states"
        context.figures.holds(f"{name} amid training leaves states and no output", passed, note)
    resume = {name: partial(run, context, words(name, "--resume")) for name in names[2:]}
    side_by_side(context, resume)
    for name in names[1:]:
        check = f"resumed after {name}" if name in resume else "--deterministic, run again"
        context.figures.holds(f"{check}: the same bytes", is_same(folder, "first", name))
    check_row_equals_merge(context, folder)


def end_by_signal(context: Context, words: Sequence[object]) -> Result:
    """Send the signal that the output is named by once the log of a run has some steps."""
    command, deadline = Command(context, words), time.monotonic() + 120
    log = Path(command.line[-1])
    while len(read_log(log)) < N_STEPS_BEFORE_SIGNAL and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(command.pid, getattr(signal, log.stem))
    return command.wait()


def is_same(folder: Path, *names: str) -> bool:
    """Return whether files have the same bytes."""
    return len({(folder / name).read_bytes() for name in names}) == 1


def check_row_equals_merge(context: Context, folder: Path) -> None:
    """Check that a row of the sweep equals merging to a file and evaluating it."""
    pair = [context.work / "digits.safetensors", folder / "first"]
    run(context, ["merge", "--alpha", "0.3", *pair, "-o", folder / "merged"])
    found = {}
    for name, which in (("row", [*pair, "--alpha", "0.3"]), ("merge", [folder / "merged"])):
        results, predictions = folder / f"{name}.jsonl", folder / name
        outputs = ["--results", results, "--save-predictions", predictions]
        run(context, eval_words(context, *which, *outputs))
        accuracies = list(read_accuracies(results).values())
        found[name] = (accuracies, [path.read_bytes() for path in predictions.iterdir()])
    check = "a row of the sweep equals evaluating its merge, every prediction to the bit"
    context.figures.holds(check, found["row"] == found["merge"])


def check_out_of_memory(context: Context) -> None:
    """Check that following the hints of runs without enough memory ends in one that works."""
    output = context.folder("memory") / "out"
    n_images = 400 if context.is_reduced else 2000
    words = finetune_words(context, "--steps", 1, "--save-every", "never", "-o", output)
    words += ["--batch-size", n_images]
    plan = run(context, [*words, "--dry-run", "--json"])
    bound = json.loads(plan.stdout)["memory_bytes"] * 3 // 10
    setup = LITTLE_MEMORY[context.device].format(bound)
    hints: list[int] = []
    while True:
        micro = ["--micro-batch-size", hints[-1]] if hints else []
        result = Command(context, [*words, *micro], setup).wait()
        found = re.search(r"--micro-batch-size (\d+)", result.stderr)
        if result.exit_code != 1 or not found or len(hints) == N_HINTS:
            break
        hints.append(int(found[1]))
    note = f"batch {n_images}, 0.3 of the memory it needs, hints {hints},"
    note += f" then exit code {result.exit_code}: {result.stderr[-150:]}"
    passed = bool(hints) and result.exit_code == 0
    context.figures.holds("out of memory: following the hints ends in a run", passed, note)
    context.figures.add("out of memory: hints to follow", len(hints))


def check_small_shm(context: Context) -> None:
    """Check that workers without shared memory end a command with a message."""
    train = finetune_words(context, "--steps", 8, "-o", context.folder("shm") / "out")
    commands = {"finetune": train, "eval": eval_words(context, context.work / "digits.safetensors")}
    seconds = 15 if context.is_reduced else 60
    for name, words in commands.items():
        check = f"{name}: decoding workers without shared memory end with a message"
        try:
            result = Command(context, [*words, "--workers", 2], SMALL_SHM).wait(seconds)
        except TimeoutError:
            context.figures.holds(check, False, f"it hangs: killed after {seconds} s")
            continue
        if result.exit_code == DENIED:
            context.figures.skip(check, "this machine denies mounting a small /dev/shm")
            continue
        message = result.stderr.split("error:")[-1]
        passed = result.exit_code == 1 and "/dev/shm" in message
        note = f"exit code {result.exit_code} after {result.seconds:.1f} s: {message[-200:]}"
        context.figures.holds(check, passed, note)


def check_deterministic_vit(context: Context) -> None:
    """Check that --deterministic gives the same bytes twice for a vision transformer."""
    if context.is_reduced:
        return
    folder = context.folder("vit")
    classes = context.work / "digits" / "classes.txt"
    head = ["zeroshot-head", "--model", "ViT-S-32", "--random-weights", "--classes", classes]
    run(context, [*head, "--device", context.device, "-o", folder / "zeroshot"])
    for precision in ("fp32", "bf16"):
        words = finetune_words(context, "--precision", precision, "--steps", 8, "--deterministic")
        words[1] = folder / "zeroshot"
        names = [f"{precision}-{at}" for at in range(2)]
        jobs = {name: partial(run, context, [*words, "-o", folder / name]) for name in names}
        side_by_side(context, jobs)
        check = f"--deterministic, ViT-S-32 in {precision} run again: the same bytes"
        context.figures.holds(check, is_same(folder, *names))
