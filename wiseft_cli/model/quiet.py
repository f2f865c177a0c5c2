"""Silence the logs, warnings and download bars of other libraries.

Whatever a user must know about a model, this package checks and reports itself.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silence logging and warnings, and download bars if stderr is not a terminal.

    open_clip logs through functions that install a stderr handler on the root logger if it has
    none, so a handler that discards everything is installed meanwhile.
    """
    handler = logging.NullHandler()
    logging.root.addHandler(handler)
    disabled_before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), _quiet_downloads():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled_before)
        logging.root.removeHandler(handler)


@contextmanager
def _quiet_downloads() -> Iterator[None]:
    from huggingface_hub.utils.tqdm import (  # lazy: not every caller needs the hub's client
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    if sys.stderr.isatty() or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
