"""Evaluate all weight sets in one pass, so that each image is decoded once.

The images of a set are read in chunks of bounded size, and every weight set is applied to a chunk
before the next one is read. If weights must be set again for each chunk (interpolated, or read
from a file), a chunk spans many batches. Weight sets with the same image encoder share its
features. Batches are the same as without chunks, so the numbers of a row are those of its weights
evaluated alone. Under torchrun the processes share the batches.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path

import torch

from wiseft_cli.checkpoint.card import canonical_preprocess
from wiseft_cli.checkpoint.digest import canonical_json
from wiseft_cli.compute.memory import report_out_of_memory
from wiseft_cli.compute.process_group import SINGLE_PROCESS, ProcessGroup
from wiseft_cli.data.image_set import ImageSet
from wiseft_cli.data.loading import ImageBatch
from wiseft_cli.errors import DatasetError, ModelError
from wiseft_cli.evaluation.classifiers import ClassifierPool
from wiseft_cli.evaluation.metrics import SetAccuracy
from wiseft_cli.evaluation.plan import Job
from wiseft_cli.evaluation.prediction_files import PredictionFile
from wiseft_cli.evaluation.scoring import ScoredSet, Tally, load_images
from wiseft_cli.evaluation.weight_sets import WeightSet
from wiseft_cli.reporting.results import ResultLine

CHUNK_BYTES = 256 * 2**20
"""Transformed images in memory at a time if weights change: 446 at 224 pixels.

Setting the weights is two passes over them in float64, which costs as much as a few forward passes
of one image and is negligible over hundreds of images.
"""

Progress = Callable[[int], None]


@dataclass(frozen=True)
class SweepSettings:
    """Settings of a sweep.

    Batch size and device only change the last bits of the logits.

    Attributes:
        batch_size: Images per forward pass.
        workers: Processes that decode; 0 decodes in this process.
        device: Where the classifiers run.
        max_unreadable: Maximum number of unreadable images per set; they are left out.
        predictions: File of each job's predictions; empty if none are written.
        force: Whether existing files of predictions may be overwritten.
        processes: The processes that share the images.
        load: Loads the images of a set in place of `load_images`, for example from memory.
    """

    batch_size: int
    workers: int
    device: torch.device
    max_unreadable: int = 0
    predictions: Mapping[Job, Path] = field(default_factory=dict)
    force: bool = False
    processes: ProcessGroup = SINGLE_PROCESS
    load: Callable[..., Iterator[ImageBatch]] | None = None

    def report_out_of_memory(self) -> AbstractContextManager[None]:
        """Suggest a smaller batch if memory runs out."""
        return report_out_of_memory(
            f"batches of {self.batch_size} images on {self.device}",
            hint=f"use a smaller --batch-size than {self.batch_size}, or fewer --workers",
        )


def sweep(
    jobs: Iterable[Job],
    settings: SweepSettings,
    *,
    pool: ClassifierPool | None = None,
    on_progress: Progress | None = None,
) -> Iterator[dict[Job, ResultLine]]:
    """Evaluate the jobs, and yield the results lines of each image set when done.

    Args:
        jobs: From `plan_jobs`; the jobs of a set are adjacent, and all have the same precision.
        pool: The classifiers; by default a new pool, which reads and hashes every checkpoint.
        on_progress: Called with the number of images that a row has finished in this process.
    Raises:
        CheckpointError: A file cannot be read, or its tensors do not match its card.
        DatasetError: More images of a set are unreadable than allowed.
        ModelError: The logits of a classifier are not finite, or memory is not enough.
        OutputError: A file of predictions cannot be written.
    """
    jobs = list(jobs)
    with settings.report_out_of_memory(), torch.inference_mode():
        pool = pool or ClassifierPool([job.weights for job in jobs], settings.device)
    for _, of_set in groupby(jobs, key=lambda job: job.image_set.name):
        jobs_of_set = list(of_set)
        lines: dict[Job, ResultLine] = {}
        for same_images in _by_preprocessing(jobs_of_set):
            # Not around the yield: the consumer must not run in inference mode.
            with settings.report_out_of_memory(), torch.inference_mode():
                lines |= _evaluate(same_images, pool, settings, on_progress or (lambda n: None))
        yield {job: lines[job] for job in jobs_of_set}


def _by_preprocessing(jobs: Sequence[Job]) -> list[list[Job]]:
    groups: dict[str, list[Job]] = {}
    for job in jobs:
        preprocess = job.image_set.preprocess(job.weights.preprocess)
        groups.setdefault(canonical_json(canonical_preprocess(preprocess)), []).append(job)
    return list(groups.values())


def _evaluate(
    jobs: Sequence[Job], pool: ClassifierPool, settings: SweepSettings, on_progress: Progress
) -> dict[Job, ResultLine]:
    """Evaluate jobs that share an image set and its preprocessing."""
    image_set = jobs[0].image_set
    scored = ScoredSet(image_set, settings.device)
    unreadable: list[str] = []
    rotated: list[int] = []
    with ExitStack() as stack:
        rows = [_Row(job, scored, settings, stack) for job in jobs]
        by_encoder = _by_encoder(rows, pool)
        chunk_bytes = CHUNK_BYTES if pool.changes_weights and len(rows) > 1 else 0
        for chunk in chunked(_load(jobs[0], settings, unreadable, rotated), chunk_bytes):
            for parts in by_encoder:
                _score(parts, chunk, pool, on_progress)
        everywhere = settings.processes.gather(unreadable)
        _check_unreadable(image_set, everywhere, len(image_set.records), settings.max_unreadable)
        n_rotated = sum(settings.processes.gather([len(rotated)]))
        counts = {row: row.finish(n_unreadable=len(everywhere)) for row in rows}
        return {
            row.job: row.job.result_line(replace(accuracy, n_rotated=n_rotated))
            for row, accuracy in counts.items()
        }


def _load(
    job: Job, settings: SweepSettings, unreadable: list[str], rotated: list[int]
) -> Iterator[ImageBatch]:
    """Yield the batches of a job's set, and collect what could not be read or is rotated."""
    n_seen = 0
    is_counted = job.image_set.misses_orientation(job.weights.preprocess)
    for batch in (settings.load or load_images)(
        job.image_set,
        job.weights.preprocess,
        batch_size=settings.batch_size,
        workers=settings.workers,
        device=settings.device,
        processes=settings.processes,
    ):
        n_seen += len(batch.targets) + len(batch.unreadable)
        unreadable += batch.unreadable.values()
        rotated += batch.rotated if is_counted else ()
        _check_unreadable(job.image_set, unreadable, n_seen, settings.max_unreadable)
        yield batch


