"""The processes that decode images: how many by default, and what they do with signals."""

from __future__ import annotations

import os
import signal
import sys

MAX_DEFAULT_WORKERS = 8
"""More decode faster than most models compute, and each costs memory."""


def default_workers() -> int:
    """Return the CPUs this process may use, at most eight; none beside a single CPU."""
    if not hasattr(os, "sched_getaffinity"):  # not on macOS
        usable = os.cpu_count() or 1
    else:
        usable = len(os.sched_getaffinity(0))
    return min(usable, MAX_DEFAULT_WORKERS) if usable > 1 else 0


def leave_signals_to_the_parent(_worker: int) -> None:
    """Make a worker ignore Ctrl-C, end silently at SIGTERM, and print nothing of its own.

    The `worker_init_fn` of every loader: the parent speaks for both.

    A terminal sends Ctrl-C, and a job scheduler SIGTERM, to parent and workers alike. Without
    this the worker inherits the parent's handler and prints a traceback of its own, and one
    that dies by the signal makes torch raise in the parent while that is leaving already.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    # Exceptions of the dataset travel to the parent; what would be printed here is only the
    # thread that hands tensors over, when the parent left in the middle of it.
    sys.excepthook = lambda *_: None
