"""What a process that decodes images does with signals: its parent speaks for both.

Used as the `worker_init_fn` of every loader.
"""

from __future__ import annotations

import os
import signal
import sys


def leave_signals_to_the_parent(_worker: int) -> None:
    """Make a worker ignore Ctrl-C, end silently at SIGTERM, and print nothing of its own.

    A terminal sends Ctrl-C, and a job scheduler SIGTERM, to parent and workers alike. Without
    this the worker inherits the parent's handler and prints a traceback of its own, and one
    that dies by the signal makes torch raise in the parent while that is leaving already.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    # Exceptions of the dataset travel to the parent; what would be printed here is only the
    # thread that hands tensors over, when the parent left in the middle of it.
    sys.excepthook = lambda *_: None
