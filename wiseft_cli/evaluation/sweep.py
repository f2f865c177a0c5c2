"""One pass over the images for every weight set: decoded once, scored by each.

The images of a set are read in chunks of bounded size, and every weight set is applied to a
chunk before the next one is read. A weight set that must first be interpolated is so once a
chunk, which is why a chunk spans many batches there. Batches are the same as without chunks,
so a row's numbers are those of its weights evaluated alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import torch

from wiseft_cli import __version__
from wiseft_cli.checkpoint.digest import canonical_json
from wiseft_cli.data.dataset import ImageBatch
from wiseft_cli.data.image_set import ImageSet
from wiseft_cli.errors import DatasetError, ModelError, list_some
from wiseft_cli.evaluation.accuracy import Tally, image_loader, logits_of
from wiseft_cli.evaluation.metrics import SetAccuracy
from wiseft_cli.evaluation.plan import PRECISION, Job
from wiseft_cli.evaluation.weights import LoadedWeights
from wiseft_cli.reporting.results import ResultLine

CHUNK_BYTES = 256 * 2**20
"""Transformed images held at a time in a sweep over alphas: 446 at 224 pixels.

Setting the weights costs two passes over them in float64, as much as a few forward passes of
one image; over hundreds of images it does not show.
"""


@dataclass(frozen=True)
class SweepSettings:
    """How a sweep runs.

    A result depends on the images left out, and in its last bits on batch size and device.

    Attributes:
        batch_size: Images of one forward pass.
        workers: Processes that decode; 0 decodes in this one.
        device: Where the classifiers run.
        max_unreadable: Unreadable images of one set that are left out before it is an error.
    """

    batch_size: int
    workers: int
    device: torch.device
    max_unreadable: int = 0


@dataclass
class _Group:
    """The jobs of one image set that share preprocessing and label join, and so the images."""

    jobs: Sequence[Job]
    tallies: list[Tally] = field(init=False)
    unreadable: list[str] = field(default_factory=list)
    n_seen: int = 0

    def __post_init__(self) -> None:
        self.tallies = [Tally(job.join.class_indices) for job in self.jobs]


def sweep(
    jobs: Iterable[Job],
    settings: SweepSettings,
    *,
    on_progress: Callable[[int], None] | None = None,
) -> Iterator[dict[Job, ResultLine]]:
    """Evaluate the jobs, and yield the lines of each image set once it is done.

    Args:
        jobs: From `plan_jobs`; the jobs of a set stand together.
        on_progress: Called with the number of images that a weight set was applied to.
    Raises:
        DatasetError: More images of a set are unreadable than allowed.
        ModelError: A classifier's logits are not finite.
    """
    loaded = LoadedWeights(settings.device)
    for _, of_set in groupby(jobs, key=lambda job: job.image_set.name):
        jobs_of_set = list(of_set)
        lines: dict[Job, ResultLine] = {}
        for group in _groups(jobs_of_set):
            _run_group(group, loaded, settings, on_progress or (lambda n: None))
            lines |= _lines(group)
        yield {job: lines[job] for job in jobs_of_set}


def _groups(jobs: Sequence[Job]) -> list[_Group]:
    """Group the jobs of one image set so that its images are decoded once a group."""
    by_input: dict[str, list[Job]] = {}
    for job in jobs:
        key = canonical_json([job.weights.preprocess, dict(job.join.index)])
        by_input.setdefault(key, []).append(job)
    return [_Group(group) for group in by_input.values()]


def _run_group(
    group: _Group,
    loaded: LoadedWeights,
    settings: SweepSettings,
    on_progress: Callable[[int], None],
) -> None:
    first = group.jobs[0]
    loader = image_loader(
        first.image_set,
        [first.join.index[record.label] for record in first.image_set.records],
        first.weights.preprocess,
        batch_size=settings.batch_size,
        workers=settings.workers,
        device=settings.device,
    )
    # Weights that are loaded once and stay need no chunk, and then a batch is done when read.
    chunk_bytes = CHUNK_BYTES if sum(job.weights.alpha is not None for job in group.jobs) > 1 else 0
    for chunk in chunked(loader, chunk_bytes):
        group.n_seen += sum(len(batch.targets) + len(batch.unreadable) for batch in chunk)
        group.unreadable += [message for batch in chunk for message in batch.unreadable]
        _check_unreadable(group, settings.max_unreadable)
        for job, tally in zip(group.jobs, group.tallies, strict=True):
            _score(job, tally, chunk, loaded, settings.device, on_progress)


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


def _score(
    job: Job,
    tally: Tally,
    chunk: Sequence[ImageBatch],
    loaded: LoadedWeights,
    device: torch.device,
    on_progress: Callable[[int], None],
) -> None:
    classifier = loaded.classifier(job.weights)
    for batch in chunk:
        if len(batch.targets):
            try:
                tally.add(logits_of(classifier, batch, device), batch.targets.to(device))
            except ModelError as error:
                raise ModelError(
                    f"{job.weights.name} on {job.image_set.name!r}: {error.message}",
                    hint=error.hint,
                ) from None
        on_progress(len(batch.targets) + len(batch.unreadable))


def _check_unreadable(group: _Group, max_unreadable: int) -> None:
    image_set: ImageSet = group.jobs[0].image_set
    n_images = len(image_set.records)
    if len(group.unreadable) > max_unreadable:
        raise DatasetError(
            "\n".join(
                [
                    f"image set {image_set.name!r}: {len(group.unreadable)} unreadable images among"
                    f" the first {group.n_seen} of {n_images}, at most {max_unreadable} allowed:",
                    *(f"  {line}" for line in list_some(group.unreadable)),
                ]
            ),
            hint="replace or remove the files, or allow some with --max-bad N",
        )
    if len(group.unreadable) == n_images:
        raise DatasetError(
            f"image set {image_set.name!r}: none of its {n_images} images is readable"
        )


def _lines(group: _Group) -> dict[Job, ResultLine]:
    return {
        job: _line(job, tally.finish(n_unreadable=len(group.unreadable)))
        for job, tally in zip(group.jobs, group.tallies, strict=True)
    }


def _line(job: Job, accuracy: SetAccuracy) -> ResultLine:
    metrics = accuracy.metrics()
    return ResultLine(
        checkpoints=job.checkpoint_names,
        alpha=None if job.weights.alpha is None else job.weights.alpha.text,
        set_name=job.image_set.name,
        reference=job.reference,
        data_fingerprint=job.fingerprint,
        n_images=accuracy.n_images,
        n_unreadable=accuracy.n_unreadable,
        n_classes=accuracy.n_classes,
        join=job.join.kind,
        primary=next(iter(metrics)),
        metrics=metrics,
        precision=PRECISION,
        version=__version__,
    )
