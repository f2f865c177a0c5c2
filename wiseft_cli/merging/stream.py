"""Stream the tensors of a merge through a few threads, in memory that does not grow.

Each thread takes one tensor after another, the largest first, and carries it block by block:
read both sides, hash them, interpolate at every alpha, hash and write the results. A block stays
in the processor's cache from its reading to its writing, and all buffers are allocated once, so
that no page is faulted in twice. Reading, hashing, arithmetic and writing release the
interpreter's lock. A hash must see a tensor's bytes in order, which is why a tensor belongs to
one thread. It does not decide what becomes of a tensor (`merging/plan.py`) nor commits a file.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from wiseft_cli.checkpoint.digest import content_digest
from wiseft_cli.checkpoint.dtypes import numpy_dtype
from wiseft_cli.checkpoint.header import TensorInfo
from wiseft_cli.checkpoint.source import CheckpointSource
from wiseft_cli.checkpoint.writer import CheckpointWriter
from wiseft_cli.merging.alpha import Alpha
from wiseft_cli.merging.interpolate import BLOCK, BlockInterpolation
from wiseft_cli.merging.plan import Action, MergePlan, Step

if TYPE_CHECKING:
    from hashlib import _Hash as Hash

Array = npt.NDArray[Any]

MAX_THREADS = 8
"""Threads used without being asked: more would break the promise on memory."""

_CHUNK_BYTES = 1 << 20
"""Read and hashed at once: fewer and longer calls keep the threads out of each other's way."""
_OUTPUT_BYTES = 4 << 20
"""What a thread may hold of all outputs together, before it is written."""
_REPORT_BYTES = 8 << 20
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
    if hasattr(os, "sched_getaffinity"):
        return min(len(os.sched_getaffinity(0)), MAX_THREADS)
    return min(os.cpu_count() or 1, MAX_THREADS)


