"""Right: the demo's pipeline on the device against the same commands on the CPU.

Three comparisons, the strictest first: the zero-shot head; evaluations of one pair of checkpoints;
fine-tuning, whose first steps must agree. Later steps amplify rounding, so that the CPU itself ends
at other weights with another number of threads: the end of training is reported beside that,
without a limit.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from tests.gpu.commands import Context, Result, read_accuracies, read_log, run, side_by_side
from tests.gpu.inputs import write_head

ID = "mnist"
FIRST_STEPS = 10
SET_TF32 = (
    "import torch\ntorch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = "
)
TF32_OFF, TF32_ON = f"{SET_TF32}False", f"{SET_TF32}True"


class Arithmetic(NamedTuple):
    """Where and how a command computes."""

    device: str
    precision: str = "fp32"
    setup: str = TF32_OFF
    threads: int = 1

    @property
    def words(self) -> list[object]:
        """Options of finetune and eval."""
        options = ["--device", self.device, "--precision", self.precision]
        return [*options, "--threads", self.threads, "--workers", 0]


Accuracies = Mapping[tuple[str, str], float]


def measure(context: Context) -> None:
    """Run the pipelines and compare them."""
    cpu, device = Arithmetic("cpu"), Arithmetic(context.device)
    variants = {
        "bf16": device._replace(precision="bf16"),
        "TF32 as torch sets it": device._replace(setup=""),
        "TF32 everywhere": device._replace(setup=TF32_ON),
        "fp16": device._replace(precision="fp16"),
    }
    ways = {"cpu": cpu, "device": device, "cpu-2-threads": cpu._replace(threads=2), **variants}
    if context.is_reduced:
        variants = {"bf16": variants["bf16"]}
        ways = {"cpu": cpu, "device": device, **variants}
    folders = {name: context.folder(name) for name in ways}
    heads = {name: folders[name] / "zeroshot" for name in ("cpu", "device")}
    write = partial(write_head, context, setup=TF32_OFF)
    side_by_side(context, {n: partial(write, heads[n], ways[n].device) for n in heads})
    compare_heads(context, heads["cpu"], heads["device"])

    def pipeline(name: str) -> Accuracies:
        head = heads["cpu" if name.startswith("cpu") else "device"]
        result = finetune(context, folders[name], head, ways[name])
        if name != "device":
            return evaluate(context, folders[name], head, ways[name])
        check_talk(context, result)
        return compare_evaluations(context, folders[name], head, variants)

    curves = side_by_side(context, {name: partial(pipeline, name) for name in ways})
    compare_first_steps(context, folders["cpu"], folders["device"])
    others = {"device": "cpu", "cpu-2-threads": "cpu", **dict.fromkeys(variants, "device")}
    for name, other in others.items():
        if name in curves and other in curves:
            check = f"after fine-tuning, {name} against {other}"
            add_difference(context, check, curves[name], curves[other])


def finetune(context: Context, folder: Path, head: Path, how: Arithmetic) -> Result:
    """Fine-tune with the demo's recipe."""
    from wiseft_cli.demo.pipeline import LEARNING_RATE, RECIPE

    train = context.work / "digits" / "data" / ID / "train"
    words = ["finetune", head, "--train", train, *RECIPE, "--lr", LEARNING_RATE, *how.words]
    if context.is_reduced:
        words += ["--shots", 20, "--epochs", 3]
    words += ["--log", folder / "log.jsonl", "-o", folder / "finetuned"]
    return run(context, words, how.setup)


def evaluate(
    context: Context, folder: Path, head: Path, how: Arithmetic, name: str = "results.jsonl"
) -> Accuracies:
    """Evaluate the points between a head and the checkpoint that a folder has."""
    from wiseft_cli.demo.effect import SHIFTS

    data = context.work / "digits" / "data"
    sets = {ID: data / ID / "test", **{shift: data / shift for shift in SHIFTS}}
    if context.is_reduced:
        sets = {ID: data / ID / "val", "thin": data / "thin"}
    words: list[object] = ["eval", head, folder / "finetuned", "--results", folder / name]
    words += ["--alpha", "0,1" if context.is_reduced else "0:1:0.1", *how.words]
    for label, path in sets.items():
        words += ["--data", f"{label}={path}"]
    run(context, words, how.setup)
    return read_accuracies(folder / name)


