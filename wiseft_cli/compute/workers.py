"""CPUs that this process may use, and the worker processes that decode images."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import signal
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from wiseft_cli.errors import DatasetError

Batch = TypeVar("Batch")

MAX_DEFAULT_WORKERS = 8
"""More workers decode faster than most models compute, and each one needs memory."""

_END = signal.SIGUSR2
"""Ends a worker at once; unlike SIGTERM, no other program sends it."""

SHARED_MEMORY = Path("/dev/shm")
"""Workers send images through files in this folder."""


@dataclass(frozen=True)
class UnsentBatch:
    """Stands for a batch that a worker could not send, with the reason."""

    reason: str


def usable_cpus() -> int:
    """Return the number of CPUs that this process may run on, at least 1.

    A container or a job scheduler often allows fewer than the machine has.
    """
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def default_workers(n_processes: int = 1) -> int:
    """Return one worker per usable CPU, at most eight; 0 if there is a single CPU.

    Args:
        n_processes: Processes of the run on this machine, which share its CPUs.
    """
    usable = usable_cpus() // n_processes
    return min(usable, MAX_DEFAULT_WORKERS) if usable > 1 else 0


def initialize_worker(_worker: int) -> None:
    """Make a worker ignore Ctrl-C, end silently at a second SIGTERM, and print nothing.

    The `worker_init_fn` of every loader. A terminal sends Ctrl-C, and a job scheduler sends
    SIGTERM, to the parent and its workers. Without this function the worker inherits the
    parent's handler and prints a traceback, and a worker that dies by the signal makes torch
    raise in the parent while the parent is already exiting.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # The first SIGTERM is for the parent, which may need images for its current step and then
    # ends its workers in another way; torch sends SIGTERM only to a worker that did not respond.
    signal.signal(signal.SIGTERM, _end_next_time)
    signal.signal(_END, lambda *_: os._exit(0))
    # Exceptions of the dataset travel to the parent. Only the thread that sends tensors could
    # print here, when the parent exits while it sends.
    sys.excepthook = lambda *_: None
    _report_unsent_batches()


def _report_unsent_batches() -> None:
    """Make this worker send the reason in place of a batch that cannot be sent.

    Otherwise multiprocessing prints a traceback and the parent waits for the batch forever.
    """
    # lazy: as below
    import multiprocessing.queues

    def send_reason(queue: Any, error: Exception, item: Any) -> None:
        index, _ = item
        # A worker that is ending has closed its queue: nobody waits for this batch.
        with contextlib.suppress(ValueError):
            queue.put((index, UnsentBatch(str(error))))

    # A static method of the class; as a function it receives the queue too.
    multiprocessing.queues.Queue._on_queue_feeder_error = send_reason  # type: ignore[attr-defined]


def _end_next_time(_number: int, _frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))


@functools.cache
def _end_workers_at_exit() -> None:
    """End the remaining workers when this process ends, for example after an error.

    multiprocessing would send each of them one SIGTERM, which they ignore, and wait forever.
    Exit handlers run in reverse order, so this one runs before that of multiprocessing.
    """
    # lazy: takes 4 ms of a merge, which needs only the number of CPUs
    import multiprocessing.util  # noqa: F401 - registers its exit handler, before ours

    atexit.register(_end_workers)


def _end_workers() -> None:
    # lazy: as above
    import multiprocessing

    for child in multiprocessing.active_children():
        if child.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child.pid, _END)


def raise_on_dead_worker(batches: Iterable[Batch], workers: int) -> Iterator[Batch]:
    """Yield the batches of a loader, and report a worker that was killed or cannot send.

    Args:
        batches: A torch `DataLoader`.
        workers: Number of its worker processes.
    Raises:
        DatasetError: A worker was killed, or could not send a batch.
    """
    if workers:
        _end_workers_at_exit()
    iterator = iter(batches)
    while True:
        try:
            batch = next(iterator)
        except StopIteration:
            return
        except (RuntimeError, OSError) as error:
            if "open files" in str(error):
                raise _transport_error(str(error)) from None
            if "DataLoader worker" not in str(error):
                raise
            raise DatasetError(
                f"one of the {workers} workers that decode images died: {error}",
                hint="often the machine or /dev/shm is out of memory; use fewer --workers",
            ) from None
        if isinstance(batch, UnsentBatch):
            raise _transport_error(batch.reason)
        yield batch


def _transport_error(reason: str) -> DatasetError:
    if "open files" in reason:
        reason, hint = reason.partition(". ")[0], "raise the limit with `ulimit -n 4096`, or use"
    else:
        hint = f"{SHARED_MEMORY}{_size_of_shared_memory()} is too small for the batches of the"
        hint += " workers; in a container, set --shm-size (such as 2g); or use"
    return DatasetError(
        f"a worker cannot send its images to the main process: {reason}",
        hint=f"{hint} a smaller --batch-size or fewer --workers; --workers 0 sends nothing",
    )


def _size_of_shared_memory() -> str:
    try:
        room = os.statvfs(SHARED_MEMORY)
    except OSError:
        return ""
    return f" ({room.f_blocks * room.f_frsize // 2**20} MiB in all)"