def stream_tensors(
    plan: MergePlan,
    theta_0: CheckpointSource,
    theta_1: CheckpointSource,
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
    job = _Job(theta_0, theta_1, outputs, _by_falling_size(plan.steps))
    count = max(1, min(threads, len(plan.steps)))
    workers = [threading.Thread(target=_Worker(job).run, daemon=True) for _ in range(count)]
    try:
        for worker in workers:
            worker.start()
        _watch(job, count, on_progress)
    finally:
        # On a signal or another thread's failure each worker stops before its next block.
        job.stop.set()
        for worker in workers:
            if worker.ident is not None:
                worker.join()
    return StreamResult(
        digest_0=_digest_of(theta_0, job.sha256_0),
        digest_1=_digest_of(theta_1, job.sha256_1),
        not_finite=job.not_finite,
    )


def _by_falling_size(steps: Sequence[Step]) -> deque[Step]:
    # The largest first, so that no thread is left with one at the end while the others idle.
    return deque(sorted(steps, key=lambda step: -step.input_bytes))


def _digest_of(source: CheckpointSource, sha256: dict[str, str]) -> str:
    return content_digest(
        (info.name, info.dtype, info.shape, sha256[info.name]) for info in source.tensors.values()
    )


class _Job:
    """What the threads share. Each tensor's entries are written by one thread only."""

    def __init__(
        self,
        theta_0: CheckpointSource,
        theta_1: CheckpointSource,
        outputs: Sequence[tuple[Alpha, CheckpointWriter]],
        pending: deque[Step],
    ) -> None:
        self.theta_0, self.theta_1 = theta_0, theta_1
        self.outputs = outputs
        self.pending = pending
        self.stop = threading.Event()
        self.reports: SimpleQueue[int | BaseException | None] = SimpleQueue()
        self.sha256_0: dict[str, str] = {}
        self.sha256_1: dict[str, str] = {}
        self.not_finite: tuple[dict[str, int], ...] = tuple({} for _ in outputs)


def _watch(job: _Job, n_workers: int, on_progress: Callable[[int], None] | None) -> None:
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


class _Worker:
    """One thread's buffers, and what it does with a tensor."""

    def __init__(self, job: _Job) -> None:
        self._job = job
        self._blocks = BlockInterpolation()
        self._chunk_bytes = _chunk_bytes(len(job.outputs))
        self._x, self._y = (np.empty(self._chunk_bytes, np.uint8) for _ in range(2))
        self._outs = np.empty((len(job.outputs), self._chunk_bytes), np.uint8)
        self._unreported = 0

    def run(self) -> None:
        """Carry tensors until none is left, or the job is stopped."""
        job = self._job
        try:
            while not job.stop.is_set() and job.pending:
                try:
                    step = job.pending.popleft()
                except IndexError:  # another thread took the last one
                    break
                self._carry(step)
        except BaseException as error:
            job.reports.put(error)
        else:
            job.reports.put(self._unreported)
            job.reports.put(None)

    def _carry(self, step: Step) -> None:
        job = self._job
        x = _Input(job.theta_0, step.info_0, self._x) if step.info_0 else None
        y = _Input(job.theta_1, step.info_1, self._y) if step.info_1 else None
        if x and y and step.action is Action.INTERPOLATE:
            self._interpolate(step, x, y)
        else:
            taken, other = (y, x) if step.action is Action.TAKE_1 else (x, y)
            if taken is None:
                raise ValueError(f"{step.name}: is to be taken from a side that lacks it")
            self._take(step, taken)
            if other:
                self._only_hash(other)
        if job.stop.is_set():
            return
        if x:
            job.sha256_0[step.name] = x.sha256.hexdigest()
        if y:
            job.sha256_1[step.name] = y.sha256.hexdigest()

    def _interpolate(self, step: Step, x: _Input, y: _Input) -> None:
        alphas = [alpha.value for alpha, _ in self._job.outputs]
        itemsize = max(numpy_dtype(step.spec.dtype).itemsize, x.itemsize, y.itemsize)
        numbers = self._chunk_bytes // itemsize
        while x.rest and not self._job.stop.is_set():
            before = x.rest + y.rest
            self._store(step, x.next_numbers(numbers), y.next_numbers(numbers), alphas)
            self._report(before - x.rest - y.rest)

    def _take(self, step: Step, taken: _Input) -> None:
        """Copy a tensor's bytes from one side, or its numbers where the dtype changes."""
        converts = step.spec.dtype != taken.info.dtype
        ones = [1.0] * len(self._job.outputs)
        while taken.rest and not self._job.stop.is_set():
            before = taken.rest
            if converts:
                itemsize = max(numpy_dtype(step.spec.dtype).itemsize, taken.itemsize)
                numbers = taken.next_numbers(self._chunk_bytes // itemsize)
                self._store(step, numbers, numbers, ones)
            else:
                data = taken.next_bytes(self._chunk_bytes)
                for _, writer in self._job.outputs:
                    writer.append(step.name, data.data)
            self._report(before - taken.rest)

    def _store(self, step: Step, x: Array, y: Array, alphas: Sequence[float]) -> None:
        """Write a run of numbers at each alpha."""
        dtype = numpy_dtype(step.spec.dtype)
        outs = self._outs[:, : len(x) * dtype.itemsize]
        found = self._blocks.interpolate(
            x, y, [(alpha, out.view(dtype)) for alpha, out in zip(alphas, outs, strict=True)]
        )
        for (_, writer), out, count, counts in zip(
            self._job.outputs, outs, found, self._job.not_finite, strict=True
        ):
            if count:
                counts[step.name] = counts.get(step.name, 0) + count
            writer.append(step.name, out.data)

    def _only_hash(self, other: _Input) -> None:
        while other.rest and not self._job.stop.is_set():
            before = other.rest
            other.next_bytes(self._chunk_bytes)
            self._report(before - other.rest)

    def _report(self, done_bytes: int) -> None:
        # Not at every block: waking the main thread takes the interpreter's lock from the others.
        self._unreported += done_bytes
        if self._unreported >= _REPORT_BYTES:
            self._job.reports.put(self._unreported)
            self._unreported = 0


@dataclass(slots=True)
class _Input:
    """One tensor being read in order through a thread's buffer, and hashed."""

    source: CheckpointSource
    info: TensorInfo
    buffer: Array
    position: int = 0
    sha256: Hash = field(default_factory=hashlib.sha256)

    @property
    def rest(self) -> int:
        """Bytes not read yet."""
        return self.info.nbytes - self.position

    @property
    def itemsize(self) -> int:
        """Bytes of one number; for types that numpy has."""
        return numpy_dtype(self.info.dtype).itemsize

    def next_bytes(self, limit: int) -> Array:
        """Return up to `limit` further bytes, valid until the next call."""
        data = self.buffer[: min(limit, self.rest)]
        self.source.read_into(self.info.name, data.data, self.position)
        self.sha256.update(data.data)
        self.position += data.nbytes
        return data

    def next_numbers(self, limit: int) -> Array:
        """Return up to `limit` further numbers, valid until the next call."""
        dtype = numpy_dtype(self.info.dtype)
        return self.next_bytes(limit * dtype.itemsize).view(dtype)


def _chunk_bytes(n_outputs: int) -> int:
    """Return how much of a tensor is read at once: less where it is written many times over."""
    share = min(_CHUNK_BYTES, _OUTPUT_BYTES // n_outputs)
    return max(share - share % (8 * BLOCK), 8 * BLOCK)
