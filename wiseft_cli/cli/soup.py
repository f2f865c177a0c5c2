"""`wiseft soup`: average the weights of checkpoints, all of them or those that a set selects."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from wiseft_cli.cli.completion import complete_data
from wiseft_cli.cli.console import (
    deferred_progress,
    print_data,
    print_json,
    print_message,
    progress,
    warn,
)
from wiseft_cli.cli.options import BatchSize, Device, Force, Json, Precision, Workers
from wiseft_cli.errors import UsageError, counted

if TYPE_CHECKING:
    from wiseft_cli.evaluation.soup import SoupPlan, SoupStep
    from wiseft_cli.merging.merge import MergeReport

EXAMPLES = """
wiseft soup seed0.safetensors seed1.safetensors seed2.safetensors -o soup.safetensors
wiseft soup run*.safetensors --select-on held-out=photos/val -o soup.safetensors
wiseft soup run*.safetensors --select-on photos/val --base zeroshot.safetensors -o m.safetensors
"""

_selection_option = partial(typer.Option, rich_help_panel="Selection")
_base_option = partial(typer.Option, rich_help_panel="Zero-shot model")
_output_option = partial(typer.Option, rich_help_panel="Output")


def soup(
    checkpoints: Annotated[
        list[Path],
        typer.Argument(
            metavar="CHECKPOINT",
            help="Two or more checkpoints of the same model and classes, such as the runs of a"
            " sweep.",
            show_default=False,
        ),
    ],
    output: Annotated[Path, _output_option("--output", "-o", metavar="FILE", help="Output file.")],
    select_on: Annotated[
        str | None,
        _selection_option(
            autocompletion=complete_data,
            metavar="[NAME=]SPEC",
            help="Held-out image set for a greedy soup: the checkpoints are taken in the order of"
            " their accuracy on it, and each one is kept with which the accuracy of the mean does"
            " not fall. The set is recorded in the output and is not a test set any more.",
        ),
    ] = None,
    max_bad: Annotated[
        int,
        _selection_option(
            min=0, metavar="N", help="Maximum number of unreadable images; they are left out."
        ),
    ] = 0,
    results: Annotated[
        Path | None,
        _selection_option(
            metavar="FILE",
            help="File of JSON lines to add the measurements to. Those that it already holds are"
            " not computed again, so that an interrupted selection continues.",
        ),
    ] = None,
    base: Annotated[
        Path | None,
        _base_option(
            metavar="ZEROSHOT",
            help="Merge the soup with this zero-shot checkpoint in the same run.",
        ),
    ] = None,
    alpha: Annotated[
        str | None,
        _base_option(
            metavar="ALPHA",
            help="Weight of the soup in the merge with --base.  [default: 0.5]",
        ),
    ] = None,
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16"] | None,
        _output_option(
            metavar="DTYPE",
            help="Dtype to store floating tensors in.  [default: the dtype of the inputs]",
        ),
    ] = None,
    strict: Annotated[
        bool, _output_option("--strict", help="Exit with an error instead of a warning.")
    ] = False,
    force: Force = False,
    as_json: Json = False,
    device: Device = "auto",
    batch_size: BatchSize = 64,
    precision: Precision = "fp32",
    workers: Workers = None,
    threads: Annotated[
        int | None,
        typer.Option(
            rich_help_panel="Compute",
            min=1,
            metavar="N",
            help="CPU threads.  [default: one per CPU, up to 8, to average; torch's choice to"
            " evaluate]",
        ),
    ] = None,
) -> None:
    """Average the weights of several fine-tuned checkpoints.

    Without --select-on the mean of all checkpoints, the uniform soup; with it the greedy soup
    (Wortsman et al. 2022, arXiv 2203.05482). Prints the path of the file.
    """
    # lazy: numpy takes a tenth of a second, and --help does not need it
    from wiseft_cli.checkpoint.atomic import check_output
    from wiseft_cli.merging.soup import parse_soup_alpha, require_several, write_soup

    require_several(checkpoints)
    exact = parse_soup_alpha(alpha, has_base=base is not None)
    if results is not None and select_on is None:
        raise UsageError("--results needs --select-on")
    inputs = [*checkpoints, *([base] if base else [])]
    check_output(output, force=force, inputs=[path for path in inputs if path.is_file()])
    plan: SoupPlan | None = None
    steps: tuple[SoupStep, ...] = ()
    if select_on is not None:
        from wiseft_cli.evaluation.soup import plan_greedy_soup  # lazy: it reads image sets

        plan = plan_greedy_soup(
            checkpoints, select_on, base=base, results=results, precision=precision, force=force
        )
        steps = _select(
            plan,
            max_unreadable=max_bad,
            batch_size=batch_size,
            workers=workers,
            device=device,
            threads=threads,
        )
        checkpoints = plan.kept(steps)
    with deferred_progress("averaging (bytes)") as on_progress:
        report = write_soup(
            checkpoints,
            output,
            base=base,
            alpha=exact,
            selection=plan.record(steps) if plan else None,
            dtype=dtype,
            threads=threads,
            is_strict=strict,
            force=force,
            on_progress=on_progress,
        )
    for text in report.warnings:
        warn(text)
    if as_json:
        print_json(_document(report, plan, steps, checkpoints))
    else:
        print_data(str(output))


def _select(plan: SoupPlan, **options: Any) -> tuple[SoupStep, ...]:
    """Run the selection, and print the path that it took."""
    from wiseft_cli.evaluation.soup import run_greedy_soup  # lazy: as above

    for warning in plan.warnings:
        warn(warning)
    with progress(plan.max_images, "selecting (images times weights)") as advance:
        steps = run_greedy_soup(plan, on_progress=advance, **options)
    names = [plan.checkpoints[step.index].name for step in steps]
    width = max(map(len, ("checkpoint", *names)))
    line = plan.jobs[0].line
    print_message(f"{line.primary} on {line.set_name!r}, in %:")
    print_message(f"{'checkpoint':<{width}}   alone    mean  kept")
    for name, step in zip(names, steps, strict=True):
        print_message(
            f"{name:<{width}}  {100 * step.alone:6.2f}  {100 * step.mean:6.2f}  "
            f"{'yes' if step.is_kept else 'no'}"
        )
    n_kept = sum(step.is_kept for step in steps)
    print_message(f"kept {n_kept} of {counted(len(steps), 'checkpoint')}")
    return steps


def _document(
    report: MergeReport,
    plan: SoupPlan | None,
    steps: Sequence[SoupStep],
    kept: Sequence[Path],
) -> dict[str, Any]:
    (file,) = report.files
    document: dict[str, Any] = {
        "path": str(file.path),
        "digest": file.digest,
        "role": "merged",
        "alpha": file.alpha.text if file.alpha else None,
        "kept": [str(path) for path in kept],
        "warnings": [*(plan.warnings if plan else ()), *report.warnings],
    }
    if plan is not None:
        document["selection"] = {"set": plan.image_set.name, **plan.record(steps)}
        document["steps"] = [
            {
                "checkpoint": str(plan.checkpoints[step.index].path),
                "digest": plan.checkpoints[step.index].digest,
                "alone": step.alone,
                "mean": step.mean,
                "kept": step.is_kept,
            }
            for step in steps
        ]
    return document
