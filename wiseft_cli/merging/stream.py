"""Stream the tensors of a merge through a few threads, in constant memory.

Every thread takes one tensor after another, the largest first, and processes it in chunks: read
and hash the inputs, compute the output at every alpha, hash it and write it. Reading, hashing,
arithmetic and writing release the interpreter's lock. A hash needs the bytes of a tensor in
order, so a tensor belongs to one thread.

`plan.py` decides the source of every tensor; `merge.py` commits the files.
"""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from wiseft_cli.checkpoint.digest import content_digest
from wiseft_cli.checkpoint.format import TensorInfo, numpy_dtype
from wiseft_cli.checkpoint.reader import CheckpointReader, count_not_finite
from wiseft_cli.checkpoint.writer import CheckpointWriter
from wiseft_cli.compute.workers import usable_cpus
from wiseft_cli.merging.alpha import Alpha
from wiseft_cli.merging.arithmetic import Interpolator
from wiseft_cli.merging.plan import MergePlan, Step

if TYPE_CHECKING:
    from hashlib import _Hash as Hash

Array = npt.NDArray[Any]

MAX_DEFAULT_THREADS = 8
"""More threads would need more memory."""

_CHUNK_BYTES = 1 << 20
"""Bytes read and hashed at once; long calls keep the threads from waiting for each other."""

_MIN_CHUNK_BYTES = 64 << 10
_OUTPUT_BYTES = 16 << 20
"""Memory of all threads together for outputs."""

_REPORT_BYTES = 8 << 20
_FLUSH_BYTES = 64 << 20
"""Bytes read between two flushes of the outputs."""


@dataclass(frozen=True)
class StreamResult:
    """Facts about the data, known after every tensor was read.

    Attributes:
        digests: Content digest of every input's tensors as read.
        not_finite: For every alpha, by tensor, the number of elements that are not finite
            although those of all inputs are.
        not_finite_inputs: For every input, by tensor, the number of elements that are not finite
            in the tensors that the outputs are made of.
    """

    digests: tuple[str, ...]
    not_finite: tuple[dict[str, int], ...]
    not_finite_inputs: tuple[dict[str, int], ...]


def default_threads() -> int:
    """Return one thread per usable CPU, up to 8."""
    return min(usable_cpus(), MAX_DEFAULT_THREADS)


def stream_tensors(
    plan: MergePlan,
    alphas: Sequence[Alpha],
    writers: Sequence[CheckpointWriter],
    *,
    threads: int,
    on_progress: Callable[[int, int], None] | None = None,
) -> StreamResult:
    """Read every tensor of all inputs once and write it at every alpha.

    The result does not depend on the number of threads.

    Args:
        writers: One open output for every alpha.
        threads: Number of threads, at least 1.
        on_progress: Called with the number of bytes of all inputs, and the number of bytes read
            since the last call.
    Raises:
        CheckpointError: An input ended early or could not be read.
        OutputError: An output could not be written.
    """
    count = max(1, min(threads, len(plan.steps)))
    job = _Job(plan, alphas, writers, count)
    workers = [threading.Thread(target=_Worker(job).run, daemon=True) for _ in range(count)]
    try:
        for worker in workers:
            worker.start()
        _watch(job, on_progress)
    finally:
        # After a signal or an error, every thread stops before its next chunk.
        job.stop.set()
        for worker in workers:
            if worker.ident is not None:  # it was started
                worker.join()
    digests = [
        content_digest((name, info.dtype, info.shape, sha256[name]) for name, info in tensors)
        for tensors, sha256 in zip(
            (reader.tensors.items() for reader in plan.inputs), job.sha256, strict=True
        )
    ]
    return StreamResult(tuple(digests), job.not_finite, job.not_finite_inputs)


class _Job:
    """State shared by all threads; the entries of one tensor are written by one thread."""

    def __init__(
        self,
        plan: MergePlan,
        alphas: Sequence[Alpha],
        writers: Sequence[CheckpointWriter],
        n_workers: int,
    ) -> None:
        self.plan = plan
        self.alphas = [alpha.value for alpha in alphas]
        self.writers = writers
        self.n_workers = n_workers
        # The largest first, so that no thread is left with a large tensor at the end.
        self.pending = deque(sorted(plan.steps, key=lambda step: -step.input_bytes))
        self.reports: SimpleQueue[int | BaseException | None] = SimpleQueue()
        """Bytes read, an error, or None from a thread that is done."""
        self.stop = threading.Event()
        self.sha256: tuple[dict[str, str], ...] = tuple({} for _ in plan.inputs)
        self.not_finite: tuple[dict[str, int], ...] = tuple({} for _ in alphas)
        self.not_finite_inputs: tuple[dict[str, int], ...] = tuple({} for _ in plan.inputs)


def _watch(job: _Job, on_progress: Callable[[int, int], None] | None) -> None:
    """Wait for the threads, report their progress, and flush the outputs."""
    total, unflushed, running = job.plan.input_bytes, 0, job.n_workers
    while running:
        report = job.reports.get()
        if isinstance(report, BaseException):
            raise report
        if report is None:
            running -= 1
            continue
        if on_progress:
            on_progress(total, report)
        unflushed += report
        if unflushed >= _FLUSH_BYTES:
            unflushed = 0
            for writer in job.writers:
                writer.flush()