def _check_unreadable(
    image_set: ImageSet, unreadable: Sequence[str], n_seen: int, max_unreadable: int
) -> None:
    n_images = len(image_set.records)
    if len(unreadable) > max_unreadable:
        raise DatasetError(
            f"image set {image_set.name!r}: {len(unreadable)} unreadable images among the first"
            f" {n_seen} of {n_images}, at most {max_unreadable} allowed",
            faults=unreadable,
            hint="replace or remove the files, or allow some with --max-bad N",
        )
    if len(unreadable) == n_images:
        raise DatasetError(
            f"image set {image_set.name!r}: none of its {n_images} images is readable"
        )


def chunked(batches: Iterable[ImageBatch], chunk_bytes: int) -> Iterator[list[ImageBatch]]:
    """Gather batches into chunks that end once they hold `chunk_bytes` of images."""
    chunk: list[ImageBatch] = []
    held_bytes = 0
    for batch in batches:
        chunk.append(batch)
        held_bytes += batch.images.nbytes
        if held_bytes >= chunk_bytes:
            yield chunk
            chunk, held_bytes = [], 0
    if chunk:
        yield chunk


RowPart = tuple["_Row", WeightSet]
"""A row, and the weights of it or of one half of its ensemble."""


def _by_encoder(rows: Sequence[_Row], pool: ClassifierPool) -> list[list[RowPart]]:
    """Group rows, and halves of ensembles, that have the same image encoder."""
    groups: dict[Hashable, list[RowPart]] = {}
    for row in rows:
        for part in row.job.weights.parts:
            groups.setdefault(pool.encoder_key(part), []).append((row, part))
    return list(groups.values())


def _score(
    parts: Sequence[RowPart],
    chunk: Sequence[ImageBatch],
    pool: ClassifierPool,
    on_progress: Progress,
) -> None:
    """Apply weight sets with the same image encoder to a chunk."""
    features: list[torch.Tensor] = []
    for row, part in parts:
        classifier = pool.classifier(part)
        if not features:
            features = [
                classifier.encode_image(batch.images, precision=row.job.line.precision)
                if len(batch.targets)
                else batch.images
                for batch in chunk
            ]
        for batch, of_batch in zip(chunk, features, strict=True):
            logits = of_batch
            if len(batch.targets):
                logits = classifier.classification_head(of_batch).float()
            if row.add(batch, logits):
                on_progress(len(batch.targets) + len(batch.unreadable))


class _Row:
    """A job while it is evaluated, with its counts and file of predictions.

    The logits of the two halves of an ensemble arrive one after the other, in any order of
    batches; the first ones wait for the second.
    """

    def __init__(
        self, job: Job, scored: ScoredSet, settings: SweepSettings, stack: ExitStack
    ) -> None:
        self.job, self._processes = job, settings.processes
        self._tally = Tally(scored, job.join)
        self._waiting: dict[int, torch.Tensor] = {}
        self._file: PredictionFile | None = None
        path = settings.predictions.get(job)
        if path is not None:
            columns, processes = self._tally.columns, settings.processes
            file = PredictionFile(path, job, columns, processes, force=settings.force)
            self._file = stack.enter_context(file)

    def add(self, batch: ImageBatch, logits: torch.Tensor) -> bool:
        """Count a batch, unless it is that of the first half of an ensemble.

        Args:
            logits: Shape (B, C); ignored if no image of the batch was readable.
        Returns:
            Whether the row is done with the batch.
        """
        if self.job.weights.is_ensemble:
            first = self._waiting.pop(id(batch), None)
            if first is None:
                self._waiting[id(batch)] = logits
                return False
            logits = (first + logits) / 2
        if len(batch.targets):
            with self._name_in_errors():
                self._tally.add(logits, batch)
        if self._file is not None:
            self._file.add(batch, logits)
        return True

    def finish(self, *, n_unreadable: int) -> SetAccuracy:
        """Return the counts of all processes, and give the file of predictions its name."""
        with self._name_in_errors():
            accuracy = self._tally.finish(self._processes, n_unreadable=n_unreadable)
        if self._file is not None:
            self._file.commit()
        return accuracy

    @contextmanager
    def _name_in_errors(self) -> Iterator[None]:
        try:
            yield
        except ModelError as error:
            where = f"{self.job.weights.name} on {self.job.image_set.name!r}"
            raise ModelError(f"{where}: {error.message}", hint=error.hint) from None
