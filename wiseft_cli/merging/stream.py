"""Stream the tensors of a merge through a few threads, in constant memory.

Every thread takes one tensor after another, the largest first, and processes it in chunks: read
and hash the inputs, compute the output at every alpha, hash it and write it. Reading, hashing,
arithmetic and writing release the interpreter's lock. A hash needs the bytes of a tensor in
order, so a tensor belongs to one thread.

A method that needs a statistic of a tensor reads the tensor once or a few times more before, and
one that needs a statistic of the whole model reads all tensors before the first is merged. These
passes do not hash; the last one does.

`plan.py` decides the source of every tensor; `merge.py` commits the files.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import numpy as np
import numpy.typing as npt

from wiseft_cli.checkpoint.digest import Hash, content_digest, new_hash
from wiseft_cli.checkpoint.format import TensorInfo, numpy_dtype
from wiseft_cli.checkpoint.reader import CheckpointReader, count_not_finite
from wiseft_cli.checkpoint.sharded_writer import ShardedWriter
from wiseft_cli.checkpoint.writer import CheckpointWriter
from wiseft_cli.compute.workers import usable_cpus
from wiseft_cli.merging.alpha import Alpha
from wiseft_cli.merging.arithmetic import Interpolator
from wiseft_cli.merging.model_merge import BlockMerger, TensorMerge
from wiseft_cli.merging.plan import MergePlan, Step
from wiseft_cli.merging.reductions import REDUCTION_BLOCK, Reduction

Array = npt.NDArray[Any]
Writer = CheckpointWriter | ShardedWriter

MAX_DEFAULT_THREADS = 8
"""More threads would need more memory."""

_CHUNK_BYTES = 1 << 20
"""Bytes read and hashed at once; long calls keep the threads from waiting for each other."""

_MIN_CHUNK_BYTES = 8 * REDUCTION_BLOCK
"""Every chunk but a tensor's last one has a multiple of so many bytes, and so of elements."""

_OUTPUT_BYTES = 16 << 20
_INPUT_BYTES = 32 << 20
"""Memory of all threads together for outputs and for inputs."""

_SMALL_BYTES = 64 << 10
"""Mean size of a tensor in all inputs below which several threads are slower than one."""

_REPORT_BYTES = 8 << 20
_FLUSH_BYTES = 256 << 20
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


def default_threads(plan: MergePlan) -> int:
    """Return one thread per usable CPU, up to 8; one if the tensors are small on average."""
    # Small tensors keep the interpreter's lock busy, and the threads wait for each other.
    is_small = plan.input_bytes < _SMALL_BYTES * len(plan.steps)
    return 1 if is_small else min(usable_cpus(), MAX_DEFAULT_THREADS)


