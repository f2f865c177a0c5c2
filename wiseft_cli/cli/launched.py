"""A command that torchrun started several times: who talks, and how each process leaves.

It knows no command, and starts nothing.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import time
from collections.abc import Iterator
from typing import NoReturn

import typer

from wiseft_cli.compute.torchrun import Launch, read_launch
from wiseft_cli.errors import CommonDatasetError, WiseftError

SECONDS_TO_TELL = 5.0
"""How long the other processes wait with an error that process 0 finds too: torchrun ends all as
soon as one ends, and process 0 is the one that tells it."""


class _OwnError(Exception):
    """An error that this process alone may have met, and tells."""

    def __init__(self, error: WiseftError) -> None:
        self.error = error


@contextlib.contextmanager
def telling_own_errors(*kinds: type[WiseftError]) -> Iterator[None]:
    """Let this process tell errors of these kinds itself, whichever process it is.

    Those that all processes find alike are left to process 0.
    """
    try:
        yield
    except CommonDatasetError:
        raise
    except kinds as error:
        raise _OwnError(error) from None


@contextlib.contextmanager
def speaking_first() -> Iterator[Launch]:
    """Give this process's place in the run, and keep all but process 0 from talking.

    What every process finds alike, the mistakes of a plan, is told by process 0 alone; an error
    of `telling_own_errors` is told by the process that met it.
    """
    launch = read_launch()
    if launch.is_first:
        try:
            yield launch
        except _OwnError as own:
            raise own.error from None
        return
    try:
        with (
            open(os.devnull, "w") as nowhere,
            contextlib.redirect_stdout(nowhere),
            contextlib.redirect_stderr(nowhere),
        ):
            yield launch
    except _OwnError as own:
        raise own.error from None
    except WiseftError as error:
        time.sleep(SECONDS_TO_TELL)
        raise typer.Exit(error.exit_code) from None


def leave(code: int) -> NoReturn:
    """End this process with an exit code.

    One of several leaves without tearing the interpreter down: torch never frees what exchanges
    gradients, its gloo threads live until the end, and beside them a teardown is aborted once in
    some hundred runs.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1":
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                stream.flush()
        os._exit(code)
    sys.exit(code)
