"""Evaluate checkpoints, and points between two, on labelled image sets.

`evaluate` does everything that `wiseft eval` does, in one call:

    evaluation = evaluate(EvalRequest("merged.safetensors", data=["imagenet", "sketch"]))
    print(evaluation.table())

A caller that reports between the steps, such as the command, calls `plan_evaluation`,
`run_evaluation` and `merge_selected` itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from wiseft_cli.compute.workers import default_workers
from wiseft_cli.errors import ResultsError
from wiseft_cli.evaluation.plan import EvalPlan, Job, plan_evaluation
from wiseft_cli.evaluation.request import EvalRequest
from wiseft_cli.evaluation.weight_sets import PLAIN, WeightSet, descent_warnings
from wiseft_cli.merging.alpha import Alpha, parse_alphas
from wiseft_cli.merging.merge import MergeReport, merge_checkpoints, soup_checkpoints
from wiseft_cli.reporting.alpha_selection import alpha_choices, render_choices, selected_alpha
from wiseft_cli.reporting.comparison import (
    Comparison,
    PredictionFolder,
    compare_rows,
    compared_pairs,
    comparison_documents,
)
from wiseft_cli.reporting.gates import Verdict, judge_gate
from wiseft_cli.reporting.report import append_summary
from wiseft_cli.reporting.results import (
    PREDICTIONS,
    ResultLine,
    add_result_lines,
    result_document,
)
from wiseft_cli.reporting.table import implausible_results, render_table
from wiseft_cli.reporting.terminal_curve import render_terminal_curve


@dataclass(frozen=True)
class Evaluation:
    """The results of an evaluation.

    Attributes:
        lines: One results line per weight set and image set; those of a set are adjacent.
        selected_alpha: The alpha with the best primary metric on the validation set; None without
            such a set or without alphas.
        verdicts: One per gate.
        comparisons: Paired differences between rows; empty without saved predictions.
        default_alpha: The default of the merge method; None if it has no alpha.
        warnings: What is doubtful about the data, the checkpoints and the results.
    """

    lines: tuple[ResultLine, ...]
    selected_alpha: Alpha | None
    verdicts: tuple[Verdict, ...]
    warnings: tuple[str, ...]
    comparisons: tuple[Comparison, ...] = ()
    default_alpha: str | None = PLAIN.spec.default_alpha

    def table(self, *, width: int | None = None, columns: Sequence[str] = ()) -> str:
        """Return the table of accuracies in per cent, the choices of alpha, and comparisons.

        Args:
            width: Columns of a terminal: wider tables are folded, and a curve over alpha is drawn
                below. By default neither.
            columns: Columns of the table; by default all.
        """
        choices = render_choices(self.lines, default=self.default_alpha)
        curve = "" if width is None else render_terminal_curve(self.lines, width=width)
        table = render_table(self.lines, width=width, columns=columns)
        blocks = [[table], [curve] if curve else [], choices, self._paired()]
        return "\n\n".join("\n".join(block) for block in blocks if block)

    def _paired(self) -> list[str]:
        sentences = [text for comparison in self.comparisons for text in comparison.sentences()]
        title = "paired differences in points, with 95 % intervals and McNemar's exact test:"
        return [title, *sentences] if sentences else []

    def documents(self) -> list[dict[str, Any]]:
        """Return the results lines as JSON objects, with the `choice` of alpha."""
        choices = alpha_choices(self.lines, default=self.default_alpha)
        return [
            result_document(line)
            | ({"choice": list(choice)} if choice else {})
            | comparison_documents(self.comparisons, line)
            for line, choice in zip(self.lines, choices, strict=True)
        ]


def evaluate(
    request: EvalRequest, *, on_progress: Callable[[int], None] | None = None
) -> Evaluation:
    """Evaluate checkpoints on image sets in this process, in one pass over the images.

    Args:
        request: What to evaluate, on what, and which files to write.
        on_progress: Called with the number of images that a weight set has finished.
    Raises:
        UsageError: Options contradict each other.
        CheckpointError: A checkpoint cannot be used, or two cannot be interpolated.
        DatasetError: An image set cannot be read, or its labels do not fit a head.
        ModelError: The device cannot be used, logits are not finite, or memory is not enough.
        OutputError: A file cannot be written.
    """
    plan = plan_evaluation(request)
    evaluation = run_evaluation(plan, on_progress=on_progress)
    assert evaluation is not None, "a single process is the first one"
    write_summary(plan, evaluation)
    merge_warnings = merge_selected(plan, evaluation)
    return replace(evaluation, warnings=(*plan.warnings, *evaluation.warnings, *merge_warnings))


def run_evaluation(
    plan: EvalPlan,
    *,
    on_progress: Callable[[int], None] | None = None,
    on_lines: Callable[[Sequence[ResultLine]], None] | None = None,
) -> Evaluation | None:
    """Carry out a plan; its results file is updated after each image set.

    All processes of a run call this function; each evaluates a share of the images.

    Args:
        plan: From `plan_evaluation`.
        on_progress: Called with the number of images that a weight set has finished in this
            process.
        on_lines: Called with the results lines of each image set when they are in the results
            file, if there is one.
    Returns:
        The results, in process 0; None in the others. `warnings` are those about the results.
    Raises:
        WiseftError: As `evaluate`; or another process of the run was lost.
    """
    done = dict(plan.held)
    results = plan.request.results_path if plan.launch.is_first else None
    if results is not None and done:
        # Names, the reference or the primary metric may have changed.
        add_result_lines(results, list(done.values()))
    if plan.to_do or plan.launch.world_size > 1:  # the others wait for the list of process 0
        done |= _run_jobs(plan, results, on_progress, on_lines or (lambda lines: None))
    if not plan.launch.is_first:
        return None
    lines = tuple(done[job] for job in plan.jobs)
    folder = PredictionFolder(plan.predictions_folder)
    comparisons, notes = _compare(plan, lines, folder)
    return Evaluation(
        lines=lines,
        selected_alpha=_selected_alpha(lines),
        verdicts=_judge(plan, lines, folder),
        warnings=(*implausible_results(lines), *notes),
        comparisons=comparisons,
        default_alpha=(plan.request.settings or PLAIN).spec.default_alpha,
    )


def _run_jobs(
    plan: EvalPlan,
    results: Path | None,
    on_progress: Callable[[int], None] | None,
    on_lines: Callable[[Sequence[ResultLine]], None],
) -> dict[Job, ResultLine]:
    """Evaluate the jobs that process 0 has to do."""
    # lazy: torch takes seconds, and held results need none
    import torch

    from wiseft_cli.compute.devices import resolve_device
    from wiseft_cli.compute.process_group import join_process_group
    from wiseft_cli.evaluation.sweep import SweepSettings, sweep

    request, launch = plan.request, plan.launch
    if request.threads is not None:
        torch.set_num_threads(request.threads)
    device = resolve_device(request.device, launch)
    workers = request.workers
    done: dict[Job, ResultLine] = {}
    with join_process_group(launch, device) as processes:
        settings = SweepSettings(
            request.batch_size,
            default_workers(launch.local_world_size) if workers is None else workers,
            device,
            max_unreadable=request.max_bad,
            predictions=plan.predictions,
            force=request.force,
            processes=processes,
        )
        positions = [at for at, job in enumerate(plan.jobs) if job not in plan.held]
        jobs = [plan.jobs[at] for at in processes.broadcast(positions)]
        for measured in sweep(jobs, settings, on_progress=on_progress):
            lines = {job: _with_predictions(plan, job, line) for job, line in measured.items()}
            done |= lines
            if results is not None:
                add_result_lines(results, list(lines.values()))
            on_lines(list(lines.values()))
        if plan.predictions:
            processes.gather([])  # wait until every process has written its files
    return done


def _selected_alpha(lines: Sequence[ResultLine]) -> Alpha | None:
    text = selected_alpha(lines)
    return None if text is None else parse_alphas([text])[0]


def _with_predictions(plan: EvalPlan, job: Job, line: ResultLine) -> ResultLine:
    """Return a line that names its file of predictions, if there is one."""
    path = plan.predictions.get(job)
    return line if path is None else replace(line, extra={**line.extra, PREDICTIONS: path.name})


def _judge(
    plan: EvalPlan, lines: Sequence[ResultLine], folder: PredictionFolder
) -> tuple[Verdict, ...]:
    if plan.judged is None:
        return ()
    row = _lines_of(plan, lines, plan.judged)
    baseline = None if plan.baseline is None else _lines_of(plan, lines, plan.baseline)
    paired = {}
    if baseline is not None and any(gate.needs_predictions for gate in plan.gates):
        pairs = {name: folder.pair(row[name], baseline[name]) for name in row}
        paired = {name: counts for name, counts in pairs.items() if counts is not None}
    return tuple(judge_gate(gate, row, baseline, plan.shifts, paired) for gate in plan.gates)


def _compare(
    plan: EvalPlan, lines: Sequence[ResultLine], folder: PredictionFolder
) -> tuple[tuple[Comparison, ...], list[str]]:
    """Compare rows image by image, if their predictions are saved; or say why they cannot be."""
    if folder.path is None:
        return (), []
    weight_sets: list[WeightSet] = []
    for job in plan.jobs:
        if job.weights not in weight_sets:
            weight_sets.append(job.weights)
    rows = [_lines_of(plan, lines, weights) for weights in weight_sets]
    baseline = None if plan.baseline is None else rows[weight_sets.index(plan.baseline)]
    try:
        compared = [compare_rows(*pair, folder) for pair in compared_pairs(rows, baseline)]
    except ResultsError as error:  # such as the parts of processes on another machine
        return (), [f"paired differences are left out: {error.message}"]
    return tuple(comparison for comparison in compared if comparison is not None), []


def _lines_of(
    plan: EvalPlan, lines: Sequence[ResultLine], weights: WeightSet
) -> dict[str, ResultLine]:
    """Return the lines of one weight set by set name."""
    return {
        line.set_name: line
        for job, line in zip(plan.jobs, lines, strict=True)
        if job.weights == weights
    }


def write_summary(plan: EvalPlan, evaluation: Evaluation) -> None:
    """Append the results and gates as Markdown to the file of `summary`, if there is one.

    Raises:
        OutputError: The file cannot be written.
    """
    if plan.request.summary is not None:
        baseline = None if plan.baseline is None else plan.baseline.name
        append_summary(
            Path(plan.request.summary),
            evaluation.lines,
            baseline=baseline,
            verdicts=evaluation.verdicts,
            comparisons=evaluation.comparisons,
        )


def merge_selected(plan: EvalPlan, evaluation: Evaluation) -> tuple[str, ...]:
    """Write the merge at the selected alpha, if `merge_best` names a file for it.

    Returns:
        Warnings of the merge that the plan does not have.
    Raises:
        CheckpointError: The checkpoints changed since they were evaluated.
        OutputError: The file cannot be written.
    """
    output, settings = plan.request.merge_best, plan.request.settings
    if output is None or settings is None:
        return ()
    alpha = evaluation.selected_alpha
    if alpha is None and settings.spec.default_alpha is not None:
        return ()
    row = next(job.weights for job in plan.jobs if job.weights.is_merged)
    known = descent_warnings(row.checkpoints, has_base=settings.spec.has_base)
    done = write_merge(replace(row, alpha=alpha), Path(output), force=plan.request.force)
    return (*(text for text in done.warnings if text not in known), *done.notes)


def write_merge(weights: WeightSet, output: Path, *, force: bool) -> MergeReport:
    """Write a merge as `wiseft merge` or `wiseft soup` would."""
    if not weights.settings.spec.has_base:
        soup_weights = [weight.text for weight in weights.settings.weights]
        return soup_checkpoints(weights.paths, output, weights=soup_weights, force=force)
    theta_0, *finetuned = weights.paths
    return merge_checkpoints(
        theta_0,
        finetuned,
        [(weights.alpha, output)],
        settings=weights.settings,
        fishers=[fisher.path for fisher in weights.fishers],
        force=force,
    )
