"""Same contracts: what holds for every command on the CPU must hold on the device."""

from __future__ import annotations

import json
import re
import signal
import time
from functools import partial
from pathlib import Path

from tests.gpu.commands import (
    Command,
    Context,
    Result,
    accuracies,
    data_options,
    guarded,
    read_log,
    run,
    side_by_side,
)

N_HINTS = 6
SMALL_SHM = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
NEW_MOUNTS, NEW_USER, PRIVATE = 0x20000, 0x10000000, 0x44000
if libc.unshare(NEW_MOUNTS if os.geteuid() == 0 else NEW_MOUNTS | NEW_USER):
    sys.exit(77)
if libc.mount(b"none", b"/", None, PRIVATE, None):
    sys.exit(77)
if libc.mount(b"tmpfs", b"/dev/shm", b"tmpfs", 0, b"size=256k"):
    sys.exit(77)
"""
"""Gives a process a tiny /dev/shm of its own; exit code 77 where the machine denies that."""
LITTLE_MEMORY = {
    "cuda": """
import torch
total = torch.cuda.get_device_properties(0).total_memory
torch.cuda.set_per_process_memory_fraction({0} / total)
""",
    "cpu": """
import resource
import wiseft_cli.cli.app, open_clip
taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + {0}, taken + {0}))
""",
}
"""Leaves a process so many bytes."""


def measure(context: Context) -> None:
    """Check every contract."""
    guarded(
        context,
        {
            "repeatable runs": partial(check_runs, context),
            "out of memory": partial(check_out_of_memory, context),
            "small /dev/shm": partial(check_small_shm, context),
            "ViT": partial(check_deterministic_vit, context),
        },
    )


def finetune_words(context: Context, folder: Path, output: str, *more: object) -> list[object]:
    """Return a command that fine-tunes the embedded model on digits."""
    words: list[object] = ["finetune", context.work / "digits.safetensors", "--train"]
    words += [context.work / "digits" / "data" / "mnist" / "train", "--batch-size", 32]
    words += ["--workers", 0, "--threads", 1, "--device", context.device, "--lr", "1e-3"]
    return [*words, "-o", folder / output, *more]


def check_runs(context: Context) -> None:
    """Check that runs repeat, resume after SIGKILL and SIGTERM, and that rows equal merges."""
    folder = context.folder("runs")
    steps = 30 if context.is_reduced else 150

    def words(output: str, *more: object) -> list[object]:
        fixed = ["--steps", steps, "--save-every", 10, "--deterministic"]
        return finetune_words(context, folder, output, *fixed, *more)

    def ended_by(number: int, output: str) -> Result:
        log = folder / f"{output}.log"
        command = Command(context, words(output, "--log", log))
        while len(read_log(log)) < 15:
            if time.monotonic() - begin > 120:
                command.send(signal.SIGKILL)
            time.sleep(0.01)
        command.send(number)
        return command.wait()

    begin = time.monotonic()
    first, second, killed, stopped = side_by_side(
        context,
        partial(run, context, words("first")),
        partial(run, context, words("second")),
        partial(ended_by, signal.SIGKILL, "killed"),
        partial(ended_by, signal.SIGTERM, "stopped"),
    )
    same = partial(_same_bytes, folder / "first")
    note = f"{first.seconds:.1f} s and {second.seconds:.1f} s"
    context.figures.holds(
        "--deterministic: two runs give the same bytes", same("second"), note=note
    )
    ends = {"killed": (killed, -signal.SIGKILL), "stopped": (stopped, 143)}
    for output, (result, code) in ends.items():
        name = "SIGKILL" if output == "killed" else "SIGTERM"
        states = list(folder.glob(f"{output}.state/step-*"))
        passed = result.exit_code == code and bool(states) and not (folder / output).exists()
        note = f"exit code {result.exit_code}, {len(states)} states"
        context.figures.holds(f"{name} amid training leaves states, no output", passed, note=note)
    side_by_side(context, *(partial(run, context, words(o, "--resume")) for o in ends))
    for output in ends:
        context.figures.holds(f"--resume of the {output} run gives the same bytes", same(output))
    check_sweep(context, folder)


def _same_bytes(path: Path, other: str) -> bool:
    return path.read_bytes() == path.with_name(other).read_bytes()


def check_sweep(context: Context, folder: Path) -> None:
    """Check that a row of the sweep equals merging to a file and evaluating it."""
    pair = [context.work / "digits.safetensors", folder / "first"]
    merged = folder / "merged.safetensors"
    data = data_options({"mnist": context.work / "digits" / "data" / "mnist" / "val"})

    def evaluate(name: str, *which: object) -> tuple[list[float], list[bytes]]:
        words = ["eval", *which, *data, "--device", context.device, "--workers", 0]
        words += ["--results", folder / f"{name}.jsonl", "--save-predictions", folder / name]
        run(context, words)
        predictions = sorted((folder / name).iterdir())
        values = list(accuracies(folder / f"{name}.jsonl").values())
        return values, [path.read_bytes() for path in predictions]

    def merge_and_evaluate() -> tuple[list[float], list[bytes]]:
        run(context, ["merge", "--alpha", "0.3", *pair, "-o", merged])
        return evaluate("merge", merged)

    of_row, of_file = side_by_side(
        context, partial(evaluate, "sweep", *pair, "--alpha", "0.3"), merge_and_evaluate
    )
    check = "a row of the sweep equals evaluating its merge, every prediction to the bit"
    context.figures.holds(check, of_row == of_file, note=f"top1 {of_row[0]}, {of_file[0]}")


def check_out_of_memory(context: Context) -> None:
    """Check that following the hints of a run without enough memory ends in one that works."""
    folder = context.folder("memory")
    n_images = 512 if context.is_reduced else 2000
    sizes = ["--batch-size", n_images, "--steps", 1, "--save-every", "never"]
    plan = run(context, finetune_words(context, folder, "dry", *sizes, "--dry-run", "--json"))
    estimate = json.loads(plan.stdout)["memory_bytes"]
    setup = LITTLE_MEMORY[context.device].format(estimate * 3 // 10)
    hints: list[int] = []
    result = plan
    while len(hints) < N_HINTS:
        micro = ["--micro-batch-size", hints[-1]] if hints else []
        words = finetune_words(context, folder, "out", *sizes, *micro)
        result = Command(context, words, setup=setup).wait()
        found = re.search(r"--micro-batch-size (\d+)", result.stderr)
        if result.exit_code != 1 or not found:
            break
        hints.append(int(found[1]))
    passed = bool(hints) and result.exit_code == 0
    text = " ".join(result.stderr.split())[-200:]
    note = f"0.3 of the memory that batch {n_images} needs: " + (
        f"then micro-batches of {', '.join(map(str, hints))}" if passed else text
    )
    check = "out of memory: following the hints ends in a run that works"
    context.figures.holds(check, passed, note=note)
    if passed:
        context.figures.add("hints to follow until a run works", len(hints))


def check_small_shm(context: Context) -> None:
    """Check that decoding workers without shared memory end a command with a message."""
    check = "decoding workers without shared memory end with a message, not in a hang"
    folder = context.folder("shm")
    train = finetune_words(context, folder, "out", "--steps", 8, "--workers", 2)
    data = data_options({"mnist": context.work / "digits" / "data" / "mnist" / "val"})
    evaluate = ["eval", context.work / "digits.safetensors", *data, "--workers", 2]
    evaluate += ["--device", context.device]
    for words in (train, evaluate):
        name = f"{words[0]}: {check}"
        result = Command(context, words, setup=SMALL_SHM).wait(60)
        if result.exit_code == 77:
            context.figures.skip(name, "this machine allows no mount of a small /dev/shm")
            continue
        passed = result.exit_code == 1 and "/dev/shm" in result.stderr.split("error:")[-1]
        passed = passed and "Traceback" not in result.stderr
        note = f"exit code {result.exit_code} after {result.seconds:.1f} s: "
        note += " ".join(result.stderr.split())[-200:]
        context.figures.holds(name, passed, note=note)


def check_deterministic_vit(context: Context) -> None:
    """Check that --deterministic gives the same bytes twice for a vision transformer."""
    check = "--deterministic: two runs of ViT-S-32 give the same bytes"
    if context.is_reduced:
        context.figures.add(check, "on a GPU only")
        return
    folder = context.folder("vit")
    head = folder / "zeroshot.safetensors"
    classes = context.work / "digits" / "classes.txt"
    words = ["zeroshot-head", "--model", "ViT-S-32", "--random-weights", "--classes", classes]
    run(context, [*words, "--device", context.device, "-o", head])
    for precision in ("fp32", "bf16"):
        words = finetune_words(context, folder, "", "--steps", 8, "--deterministic")
        words[1] = head
        words += ["--precision", precision, "--save-every", "never", "-o"]
        outputs = [folder / f"{precision}-{at}" for at in range(2)]
        side_by_side(context, *(partial(run, context, [*words, output]) for output in outputs))
        same = _same_bytes(outputs[0], outputs[1].name)
        context.figures.holds(f"{check}, {precision}", same)
