"""The processes that decode images: how many by default, their signals, and their death."""

from __future__ import annotations

import atexit
import contextlib
import functools
import multiprocessing.util
import os
import signal
import sys
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import TypeVar

from wiseft_cli.errors import DatasetError
from wiseft_cli.processors import usable_processors

Batch = TypeVar("Batch")

MAX_DEFAULT_WORKERS = 8
"""More decode faster than most models compute, and each costs memory."""

_END = signal.SIGUSR2
"""What ends a worker at once: nobody else sends it, unlike SIGTERM."""


def default_workers(n_processes: int = 1) -> int:
    """Return the CPUs this process may use, at most eight; none beside a single CPU.

    Args:
        n_processes: Processes of the run on this machine, which share its CPUs.
    """
    usable = usable_processors() // n_processes
    return min(usable, MAX_DEFAULT_WORKERS) if usable > 1 else 0


def leave_signals_to_the_parent(_worker: int) -> None:
    """Make a worker ignore Ctrl-C, end silently at a second SIGTERM, and print nothing of its own.

    The `worker_init_fn` of every loader: the parent speaks for both.

    A terminal sends Ctrl-C, and a job scheduler SIGTERM, to parent and workers alike. Without
    this the worker inherits the parent's handler and prints a traceback of its own, and one
    that dies by the signal makes torch raise in the parent while that is leaving already.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # The first SIGTERM is for the parent, which may need images for the step it is at, and then
    # ends its workers without one; torch sends a SIGTERM only to a worker that did not listen.
    signal.signal(signal.SIGTERM, _end_next_time)
    signal.signal(_END, lambda *_: os._exit(0))
    # Exceptions of the dataset travel to the parent; what would be printed here is only the
    # thread that hands tensors over, when the parent left in the middle of it.
    sys.excepthook = lambda *_: None


def _end_next_time(_number: int, _frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))


@functools.cache
def _end_workers_at_exit() -> None:
    """End workers that are left when this process ends, as after an error amid a loader.

    multiprocessing would send each of them one SIGTERM, the one that they pass over, and wait for
    ever. Handlers run in reverse order, so this one, registered after its own, comes first.
    """
    atexit.register(_end_workers)


def _end_workers() -> None:
    for child in multiprocessing.active_children():
        if child.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child.pid, _END)


def telling_dead_workers(batches: Iterable[Batch], workers: int) -> Iterator[Batch]:
    """Yield the batches of a loader, and tell a dead worker process as an error of the input.

    Args:
        batches: A torch `DataLoader`.
        workers: How many processes it has.
    Raises:
        DatasetError: A worker was killed.
    """
    if workers:
        _end_workers_at_exit()
    iterator = iter(batches)
    while True:
        try:
            batch = next(iterator)
        except StopIteration:
            return
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise DatasetError(
                f"one of the {workers} processes that decode images died: {error}",
                hint="often the machine or /dev/shm is out of memory; use fewer --workers",
            ) from None
        yield batch