@dataclass(slots=True)
class _TensorInput:
    """A tensor that is read in order.

    Attributes:
        position: Bytes that are read so far and hashed.
        n_not_finite: Infinite or NaN elements that were counted.
    """

    reader: CheckpointReader
    info: TensorInfo
    buffer: Array
    position: int = 0
    sha256: Hash = field(default_factory=hashlib.sha256)
    n_not_finite: int = 0

    @property
    def rest(self) -> int:
        return self.info.nbytes - self.position

    @property
    def dtype(self) -> np.dtype[Any]:
        return numpy_dtype(self.info.dtype)


class _Worker:
    """One thread: its buffers, allocated once, and the processing of a tensor."""

    def __init__(self, job: _Job) -> None:
        self._job = job
        self._kernel = Interpolator()
        self._chunk_bytes = _chunk_bytes(len(job.writers) * job.n_workers)
        self._input_buffers = [np.empty(self._chunk_bytes, np.uint8) for _ in job.plan.inputs]
        self._output_buffers = [np.empty(self._chunk_bytes, np.uint8) for _ in job.writers]
        self._unreported = 0

    def run(self) -> None:
        """Process tensors until none is left or the job is stopped."""
        job = self._job
        try:
            while not job.stop.is_set():
                try:
                    step = job.pending.popleft()
                except IndexError:
                    break
                self._process(step)
        except BaseException as error:
            job.reports.put(error)
        else:
            job.reports.put(self._unreported)
            job.reports.put(None)

    def _process(self, step: Step) -> None:
        job = self._job
        inputs = {
            index: _TensorInput(reader, info, buffer)
            for index, (reader, info, buffer) in enumerate(
                zip(job.plan.inputs, step.infos, self._input_buffers, strict=True)
            )
            if info
        }
        if step.source is None:
            self._interpolate(step, *inputs.values())
        else:
            self._copy(step, inputs[step.source])
        for tensor in inputs.values():
            while tensor.rest and not job.stop.is_set():
                self._read(tensor, self._chunk_bytes)
        for index, tensor in inputs.items():
            job.sha256[index][step.spec.name] = tensor.sha256.hexdigest()
            if tensor.n_not_finite:
                job.not_finite_inputs[index][step.spec.name] = tensor.n_not_finite

    def _interpolate(self, step: Step, x: _TensorInput, y: _TensorInput) -> None:
        n = self._elements_per_chunk(step, x, y)
        while x.rest and not self._job.stop.is_set():
            values = self._read_elements(x, n), self._read_elements(y, n)
            if not self._write_interpolated(step, *values, self._job.alphas):
                for tensor, part in zip((x, y), values, strict=True):
                    tensor.n_not_finite += count_not_finite(tensor.info, part)

    def _copy(self, step: Step, tensor: _TensorInput) -> None:
        """Copy a tensor's bytes, or its values if the dtype changes."""
        while tensor.rest and not self._job.stop.is_set():
            if step.spec.dtype != tensor.info.dtype:
                data = self._read_elements(tensor, self._elements_per_chunk(step, tensor))
                self._write_interpolated(step, data, data, [1.0] * len(self._job.writers))
            else:
                data = self._read(tensor, self._chunk_bytes)
                for writer in self._job.writers:
                    writer.append(step.spec.name, data.data)
            tensor.n_not_finite += count_not_finite(tensor.info, data)

    def _write_interpolated(self, step: Step, x: Array, y: Array, alphas: Sequence[float]) -> bool:
        """Write a chunk at every alpha; return whether all of x and y is known to be finite."""
        job, dtype = self._job, numpy_dtype(step.spec.dtype)
        outs = [buffer[: len(x) * dtype.itemsize].view(dtype) for buffer in self._output_buffers]
        found, is_finite = self._kernel.interpolate(x, y, list(zip(alphas, outs, strict=True)))
        for buffer, writer, count, counts in zip(
            outs, job.writers, found, job.not_finite, strict=True
        ):
            if count:
                counts[step.spec.name] = counts.get(step.spec.name, 0) + count
            writer.append(step.spec.name, buffer.view(np.uint8).data)
        return is_finite

    def _elements_per_chunk(self, step: Step, *tensors: _TensorInput) -> int:
        """Return how many elements fit into a buffer, as read and as written."""
        dtypes = numpy_dtype(step.spec.dtype), *(tensor.dtype for tensor in tensors)
        return self._chunk_bytes // max(dtype.itemsize for dtype in dtypes)

    def _read(self, tensor: _TensorInput, limit: int) -> Array:
        """Read and hash up to `limit` more bytes; they are valid until the next call."""
        data = tensor.buffer[: min(limit, tensor.rest)]
        tensor.reader.read_into(tensor.info.name, data.data, tensor.position)
        tensor.sha256.update(data.data)
        tensor.position += data.nbytes
        # Rarely, because waking the main thread takes the interpreter's lock from the others.
        self._unreported += data.nbytes
        if self._unreported >= _REPORT_BYTES:
            self._job.reports.put(self._unreported)
            self._unreported = 0
        return data

    def _read_elements(self, tensor: _TensorInput, limit: int) -> Array:
        return self._read(tensor, limit * tensor.dtype.itemsize).view(tensor.dtype)


def _chunk_bytes(n_buffers: int) -> int:
    """Return the chunk size at which all output buffers fit into their memory."""
    share = min(_CHUNK_BYTES, _OUTPUT_BYTES // n_buffers)
    return max(share - share % _MIN_CHUNK_BYTES, _MIN_CHUNK_BYTES)
