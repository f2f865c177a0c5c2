"""What an evaluation is going to do, known from headers and file names before any work.

Every mistake that can be seen without decoding an image or building a model is found here.
`sweep.py` carries the plan out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from wiseft_cli.checkpoint.digest import canonical_json
from wiseft_cli.data.image_set import ImageSet, data_fingerprint
from wiseft_cli.data.label_join import LabelJoin, is_of_other_classes, join_image_set
from wiseft_cli.errors import DatasetError, UsageError
from wiseft_cli.evaluation.metrics import METRIC_NAMES, metric_names, tells_labels
from wiseft_cli.evaluation.weight_sets import WeightSet
from wiseft_cli.reporting.results import CheckpointName, MeasurementKey, ResultLine

PRECISIONS = ("fp32", "bf16", "fp16")
"""What image encoders can compute in; a field of the results, as each gives other numbers."""


@dataclass(frozen=True)
class JoinRules:
    """How labels find classes and what counts, for every set that does not say so itself.

    Attributes:
        labels_are_indices: Labels are positions among the head's classes.
        all_classes: Score over every class of the head.
    """

    labels_are_indices: bool = False
    all_classes: bool = False


@dataclass(frozen=True, eq=False)
class Job:
    """One weight set on one image set.

    Attributes:
        metrics: The names of the metrics that the set will have.
        primary: The one that stands for the set.
        protocol: See `ResultLine`.
    """

    weights: WeightSet
    image_set: ImageSet
    fingerprint: str
    join: LabelJoin
    reference: bool
    metrics: tuple[str, ...]
    primary: str
    protocol: str
    precision: str

    @property
    def checkpoint_names(self) -> tuple[CheckpointName, ...]:
        """The checkpoints as a results line names them."""
        return tuple(
            CheckpointName(item.name, item.card.role, item.digest)
            for item in self.weights.checkpoints
        )

    @property
    def alpha_text(self) -> str | None:
        """The exact decimal of alpha, where weights are interpolated."""
        return self.weights.alpha.text if self.weights.alpha else None

    @property
    def key(self) -> MeasurementKey:
        """Identity of the results line of this job."""
        return MeasurementKey(
            digests=tuple(item.digest for item in self.weights.checkpoints),
            alpha=self.alpha_text,
            set_name=self.image_set.name,
            data_fingerprint=self.fingerprint,
            join=self.join.kind,
            protocol=self.protocol,
            precision=self.precision,
            metrics=frozenset(self.metrics),
        )


def plan_jobs(
    weight_sets: Sequence[WeightSet],
    image_sets: Sequence[ImageSet],
    *,
    reference: str | None = None,
    rules: JoinRules | None = None,
    precision: str = "fp32",
    optional: Collection[str] = (),
) -> tuple[Job, ...]:
    """Join every set with every head; the jobs of one set stand together.

    Args:
        reference: Name of the in-distribution set; where None the first one that each head fits,
            so that a suite for heads of several kinds has one for each.
        precision: One of `PRECISIONS`.
        optional: Names of sets that are left out for heads of other classes.
    Raises:
        UsageError: Two sets have one name, no set has the reference's, or a set does not have
            the metric that it names as its primary one.
        DatasetError: The labels of a set do not fit a head.
    """
    names = [image_set.name for image_set in image_sets]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise UsageError(
            f"more than one image set is named {', '.join(map(repr, repeated))}",
            hint="name them apart: --data NAME=DIR",
        )
    if reference is not None and reference not in names:
        raise UsageError(f"--reference {reference!r} is no image set; there are {', '.join(names)}")
    jobs: list[Job] = []
    heads: set[tuple[object, ...]] = set()  # that a set before fits
    for image_set in image_sets:
        fitting = weight_sets
        if image_set.name in optional:
            fitting = [
                item for item in weight_sets if not is_of_other_classes(image_set, item.classes)
            ]
        of_set = {item.classes for item in fitting}
        is_first, heads = heads.isdisjoint(of_set), heads | of_set
        is_reference = is_first if reference is None else image_set.name == reference
        jobs += _jobs_of_set(
            fitting, image_set, is_reference, rules or JoinRules(), precision=precision
        )
    if not jobs:
        raise DatasetError(
            f"the heads of all checkpoints are of other classes than {', '.join(names)}",
            hint="`wiseft zeroshot-head --classes NAME` makes a head of a published set's classes",
        )
    return tuple(jobs)


def _jobs_of_set(
    weight_sets: Sequence[WeightSet],
    image_set: ImageSet,
    is_reference: bool,
    rules: JoinRules,
    *,
    precision: str,
) -> list[Job]:
    fingerprint = data_fingerprint(image_set)
    has_groups = bool(image_set.groups)
    joins: dict[tuple[object, ...], LabelJoin] = {}
    jobs = []
    for weights in weight_sets:
        if weights.classes not in joins:
            joins[weights.classes] = join_image_set(
                image_set,
                weights.classes,
                labels_are_indices=rules.labels_are_indices,
                all_classes=rules.all_classes,
            )
        join = joins[weights.classes]
        metrics = metric_names(
            len(join.columns),
            has_groups=has_groups,
            tells_labels=tells_labels(join.accepted),
            has_anchors=bool(image_set.neighbourhoods),
        )
        job = Job(
            weights,
            image_set,
            fingerprint,
            join,
            is_reference,
            metrics,
            _primary_metric(image_set, metrics),
            _protocol(weights, join),
            precision,
        )
        jobs.append(job)
    return jobs


def _primary_metric(image_set: ImageSet, metrics: Sequence[str]) -> str:
    primary = image_set.join_options.primary or metrics[0]
    if primary in metrics:
        return primary
    if primary not in METRIC_NAMES:
        expected = ", ".join(METRIC_NAMES)
        raise UsageError(
            f"image set {image_set.name!r}: its primary metric is {primary!r}, expected one of"
            f" {expected}"
        )
    raise UsageError(
        f"image set {image_set.name!r}: its primary metric is {primary!r}, which it does not"
        f" have; it has {', '.join(metrics)}",
        hint="top5 needs six classes, worst_group a column of groups, macro_f1 labels of their own"
        " classes, pm0 and pm10 a published set of video frames",
    )


def _protocol(weights: WeightSet, join: LabelJoin) -> str:
    """Return the digest of what a result depends on beside the tensors and the images."""
    models = [checkpoint.model_config for checkpoint in weights.checkpoints]
    document = canonical_json([models, weights.preprocess, join.digest])
    return f"sha256:{hashlib.sha256(document.encode('ascii')).hexdigest()}"


def split_held(
    jobs: Sequence[Job], held: Sequence[ResultLine], *, max_unreadable: int
) -> tuple[dict[Job, ResultLine], tuple[Job, ...]]:
    """Part the jobs into those whose line is held already, and those still to do.

    A held line takes the names, the reference and the primary metric of this run; one with more
    unreadable images than this run allows is no result for it.
    """
    by_key = {line.key: line for line in held if line.n_unreadable <= max_unreadable}
    done = {
        job: replace(
            by_key[job.key],
            checkpoints=job.checkpoint_names,
            reference=job.reference,
            primary=job.primary,
        )
        for job in jobs
        if job.key in by_key
    }
    return done, tuple(job for job in jobs if job not in done)
