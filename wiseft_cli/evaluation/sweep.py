"""One pass over the images for every weight set: decoded once, scored by each.

The images of a set are read in chunks of bounded size, and every weight set is applied to a
chunk before the next one is read. Where weights must be set for each chunk (interpolated, or
read again from a file), a chunk spans many batches. Weight sets with the same image encoder
share its features. Batches are the same as without chunks, so a row's numbers are those of its
weights evaluated alone. Under torchrun the processes share the batches.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from wiseft_cli import __version__
from wiseft_cli.checkpoint.digest import canonical_json
from wiseft_cli.compute.memory import report_out_of_memory
from wiseft_cli.compute.process_group import SINGLE_PROCESS, ProcessGroup
from wiseft_cli.data.loading import ImageBatch
from wiseft_cli.errors import DatasetError, list_some
from wiseft_cli.evaluation.accuracy import GroupPositions, load_images
from wiseft_cli.evaluation.metrics import SetAccuracy
from wiseft_cli.evaluation.plan import Job
from wiseft_cli.evaluation.row import DeviceBatch, Row
from wiseft_cli.evaluation.weight_sets import WeightSet
from wiseft_cli.evaluation.weights import WeightBank
from wiseft_cli.reporting.results import N_ANCHORS, ResultLine

CHUNK_BYTES = 256 * 2**20
"""Transformed images held at a time where weights change: 446 at 224 pixels.

