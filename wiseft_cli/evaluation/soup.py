"""Select the checkpoints of a greedy soup on a held-out set.

The checkpoints are taken in the order of their accuracy on the set, and each one is kept with which
the accuracy of the mean does not fall. Images are decoded once if they fit into memory, and
otherwise once for each mean that is tried. `merging/soup.py` averages the checkpoints.

Source: Wortsman et al. 2022, Model soups, arXiv:2203.05482, section 2 and recipe 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wiseft_cli.checkpoint.atomic import check_output
from wiseft_cli.compute.precision import require_precision
from wiseft_cli.compute.workers import default_workers
from wiseft_cli.data.image_set import ImageSet
from wiseft_cli.data.sources import open_image_set
from wiseft_cli.evaluation.data_overlap import trained_on_warnings
from wiseft_cli.evaluation.plan import Job, find_held, plan_jobs
from wiseft_cli.evaluation.weight_sets import (
    NamedCheckpoint,
    WeightSet,
    plan_weight_sets,
    read_checkpoints,
)
from wiseft_cli.merging.alpha import parse_alphas
from wiseft_cli.merging.settings import MergeSettings, resolve_settings
from wiseft_cli.merging.soup import parse_soup_alpha, require_several, write_soup
from wiseft_cli.reporting.results import ResultLine, add_result_lines, read_result_lines

if TYPE_CHECKING:
    import torch

    from wiseft_cli.data.loading import ImageBatch

CACHE_BYTES = 2 * 2**30
"""Transformed images that stay in memory: 3,566 at 224 pixels."""


@dataclass(frozen=True)
class SoupStep:
    """One checkpoint on the path of a greedy soup, in the order of their own scores.

    Attributes:
        index: Position of the checkpoint in the order given.
        alone: Its own score, a fraction.
        mean: Score of the mean of the kept checkpoints and this one.
        is_kept: Whether it was kept.
    """

    index: int
    alone: float
    mean: float
    is_kept: bool


def select_greedily(
    scores: Sequence[float], score_mean: Callable[[tuple[int, ...]], float]
) -> Iterator[SoupStep]:
    """Yield the path of a greedy soup.

    Args:
        scores: The score of each checkpoint; of equal ones the earlier is tried first.
        score_mean: Returns the score of the mean of some checkpoints, in the order of their scores.
    """
    best, *others = sorted(range(len(scores)), key=lambda at: -scores[at])
    kept: tuple[int, ...] = (best,)
    highest = scores[best]
    yield SoupStep(best, highest, highest, True)
    for index in others:
        mean = score_mean((*kept, index))
        if is_kept := mean >= highest:
            kept, highest = (*kept, index), mean
        yield SoupStep(index, scores[index], mean, is_kept)


@dataclass(frozen=True)
class SoupPlan:
    """A checked request for a greedy soup.

    Attributes:
        checkpoints: The candidates, in the order given.
        jobs: One per candidate, on the held-out set.
        settings: The uniform mean.
        results: File of results lines to add to, if there is one.
        held: Results lines that the file holds already.
        warnings: What is doubtful about the held-out set.
    """

    checkpoints: tuple[NamedCheckpoint, ...]
    jobs: tuple[Job, ...]
    settings: MergeSettings
    results: Path | None
    held: tuple[ResultLine, ...]
    warnings: tuple[str, ...]

    @property
    def image_set(self) -> ImageSet:
        """The held-out set."""
        return self.jobs[0].image_set

    @property
    def max_images(self) -> int:
        """Number of images times weights, if no result is held."""
        return len(self.image_set.records) * (2 * len(self.checkpoints) - 1)

    def kept(self, steps: Sequence[SoupStep]) -> list[Path]:
        """Return the files of the kept checkpoints, the best first."""
        return [self.checkpoints[step.index].path for step in steps if step.is_kept]

    def record(self, steps: Sequence[SoupStep]) -> dict[str, Any]:
        """Return the description of the selection for the history of the soup."""
        line = self.jobs[0].line
        return {
            "fingerprint": line.data_fingerprint,
            "metric": line.primary,
            "candidates": [self.checkpoints[step.index].digest for step in steps],
        }


def plan_greedy_soup(
    checkpoints: Sequence[Path],
    select_on: str,
    *,
    base: Path | None = None,
    results: Path | None = None,
    precision: str = "fp32",
    force: bool = False,
) -> SoupPlan:
    """Check the candidates of a greedy soup and the held-out set.

    Args:
        checkpoints: At least two classifiers with the same tensors, classes and preprocessing.
        select_on: The held-out set, `[NAME=]SPEC`.
        base: The zero-shot checkpoint that the soup will be merged with, if any.
        results: File of results lines to add to; what it holds is not computed again.
        precision: Precision of the image encoder.
        force: Whether to compute again what `results` holds.
    Raises:
        UsageError: There are too few checkpoints, one is given twice, or the spec is malformed.
        CheckpointError: A file cannot be run, or the checkpoints do not match.
        DatasetError: The set cannot be listed, or its labels do not fit the head.
    """
    require_precision(precision)
    require_several(checkpoints)
    named = read_checkpoints(checkpoints)
    settings = resolve_settings("soup", n_finetuned=len(named), has_base=False)
    plan_weight_sets(named, (), settings=settings)  # raises if they cannot be averaged
    if base is not None:
        plan_weight_sets(read_checkpoints([base, *checkpoints]), parse_alphas(["0.5"]))
    image_set = open_image_set(select_on, option="--select-on")
    jobs = _plan_jobs([WeightSet((at,)) for at in named], image_set, precision)
    if results is not None:
        check_output(results, force=True, inputs=[at.path for at in named])
    held = read_result_lines(results) if results is not None and results.exists() else ()
    return SoupPlan(
        checkpoints=named,
        jobs=jobs,
        settings=settings,
        results=results,
        held=() if force else held,
        warnings=(
            *image_set.notes,
            *image_set.warnings,
            *trained_on_warnings([(image_set, named)]),
        ),
    )


def _plan_jobs(
    weight_sets: Sequence[WeightSet], image_set: ImageSet, precision: str
) -> tuple[Job, ...]:
    jobs = plan_jobs(weight_sets, [image_set], select_on=image_set.name, precision=precision)
    # A held-out set that selects is not an in-distribution test set.
    return tuple(replace(job, line=replace(job.line, reference=False)) for job in jobs)


def run_greedy_soup(
    plan: SoupPlan,
    *,
    max_unreadable: int = 0,
    batch_size: int = 64,
    workers: int | None = None,
    device: str = "auto",
    threads: int | None = None,
    on_progress: Callable[[int], None] = lambda n: None,
) -> tuple[SoupStep, ...]:
    """Evaluate the candidates of a plan and the means that are tried, and return the path.

    Args:
        max_unreadable: Maximum number of unreadable images; they are left out.
        batch_size: Images per forward pass.
        workers: Processes that decode; 0 decodes in this process. By default one per usable CPU,
            up to 8.
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
        threads: CPU threads of torch in this process; by default torch's choice.
        on_progress: Called with the number of images that a mean or a candidate has finished.
    Raises:
        CheckpointError: A file cannot be read, or its tensors do not match its card.
        DatasetError: More images are unreadable than allowed.
        ModelError: The device cannot be used, logits are not finite, or memory is not enough.
        OutputError: The results file cannot be written.
    """
    # lazy: torch takes seconds, and the mistakes that `plan_greedy_soup` finds need none
    import torch

    from wiseft_cli.compute.devices import cpu_threads, resolve_device
    from wiseft_cli.evaluation.classifiers import ClassifierPool
    from wiseft_cli.evaluation.sweep import SweepSettings, sweep

    on = resolve_device(device)
    settings = SweepSettings(
        batch_size,
        default_workers() if workers is None else workers,
        on,
        max_unreadable=max_unreadable,
        load=ImageCache(CACHE_BYTES).load,
    )
    pool: ClassifierPool | None = None
    n_images = len(plan.image_set.records)

    def measure(jobs: Sequence[Job]) -> list[ResultLine]:
        nonlocal pool
        done = find_held(jobs, plan.held, max_unreadable=max_unreadable)
        on_progress(n_images * len(done))
        to_do = [job for job in jobs if job not in done]
        if to_do and pool is None:
            weight_sets = [WeightSet((at,)) for at in plan.checkpoints]
            with settings.report_out_of_memory(), torch.inference_mode():
                pool = ClassifierPool(weight_sets, on)
        for lines in sweep(to_do, settings, pool=pool, on_progress=on_progress):
            done |= lines
            if plan.results is not None:
                add_result_lines(plan.results, list(lines.values()))
        return [done[job] for job in jobs]

    def score_mean(indices: tuple[int, ...]) -> float:
        weights = WeightSet(tuple(plan.checkpoints[at] for at in indices), None, plan.settings)
        (line,) = measure(_plan_jobs([weights], plan.image_set, plan.jobs[0].line.precision))
        return line.value

    with cpu_threads(threads):
        scores = [line.value for line in measure(plan.jobs)]
        return tuple(select_greedily(scores, score_mean))


class ImageCache:
    """Keeps the batches of one image set in memory if they fit.

    Args:
        limit_bytes: Maximum size of the images.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._batches: list[ImageBatch] | None = None
        self.n_decoded = 0
        """Number of images that were decoded."""

    def load(
        self,
        image_set: ImageSet,
        preprocess: Mapping[str, Any],
        *,
        device: torch.device,
        **options: Any,
    ) -> Iterator[ImageBatch]:
        """Yield the batches of a set as `load_images` does; it is always the same set."""
        from wiseft_cli.evaluation.scoring import load_images  # lazy: as above

        if self._batches is not None:
            for batch in self._batches:
                yield batch._replace(
                    images=batch.images.to(device), targets=batch.targets.to(device)
                )
            return
        batches: list[ImageBatch] = []
        size_bytes = 0
        for batch in load_images(image_set, preprocess, device=device, **options):
            self.n_decoded += len(batch.targets) + len(batch.unreadable)
            size_bytes += batch.images.nbytes
            if size_bytes <= self._limit_bytes:
                # On the CPU: a GPU may have memory for the model only.
                own = batch._replace(images=batch.images.cpu(), targets=batch.targets.cpu())
                batches.append(own)
            else:
                batches.clear()
            yield batch
        if size_bytes <= self._limit_bytes:
            self._batches = batches


