"""What an evaluation is going to do, known from headers and file names before any work.

Every mistake that can be seen without decoding an image or building a model is found here.
This module needs no torch; `sweep.py` carries the plan out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from wiseft_cli.checkpoint.card import Card, ClassEntry
from wiseft_cli.checkpoint.reader import read_card
from wiseft_cli.checkpoint.source import open_source
from wiseft_cli.data.fingerprint import data_fingerprint
from wiseft_cli.data.image_set import ImageSet
from wiseft_cli.data.label_space import LabelJoin, join_labels
from wiseft_cli.errors import CheckpointError, UsageError
from wiseft_cli.evaluation.metrics import metric_names
from wiseft_cli.merging.alpha import Alpha
from wiseft_cli.merging.compatibility import (
    doubts_about_descent,
    require_compatible,
    require_roles_in_order,
)
from wiseft_cli.reporting.results import CheckpointName, ResultLine, measurement_key

PRECISION = "fp32"
"""What classifiers compute in; a field of the results, as other precisions give other numbers."""


@dataclass(frozen=True)
class NamedCheckpoint:
    """A checkpoint of the evaluation.

    Attributes:
        path: The file.
        name: What reports call it.
        card: Its card.
        digest: Its content digest, as the card has it.
        model_config: open_clip's model config, from the card.
        preprocess: open_clip's preprocessing fields, from the card.
    """

    path: Path
    name: str
    card: Card
    digest: str
    model_config: Mapping[str, Any]
    preprocess: Mapping[str, Any]


@dataclass(frozen=True)
class WeightSet:
    """The weights of one row: a checkpoint as it is, or a point between two.

    Attributes:
        checkpoints: One; or two, theta_0 and theta_1.
        alpha: The weight of theta_1; None for one checkpoint.
    """

    checkpoints: tuple[NamedCheckpoint, ...]
    alpha: Alpha | None = None

    @property
    def name(self) -> str:
        """What messages call it."""
        if self.alpha is None:
            return self.checkpoints[0].name
        return f"{' to '.join(item.name for item in self.checkpoints)} at alpha {self.alpha.text}"

    @property
    def classes(self) -> tuple[ClassEntry, ...]:
        """The classes of the head's rows, the same for both of a pair."""
        return self.checkpoints[0].card.classes

    @property
    def preprocess(self) -> Mapping[str, Any]:
        """open_clip's preprocessing fields, the same for both of a pair."""
        return self.checkpoints[0].preprocess


@dataclass(frozen=True, eq=False)
class Job:
    """One weight set on one image set."""

    weights: WeightSet
    image_set: ImageSet
    fingerprint: str
    join: LabelJoin
    reference: bool

    @property
    def checkpoint_names(self) -> tuple[CheckpointName, ...]:
        """The checkpoints as a results line names them."""
        return tuple(
            CheckpointName(item.name, item.card.role, item.digest)
            for item in self.weights.checkpoints
        )

    @property
    def key(self) -> tuple[object, ...]:
        """The key of the results line that the job will give."""
        return measurement_key(
            digests=[item.digest for item in self.weights.checkpoints],
            alpha=self.weights.alpha.text if self.weights.alpha else None,
            set_name=self.image_set.name,
            data_fingerprint=self.fingerprint,
            precision=PRECISION,
            join=self.join.kind,
            metrics=metric_names(len(self.join.class_indices)),
        )


def read_checkpoints(paths: Sequence[Path]) -> tuple[NamedCheckpoint, ...]:
    """Read the cards and give each checkpoint a name of its own: as little of its path as tells.

    Raises:
        UsageError: A folder among the checkpoints, or a file twice.
        CheckpointError: No checkpoint, or one that cannot be run.
    """
    for path in paths:
        if path.is_dir():
            raise UsageError(
                f"{path} is a folder, expected a checkpoint",
                hint=f"did you mean `--data {path}`?",
            )
    real = [path.resolve() for path in paths]
    repeated = sorted(
        {str(path) for path, at in zip(paths, real, strict=True) if real.count(at) > 1}
    )
    if repeated:
        raise UsageError(f"given more than once: {', '.join(repeated)}")
    return tuple(map(_read_checkpoint, paths, _distinct_names(real)))


