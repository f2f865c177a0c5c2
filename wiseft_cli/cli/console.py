"""Output of the commands: results on stdout, messages and progress on stderr."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from wiseft_cli.errors import OutputError, escape_controls

PLAIN_INTERVAL_SECONDS = 15.0
"""Seconds between progress lines if stderr is not a terminal."""


def print_result(text: str) -> None:
    """Print one line of the result on stdout, with escapes for control characters.

    Raises:
        OutputError: stdout cannot be written, for example a file on a full disk.
        BrokenPipeError: The reader closed the pipe; `app.py` then exits quietly.
    """
    print_data(escape_controls(text))


def print_block(text: str) -> None:
    """Print the lines of a table or another text of several lines on stdout."""
    for line in text.split("\n"):
        print_result(line)


def print_data(text: str) -> None:
    """Print text for another program on stdout as it is: a path, CSV.

    Raises:
        OutputError: stdout cannot be written, for example a file on a full disk.
        BrokenPipeError: The reader closed the pipe; `app.py` then exits quietly.
    """
    try:
        print(text, file=sys.stdout, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        sys.stdout = None  # or the exit flushes it, and fails, again
        raise OutputError(f"the result cannot be written to stdout: {error.strerror}") from None


def print_json(value: Any) -> None:
    """Print a JSON document on stdout."""
    # In JSON, control characters stand only in strings, where their escapes mean the same.
    print_result(json.dumps(value, sort_keys=True, ensure_ascii=False))


def print_message(text: str) -> None:
    """Print one line on stderr, with escapes for control characters."""
    print(escape_controls(text), file=sys.stderr, flush=True)


def warn(text: str) -> None:
    """Print a warning on stderr."""
    print_message(f"warning: {text}")


def terminal_width() -> int | None:
    """Return the columns of the terminal that stdout is; None for a pipe, a file or a plain one."""
    is_plain = os.environ.get("TERM", "") in ("", "dumb")
    encoding = (sys.stdout.encoding or "").lower().replace("-", "") if sys.stdout else ""
    if not sys.stdout or not sys.stdout.isatty() or is_plain or not encoding.startswith("utf"):
        return None
    return shutil.get_terminal_size().columns


Advance = Callable[..., None]
"""`advance(n=1, note="")`: n more steps are done; the note is shown beside the bar."""


@contextmanager
def progress(total: int, description: str, *, unit: str | None = None) -> Iterator[Advance]:
    """Show progress on stderr: a bar on a terminal, a plain line now and then elsewhere.

    Args:
        total: Number of steps.
        description: What is counted, in a few words.
        unit: Name of the steps, to show how many are done per second.
    """
    if sys.stderr.isatty():
        with _bar(total, description, unit) as advance:
            yield advance
    else:
        yield _plain_lines(total, description, unit)


@contextmanager
def deferred_progress(description: str) -> Iterator[Callable[[int, int], None]]:
    """Show progress of work whose size is known only when it starts.

    Yields `on_progress(total, n)`: n more of `total` steps are done.
    """
    with ExitStack() as stack:
        advance: Advance | None = None

        def on_progress(total: int, n: int) -> None:
            nonlocal advance
            if advance is None:
                advance = stack.enter_context(progress(total, description))
            advance(n)

        yield on_progress


@contextmanager
def _bar(total: int, description: str, unit: str | None) -> Iterator[Advance]:
    # lazy: rich takes a tenth of a second, and only a terminal needs it
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class SpeedColumn(ProgressColumn):
        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text("" if unit is None or not speed else f"{speed:,.0f} {unit}/s")

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        SpeedColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(escape_controls(description), total=total, note="")

        def advance(n: int = 1, note: str = "") -> None:
            bar.update(task, advance=n, note=escape_controls(note))

        yield advance


def _plain_lines(total: int, description: str, unit: str | None) -> Advance:
    done = 0
    start = last = time.monotonic()

    def advance(n: int = 1, note: str = "") -> None:
        nonlocal done, last
        done += n
        if time.monotonic() - last >= PLAIN_INTERVAL_SECONDS:
            last = time.monotonic()
            speed = done / max(last - start, 1e-9)
            rate = "" if unit is None or not done else f", {speed:,.0f} {unit}/s"
            left = f", {_duration((total - done) / speed)} left" if rate else ""
            print_message(f"{description}: {done}/{total}{rate}{left} {note}".rstrip())

    return advance


def _duration(seconds: float) -> str:
    """Write a time as `5 s`, `3 min` or `2 h 10 min`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
