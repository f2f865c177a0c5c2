"""`wiseft eval`: the accuracy of checkpoints on image sets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wiseft_cli.cli.completion import complete_data, complete_suite
from wiseft_cli.cli.console import (
    print_block,
    print_json,
    print_message,
    print_result,
    progress,
    terminal_width,
    warn,
)
from wiseft_cli.cli.merge_options import (
    Density,
    Drop,
    FisherFiles,
    FisherFloor,
    LayerAlphaFrom,
    LayerAlphas,
    Method,
    OutsideBlocks,
    PlanFile,
    Seed,
    Then,
    TrimScope,
    Weights,
    describe_default_alphas,
)
from wiseft_cli.cli.options import BatchSize, Device, Precision, Threads, Workers
from wiseft_cli.errors import GateFailedError, UsageError, WiseftError, counted, list_some

if TYPE_CHECKING:
    from wiseft_cli.evaluation.evaluate import Evaluation
    from wiseft_cli.evaluation.plan import EvalPlan
    from wiseft_cli.merging.plan_file import MergeRequest
    from wiseft_cli.reporting.results import ResultLine

EXAMPLES = """
wiseft eval merged.safetensors --data imagenet=/data/imagenet --data photos/test
wiseft eval zero.safetensors tuned.safetensors --alpha 0:1:0.1 --data t --data v --select-on v
wiseft eval zero.safetensors a.safetensors b.safetensors --method ties --alpha 0.3:1:0.1 --data t
"""

_data_option = partial(typer.Option, rich_help_panel="Image sets")
_weights_option = partial(typer.Option, rich_help_panel="Weights")
_output_option = partial(typer.Option, rich_help_panel="Output")
_gate_option = partial(typer.Option, rich_help_panel="Gates")
_label_option = partial(typer.Option, rich_help_panel="Labels and images")
_compute_option = partial(typer.Option, rich_help_panel="Compute")


def eval_command(
    checkpoints: Annotated[
        list[Path],
        typer.Argument(
            metavar="CHECKPOINT",
            help="Checkpoints that wiseft wrote, or folders that hold a single one. With --alpha or"
            " --method they are merged: ZEROSHOT FINETUNED...",
            show_default=False,
        ),
    ],
    data: Annotated[
        list[str] | None,
        _data_option(
            autocompletion=complete_data,
            metavar="[NAME=]SPEC",
            help="Image set: a folder with one subfolder per class, a manifest (.csv, .tsv,"
            " .jsonl), shards (data-{000..127}.tar), a published set (imagenet-r=FOLDER), or a"
            " suite of several sets (.yaml). May be repeated; the first set is the in-distribution"
            " set.",
            show_default=False,
        ),
    ] = None,
    suite: Annotated[
        str | None,
        _data_option(
            autocompletion=complete_suite,
            metavar="NAME|FILE",
            help="Several image sets at once, before those of --data: a suite that `wiseft"
            " datasets` lists, or a file.",
        ),
    ] = None,
    root: Annotated[
        Path | None,
        _data_option(
            metavar="DIR", help="Folder that holds the sets of --suite, one folder per set."
        ),
    ] = None,
    reference: Annotated[
        str | None,
        _data_option(metavar="NAME", help="Name of the in-distribution set.  [default: the first]"),
    ] = None,
    alpha: Annotated[
        list[str] | None,
        _weights_option(
            metavar="ALPHA",
            help="Evaluate merges of the checkpoints, ZEROSHOT FINETUNED..., at these weights of"
            " the fine-tuned ones: 0.5, a list 0,0.5,1 or a range 0:1:0.1. May be repeated."
            f" Default with --method: {describe_default_alphas()}.",
        ),
    ] = None,
    method: Method = None,
    weights: Weights = None,
    layer_alpha: LayerAlphas = None,
    density: Density = None,
    trim_scope: TrimScope = None,
    drop: Drop = None,
    seed: Seed = None,
    then: Then = None,
    layer_alpha_from: LayerAlphaFrom = None,
    outside_blocks: OutsideBlocks = None,
    fisher: FisherFiles = None,
    fisher_floor: FisherFloor = None,
    plan: PlanFile = None,
    select_on: Annotated[
        str | None,
        _weights_option(
            metavar="NAME",
            help="Validation set; it is not counted as a distribution shift. With --alpha it"
            " chooses alpha: the best one on this set, the smallest if several are equal.",
        ),
    ] = None,
    merge_best: Annotated[
        Path | None,
        _weights_option(
            metavar="FILE",
            help="Write the merge at the alpha that --select-on chooses, or the merge by a method"
            " that has no alpha.",
        ),
    ] = None,
    output_ensemble: Annotated[
        bool,
        _weights_option(
            "--output-ensemble", help="Add a row that averages the logits of the two checkpoints."
        ),
    ] = False,
    results: Annotated[
        Path | None,
        _output_option(
            metavar="FILE",
            help="File of JSON lines to add the results to. Results that it already holds are not"
            " computed again.",
        ),
    ] = None,
    as_json: Annotated[
        bool,
        _output_option("--json", help="Print the results lines as a JSON list."),
    ] = False,
    dry_run: Annotated[
        bool,
        _output_option(
            "--dry-run",
            help="Check everything, decode a few images of each set, print what would be"
            " evaluated, and stop.",
        ),
    ] = False,
    save_predictions: Annotated[
        Path | None,
        _output_option(
            metavar="DIR",
            help="Folder for the prediction for every image, one file SET.WEIGHTS.jsonl per row"
            " and set. Computes again what --results already holds.",
        ),
    ] = None,
    summary: Annotated[
        Path | None,
        _output_option(
            metavar="FILE",
            help="Append the results and gates as Markdown to a file, such as"
            " $GITHUB_STEP_SUMMARY.",
        ),
    ] = None,
    columns: Annotated[
        str | None,
        _output_option(
            metavar="NAME,...",
            help="Columns of the table: names of sets, 'mean shift', average, or SET:METRIC."
            "  [default: all sets and means]",
        ),
    ] = None,
    force: Annotated[
        bool,
        _output_option(
            "--force",
            help="Compute again what --results already holds, and overwrite outputs that exist.",
        ),
    ] = False,
    fail_under: Annotated[
        list[str] | None,
        _gate_option(
            metavar="EXPR",
            help="Exit with 3 unless this holds: 'SET:METRIC>=NUMBER' or"
            " 'SET:METRIC>=baseline-NUMBER', numbers as fractions. SET may be shifts, for the"
            " mean over them; METRIC may be primary. May be repeated.",
        ),
    ] = None,
    baseline: Annotated[
        Path | None,
        _gate_option(
            metavar="CHECKPOINT",
            help="Checkpoint that --fail-under compares with; it has a row too.",
        ),
    ] = None,
    gate_alpha: Annotated[
        str | None,
        _gate_option(
            metavar="ALPHA", help="The alpha that --fail-under judges, if there are several."
        ),
    ] = None,
    all_classes: Annotated[
        bool,
        _label_option(
            "--all-classes", help="Score over all classes of the head, not only those of each set."
        ),
    ] = False,
    labels_are_indices: Annotated[
        bool,
        _label_option(
            "--labels-are-indices",
            help="Labels are positions among the head's classes, counted from 0.",
        ),
    ] = False,
    max_bad: Annotated[
        int,
        _label_option(
            min=0,
            metavar="N",
            help="Maximum number of unreadable images per set; they are left out.",
        ),
    ] = 0,
    device: Device = "auto",
    batch_size: BatchSize = 64,
    precision: Precision = "fp32",
    workers: Workers = None,
    threads: Threads = None,
) -> None:
    """Measure the accuracy of checkpoints on image sets.

    Labels are joined with the classes of the head by id or name. The table has one row per
    checkpoint or alpha and one column per set; a set with only some of the head's classes is
    scored over those. A merge is evaluated in memory with the weights that `wiseft merge` would
    write. All rows are computed in one pass over the images. Under torchrun the
    processes share the images.
    """
    # lazy: --help of other commands must not wait for numpy
    from wiseft_cli.cli.torchrun import rank_zero_output
    from wiseft_cli.evaluation.evaluate import merge_selected, write_summary
    from wiseft_cli.evaluation.plan import plan_evaluation
    from wiseft_cli.evaluation.request import EvalRequest

    merge = _read_merge(
        plan,
        {
            "method": method,
            "alpha": alpha,
            "weights": weights,
            "layer_alpha": layer_alpha,
            "density": density,
            "trim_scope": trim_scope,
            "drop": drop,
            "seed": seed,
            "then": then,
            "layer_alpha_from": layer_alpha_from,
            "outside_blocks": outside_blocks,
            "fisher": [str(path) for path in fisher or ()],
            "fisher_floor": fisher_floor,
        },
    )
    request = EvalRequest(
        checkpoints=checkpoints,
        data=data or (),
        suite=suite,
        root=root,
        alpha=merge.alpha,
        method=merge.method if plan or method else None,
        weights=merge.weights,
        layer_alpha=[f"{row.pattern}={row.alpha.text}" for row in merge.layer_alpha],
        options=merge.options,
        fisher=merge.fisher,
        output_ensemble=output_ensemble,
        reference=reference,
        select_on=select_on,
        merge_best=merge_best,
        fail_under=fail_under or (),
        gate_alpha=gate_alpha,
        baseline=baseline,
        results=results,
        save_predictions=save_predictions,
        summary=summary,
        columns=_split_columns(columns),
        all_classes=all_classes,
        labels_are_indices=labels_are_indices,
        max_bad=max_bad,
        precision=precision,
        batch_size=batch_size,
        workers=workers,
        device=device,
        threads=threads,
        force=force,
    )
    with rank_zero_output() as launch:
        planned = plan_evaluation(request, launch)
        if dry_run:
            _print_dry_run(planned, as_json=as_json)
            return
        evaluation = _run(planned)
        if evaluation is None:  # process 0 has the results
            return
        if as_json:
            print_json(evaluation.documents())
        else:
            print_block(evaluation.table(width=terminal_width(), columns=request.columns))
        for warning in evaluation.warnings:
            warn(warning)
        write_summary(planned, evaluation)
        for warning in merge_selected(planned, evaluation):
            warn(warning)
        if merge_best is not None and evaluation.selected_alpha is not None:
            text = evaluation.selected_alpha.text
            print_message(
                f"wrote {merge_best}: the merge at alpha {text}, the best on {select_on!r}"
            )
        elif merge_best is not None:
            print_message(f"wrote {merge_best}: the merge, by a method without alpha")
        _report_gates(planned, evaluation)


def _read_merge(path: Path | None, given: Mapping[str, Any]) -> MergeRequest:
    """Return the merge that the options and the plan file state.

    Raises:
        UsageError: The plan has a key that changes a file but not an evaluation.
    """
    from wiseft_cli.merging.plan_file import MergeRequest, combine_request  # lazy: as above

    merge = combine_request(path, given)
    for key in ("dtype", "missing", "extrapolate"):
        if getattr(merge, key) != getattr(MergeRequest, key):
            raise UsageError(
                f"{path}: {key} is for `wiseft merge`; an evaluation merges in the dtype of the"
                " checkpoints, which must have the same tensors"
            )
    return merge


def _split_columns(text: str | None) -> list[str]:
    names = [] if text is None else [name.strip() for name in text.split(",")]
    if not all(names):
        raise UsageError(f"--columns {text!r}: expected names separated by commas")
    return names


def _print_dry_run(plan: EvalPlan, *, as_json: bool) -> None:
    from wiseft_cli.evaluation.dry_run import inspect_sets  # lazy: as above

    _print_notes(plan)
    found = inspect_sets(plan)
    rows = list(dict.fromkeys(job.weights.name for job in plan.jobs))
    if as_json:
        sets = [each.document() for each in found]
        print_json({"dry_run": True, "rows": rows, "sets": sets, "warnings": list(plan.warnings)})
        return
    for each in found:
        for reason in each.unreadable:
            warn(reason)
        print_result(str(each))
    print_result(f"rows: {', '.join(list_some(rows))}")
    n_images = sum(each.n_images for each in found if each.n_rows > each.n_held)
    n_to_do = sum(each.n_images * (each.n_rows - each.n_held) for each in found)
    seconds = sum(each.decoding_seconds for each in found if each.n_rows > each.n_held)
    print_result(
        f"work: {n_images:,} images to decode, {n_to_do:,} images times weights; decoding takes"
        f" about {seconds:,.0f} s on one CPU"
    )
    print_message("dry run: nothing was evaluated, and nothing was written")


def _print_notes(plan: EvalPlan) -> None:
    for warning in plan.warnings:
        warn(warning)
    if plan.held:
        print_message(
            f"{plan.request.results} holds {len(plan.held)} of {len(plan.jobs)} results already;"
            " --force evaluates them again"
        )


def _run(plan: EvalPlan) -> Evaluation | None:
    # lazy: as above
    from wiseft_cli.cli.torchrun import report_on_this_rank
    from wiseft_cli.evaluation.evaluate import run_evaluation

    _print_notes(plan)
    with report_on_this_rank(WiseftError):
        if not plan.to_do:
            return run_evaluation(plan)
        finished = list(plan.held.values())
        try:
            with progress(
                plan.n_to_do, "evaluating (images times weights)", unit="images"
            ) as advance:
                return run_evaluation(plan, on_progress=advance, on_lines=finished.extend)
        except BaseException:  # Ctrl-C and SIGTERM too
            _report_finished_sets(plan, finished)
            raise


def _report_finished_sets(plan: EvalPlan, lines: Sequence[ResultLine]) -> None:
    """Report where the results of the finished sets are; without a file, print them."""
    planned = Counter(job.image_set.name for job in plan.jobs)
    measured = Counter(line.set_name for line in lines)
    finished = [name for name, n_rows in planned.items() if measured[name] == n_rows]
    n_finished = f"{len(finished)} of {counted(len(planned), 'image set')}"
    if not finished or not plan.launch.is_first:
        return
    if plan.request.results is not None:
        print_message(
            f"the results of {n_finished} are in {plan.request.results}; the same command continues"
        )
        return
    from wiseft_cli.reporting.table import render_table  # lazy: as above

    print_message(f"the results of {n_finished}, which --results FILE would have kept:")
    table = render_table([line for line in lines if line.set_name in finished])
    for row in table.split("\n"):
        print_message(row)


def _report_gates(plan: EvalPlan, evaluation: Evaluation) -> None:
    """Report the gates that hold.

    Raises:
        GateFailedError: Some gates do not hold; each is reported with its numbers.
    """
    for verdict in evaluation.verdicts:
        if verdict.passes:
            print_message(f"gate holds: {verdict}")
    failed = [str(verdict) for verdict in evaluation.verdicts if not verdict.passes]
    if failed and plan.judged is not None:
        title = f"{len(failed)} of {len(evaluation.verdicts)} gates failed for {plan.judged.name}:"
        raise GateFailedError("\n  ".join([title, *failed]))  # all, however many