def _read_checkpoint(path: Path, name: str) -> NamedCheckpoint:
    card = read_card(path)
    if card.model is None or card.preprocess is None or not card.classes or card.digest is None:
        raise CheckpointError(
            f"{path}: its card names no model, preprocessing or classes, so it cannot be run",
            hint="evaluate a checkpoint that wiseft zeroshot-head, finetune or merge made",
        )
    return NamedCheckpoint(path, name, card, card.digest, card.model.config, card.preprocess)


def _distinct_names(paths: Sequence[Path]) -> list[str]:
    """Return the stems, with as many parent folders before them as it takes to differ."""
    stems = [path.with_suffix("") if path.suffix == ".safetensors" else path for path in paths]
    for depth in range(1, max(len(path.parts) for path in paths)):
        names = ["/".join(stem.parts[1:][-depth:]) for stem in stems]
        if len(set(names)) == len(names):
            return names
    return [path.name for path in paths]


def plan_weight_sets(
    checkpoints: Sequence[NamedCheckpoint], alphas: Sequence[Alpha]
) -> tuple[WeightSet, ...]:
    """Return the rows: the checkpoints, or with alphas the points between exactly two.

    Raises:
        UsageError: Alphas without exactly two checkpoints.
        IncompatibleCheckpointsError: The two have different models, preprocessing, classes or
            tensors.
        CheckpointError: The zero-shot checkpoint is the second.
    """
    if not alphas:
        return tuple(WeightSet((checkpoint,)) for checkpoint in checkpoints)
    if len(checkpoints) != 2:
        raise UsageError(
            f"--alpha interpolates between exactly two checkpoints, {len(checkpoints)} given",
            hint="wiseft eval --alpha 0:1:0.1 ZEROSHOT FINETUNED --data DIR",
        )
    with open_source(checkpoints[0].path) as theta_0, open_source(checkpoints[1].path) as theta_1:
        require_roles_in_order(theta_0, theta_1)
        require_compatible(theta_0, theta_1)
    return tuple(WeightSet(tuple(checkpoints), alpha) for alpha in alphas)


def doubts_about_pair(theta_0: NamedCheckpoint, theta_1: NamedCheckpoint) -> tuple[str, ...]:
    """Return what speaks against the second checkpoint descending from the first."""
    with open_source(theta_0.path) as source_0, open_source(theta_1.path) as source_1:
        return tuple(doubts_about_descent(source_0, source_1))


def plan_jobs(
    weight_sets: Sequence[WeightSet], image_sets: Sequence[ImageSet], *, reference: str | None
) -> tuple[Job, ...]:
    """Join every set with every head; the jobs of one set stand together.

    Args:
        reference: Name of the in-distribution set; the first one where None.
    Raises:
        UsageError: Two sets have one name, or no set has the reference's.
        DatasetError: The labels of a set do not fit a head.
    """
    names = [image_set.name for image_set in image_sets]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise UsageError(
            f"more than one --data is named {', '.join(map(repr, repeated))}",
            hint="name them apart: --data NAME=DIR",
        )
    if reference is not None and reference not in names:
        raise UsageError(f"--reference {reference!r} is no --data; there are {', '.join(names)}")
    jobs = []
    for image_set in image_sets:
        fingerprint = data_fingerprint(image_set)
        joins: dict[tuple[object, ...], LabelJoin] = {}
        for weights in weight_sets:
            classes = weights.classes
            if classes not in joins:
                joins[classes] = join_labels(image_set.labels, classes, set_name=image_set.name)
            is_reference = image_set.name == (reference or names[0])
            jobs.append(Job(weights, image_set, fingerprint, joins[classes], is_reference))
    return tuple(jobs)


def split_held(
    jobs: Sequence[Job], held: Sequence[ResultLine], *, max_unreadable: int
) -> tuple[dict[Job, ResultLine], tuple[Job, ...]]:
    """Part the jobs into those whose line is held already, and those still to do.

    A held line takes the names and the reference of this run; one with more unreadable images
    than this run allows is no result for it.
    """
    by_key = {line.key: line for line in held if line.n_unreadable <= max_unreadable}
    done = {
        job: replace(by_key[job.key], checkpoints=job.checkpoint_names, reference=job.reference)
        for job in jobs
        if job.key in by_key
    }
    return done, tuple(job for job in jobs if job not in done)