def check_talk(context: Context, result: Result) -> None:
    """Check that a command on the device prints no warning of a library."""
    context.figures.add("fine-tuning on the device", result.seconds, "s")
    warnings = [line for line in result.stderr.splitlines() if "Warning" in line]
    context.figures.holds(
        "finetune prints no Python warning", not warnings, warnings[0] if warnings else None
    )


def compare_heads(context: Context, cpu: Path, device: Path) -> None:
    """Compare the weights that zeroshot-head wrote."""
    from safetensors.numpy import load_file

    a, b = (load_file(path)["classification_head.weight"] for path in (cpu, device))
    difference = float(abs(a - b).max() / abs(a).max())
    context.figures.at_most("zero-shot head, largest relative difference", difference, 1e-5)


def compare_evaluations(
    context: Context, folder: Path, head: Path, variants: Mapping[str, Arithmetic]
) -> Accuracies:
    """Evaluate the device's pair of checkpoints everywhere, merge it, and draw the curve."""
    ways = {"device": Arithmetic(context.device), "cpu": Arithmetic("cpu"), **variants}
    jobs = {
        f"eval, {name}": partial(evaluate, context, folder, head, how, f"{name}.jsonl")
        for name, how in ways.items()
    }
    merge = ["merge", head, folder / "finetuned", "-o", folder / "merged"]
    found = side_by_side(context, {**jobs, "merge": partial(run, context, merge)})
    device, cpu = found["eval, device"], found["eval, cpu"]
    largest = max(100 * abs(device[row] - cpu[row]) for row in cpu)
    check = "eval of one pair on device and CPU, largest difference of any set and alpha"
    context.figures.at_most(check, largest, 0.5, "points")
    for name in variants:
        if f"eval, {name}" in found:
            check = f"eval of one pair, {name} against float32 without TF32"
            add_difference(context, check, found[f"eval, {name}"], device)
    run(context, ["plot", folder / "device.jsonl", "-o", folder / "curve.png"])
    context.figures.holds("plot draws the results", (folder / "curve.png").stat().st_size > 0)
    return device


def compare_first_steps(context: Context, cpu: Path, device: Path) -> None:
    """Compare losses, and the first gradient, before rounding is amplified."""
    a, b = (read_log(folder / "log.jsonl")[:FIRST_STEPS] for folder in (cpu, device))
    norm = abs(b[0]["grad_norm"] / a[0]["grad_norm"] - 1)
    context.figures.at_most("first gradient norm, relative difference", norm, 1e-4)
    largest = max(abs(y["loss"] / x["loss"] - 1) for x, y in zip(a, b, strict=True))
    check = f"losses of the first {FIRST_STEPS} steps, largest relative difference"
    context.figures.at_most(check, largest, 1e-3)


def add_difference(context: Context, check: str, found: Accuracies, other: Accuracies) -> None:
    """Record how far two curves are apart, in points."""

    def mean_shift(curve: Accuracies, alpha: str) -> float:
        return fmean(value for (at, name), value in curve.items() if at == alpha and name != ID)

    alphas = {alpha for alpha, _ in other}
    shifts = max(100 * abs(mean_shift(found, a) - mean_shift(other, a)) for a in alphas)
    in_distribution = max(100 * abs(found[a, ID] - other[a, ID]) for a in alphas)
    one = max(100 * abs(found[row] - other[row]) for row in other)
    note = f"mean of the shifts {shifts:.2f}, a single set {one:.2f}; the largest of any alpha"
    context.figures.add(check, in_distribution, "points in distribution", note=note)
