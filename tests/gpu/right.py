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
from typing import Any

from tests.gpu.commands import (
    Context,
    accuracies,
    data_options,
    guarded,
    read_log,
    run,
    side_by_side,
)

ID = "mnist"
FIRST_STEPS = 10
SET_TF32 = (
    "import torch\ntorch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = "
)
TF32_OFF, TF32_ON = f"{SET_TF32}False", f"{SET_TF32}True"
VARIANTS = {
    "TF32 as torch sets it": ("fp32", ""),
    "TF32 everywhere": ("fp32", TF32_ON),
    "bf16": ("bf16", TF32_OFF),
    "fp16": ("fp16", TF32_OFF),
}
"""Precision and setup of what is compared with float32 without TF32."""

Accuracies = Mapping[tuple[str, str], float]
Folder = Path


def measure(context: Context) -> None:
    """Run the pipelines and compare them."""
    cpu, device = context.folder("cpu"), context.folder("device")
    variants = {"bf16": VARIANTS["bf16"]} if context.is_reduced else VARIANTS
    side_by_side(
        context,
        partial(make_head, context, cpu, "cpu"),
        partial(make_head, context, device, context.device),
    )
    compare_heads(context, cpu, device)
    curves: dict[str, Accuracies] = {}

    def pipeline(name: str, folder: Path, head: Path, where: str, **how: Any) -> None:
        finetune(context, folder, head, where, **how)
        curves[name] = evaluate(context, folder, head, where, **how)

    def on_device() -> None:
        finetune(context, device, device, context.device)
        compare_evaluations(context, device, variants, curves)

    jobs = {
        "CPU": partial(pipeline, "CPU", cpu, cpu, "cpu"),
        "CPU, 2 threads": partial(
            pipeline, "CPU, 2 threads", context.folder("threads"), cpu, "cpu", threads=2
        ),
        "device": on_device,
    }
    for name, (precision, setup) in variants.items():
        folder = context.folder(f"trained-{len(jobs)}")
        how = {"precision": precision, "setup": setup}
        jobs[name] = partial(pipeline, name, folder, device, context.device, **how)
    guarded(context, jobs)
    compare_first_steps(context, cpu, device)
    compare_ends_of_training(context, curves, variants)


def make_head(context: Context, folder: Folder, device: str) -> None:
    """Run zeroshot-head on a device."""
    from wiseft_cli.demo.tiny_clip import embedded_model_folder

    digits = context.work / "digits"
    words = ["zeroshot-head", "--model", f"local-dir:{embedded_model_folder()}"]
    words += ["--classes", digits / "classes.txt", "--templates", digits / "templates.txt"]
    words += ["--device", device, "-o", folder / "zeroshot.safetensors"]
    run(context, words, setup=TF32_OFF)


def finetune(
    context: Context,
    folder: Folder,
    head: Folder,
    device: str,
    *,
    precision: str = "fp32",
    setup: str = TF32_OFF,
    threads: int = 1,
) -> None:
    """Fine-tune the head of one folder into another with the demo's recipe."""
    from wiseft_cli.demo.commands import LEARNING_RATE, RECIPE

    words = ["finetune", head / "zeroshot.safetensors", *RECIPE, "--lr", LEARNING_RATE]
    words += ["--train", context.work / "digits" / "data" / "mnist" / "train"]
    words += ["--workers", 0, "--threads", threads, "--device", device, "--precision", precision]
    words += ["--log", folder / "log.jsonl", "-o", folder / "finetuned.safetensors"]
    if context.is_reduced:
        words += ["--shots", 20, "--epochs", 3]
    result = run(context, words, setup=setup)
    if folder.name == "device":
        context.figures.add("fine-tuning on the device", result.seconds, "s")
        warnings = [line for line in result.stderr.splitlines() if "Warning" in line]
        note = warnings[0] if warnings else None
        context.figures.holds("finetune prints no Python warning", not warnings, note=note)


