"""Save the state of a run at an interval, and remove states that are no longer needed.

A state that cannot be saved, for example on a full disk, is a warning: the run itself goes on.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from wiseft_cli.checkpoint.card import Card
from wiseft_cli.errors import OutputError, UsageError
from wiseft_cli.training.state_dir import (
    list_states,
    remove_old_states,
    remove_unfinished_states,
    state_folder,
    state_path,
)

if TYPE_CHECKING:
    from wiseft_cli.training.state import Run

MAX_TIME_SHARE = 0.01
"""Largest share of a run's time for saving at the end of epochs, and for saving at the default
interval of minutes; saving is put off beyond it."""

_UNITS_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}
_ASSUMED_BYTES_PER_SECOND = 250e6
"""Assumed speed of the disk until the first state is written."""


@dataclass(frozen=True)
class SaveInterval:
    """When a state is due; never if nothing is set.

    Attributes:
        steps: Optimizer steps between two states.
        seconds: Time between two states.
        at_epochs: Whether the end of an epoch is due too. If saving takes more than
            `MAX_TIME_SHARE` of the time, both epochs and `seconds` are put off.
    """

    steps: int | None = None
    seconds: float | None = None
    at_epochs: bool = False

    @property
    def is_never(self) -> bool:
        """Whether no state is ever due."""
        return self.steps is None and self.seconds is None and not self.at_epochs


NEVER = SaveInterval()
DEFAULT_INTERVAL = SaveInterval(seconds=600.0, at_epochs=True)


def parse_save_interval(text: str | None) -> SaveInterval:
    """Return the interval of `--save-every`; the default interval for None.

    Args:
        text: `3` steps, `90s`, `10m`, `2h`, or `never`.
    Raises:
        UsageError: The text is none of these.
    """
    if text is None:
        return DEFAULT_INTERVAL
    if text == "never":
        return NEVER
    match = re.fullmatch(r"(\d{1,12})([smh]?)", text)
    if not match or not int(match[1]):
        raise UsageError(
            f"--save-every {text!r}, expected steps such as 3, a time such as 90s, 10m or 2h,"
            " or never"
        )
    number, unit = int(match[1]), match[2]
    if not unit:
        return SaveInterval(steps=number)
    return SaveInterval(seconds=number * _UNITS_SECONDS[unit])


class SaveSchedule:
    """Decides when a state is due, from the clock and the time that saving takes.

    Args:
        interval: The interval.
        state_bytes: Size of a state, from which the time of the first one is estimated.
        now: Time at the start, in seconds.
    """

    def __init__(self, interval: SaveInterval, *, state_bytes: int, now: float) -> None:
        self._interval = interval
        self._started = self._last = now
        self._spent = 0.0
        self._cost = state_bytes / _ASSUMED_BYTES_PER_SECOND

    def is_due(self, steps_done: int, *, ends_epoch: bool, now: float) -> bool:
        """Whether a state is due after a step.

        Args:
            steps_done: Steps of the run so far.
            ends_epoch: Whether the last one ended an epoch.
            now: Time, in seconds.
        """
        interval, since = self._interval, now - self._last
        if interval.steps is not None and steps_done % interval.steps == 0:
            return True
        if interval.seconds is not None and since >= interval.seconds:
            return not interval.at_epochs or self._cost <= MAX_TIME_SHARE * since
        allowed = MAX_TIME_SHARE * (now - self._started)
        return interval.at_epochs and ends_epoch and self._spent + self._cost <= allowed

    def add_save(self, *, began: float, ended: float) -> None:
        """Count a state that was saved, or that failed to be saved."""
        self._last = ended
        self._cost = ended - began
        self._spent += self._cost


class StateSaver:
    """Saves the states of one run; of several processes only the first has one.

    Args:
        output: Path of the run's output; the states are beside it.
        card: The output's card, which every state has too.
        interval: When states are due.
        state_bytes: Size of a state.
        world_size: Number of processes of the run.
    """

    def __init__(
        self,
        output: Path,
        card: Card,
        interval: SaveInterval,
        *,
        state_bytes: int,
        world_size: int = 1,
    ) -> None:
        self._output = output
        self._card = card
        self._world_size = world_size
        self._saved_step = -1
        self._is_never = interval.is_never
        self._schedule = SaveSchedule(interval, state_bytes=state_bytes, now=time.monotonic())

    def save_if_due(self, run: Run, *, ends_epoch: bool) -> str | None:
        """Save the state if it is due; return a warning if that fails."""
        now = time.monotonic()
        if self._schedule.is_due(run.steps_done, ends_epoch=ends_epoch, now=now):
            return self.save(run)
        return None

    def save(self, run: Run) -> str | None:
        """Save the state now, unless it is saved already; return a warning if that fails."""
        if self._is_never or self._saved_step == run.steps_done:
            return None
        # lazy: torch costs seconds, and options are checked before it is loaded
        from wiseft_cli.training.state import write_state

        began, warning = time.monotonic(), None
        try:
            _make_folder(state_folder(self._output))
            remove_unfinished_states(self._output)
            path = state_path(self._output, run.steps_done)
            write_state(path, run, self._card, world_size=self._world_size)
            remove_old_states(self._output)
            self._saved_step = run.steps_done
        except OutputError as error:
            warning = f"{error.message}; training continues without this state"
        self._schedule.add_save(began=began, ended=time.monotonic())
        return warning

    @property
    def newest(self) -> Path | None:
        """Path of the newest state on disk."""
        return next(iter(list_states(self._output)), None)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be created: {error.strerror}") from None
