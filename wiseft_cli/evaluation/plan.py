"""Plan an evaluation from headers and file names alone.

A job is one weight set on one image set. Mistakes are found here, before an image is decoded or a
model is built.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from wiseft_cli import __version__
from wiseft_cli.checkpoint.card import ClassEntry, canonical_preprocess
from wiseft_cli.checkpoint.digest import sha256_of_json
from wiseft_cli.compute.torchrun import Launch
from wiseft_cli.data.image_set import ImageSet, data_fingerprint
from wiseft_cli.data.label_join import LabelJoin, is_of_other_classes, join_image_set
from wiseft_cli.data.sources import open_image_sets, open_suite
from wiseft_cli.errors import DatasetError, UsageError, list_some
from wiseft_cli.evaluation.data_overlap import chose_weights, overlap_warnings, trained_on_warnings
from wiseft_cli.evaluation.metrics import (
    GROUPS,
    METRIC_NAMES,
    METRICS,
    MIN_COLUMNS_FOR_TOP5,
    SEPARATE_LABELS,
    SIX_CLASSES,
    VIDEO_FRAMES,
    SetAccuracy,
    metric_names,
    predicts_labels,
)
from wiseft_cli.evaluation.prediction_files import plan_prediction_files
from wiseft_cli.evaluation.request import EvalRequest
from wiseft_cli.evaluation.weight_sets import (
    NamedCheckpoint,
    WeightSet,
    descent_warnings,
    plan_weight_sets,
    read_checkpoints,
)
from wiseft_cli.merging.alpha import Alpha
from wiseft_cli.reporting.gates import Gate, check_gates, parse_gate
from wiseft_cli.reporting.results import (
    FINE_TUNING,
    CheckpointName,
    Metric,
    ResultLine,
    read_result_lines,
)
from wiseft_cli.reporting.table import table_columns


@dataclass(frozen=True, eq=False)
class Job:
    """One weight set on one image set.

    Attributes:
        weights: The weight set.
        image_set: The images.
        join: Join of the set's labels with the head.
        line: The results line before the evaluation: counts and metrics are 0.
    """

    weights: WeightSet
    image_set: ImageSet
    join: LabelJoin
    line: ResultLine

    def result_line(self, accuracy: SetAccuracy) -> ResultLine:
        """Return the results line with the counts and metrics of the evaluation."""
        return replace(
            self.line,
            n_images=accuracy.n_images,
            n_unreadable=accuracy.n_unreadable,
            metrics=accuracy.metrics(),
            extra={**self.line.extra, **accuracy.details()},
        )


@dataclass(frozen=True)
class EvalPlan:
    """A checked request.

    Attributes:
        request: The request.
        launch: Rank of this process in the run.
        jobs: All jobs; those of an image set are adjacent.
        held: Results lines of jobs that the results file holds already.
        gates: Conditions on the judged row.
        judged: The weight set that gates judge; None without gates.
        baseline: The weight set that gates compare with, if there is one.
        shifts: Names of the distribution shifts; with gates, those of the judged row.
        predictions: File of each job's predictions; empty if none are written.
        warnings: What is doubtful about the data and the checkpoints.
    """

    request: EvalRequest
    launch: Launch
    jobs: tuple[Job, ...]
    held: Mapping[Job, ResultLine]
    gates: tuple[Gate, ...]
    judged: WeightSet | None
    baseline: WeightSet | None
    shifts: tuple[str, ...]
    predictions: Mapping[Job, Path]
    warnings: tuple[str, ...]

    @property
    def predictions_folder(self) -> Path | None:
        """Folder of the predictions, if they are saved."""
        folder = self.request.save_predictions
        return None if folder is None else Path(folder)

    @property
    def to_do(self) -> tuple[Job, ...]:
        """The jobs whose results are not held."""
        return tuple(job for job in self.jobs if job not in self.held)

    @property
    def n_to_do(self) -> int:
        """Number of images times weight sets that this process has to evaluate."""
        from wiseft_cli.compute.process_group import ProcessGroup  # lazy: torch takes seconds

        processes = ProcessGroup(self.launch.rank, self.launch.world_size)
        sizes = [len(job.image_set.records) for job in self.to_do]
        shares = [processes.share_of_batches(n, self.request.batch_size) for n in sizes]
        return sum(len(batch) for share in shares for batch in share)


def plan_evaluation(request: EvalRequest, launch: Launch | None = None) -> EvalPlan:
    """Check a request, and list the jobs.

    Args:
        request: The request.
        launch: Rank of this process under torchrun; a single process by default.
    Raises:
        WiseftError: The request cannot be fulfilled.
    """
    launch = launch or Launch()
    gates = tuple(map(parse_gate, request.gates))
    gate_alpha = request.check_options()
    checkpoints, baseline = _read_checkpoints(request)
    request.check_outputs()
    settings = request.settings
    rows = plan_weight_sets(
        checkpoints,
        request.alphas,
        settings=settings,
        fishers=request.fisher_paths,
        output_ensemble=request.output_ensemble,
    )
    judged = _judged_row(rows, baseline, gate_alpha) if gates else None
    suite = open_suite(request.suite, request.suite_root) if request.suite is not None else ()
    image_sets = [*suite, *(at for spec in request.data_specs for at in open_image_sets(spec))]
    if baseline is not None and baseline not in rows:
        rows = (*rows, baseline)
    jobs = plan_jobs(
        rows,
        image_sets,
        reference=request.reference,
        select_on=request.select_on,
        labels_are_indices=request.labels_are_indices,
        all_classes=request.all_classes,
        precision=request.precision,
        optional=[image_set.name for image_set in suite],
    )
    _check_columns(request, jobs)
    shifts = _shifts(jobs, judged)
    if judged is not None and baseline is not None:
        _check_baseline(jobs, judged, baseline)
    compared = [row for row in (judged, baseline) if row is not None]
    check_gates(
        gates,
        _common_metrics(jobs, compared),
        shifts,
        has_baseline=baseline is not None,
        has_predictions=request.save_predictions is not None,
        primaries={job.image_set.name: job.line.primary for job in jobs},
    )
    return EvalPlan(
        request=request,
        launch=launch,
        jobs=jobs,
        held=_read_held(jobs, request) if launch.is_first else {},
        gates=gates,
        judged=judged,
        baseline=baseline,
        shifts=shifts,
        predictions=_plan_predictions(request, jobs, launch),
        warnings=(
            *(note for images in image_sets for note in (*images.notes, *images.warnings)),
            *(descent_warnings(checkpoints, has_base=settings.spec.has_base) if settings else ()),
            *_omission_notes(rows, image_sets, jobs),
            *overlap_warnings([job.line for job in jobs]),
            *trained_on_warnings((job.image_set, job.weights.checkpoints) for job in jobs),
            *_single_shard_warnings(image_sets),
        ),
    )


def plan_jobs(
    weight_sets: Sequence[WeightSet],
    image_sets: Sequence[ImageSet],
    *,
    reference: str | None = None,
    select_on: str | None = None,
    labels_are_indices: bool = False,
    all_classes: bool = False,
    precision: str = "fp32",
    optional: Collection[str] = (),
) -> tuple[Job, ...]:
    """Join every image set with every head; the jobs of one set are adjacent.

    Args:
        reference: Name of the in-distribution set. By default the first one that each head fits,
            so that a suite for several kinds of heads has one for each.
        select_on: Name of the validation set.
        labels_are_indices: Labels of all sets are positions among the head's classes.
        all_classes: Score all sets over every class of the head.
        precision: Precision of the image encoder.
        optional: Names of sets that are skipped for heads without their classes.
    Raises:
        UsageError: Two sets have the same name, no set has the name of the reference or of the
            validation set, or a set lacks its primary metric.
        DatasetError: The labels of a set do not fit a head.
    """
    names = [image_set.name for image_set in image_sets]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise UsageError(
            f"more than one image set is named {', '.join(map(repr, repeated))}",
            hint="give them different names: --data NAME=DIR",
        )
    _check_name(reference, image_sets, "--reference")
    _check_name(select_on, image_sets, "--select-on")
    jobs: list[Job] = []
    heads: set[tuple[object, ...]] = set()  # heads that an earlier set fits
    for image_set in image_sets:
        fitting = [
            weights
            for weights in weight_sets
            if image_set.name not in optional or not is_of_other_classes(image_set, weights.classes)
        ]
        of_set = {weights.classes for weights in fitting}
        is_first, heads = heads.isdisjoint(of_set), heads | of_set
        roles = {
            "reference": is_first if reference is None else image_set.name == reference,
            "selection": image_set.name == select_on,
        }
        if select_on is None and not roles["reference"]:
            cards = {id(at.card): at.card for weights in fitting for at in weights.checkpoints}
            roles["selection"] = any(chose_weights(image_set, card) for card in cards.values())
        joins = {
            classes: join_image_set(
                image_set, classes, labels_are_indices=labels_are_indices, all_classes=all_classes
            )
            for classes in dict.fromkeys(weights.classes for weights in fitting)
        }
        jobs += _jobs_of_set(image_set, fitting, joins, roles, precision)
    if not jobs:
        raise DatasetError(
            f"no checkpoint has a head for the classes of {', '.join(names)}",
            hint="`wiseft zeroshot-head --classes NAME` builds a head of a published set's classes",
        )
    return tuple(jobs)


def _jobs_of_set(
    image_set: ImageSet,
    weight_sets: Sequence[WeightSet],
    joins: Mapping[tuple[ClassEntry, ...], LabelJoin],
    roles: Mapping[str, Any],
    precision: str,
) -> list[Job]:
    fingerprint, groups = data_fingerprint(image_set), image_set.groups
    jobs = []
    for weights in weight_sets:
        join = joins[weights.classes]
        metrics = _metrics_of(image_set, join, has_groups=bool(groups))
        line = ResultLine(
            checkpoints=tuple(
                CheckpointName(item.name, item.card.role, item.digest)
                for item in weights.checkpoints
            ),
            alpha=weights.alpha.text if weights.alpha else None,
            set_name=image_set.name,
            data_fingerprint=fingerprint,
            n_images=0,
            n_unreadable=0,
            n_classes=len(join.columns),
            join=join.kind,
            primary=_primary_metric(image_set, metrics),
            metrics=dict.fromkeys(metrics, Metric(0.0)),
            precision=precision,
            version=__version__,
            ensemble=weights.is_ensemble,
            merged_by=weights.merged_by,
            protocol=_protocol(weights, image_set, join),
            extra=_fine_tuning(weights),
            **roles,
        )
        jobs.append(Job(weights, image_set, join, line))
    return jobs


def _fine_tuning(weights: WeightSet) -> dict[str, Any]:
    """Return the field that says which run of which recipe fine-tuned the weights, if one did."""
    cards = [checkpoint.card for checkpoint in weights.checkpoints]
    runs = [card for card in cards if card.recipe is not None]
    if len(runs) != 1:
        return {}
    (card,) = runs
    train = [entry.options.get("train") for entry in card.history if entry.command == "finetune"]
    return {FINE_TUNING: {"recipe": card.recipe, "seed": card.seed, "train": train}}


def _check_columns(request: EvalRequest, jobs: Sequence[Job]) -> None:
    known = table_columns([job.line for job in jobs])
    unknown = [name for name in request.columns if name not in known]
    if unknown:
        raise UsageError(
            f"--columns {', '.join(unknown)}: not a column of the table",
            hint=f"the columns are {', '.join(list_some(known, limit=20))}",
        )


def _check_name(name: str | None, image_sets: Sequence[ImageSet], option: str) -> None:
    names = [image_set.name for image_set in image_sets]
    if name is not None and name not in names:
        raise UsageError(f"{option} {name!r} is not an image set; there are {', '.join(names)}")


def _metrics_of(image_set: ImageSet, join: LabelJoin, *, has_groups: bool) -> tuple[str, ...]:
    traits = {
        SIX_CLASSES: len(join.columns) >= MIN_COLUMNS_FOR_TOP5,
        SEPARATE_LABELS: predicts_labels(join.accepted),
        GROUPS: has_groups,
        VIDEO_FRAMES: bool(image_set.neighbourhoods),
    }
    return metric_names([trait for trait, is_met in traits.items() if is_met])


def _primary_metric(image_set: ImageSet, metrics: Sequence[str]) -> str:
    primary = image_set.join_options.primary or metrics[0]
    if primary in metrics:
        return primary
    where = f"image set {image_set.name!r}: its primary metric is {primary!r}"
    if primary not in METRIC_NAMES:
        raise UsageError(f"{where}, expected one of {', '.join(METRIC_NAMES)}")
    needs = METRICS[METRIC_NAMES.index(primary)].needs
    raise UsageError(
        f"{where}, which it does not have; it has {', '.join(metrics)}",
        hint=f"{primary} needs {needs}",
    )


def _protocol(weights: WeightSet, image_set: ImageSet, join: LabelJoin) -> str:
    """Return the digest of what a result depends on besides the tensors and the images."""
    models = [checkpoint.model_config for checkpoint in weights.checkpoints]
    preprocess = canonical_preprocess(image_set.preprocess(weights.preprocess))
    return sha256_of_json([models, preprocess, join.digest])


def _read_checkpoints(
    request: EvalRequest,
) -> tuple[tuple[NamedCheckpoint, ...], WeightSet | None]:
    """Return the checkpoints, and the baseline, which may be one of them."""
    paths = request.checkpoint_paths
    if request.baseline is None:
        return read_checkpoints(paths), None
    baseline = Path(request.baseline)
    same = [
        at
        for at, path in enumerate(paths)
        if path.exists() and baseline.exists() and os.path.samefile(path, baseline)
    ]
    named = read_checkpoints([*paths, *([] if same else [baseline])])
    return named[: len(paths)], WeightSet((named[same[0] if same else -1],))


def _judged_row(
    rows: Sequence[WeightSet], baseline: WeightSet | None, gate_alpha: Alpha | None
) -> WeightSet:
    """Return the row that gates judge: the only one, or the one at `--gate-alpha`."""
    candidates = [row for row in rows if not row.is_ensemble and row != baseline]
    if gate_alpha is not None:
        candidates = [row for row in candidates if row.alpha == gate_alpha]
    if len(candidates) != 1:
        found = ", ".join(row.name for row in candidates) or "none besides the baseline"
        raise UsageError(
            f"--fail-under judges one row, and there are {len(candidates)}: {found}",
            hint="name one alpha with --gate-alpha, or evaluate one checkpoint",
        )
    return candidates[0]


def _shifts(jobs: Sequence[Job], judged: WeightSet | None) -> tuple[str, ...]:
    """Return the sets that are neither a reference nor the validation set."""
    shifts = [
        job.image_set.name
        for job in jobs
        if job.line.role == "shift" and judged in (None, job.weights)
    ]
    return tuple(dict.fromkeys(shifts))


def _check_baseline(jobs: Sequence[Job], judged: WeightSet, baseline: WeightSet) -> None:
    """Reject a baseline that is not evaluated on every set of the judged row."""
    measured = {job.image_set.name for job in jobs if job.weights == baseline}
    wanted = [job.image_set.name for job in jobs if job.weights == judged]
    missing = [name for name in wanted if name not in measured]
    if missing:
        raise UsageError(
            f"--baseline {baseline.name}: its head does not have the classes of"
            f" {', '.join(missing)}",
            hint=f"compare {judged.name} with a checkpoint of the same classes",
        )


def _common_metrics(jobs: Sequence[Job], rows: Sequence[WeightSet]) -> dict[str, list[str]]:
    """Return the metrics that each set has in all of the rows."""
    metrics: dict[str, list[str]] = {}
    for job in jobs:
        if job.weights in rows:
            held = metrics.get(job.image_set.name, list(job.line.metrics))
            metrics[job.image_set.name] = [name for name in held if name in job.line.metrics]
    return metrics


def _single_shard_warnings(image_sets: Sequence[ImageSet]) -> list[str]:
    """Report shards of one pattern that are sets of their own, because a shell expanded it."""
    patterns: dict[str, list[str]] = {}
    for image_set in image_sets:
        shards = {record.container for record in image_set.records}
        shard = shards.pop() if len(shards) == 1 and image_set.reader is None else None
        if shard is not None:
            patterns.setdefault(re.sub(r"\d", "0", str(image_set.root / shard)), []).append(shard)
    return [
        f"{', '.join(list_some(shards, limit=3))} are image sets of their own; to read them as one"
        f" set, quote the pattern: --data '{shards[0][:-4].rstrip('0123456789')}{{...}}.tar'"
        for shards in patterns.values()
        if len(shards) > 1
    ]


def _omission_notes(
    rows: Sequence[WeightSet], image_sets: Sequence[ImageSet], jobs: Sequence[Job]
) -> list[str]:
    """Report which sets of a suite are left out for which rows."""
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


def _plan_predictions(
    request: EvalRequest, jobs: Sequence[Job], launch: Launch
) -> Mapping[Job, Path]:
    if request.save_predictions is None:
        return {}
    folder = Path(request.save_predictions)
    return plan_prediction_files(folder, jobs, n_processes=launch.world_size, force=request.force)


def _read_held(jobs: Sequence[Job], request: EvalRequest) -> dict[Job, ResultLine]:
    """Return the results that the results file holds and that can be reused."""
    path = request.results_path
    held = read_result_lines(path) if path is not None and path.exists() else ()
    # Predictions belong to a run: a held line does not have them.
    is_reused = not request.force and request.save_predictions is None
    return find_held(jobs, held if is_reused else (), max_unreadable=request.max_bad)


def find_held(
    jobs: Sequence[Job], lines: Sequence[ResultLine], *, max_unreadable: int
) -> dict[Job, ResultLine]:
    """Return the jobs whose results are among some lines.

    The lines get the names, the roles and the primary metric of the jobs. A line with more
    unreadable images than allowed is ignored.
    """
    by_key = {line.key: line for line in lines if line.n_unreadable <= max_unreadable}
    return {
        job: replace(
            by_key[job.line.key],
            extra={**by_key[job.line.key].extra, **job.line.extra},
            checkpoints=job.line.checkpoints,
            reference=job.line.reference,
            selection=job.line.selection,
            primary=job.line.primary,
        )
        for job in jobs
        if job.line.key in by_key
    }