def stream_tensors(
    plan: MergePlan,
    alphas: Sequence[Alpha | None],
    writers: Sequence[Writer],
    *,
    threads: int,
    on_progress: Callable[[int, int], None] | None = None,
) -> StreamResult:
    """Read every tensor of all inputs, once if its method allows it, and write it at every alpha.

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
    job = _Job(plan, alphas, writers, max(1, min(threads, len(plan.steps))))
    workers = [_Worker(job) for _ in range(job.n_workers)]
    reduction, is_done = plan.merge.model_reduction, False
    while reduction is not None and not is_done:
        _run(job, [worker.observe for worker in workers], None)
        is_done = reduction.finish_pass()
    _run(job, [worker.merge for worker in workers], on_progress)
    digests = [
        content_digest(
            ((name, info.dtype, info.shape, hashes[name]) for name, info in reader.tensors.items()),
            reader.digest_algorithm,
        )
        for reader, hashes in zip(plan.sources, job.hashes, strict=True)
    ]
    return StreamResult(tuple(digests), job.not_finite, job.not_finite_inputs)


class _Job:
    """State shared by all threads; the entries of one tensor are written by one thread."""

    def __init__(
        self,
        plan: MergePlan,
        alphas: Sequence[Alpha | None],
        writers: Sequence[Writer],
        n_workers: int,
    ) -> None:
        self.plan = plan
        self.alphas = alphas
        self.writers = writers
        self.n_workers = n_workers
        self.pending: deque[Step] = deque()
        self.reports: SimpleQueue[int | BaseException | None] = SimpleQueue()
        """Bytes read, an error, or None from a thread that is done."""
        self.stop = threading.Event()
        self.hashes: tuple[dict[str, str], ...] = tuple({} for _ in plan.sources)
        self.not_finite: tuple[dict[str, int], ...] = tuple({} for _ in alphas)
        self.not_finite_inputs: tuple[dict[str, int], ...] = tuple({} for _ in plan.sources)


def _run(
    job: _Job,
    tasks: Sequence[Callable[[], None]],
    on_progress: Callable[[int, int], None] | None,
) -> None:
    """Process all tensors, with one thread per task."""
    # The largest first, so that no thread is left with a large tensor at the end.
    job.pending.extend(sorted(job.plan.steps, key=lambda step: -step.input_bytes))
    threads = [
        threading.Thread(target=_report_end, args=[job, task], daemon=True) for task in tasks
    ]
    try:
        for thread in threads:
            thread.start()
        _watch(job, on_progress)
    except BaseException:
        # After a signal or an error, every thread stops before its next chunk.
        job.stop.set()
        raise
    finally:
        for thread in threads:
            if thread.ident is not None:  # it was started
                thread.join()


def _report_end(job: _Job, task: Callable[[], None]) -> None:
    try:
        task()
    except BaseException as error:
        job.reports.put(error)
    else:
        job.reports.put(None)


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
    hash: Hash
    position: int = 0
    n_not_finite: int = 0

    @property
    def rest(self) -> int:
        return self.info.nbytes - self.position

    @property
    def dtype(self) -> np.dtype[Any]:
        return numpy_dtype(self.info.dtype)


class _Worker:
    """The work of one thread: its buffers, allocated once, and the processing of a tensor."""

    def __init__(self, job: _Job) -> None:
        self._job = job
        self._merger = BlockMerger()
        self._interpolator = Interpolator()
        n_sources = len(job.plan.sources)
        self._chunk_bytes = _chunk_bytes(
            len(job.writers) * job.n_workers, n_sources * job.n_workers
        )
        self._input_buffers = [np.empty(self._chunk_bytes, np.uint8) for _ in range(n_sources)]
        self._output_buffers = [np.empty(self._chunk_bytes, np.uint8) for _ in job.writers]
        self._unreported = 0

    def merge(self) -> None:
        """Merge or copy tensors until none is left or the job is stopped."""
        for step in self._steps():
            self._process(step)
        self._job.reports.put(self._unreported)

    def observe(self) -> None:
        """Pass tensors to the statistic of the model until none is left or the job is stopped."""
        reduction = self._job.plan.merge.model_reduction
        for step in self._steps():
            if step.source is None and reduction is not None:
                self._observe(step, reduction)

    def _steps(self) -> Iterator[Step]:
        while not self._job.stop.is_set():
            try:
                yield self._job.pending.popleft()
            except IndexError:
                return

    def _open(self, step: Step) -> dict[int, _TensorInput]:
        """Return the tensor of every source that has it, by the source's index."""
        infos = (*step.infos, *(step.fishers or [None] * len(self._job.plan.fishers)))
        sources = zip(self._job.plan.sources, infos, self._input_buffers, strict=True)
        return {
            index: _TensorInput(reader, info, buffer, new_hash(reader.digest_algorithm))
            for index, (reader, info, buffer) in enumerate(sources)
            if info
        }

    def _process(self, step: Step) -> None:
        job = self._job
        inputs = self._open(step)
        if step.source is None:
            self._merge(step, list(inputs.values()))
        else:
            self._copy(step, inputs[step.source])
        for tensor in inputs.values():
            while tensor.rest and not job.stop.is_set():
                self._read(tensor, self._chunk_bytes)
        for index, tensor in inputs.items():
            job.hashes[index][step.spec.name] = tensor.hash.hexdigest()
            if tensor.n_not_finite:
                job.not_finite_inputs[index][step.spec.name] = tensor.n_not_finite

    def _merge(self, step: Step, tensors: Sequence[_TensorInput]) -> None:
        merge = self._job.plan.merge
        reduction = merge.tensor_reduction(step.size)
        while reduction is not None and not self._job.stop.is_set():
            self._observe(step, reduction)
            if reduction.finish_pass():
                break
        if self._job.stop.is_set():
            return
        state = merge.tensor(step.spec.name, reduction)
        n, begin = self._elements_per_chunk(step, *tensors), 0
        while tensors[0].rest and not self._job.stop.is_set():
            values = [self._read_elements(tensor, n) for tensor in tensors]
            if not self._write_merged(step, state, values, begin):
                for tensor, part in zip(tensors, values, strict=True):
                    tensor.n_not_finite += count_not_finite(tensor.info, part)
            begin += len(values[0])

    def _observe(self, step: Step, reduction: Reduction) -> None:
        """Pass a tensor of every input to a statistic, without hashing it."""
        tensors = list(self._open(step).values())[: len(self._job.plan.inputs)]
        n = self._elements_per_chunk(step, *tensors)
        skipped = (reduction.block_step - 1) * REDUCTION_BLOCK
        if skipped:
            n = REDUCTION_BLOCK
        while tensors[0].rest > 0 and not self._job.stop.is_set():
            reduction.observe([self._read_elements(t, n, hashes=False) for t in tensors])
            for tensor in tensors:
                tensor.position += skipped * tensor.dtype.itemsize

    def _copy(self, step: Step, tensor: _TensorInput) -> None:
        """Copy a tensor's bytes, or its values if the dtype changes."""
        while tensor.rest and not self._job.stop.is_set():
            if step.spec.dtype != tensor.info.dtype:
                data = self._read_elements(tensor, self._elements_per_chunk(step, tensor))
                outs = self._outs(len(data), numpy_dtype(step.spec.dtype))
                found, _ = self._interpolator.interpolate(data, data, [(1.0, out) for out in outs])
                self._write(step, outs, found)
            else:
                data = self._read(tensor, self._chunk_bytes)
                for writer in self._job.writers:
                    writer.append(step.spec.name, data.data)
            tensor.n_not_finite += count_not_finite(tensor.info, data)

    def _write_merged(
        self, step: Step, state: TensorMerge, values: Sequence[Array], begin: int
    ) -> bool:
        """Write a chunk at every alpha; return whether all inputs are known to be finite."""
        outs = self._outs(len(values[0]), numpy_dtype(step.spec.dtype))
        n_inputs = len(self._job.plan.inputs)
        found, is_finite = self._merger.merge(
            state,
            values[:n_inputs],
            list(zip(self._job.alphas, outs, strict=True)),
            begin=begin,
            fishers=values[n_inputs:],
        )
        self._write(step, outs, found)
        return is_finite

    def _outs(self, n: int, dtype: np.dtype[Any]) -> list[Array]:
        """Return the arrays of n elements to write, one per output."""
        return [buffer[: n * dtype.itemsize].view(dtype) for buffer in self._output_buffers]

    def _write(self, step: Step, outs: Sequence[Array], found: Sequence[int]) -> None:
        """Write a chunk to every output, and count its new elements that are not finite."""
        job = self._job
        for out, writer, count, counts in zip(
            outs, job.writers, found, job.not_finite, strict=True
        ):
            if count:
                counts[step.spec.name] = counts.get(step.spec.name, 0) + count
            writer.append(step.spec.name, out.view(np.uint8).data)

    def _elements_per_chunk(self, step: Step, *tensors: _TensorInput) -> int:
        """Return how many elements fit into a buffer, as read and as written."""
        dtypes = numpy_dtype(step.spec.dtype), *(tensor.dtype for tensor in tensors)
        return self._chunk_bytes // max(dtype.itemsize for dtype in dtypes)

    def _read(self, tensor: _TensorInput, limit: int, *, hashes: bool = True) -> Array:
        """Read and hash up to `limit` more bytes; they are valid until the next call."""
        data = tensor.buffer[: min(limit, tensor.rest)]
        tensor.reader.read_into(tensor.info.name, data.data, tensor.position)
        tensor.position += data.nbytes
        if not hashes:
            return data
        tensor.hash.update(data.data)
        # Rarely, because waking the main thread takes the interpreter's lock from the others.
        self._unreported += data.nbytes
        if self._unreported >= _REPORT_BYTES:
            self._job.reports.put(self._unreported)
            self._unreported = 0
        return data

    def _read_elements(self, tensor: _TensorInput, limit: int, *, hashes: bool = True) -> Array:
        return self._read(tensor, limit * tensor.dtype.itemsize, hashes=hashes).view(tensor.dtype)


def _chunk_bytes(n_outputs: int, n_inputs: int) -> int:
    """Return the chunk size at which all buffers fit into their memory."""
    share = min(_CHUNK_BYTES, _OUTPUT_BYTES // n_outputs, _INPUT_BYTES // n_inputs)
    return max(share - share % _MIN_CHUNK_BYTES, _MIN_CHUNK_BYTES)