def evaluate(
    context: Context,
    folder: Folder,
    head: Folder,
    device: str,
    *,
    precision: str = "fp32",
    setup: str = TF32_OFF,
    threads: int = 1,
    name: str = "results",
) -> Accuracies:
    """Evaluate the points between a head and the checkpoint that a folder has."""
    from wiseft_cli.demo.effect import SHIFTS

    data = context.work / "digits" / "data"
    sets = {ID: data / ID / "test", **{shift: data / shift for shift in SHIFTS}}
    if context.is_reduced:
        sets = {ID: data / ID / "val", "thin": data / "thin"}
    words = ["eval", head / "zeroshot.safetensors", folder / "finetuned.safetensors"]
    words += [*data_options(sets), "--alpha", "0:1:0.5" if context.is_reduced else "0:1:0.1"]
    words += ["--workers", 0, "--threads", threads, "--device", device, "--precision", precision]
    results = folder / f"{name}.jsonl"
    run(context, [*words, "--results", results], setup=setup)
    return accuracies(results)


def compare_heads(context: Context, cpu: Folder, device: Folder) -> None:
    from safetensors.numpy import load_file

    a, b = (load_file(folder / "zeroshot.safetensors") for folder in (cpu, device))
    name = "classification_head.weight"
    difference = float(abs(a[name] - b[name]).max() / abs(a[name]).max())
    context.figures.at_most("zero-shot head, largest relative difference", difference, 1e-5)


def compare_evaluations(
    context: Context,
    folder: Folder,
    variants: Mapping[str, tuple[str, str]],
    curves: dict[str, Accuracies],
) -> None:
    """Evaluate the pair of checkpoints of the device everywhere; merge and plot it too."""
    pair = [folder / f"{name}.safetensors" for name in ("zeroshot", "finetuned")]
    on_device = partial(evaluate, context, folder, folder, context.device)
    jobs = [
        on_device,
        partial(evaluate, context, folder, folder, "cpu", name="on-cpu"),
        *(
            partial(on_device, precision=precision, setup=setup, name=f"variant-{at}")
            for at, (precision, setup) in enumerate(variants.values())
        ),
        partial(run, context, ["merge", *pair, "-o", folder / "merged.safetensors"]),
    ]
    device, cpu, *others, _ = side_by_side(context, *jobs)
    curves["device"] = device
    largest = max(100 * abs(device[row] - cpu[row]) for row in cpu)
    context.figures.at_most(
        "same checkpoints on device and CPU, largest difference of any set and alpha",
        largest,
        0.5,
        "points",
    )
    for name, found in zip(variants, others, strict=False):
        _add_difference(context, f"eval, {name} against float32 without TF32", found, device)
    picture = folder / "curve.png"
    run(context, ["plot", folder / "results.jsonl", "-o", picture])
    context.figures.holds("plot draws the results", picture.stat().st_size > 0)


def compare_first_steps(context: Context, cpu: Folder, device: Folder) -> None:
    """Compare losses, and the first gradient, before rounding is amplified."""
    steps = zip(*(read_log(f / "log.jsonl")[:FIRST_STEPS] for f in (cpu, device)), strict=True)
    pairs = list(steps)
    losses = [abs(b["loss"] / a["loss"] - 1) for a, b in pairs]
    first, other = pairs[0]
    norm = abs(other["grad_norm"] / first["grad_norm"] - 1)
    context.figures.at_most("first gradient norm, relative difference", norm, 1e-4)
    check = f"losses of the first {FIRST_STEPS} steps, largest relative difference"
    context.figures.at_most(check, max(losses), 1e-3)


def compare_ends_of_training(
    context: Context, curves: Mapping[str, Accuracies], variants: Mapping[str, object]
) -> None:
    pairs = [("device", "CPU"), ("CPU, 2 threads", "CPU"), *((v, "device") for v in variants)]
    for name, other in pairs:
        if name in curves and other in curves:
            check = f"after fine-tuning, {name} against {other}"
            _add_difference(context, check, curves[name], curves[other])


def _add_difference(context: Context, check: str, found: Accuracies, other: Accuracies) -> None:
    """Record how far two curves are apart, in points."""

    def shifts(curve: Accuracies, alpha: str) -> float:
        return fmean(value for (at, name), value in curve.items() if at == alpha and name != ID)

    alphas = {alpha for alpha, _ in other}
    mean = max(100 * abs(shifts(found, alpha) - shifts(other, alpha)) for alpha in alphas)
    in_distribution = max(100 * abs(found[a, ID] - other[a, ID]) for a in alphas)
    one = max(100 * abs(found[row] - other[row]) for row in other)
    note = f"mean of the shifts {mean:.2f}, a single set {one:.2f}; the largest of any alpha"
    context.figures.add(check, in_distribution, "points in distribution", note=note)