@dataclass(frozen=True)
class Soup:
    """A soup that was written.

    Attributes:
        path: The file.
        digest: Its content digest.
        kept: The checkpoints that it is the mean of.
        steps: The path of the greedy selection; empty for a uniform soup.
        warnings: Doubts about the checkpoints and the held-out set.
    """

    path: Path
    digest: str
    kept: tuple[Path, ...]
    steps: tuple[SoupStep, ...]
    warnings: tuple[str, ...]


def soup(
    checkpoints: Sequence[str | Path],
    output: str | Path,
    *,
    select_on: str | Path | None = None,
    base: str | Path | None = None,
    alpha: float | str | None = None,
    dtype: str | None = None,
    strict: bool = False,
    results: str | Path | None = None,
    max_bad: int = 0,
    precision: str = "fp32",
    batch_size: int = 64,
    workers: int | None = None,
    device: str = "auto",
    threads: int | None = None,
    force: bool = False,
) -> Soup:
    """Average the weights of checkpoints, and write the bytes that `wiseft soup` writes.

    Args:
        checkpoints: Two or more; without `select_on` any safetensors files with the same tensors.
        output: File to write.
        select_on: Held-out image set, `[NAME=]SPEC`, for a greedy soup; None averages all.
        base: Zero-shot checkpoint to merge the soup with.
        alpha: Weight of the soup in that merge, 0.5 by default; a string is an exact decimal.
        dtype: `float32`, `float16` or `bfloat16` for all floating tensors; None keeps theirs.
        strict: Raise an error instead of reporting a warning.
        results: File of results lines to add the measurements to; those it holds are reused.
        max_bad: Maximum number of unreadable images; they are left out.
        precision: Precision of the image encoder: `fp32`, `bf16` or `fp16`.
        batch_size: Images per forward pass.
        workers: Processes that decode; 0 decodes in this process.
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
        threads: Number of threads; by default one per usable CPU, up to 8, to average.
        force: Whether an existing output may be replaced, and results are computed again.
    Raises:
        UsageError: There are too few checkpoints, or options contradict each other.
        CheckpointError: A checkpoint is damaged, or they do not match.
        DatasetError: The image set cannot be read, or its labels do not fit the head.
        OutputError: The output exists, is an input, or cannot be written.
    Paper: Wortsman et al. 2022, arXiv:2203.05482.
    """
    paths = [Path(path) for path in checkpoints]
    zeroshot = None if base is None else Path(base)
    require_several(paths)
    exact = parse_soup_alpha(None if alpha is None else str(alpha), has_base=base is not None)
    check_output(Path(output), force=force, inputs=[path for path in paths if path.is_file()])
    plan: SoupPlan | None = None
    steps: tuple[SoupStep, ...] = ()
    if select_on is not None:
        plan = plan_greedy_soup(
            paths,
            str(select_on),
            base=zeroshot,
            results=None if results is None else Path(results),
            precision=precision,
            force=force,
        )
        steps = run_greedy_soup(
            plan,
            max_unreadable=max_bad,
            batch_size=batch_size,
            workers=workers,
            device=device,
            threads=threads,
        )
        paths = plan.kept(steps)
    report = write_soup(
        paths,
        Path(output),
        base=zeroshot,
        alpha=exact,
        selection=plan.record(steps) if plan else None,
        dtype=dtype,
        is_strict=strict,
        threads=threads,
        force=force,
    )
    (file,) = report.files
    warnings = (*(plan.warnings if plan else ()), *report.warnings)
    return Soup(file.path, file.digest, tuple(paths), steps, warnings)
