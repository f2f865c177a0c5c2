"""The plan of `wiseft eval`: every mistake that needs no model and no pixel is found here."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from wiseft_cli.checkpoint.atomic import check_output
from wiseft_cli.cli.console import warn
from wiseft_cli.data.image_set import ImageSet
from wiseft_cli.data.sources import open_image_sets, open_suite
from wiseft_cli.errors import OutputError, UsageError
from wiseft_cli.evaluation.plan import Job, JoinRules, plan_jobs
from wiseft_cli.evaluation.weight_sets import (
    NamedCheckpoint,
    WeightSet,
    doubts_about_pair,
    plan_weight_sets,
    read_checkpoints,
)
from wiseft_cli.merging.alpha import Alpha, parse_alphas
from wiseft_cli.reporting.gates import Gate, check_gates, parse_gate


@dataclass(frozen=True)
class Request:
    """What was asked for that decides which numbers come out, and what becomes of them."""

    checkpoints: tuple[Path, ...]
    data: tuple[str, ...]
    suite: str | None
    root: Path | None
    alpha: tuple[str, ...]
    output_ensemble: bool
    reference: str | None
    select_on: str | None
    merge_best: Path | None
    fail_under: tuple[str, ...]
    gate_alpha: str | None
    baseline: Path | None
    results: Path | None
    save_predictions: Path | None
    all_classes: bool
    labels_are_indices: bool
    precision: str
    force: bool


@dataclass(frozen=True)
class EvalPlan:
    """What will be done.

    Attributes:
        jobs: Every row on every set; those of a set stand together.
        gates: What the judged row must reach.
        judged: The row that they judge; None without gates.
        baseline: The row that they compare with, where there is one.
        shifts: The sets beside the reference and the one that chooses alpha; with gates, of the
            judged row.
        predictions: The file of each job's predictions; empty where none is wanted.
    """

    request: Request
    jobs: tuple[Job, ...]
    gates: tuple[Gate, ...]
    judged: WeightSet | None
    baseline: WeightSet | None
    shifts: tuple[str, ...]
    predictions: Mapping[Job, Path]


def plan_evaluation(request: Request, *, n_processes: int) -> EvalPlan:
    """Find every mistake that needs no model and no pixel, and warn of what is doubtful.

    Args:
        n_processes: How many processes share the images.
    Raises:
        WiseftError: The request cannot be fulfilled.
    """
    alphas = parse_alphas(request.alpha) if request.alpha else ()
    gates = tuple(map(parse_gate, request.fail_under))
    gate_alpha = _check_options(request, alphas)
    checkpoints, baseline = _read_all(request)
    _check_outputs(request)
    rows = plan_weight_sets(checkpoints, alphas, output_ensemble=request.output_ensemble)
    judged = _judged_row(rows, baseline, gate_alpha) if gates else None
    suite = open_suite(request.suite, request.root) if request.suite is not None else ()
    image_sets = [*suite, *(images for spec in request.data for images in open_image_sets(spec))]
    _check_select_on(request, image_sets)
    if baseline is not None and baseline not in rows:
        rows = (*rows, baseline)
    jobs = plan_jobs(
        rows,
        image_sets,
        reference=request.reference,
        rules=JoinRules(request.labels_are_indices, request.all_classes),
        precision=request.precision,
        optional=[image_set.name for image_set in suite],
    )
    shifts = tuple(
        dict.fromkeys(
            job.image_set.name
            for job in jobs
            if not job.reference
            and job.image_set.name != request.select_on
            and judged in (None, job.weights)
        )
    )
    if judged is not None and baseline is not None:
        _check_baseline(jobs, judged, baseline)
    compared = [row for row in (judged, baseline) if row is not None]
    check_gates(gates, _metrics(jobs, compared), shifts, has_baseline=baseline is not None)
    for note in (*_notes(image_sets, checkpoints, alphas), *_left_out(rows, image_sets, jobs)):
        warn(note)
    return EvalPlan(
        request, jobs, gates, judged, baseline, shifts, _predictions(request, jobs, n_processes)
    )


def _check_options(request: Request, alphas: Sequence[Alpha]) -> Alpha | None:
    """Refuse options that need others, and return the alpha that gates judge."""
    if not request.data and request.suite is None:
        raise UsageError("no image sets are named", hint="name them with --data or --suite")
    for is_given, option, needs, is_there in (
        (request.root is not None, "--root", "--suite", request.suite is not None),
        (request.select_on is not None, "--select-on", "--alpha", bool(alphas)),
        (request.merge_best is not None, "--merge-best", "--select-on", bool(request.select_on)),
        (request.gate_alpha is not None, "--gate-alpha", "--alpha", bool(alphas)),
        (request.gate_alpha is not None, "--gate-alpha", "--fail-under", bool(request.fail_under)),
    ):
        if is_given and not is_there:
            raise UsageError(f"{option} needs {needs}")
    if request.gate_alpha is None:
        return None
    gate_alpha, *others = parse_alphas([request.gate_alpha])
    if others or gate_alpha not in alphas:
        raise UsageError(
            f"--gate-alpha {request.gate_alpha} is none of the alphas:"
            f" {', '.join(alpha.text for alpha in alphas)}"
        )
    return gate_alpha


def _read_all(request: Request) -> tuple[tuple[NamedCheckpoint, ...], WeightSet | None]:
    """Read the checkpoints, and the baseline as a row, which may be one of them."""
    paths, baseline = request.checkpoints, request.baseline
    if baseline is None:
        return read_checkpoints(paths), None
    same = [at for at, path in enumerate(paths) if _is_same_file(path, baseline)]
    named = read_checkpoints([*paths, *([] if same else [baseline])])
    return named[: len(paths)], WeightSet((named[same[0] if same else -1],))


def _is_same_file(path: Path, other: Path) -> bool:
    return path.exists() and other.exists() and os.path.samefile(path, other)


def _check_outputs(request: Request) -> None:
    inputs = [
        *request.checkpoints,
        *([request.baseline] if request.baseline is not None else []),
    ]
    if request.results is not None:
        _check_output(request.results, "--results", force=True, inputs=inputs)
    if request.merge_best is not None:
        if request.results is not None and _same_place(request.merge_best, request.results):
            raise UsageError(f"--merge-best and --results both name {request.results}")
        _check_output(request.merge_best, "--merge-best", force=request.force, inputs=inputs)


def _same_place(path: Path, other: Path) -> bool:
    return os.path.realpath(path) == os.path.realpath(other)


def _check_output(path: Path, option: str, *, force: bool, inputs: Sequence[Path]) -> None:
    """See that an output may be written; the remedy names the option that it was given with."""
    try:
        check_output(path, force=force, inputs=inputs)
    except OutputError as error:
        hint = error.hint.replace("with -o", f"with {option}") if error.hint else None
        raise OutputError(error.message, hint=hint) from None


def _judged_row(
    rows: Sequence[WeightSet], baseline: WeightSet | None, gate_alpha: Alpha | None
) -> WeightSet:
    """Return the row that gates judge: the only one, or the one at `--gate-alpha`."""
    candidates = [row for row in rows if not row.is_ensemble and row != baseline]
    if gate_alpha is not None:
        candidates = [row for row in candidates if row.alpha == gate_alpha]
    if len(candidates) != 1:
        found = ", ".join(row.name for row in candidates) or "none beside the baseline"
        raise UsageError(
            f"--fail-under judges one row, and there are {len(candidates)}: {found}",
            hint="name one alpha with --gate-alpha, or evaluate one checkpoint",
        )
    return candidates[0]


def _check_baseline(jobs: Sequence[Job], judged: WeightSet, baseline: WeightSet) -> None:
    """See that the baseline is evaluated wherever the judged row is; of a suite it may not be."""
    measured = {job.image_set.name for job in jobs if job.weights == baseline}
    wanted = [job.image_set.name for job in jobs if job.weights == judged]
    missing = [name for name in wanted if name not in measured]
    if missing:
        raise UsageError(
            f"--baseline {baseline.name}: its head is of other classes than {', '.join(missing)}",
            hint=f"compare {judged.name} with a checkpoint of the same classes",
        )


def _check_select_on(request: Request, image_sets: Sequence[ImageSet]) -> None:
    names = [image_set.name for image_set in image_sets]
    if request.select_on is not None and request.select_on not in names:
        raise UsageError(
            f"--select-on {request.select_on!r} is no image set; there are {', '.join(names)}"
        )


def _metrics(jobs: Sequence[Job], rows: Sequence[WeightSet]) -> dict[str, list[str]]:
    """Return the metrics that each set has in all of the rows."""
    metrics: dict[str, list[str]] = {}
    for job in jobs:
        if job.weights in rows:
            held = metrics.get(job.image_set.name, list(job.metrics))
            metrics[job.image_set.name] = [name for name in held if name in job.metrics]
    return metrics


def _notes(
    image_sets: Sequence[ImageSet],
    checkpoints: Sequence[NamedCheckpoint],
    alphas: Sequence[Alpha],
) -> list[str]:
    notes = [note for image_set in image_sets for note in (*image_set.notes, *image_set.warnings)]
    return notes + (list(doubts_about_pair(*checkpoints)) if alphas else [])


def _left_out(
    rows: Sequence[WeightSet], image_sets: Sequence[ImageSet], jobs: Sequence[Job]
) -> list[str]:
    """Say which sets of a suite have nothing to do with which rows' classes."""
    notes = []
    for image_set in image_sets:
        planned = [job.weights for job in jobs if job.image_set.name == image_set.name]
        names = [row.name for row in rows if row not in planned]
        if names:
            notes.append(
                f"image set {image_set.name!r} is left out for {', '.join(names)}: the head is of"
                " other classes"
            )
    return notes


def _predictions(request: Request, jobs: Sequence[Job], n_processes: int) -> Mapping[Job, Path]:
    if request.save_predictions is None:
        return {}
    # lazy: it needs torch, which costs seconds
    from wiseft_cli.evaluation.predictions import plan_prediction_files

    return plan_prediction_files(
        request.save_predictions, jobs, n_processes=n_processes, force=request.force
    )
