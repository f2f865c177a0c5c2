"""Keep the libraries below from talking: their logs and warnings are not this program's.

What a person must know of a model is checked and said by this package itself.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silence logging and warnings, and download bars where stderr is not a terminal.

    open_clip logs on the root logger through functions that install a handler on stderr where
    there is none; a handler that does nothing stands there meanwhile.
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
