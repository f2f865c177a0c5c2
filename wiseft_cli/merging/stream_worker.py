"""What one thread of a merge does with a tensor, chunk by chunk.

Read both sides, hash them, interpolate at every alpha, hash the results and hand them to the
threads that write. Buffers are allocated once, so that no page is faulted in twice. A hash must
see a tensor's bytes in order, which is why a tensor belongs to one thread. Chunks end where pages
of the output end, and lie in memory as they will in the file, so that they can be written past
the page cache (`checkpoint/page_cache.py`). It starts no threads.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from queue import SimpleQueue
from typing import Any

import numpy as np
import numpy.typing as npt

from wiseft_cli.checkpoint.format import numpy_dtype
from wiseft_cli.checkpoint.page_cache import PAGE_BYTES
from wiseft_cli.checkpoint.reader import CheckpointReader
from wiseft_cli.checkpoint.writer import CheckpointWriter
from wiseft_cli.merging.alpha import Alpha
from wiseft_cli.merging.interpolate import BlockInterpolation
from wiseft_cli.merging.plan import Action, Step
from wiseft_cli.merging.tensor_input import TensorInput
from wiseft_cli.merging.write_behind import BufferPool, WriteBehind

Array = npt.NDArray[Any]

_CHUNK_BYTES = 1 << 20
"""Read and hashed at once: fewer and longer calls keep the threads out of each other's way."""
_OUTPUT_BYTES = 16 << 20
"""What all threads together may hold of all outputs, before it is written."""
_LEAST_CHUNK_BYTES = 64 << 10
_REPORT_BYTES = 8 << 20


class StreamJob:
    """What the threads share. Each tensor's entries are written by one thread only."""

    def __init__(
        self,
        theta_0: CheckpointReader,
        theta_1: CheckpointReader,
        outputs: Sequence[tuple[Alpha, CheckpointWriter]],
        steps: Sequence[Step],
        *,
        n_workers: int,
    ) -> None:
        self.theta_0, self.theta_1 = theta_0, theta_1
        self.outputs = outputs
        # The largest first, so that no thread is left with one at the end while the others idle.
        self.pending = deque(sorted(steps, key=lambda step: -step.input_bytes))
        self.stop = threading.Event()
        self.reports: SimpleQueue[int | BaseException | None] = SimpleQueue()
        self.n_workers = n_workers
        self.write_behind = WriteBehind(n_workers, stop=self.stop, on_error=self.reports.put)
        self.sha256_0: dict[str, str] = {}
        self.sha256_1: dict[str, str] = {}
        self.not_finite: tuple[dict[str, int], ...] = tuple({} for _ in outputs)


class StreamWorker:
    """One thread's buffers, and what it does with a tensor."""

    def __init__(self, job: StreamJob) -> None:
        self._job = job
        self._blocks = BlockInterpolation()
        self._chunk_bytes = _chunk_bytes(len(job.outputs), job.n_workers)
        self._x, self._y = (np.empty(self._chunk_bytes, np.uint8) for _ in range(2))
        self._pool = BufferPool(_n_buffers(len(job.outputs)), self._chunk_bytes + PAGE_BYTES)
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
            self._pool.wait_for_all()
        except BaseException as error:
            job.reports.put(error)
        else:
            job.reports.put(self._unreported)
            job.reports.put(None)

    def _carry(self, step: Step) -> None:
        job = self._job
        x = TensorInput(job.theta_0, step.info_0, self._x) if step.info_0 else None
        y = TensorInput(job.theta_1, step.info_1, self._y) if step.info_1 else None
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

    def _interpolate(self, step: Step, x: TensorInput, y: TensorInput) -> None:
        alphas = [alpha.value for alpha, _ in self._job.outputs]
        itemsize = max(x.itemsize, y.itemsize)
        while x.rest and not self._job.stop.is_set():
            before = x.rest + y.rest
            numbers = self._numbers_to_page_end(step, itemsize)
            self._store(step, x.next_numbers(numbers), y.next_numbers(numbers), alphas)
            self._report(before - x.rest - y.rest)

    def _take(self, step: Step, taken: TensorInput) -> None:
        """Copy a tensor's bytes from one side, or its numbers where the dtype changes."""
        converts = step.spec.dtype != taken.info.dtype
        ones = [1.0] * len(self._job.outputs)
        while taken.rest and not self._job.stop.is_set():
            before = taken.rest
            if converts:
                numbers = taken.next_numbers(self._numbers_to_page_end(step, taken.itemsize))
                self._store(step, numbers, numbers, ones)
            else:
                data = taken.next_bytes(self._chunk_bytes - self._page_offset(step))
                for _, writer in self._job.outputs:
                    buffer, out = self._take_buffer(writer, step, data.nbytes)
                    out[:] = data
                    self._write(writer, step, out, buffer)
            self._report(before - taken.rest)

    def _store(self, step: Step, x: Array, y: Array, alphas: Sequence[float]) -> None:
        """Write a run of numbers at each alpha."""
        job, dtype = self._job, numpy_dtype(step.spec.dtype)
        taken = [
            self._take_buffer(writer, step, len(x) * dtype.itemsize) for _, writer in job.outputs
        ]
        found = self._blocks.interpolate(
            x, y, [(alpha, out.view(dtype)) for alpha, (_, out) in zip(alphas, taken, strict=True)]
        )
        for (_, writer), (buffer, out), count, counts in zip(
            job.outputs, taken, found, job.not_finite, strict=True
        ):
            if count:
                counts[step.name] = counts.get(step.name, 0) + count
            self._write(writer, step, out, buffer)

    def _page_offset(self, step: Step) -> int:
        """Return how far into a page of the output the tensor's next bytes go."""
        return self._job.outputs[0][1].position(step.name) % PAGE_BYTES

    def _numbers_to_page_end(self, step: Step, input_itemsize: int) -> int:
        """Return how many numbers to handle, so that the output then is at a page's end."""
        itemsize = numpy_dtype(step.spec.dtype).itemsize
        most = self._chunk_bytes // max(itemsize, input_itemsize)
        return most - self._page_offset(step) // itemsize

    def _take_buffer(
        self, writer: CheckpointWriter, step: Step, nbytes: int
    ) -> tuple[Array, Array]:
        """Return a free buffer, and the part of it that lies in memory as it will in the file."""
        buffer = self._pool.take()
        begin = writer.position(step.name) % PAGE_BYTES
        return buffer, buffer[begin : begin + nbytes]

    def _write(self, writer: CheckpointWriter, step: Step, out: Array, buffer: Array) -> None:
        position = writer.hash_next(step.name, out.data)
        self._job.write_behind.write(writer, position, out, buffer=buffer, pool=self._pool)

    def _only_hash(self, other: TensorInput) -> None:
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


def _n_buffers(n_outputs: int) -> int:
    """Return how many chunks of outputs a thread may hold: one being made, one being written."""
    return 2 * n_outputs + 1


def _chunk_bytes(n_outputs: int, n_workers: int) -> int:
    """Return how much of a tensor is read at once: less where it is written many times over."""
    share = min(_CHUNK_BYTES, _OUTPUT_BYTES // n_workers // _n_buffers(n_outputs))
    return max(share - share % _LEAST_CHUNK_BYTES, _LEAST_CHUNK_BYTES)
