"""Choose the demo's learning rate and measure the effect: the tables of docs/demo.md.

    python -m tests.demo.makers.study select  --out DIR
    python -m tests.demo.makers.study measure --out DIR

`select` uses only the in-distribution validation split. It fine-tunes with each learning rate of
`GRID` and each seed of `SEEDS`, and chooses the learning rate with the highest mean validation
accuracy (the smallest one of equal means). `measure` evaluates all these models on every set. Both
run the commands of `wiseft` as processes and continue where an earlier run stopped.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from wiseft_cli.demo.effect import (
    CurvePoint,
    at_half,
    best_inside,
    curve_table,
    read_curve,
)
from wiseft_cli.demo.embedded import embedded_model_folder
from wiseft_cli.demo.image_folders import DemoData, demo_paths, write_image_folders
from wiseft_cli.demo.pipeline import (
    OnProgress,
    eval_command,
    finetune_command,
    run_command,
    zeroshot_head_command,
)
from wiseft_cli.reporting.results import read_result_lines

GRID = ("3e-4", "1e-3", "2e-3", "4e-3", "8e-3")
"""The last one was added when the largest of the first four won a trial run; see docs/demo.md."""
SEEDS = (0, 1, 2)


def choose_learning_rate(validation: dict[str, list[float]]) -> str:
    """Return the learning rate with the highest mean accuracy, the smallest of equal ones.

    Args:
        validation: Validation accuracies by learning rate, one per seed.
    """
    # Accuracies are counts of the same images: real differences exceed 1e-6, rounding does not.
    return min(validation, key=lambda rate: (-round(fmean(validation[rate]), 6), float(rate)))


def prepare(out: Path, *, model: Path, on_progress: OnProgress) -> tuple[DemoData, Path]:
    """Write the image folders and the zero-shot classifier, unless they exist."""
    zeroshot = out / "zeroshot.safetensors"
    if zeroshot.exists():
        return demo_paths(out), zeroshot
    data = write_image_folders(out)
    run_command(
        zeroshot_head_command(model, classes=data.classes, templates=data.templates, out=zeroshot),
        on_progress=on_progress,
    )
    return data, zeroshot


def finetuned_path(out: Path, learning_rate: str, seed: int) -> Path:
    """Return the path of the model of one learning rate and seed."""
    return out / f"finetuned-{learning_rate}-{seed}.safetensors"


def select(
    out: Path, *, data: DemoData, zeroshot: Path, on_progress: OnProgress
) -> dict[str, list[float]]:
    """Fine-tune with the whole grid and return validation accuracies, one per seed."""
    accuracies: dict[str, list[float]] = {}
    for learning_rate in GRID:
        for seed in SEEDS:
            finetuned = finetuned_path(out, learning_rate, seed)
            results = finetuned.with_suffix(".validation.jsonl")
            if not finetuned.exists():
                command = finetune_command(
                    zeroshot,
                    train=data.train,
                    validation=data.validation,
                    out=finetuned,
                    learning_rate=learning_rate,
                    seed=seed,
                )
                run_command(command, on_progress=on_progress)
            if not results.exists():
                words = ("--data", f"validation={data.validation}", "--results", str(results))
                run_command(("eval", str(finetuned), *words), on_progress=on_progress)
            (line,) = read_result_lines(results)
            accuracies.setdefault(learning_rate, []).append(line.value)
    return accuracies


def measure(
    out: Path, *, data: DemoData, zeroshot: Path, on_progress: OnProgress
) -> dict[str, list[tuple[CurvePoint, ...]]]:
    """Evaluate the whole grid over alpha and return curves, one per seed."""
    curves: dict[str, list[tuple[CurvePoint, ...]]] = {}
    for learning_rate in GRID:
        for seed in SEEDS:
            finetuned = finetuned_path(out, learning_rate, seed)
            results = finetuned.with_suffix(".jsonl")
            if not results.exists():
                command = eval_command(
                    zeroshot, finetuned, test=data.test, shifts=data.shifts, results=results
                )
                run_command(command, on_progress=on_progress)
            curve = read_curve(read_result_lines(results))
            curves.setdefault(learning_rate, []).append(curve)
    return curves


def mean_curve(curves: Sequence[tuple[CurvePoint, ...]]) -> tuple[CurvePoint, ...]:
    """Average curves set by set."""
    return tuple(
        CurvePoint(
            points[0].alpha,
            {name: fmean(point.by_set[name] for point in points) for name in points[0].by_set},
        )
        for points in zip(*curves, strict=True)
    )


def bow(curve: Sequence[CurvePoint]) -> float:
    """Return the largest height of the mean over the shifts above the line between the ends."""
    start, end = curve[0].shifts, curve[-1].shifts
    return max(point.shifts - start - float(point.alpha) * (end - start) for point in curve)


def validation_table(validation: dict[str, list[float]]) -> list[list[str]]:
    """Return validation accuracies in per cent by learning rate and seed."""
    header = ["learning rate", *(f"seed {seed}" for seed in SEEDS), "mean"]
    return [header] + [
        [rate, *(f"{100 * value:.1f}" for value in values), f"{100 * fmean(values):.2f}"]
        for rate, values in validation.items()
    ]


def effect_table(curves: dict[str, tuple[CurvePoint, ...]]) -> list[list[str]]:
    """Return the numbers behind the claims, one row per curve, in per cent and points."""
    header = [
        "curve", "ID: zero-shot", "ID: 0.5", "ID: fine-tuned", "shifts: zero-shot",
        "shifts: 0.5", "shifts: fine-tuned", "best alpha", "shifts: best", "bow",
    ]  # fmt: skip
    rows = [header]
    for name, curve in curves.items():
        ends = (curve[0], at_half(curve), curve[-1])
        best = best_inside(curve)
        numbers = [point.in_distribution for point in ends] + [point.shifts for point in ends]
        rows.append(
            [name]
            + [f"{100 * number:.1f}" for number in numbers]
            + [str(best.alpha), f"{100 * best.shifts:.1f}", f"{100 * bow(curve):.1f}"]
        )
    return rows


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Format a table as Markdown; the first row is the header."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


def main() -> None:
    """Parse the command line, run one of the parts and print its tables."""
    parser = argparse.ArgumentParser(prog="python -m tests.demo.makers.study")
    parser.add_argument("part", choices=("select", "measure"))
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--model", type=Path, default=embedded_model_folder(), metavar="DIR")
    options = parser.parse_args()

    def log(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    data, zeroshot = prepare(options.out, model=options.model, on_progress=log)
    validation = select(options.out, data=data, zeroshot=zeroshot, on_progress=log)
    chosen = choose_learning_rate(validation)
    if options.part == "select":
        print(markdown(validation_table(validation)), f"\nchosen: {chosen}", sep="\n")
        return
    curves = measure(options.out, data=data, zeroshot=zeroshot, on_progress=log)
    means = {f"learning rate {rate}": mean_curve(group) for rate, group in curves.items()}
    seeds = {f"seed {seed}": curve for seed, curve in zip(SEEDS, curves[chosen], strict=True)}
    for table in (
        curve_table(mean_curve(curves[chosen])),
        effect_table(seeds),
        effect_table(means),
    ):
        print(markdown(table), end="\n\n")


if __name__ == "__main__":
    main()
