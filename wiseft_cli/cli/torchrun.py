"""Output and exit of a command that torchrun runs in several processes."""

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

ERROR_DELAY_SECONDS = 5.0
"""How long the other processes wait before they exit with an error that process 0 finds too:
torchrun ends all processes as soon as one ends, and process 0 must have printed the error."""


class _OwnRankError(Exception):
    """An error that perhaps no other process has, and that this process prints."""

    def __init__(self, error: WiseftError) -> None:
        self.error = error


@contextlib.contextmanager
def report_on_this_rank(*kinds: type[WiseftError]) -> Iterator[None]:
    """Let this process print errors of these kinds, whatever its rank.

    Errors that all processes find alike are left to process 0.
    """
    try:
        yield
    except CommonDatasetError:
        raise
    except kinds as error:
        raise _OwnRankError(error) from None


@contextlib.contextmanager
def rank_zero_output() -> Iterator[Launch]:
    """Yield the rank of this process, and discard the output of all ranks but 0.

    Errors that every process finds, such as wrong options, are printed by process 0 alone; an
    error inside `report_on_this_rank` is printed by the process that met it.
    """
    launch = read_launch()
    if launch.is_first:
        try:
            yield launch
        except _OwnRankError as own:
            raise own.error from None
        return
    try:
        with (
            open(os.devnull, "w") as nowhere,
            contextlib.redirect_stdout(nowhere),
            contextlib.redirect_stderr(nowhere),
        ):
            yield launch
    except _OwnRankError as own:
        raise own.error from None
    except WiseftError as error:
        time.sleep(ERROR_DELAY_SECONDS)
        raise typer.Exit(error.exit_code) from None


def exit_process(code: int) -> NoReturn:
    """End this process with an exit code.

    One of several processes exits without tearing the interpreter down: torch never frees DDP's
    reducer, so gloo's threads live until the end, and a teardown beside them is aborted about
    once in a hundred runs.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1":
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                stream.flush()
        os._exit(code)
    sys.exit(code)
