"""Stream the tensors of a merge through a few threads, in memory that does not grow.

Each thread takes one tensor after another, the largest first (`merging/stream_worker.py`); as
many others write what is done. Reading, hashing, arithmetic and writing release the
interpreter's lock. It neither decides what becomes of a tensor (`merging/plan.py`) nor commits a
file.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from wiseft_cli.checkpoint.digest import content_digest
from wiseft_cli.checkpoint.reader import CheckpointReader
from wiseft_cli.checkpoint.writer import CheckpointWriter
from wiseft_cli.compute.workers import usable_cpus
from wiseft_cli.merging.alpha import Alpha
from wiseft_cli.merging.plan import MergePlan
from wiseft_cli.merging.stream_worker import StreamJob, StreamWorker

MAX_THREADS = 8
"""Threads used without being asked: more would break the promise on memory."""

_FLUSH_BYTES = 64 << 20
"""Bytes read between two flushes of the outputs."""


@dataclass(frozen=True)
class StreamResult:
    """What streaming found out.

    Attributes:
        digest_0: Content digest of theta_0's tensors as read.
        digest_1: Content digest of theta_1's tensors as read.
        not_finite: For each alpha, by tensor, how many numbers are not finite although both
            inputs' are.
    """

    digest_0: str
    digest_1: str
    not_finite: tuple[dict[str, int], ...]


def default_threads() -> int:
    """Return how many threads to use: one for each processor this process may run on, up to 8."""
    return min(usable_cpus(), MAX_THREADS)


def stream_tensors(
    plan: MergePlan,
    theta_0: CheckpointReader,
    theta_1: CheckpointReader,
    outputs: Sequence[tuple[Alpha, CheckpointWriter]],
    *,
    threads: int,
    on_progress: Callable[[int], None] | None = None,
) -> StreamResult:
    """Read every tensor of both inputs once and write it at every alpha.

    The result does not depend on the number of threads.

    Args:
        outputs: One open writer for each alpha.
        threads: How many threads share the work, at least 1.
        on_progress: Called with the number of input bytes that were done since the last call.
    Raises:
        CheckpointError: An input ended or could not be read.
        OutputError: An output could not be written.
    """
    count = max(1, min(threads, len(plan.steps)))
    job = StreamJob(theta_0, theta_1, outputs, plan.steps, n_workers=count)
    workers = [threading.Thread(target=StreamWorker(job).run, daemon=True) for _ in range(count)]
    try:
        job.write_behind.start()
        for worker in workers:
            worker.start()
        _watch(job, count, on_progress)
    finally:
        # On a signal or another thread's failure each worker stops before its next block.
        job.stop.set()
        for worker in workers:
            if worker.ident is not None:
                worker.join()
        job.write_behind.close()
    return StreamResult(
        digest_0=_digest_of(theta_0, job.sha256_0),
        digest_1=_digest_of(theta_1, job.sha256_1),
        not_finite=job.not_finite,
    )


def _digest_of(source: CheckpointReader, sha256: dict[str, str]) -> str:
    return content_digest(
        (info.name, info.dtype, info.shape, sha256[info.name]) for info in source.tensors.values()
    )


def _watch(job: StreamJob, n_workers: int, on_progress: Callable[[int], None] | None) -> None:
    """Wait for the workers, report their progress, and flush behind them."""
    unflushed = 0
    while n_workers:
        report = job.reports.get()
        if isinstance(report, BaseException):
            raise report
        if report is None:
            n_workers -= 1
            continue
        if on_progress:
            on_progress(report)
        unflushed += report
        if unflushed >= _FLUSH_BYTES:
            unflushed = 0
            for _, writer in job.outputs:
                writer.flush()
