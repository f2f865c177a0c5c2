"""`wiseft eval`: checkpoints, and the points between two, on labelled image sets.

Options in, one evaluation, results out; what is planned is in `eval_plan.py`, the run in
`eval_run.py`, what is shown and judged in `eval_report.py`.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from wiseft_cli.compute.workers import MAX_DEFAULT_WORKERS, default_workers


class Precision(StrEnum):
    """What `--precision` accepts."""

    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


def eval_command(
    checkpoints: Annotated[
        list[Path],
        typer.Argument(
            help="Checkpoints that wiseft wrote, or folders with one.", show_default=False
        ),
    ],
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]SPEC",
            help="Image set: a folder with one subfolder a class, a manifest (.csv, .tsv, .jsonl),"
            " shards (data-{000..127}.tar), or a suite of several (.yaml); repeatable. The first"
            " one is the in-distribution set.",
            show_default=False,
        ),
    ] = None,
    suite: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help="Several image sets at once, before those of --data: a suite that `wiseft"
            " datasets` lists, or a file of your own.",
        ),
    ] = None,
    root: Annotated[
        Path | None,
        typer.Option(help="Folder that holds the sets of --suite, a folder each."),
    ] = None,
    alpha: Annotated[
        list[str] | None,
        typer.Option(
            help="Evaluate the points between two checkpoints, ZEROSHOT FINETUNED, at these"
            " weights of the fine-tuned one: 0.5, a list 0,0.5,1 or a range 0:1:0.1; repeatable."
        ),
    ] = None,
    output_ensemble: Annotated[
        bool,
        typer.Option(
            "--output-ensemble", help="Add a row that averages the logits of the two checkpoints."
        ),
    ] = False,
    reference: Annotated[
        str | None,
        typer.Option(help="Name of the in-distribution set.  [default: the first]"),
    ] = None,
    select_on: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Image set that chooses alpha, a validation set: the best there, the smallest of"
            " equal ones. It is no shift.",
        ),
    ] = None,
    merge_best: Annotated[
        Path | None,
        typer.Option(
            metavar="OUT", help="Write the merge at the alpha that --select-on chooses to OUT."
        ),
    ] = None,
    fail_under: Annotated[
        list[str] | None,
        typer.Option(
            metavar="EXPR",
            help="Exit with 3 unless it holds: 'SET:METRIC>=NUMBER' or"
            " 'SET:METRIC>=baseline-NUMBER', numbers as fractions; SET may be shifts for the mean"
            " over them, METRIC primary; repeatable.",
        ),
    ] = None,
    gate_alpha: Annotated[
        str | None,
        typer.Option(metavar="A", help="The alpha that --fail-under judges, of several."),
    ] = None,
    baseline: Annotated[
        Path | None,
        typer.Option(
            metavar="CHECKPOINT",
            help="Checkpoint that --fail-under compares with; it has a row too.",
        ),
    ] = None,
    results: Annotated[
        Path | None,
        typer.Option(help="File of JSON lines to add to; what it holds already is not run again."),
    ] = None,
    save_predictions: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder for the prediction of every image: SET.WEIGHTS.jsonl for each row and"
            " set. Runs again what RESULTS holds.",
        ),
    ] = None,
    all_classes: Annotated[
        bool,
        typer.Option(
            "--all-classes",
            help="Score over all classes of the head, not only those that a set has.",
        ),
    ] = False,
    labels_are_indices: Annotated[
        bool,
        typer.Option(
            "--labels-are-indices",
            help="Take labels that are numbers as positions among the head's classes, from 0.",
        ),
    ] = False,
    max_bad: Annotated[int, typer.Option(min=0, help="Unreadable images a set to leave out.")] = 0,
    precision: Annotated[
        Precision, typer.Option(help="What the image encoder computes in; the head is float32.")
    ] = Precision.fp32,
    batch_size: Annotated[int, typer.Option(min=1, help="Images a forward pass.")] = 64,
    workers: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Processes that decode images; 0 decodes in this one.  [default: one a CPU,"
            f" at most {MAX_DEFAULT_WORKERS}]",
        ),
    ] = None,
    device: Annotated[
        str, typer.Option(help="Where to compute: auto, cpu, cuda, cuda:N or mps.")
    ] = "auto",
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads.  [default: torch's choice]")
    ] = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Run again what RESULTS holds, and overwrite outputs that exist."
        ),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the results lines as a JSON list.")
    ] = False,
) -> None:
    """Measure checkpoints on image sets, joined by class id or name, in one pass over the images.

    The table on stdout has a row for each checkpoint or alpha and a column for each set; a set
    with some of the head's classes is scored over those. Under torchrun the processes share the
    images.
    """
    # lazy: --help of other commands must not wait for numpy
    from wiseft_cli.cli.eval_plan import Request, plan_evaluation
    from wiseft_cli.cli.eval_report import judge, merge_best_alpha, report
    from wiseft_cli.cli.eval_run import RunOptions, evaluate
    from wiseft_cli.cli.torchrun import rank_zero_output

    request = Request(
        checkpoints=tuple(checkpoints),
        data=tuple(data or ()),
        suite=suite,
        root=root,
        alpha=tuple(alpha or ()),
        output_ensemble=output_ensemble,
        reference=reference,
        select_on=select_on,
        merge_best=merge_best,
        fail_under=tuple(fail_under or ()),
        gate_alpha=gate_alpha,
        baseline=baseline,
        results=results,
        save_predictions=save_predictions,
        all_classes=all_classes,
        labels_are_indices=labels_are_indices,
        precision=precision.value,
        force=force,
    )
    with rank_zero_output() as launch:
        if workers is None:
            workers = default_workers(launch.local_world_size)
        options = RunOptions(batch_size, workers, device, threads, max_bad)
        plan = plan_evaluation(request, n_processes=launch.world_size)
        lines = evaluate(plan, options, launch)
        if launch.is_first:
            report(plan, lines, as_json=as_json)
            merge_best_alpha(plan, lines)
            judge(plan, lines)