Setting the weights costs two passes over them in float64, as much as a few forward passes of
one image; over hundreds of images it does not show.
"""


@dataclass(frozen=True)
class SweepSettings:
    """How a sweep runs.

    A result depends on the images left out and on the precision, and in its last bits on batch
    size and device.

    Attributes:
        batch_size: Images of one forward pass.
        workers: Processes that decode; 0 decodes in this one.
        device: Where the classifiers run.
        max_unreadable: Unreadable images of one set that are left out before it is an error.
        predictions: File to write each job's predictions to; empty for none.
        force: Whether existing files of predictions may be overwritten.
        processes: The processes that share the images.
    """

    batch_size: int
    workers: int
    device: torch.device
    max_unreadable: int = 0
    predictions: Mapping[Job, Path] = field(default_factory=dict)
    force: bool = False
    processes: ProcessGroup = SINGLE_PROCESS

    def report_out_of_memory(self) -> AbstractContextManager[None]:
        """Suggest a smaller batch where memory runs out."""
        return report_out_of_memory(
            f"batches of {self.batch_size} images on {self.device}",
            hint=f"use a smaller --batch-size than {self.batch_size}, or fewer --workers",
        )


Progress = Callable[[int], None]


@dataclass
class _Group:
    """The jobs of one image set that share preprocessing, and so the images."""

    jobs: Sequence[Job]
    rows: Sequence[Row]
    unreadable: list[str] = field(default_factory=list)
    n_seen: int = 0


def sweep(
    jobs: Iterable[Job], settings: SweepSettings, *, on_progress: Progress | None = None
) -> Iterator[dict[Job, ResultLine]]:
    """Evaluate the jobs, and yield the lines of each image set once it is done.

    Args:
        jobs: From `plan_jobs`; the jobs of a set stand together, and all have one precision.
        on_progress: Called with the number of images that a row is done with, in this process.
    Raises:
        CheckpointError: A file cannot be read, or its tensors are not those of its card.
        DatasetError: More images of a set are unreadable than allowed.
        ModelError: A classifier's logits are not finite, or the memory does not suffice.
        OutputError: A file of predictions cannot be written.
    """
    jobs = list(jobs)
    with settings.report_out_of_memory(), torch.inference_mode():
        bank = WeightBank([job.weights for job in jobs], settings.device)
    for _, of_set in groupby(jobs, key=lambda job: job.image_set.name):
        jobs_of_set = list(of_set)
        lines: dict[Job, ResultLine] = {}
        for of_group in _by_preprocessing(jobs_of_set):
            # Not around the yield: what the consumer does is not to run in inference mode.
            with settings.report_out_of_memory(), torch.inference_mode():
                lines |= _run_group(of_group, bank, settings, on_progress or (lambda n: None))
        yield {job: lines[job] for job in jobs_of_set}


def _by_preprocessing(jobs: Sequence[Job]) -> list[list[Job]]:
    groups: dict[str, list[Job]] = {}
    for job in jobs:
        groups.setdefault(canonical_json(job.weights.preprocess), []).append(job)
    return list(groups.values())


def _run_group(
    jobs: Sequence[Job], bank: WeightBank, settings: SweepSettings, on_progress: Progress
) -> dict[Job, ResultLine]:
    with ExitStack() as stack:
        rows = [
            stack.enter_context(
                Row(job, settings.processes, settings.predictions.get(job), force=settings.force)
            )
            for job in jobs
        ]
        group = _Group(jobs, rows)
        plan = _by_encoder(rows, bank)
        chunk_bytes = CHUNK_BYTES if bank.changes_weights and len(rows) > 1 else 0
        for chunk in chunked(_batches(group, settings), chunk_bytes):
            for uses in plan:
                _score(uses, chunk, bank, settings, on_progress)
        unreadable = settings.processes.gather(group.unreadable)
        group.n_seen = len(jobs[0].image_set.records)
        _check_unreadable(group, unreadable, settings.max_unreadable)
        return {row.job: _line(row.job, row.finish(n_unreadable=len(unreadable))) for row in rows}


Use = tuple[Row, WeightSet]


def _by_encoder(rows: Sequence[Row], bank: WeightBank) -> list[list[Use]]:
    """Put together the rows, and parts of rows, that share an image encoder."""
    uses: dict[Hashable, list[Use]] = {}
    for row in rows:
        for part in row.job.weights.parts:
            uses.setdefault(bank.encoder_key(part), []).append((row, part))
    return list(uses.values())


def _batches(group: _Group, settings: SweepSettings) -> Iterator[DeviceBatch]:
    first = group.jobs[0]
    batches = load_images(
        first.image_set,
        first.weights.preprocess,
        batch_size=settings.batch_size,
        workers=settings.workers,
        device=settings.device,
        processes=settings.processes,
    )
    groups = GroupPositions(first.image_set)
    for batch in batches:
        group.n_seen += len(batch.targets) + len(batch.unreadable)
        group.unreadable += batch.unreadable.values()
        _check_unreadable(group, group.unreadable, settings.max_unreadable)
        yield _with_groups(batch, groups, settings.device)


def _with_groups(batch: ImageBatch, groups: GroupPositions, device: torch.device) -> DeviceBatch:
    of_group = groups.of(batch.indices)
    return DeviceBatch(
        images=batch.images,
        targets=batch.targets,
        groups=None if of_group is None else of_group.to(device, non_blocking=True),
        indices=batch.indices,
        unreadable=tuple(batch.unreadable.items()),
    )


def chunked(batches: Iterable[DeviceBatch], chunk_bytes: int) -> Iterator[list[DeviceBatch]]:
    """Gather batches into chunks that end once they hold `chunk_bytes` of images."""
    chunk: list[DeviceBatch] = []
    held_bytes = 0
    for batch in batches:
        chunk.append(batch)
        held_bytes += batch.images.nbytes
        if held_bytes >= chunk_bytes:
            yield chunk
            chunk, held_bytes = [], 0
    if chunk:
        yield chunk


def _score(
    uses: Sequence[Use],
    chunk: Sequence[DeviceBatch],
    bank: WeightBank,
    settings: SweepSettings,
    on_progress: Progress,
) -> None:
    """Apply weight sets with one image encoder to a chunk."""
    features: list[torch.Tensor] = []
    for row, part in uses:
        classifier = bank.classifier(part)
        if not features:
            features = [
                classifier.encode_image(batch.images, precision=row.job.precision)
                if len(batch.targets)
                else batch.images
                for batch in chunk
            ]
        for batch, of_batch in zip(chunk, features, strict=True):
            if row.add(batch, classifier.classification_head, of_batch):
                on_progress(len(batch.targets) + len(batch.unreadable))


def _check_unreadable(group: _Group, unreadable: Sequence[str], max_unreadable: int) -> None:
    image_set = group.jobs[0].image_set
    n_images = len(image_set.records)
    if len(unreadable) > max_unreadable:
        raise DatasetError(
            "\n".join(
                [
                    f"image set {image_set.name!r}: {len(unreadable)} unreadable images among"
                    f" the first {group.n_seen} of {n_images}, at most {max_unreadable} allowed:",
                    *(f"  {line}" for line in list_some(unreadable)),
                ]
            ),
            hint="replace or remove the files, or allow some with --max-bad N",
        )
    if len(unreadable) == n_images:
        raise DatasetError(
            f"image set {image_set.name!r}: none of its {n_images} images is readable"
        )


def _line(job: Job, accuracy: SetAccuracy) -> ResultLine:
    extra: dict[str, Any] = {}
    if accuracy.worst_group is not None:
        extra["worst_group"] = accuracy.worst_group[0]
    if accuracy.anchors is not None:
        extra[N_ANCHORS] = accuracy.anchors.n_anchors
    return ResultLine(
        checkpoints=job.checkpoint_names,
        alpha=job.alpha_text,
        set_name=job.image_set.name,
        reference=job.reference,
        data_fingerprint=job.fingerprint,
        n_images=accuracy.n_images,
        n_unreadable=accuracy.n_unreadable,
        n_classes=accuracy.n_classes,
        join=job.join.kind,
        primary=job.primary,
        metrics=accuracy.metrics(),
        precision=job.precision,
        version=__version__,
        ensemble=job.weights.is_ensemble,
        protocol=job.protocol,
        extra=extra,
    )
