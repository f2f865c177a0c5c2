"""When the state of a run is saved: each so many steps, each so many minutes, or where it is cheap.

It saves nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from wiseft_cli.errors import UsageError

MAX_SHARE = 0.01
"""Share of a run's time that saving at the end of epochs may take, and that saving each so many
minutes may take, where nobody asked for an interval; it is put off beyond that."""

_UNITS_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}
_ASSUMED_BYTES_PER_SECOND = 250e6
"""How fast a state is written, until one was."""


@dataclass(frozen=True)
class SaveInterval:
    """When a state is due; never, where nothing is set.

    Attributes:
        steps: Optimizer steps between two states.
        seconds: Time between two states.
        at_epochs: Whether each epoch ends with one, as long as that is cheap; the time between
            two states is then longer too where saving is slow.
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


@dataclass(frozen=True)
class Saving:
    """What a person wants of states.

    Attributes:
        interval: When one is saved.
        keep: Whether the last ones stay after the run has ended.
    """

    interval: SaveInterval = NEVER
    keep: bool = False


def parse_save_interval(text: str | None) -> SaveInterval:
    """Return the interval that a person asked for; the default where None.

    Args:
        text: `3` steps, `90s`, `10m`, `2h`, or `never`.
    Raises:
        UsageError: It is none of these.
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
    return (
        SaveInterval(seconds=number * _UNITS_SECONDS[unit]) if unit else SaveInterval(steps=number)
    )


class SaveSchedule:
    """Follows a run's time, and says when a state is due.

    Args:
        interval: What was asked for.
        state_bytes: Size of a state, from which the time of the first one is guessed.
        now: The clock's time at the start, in seconds.
    """

    def __init__(self, interval: SaveInterval, *, state_bytes: int, now: float) -> None:
        self._interval = interval
        self._started = self._last = now
        self._spent = 0.0
        self._cost = state_bytes / _ASSUMED_BYTES_PER_SECOND

    def is_due(self, steps_done: int, *, ends_epoch: bool, now: float) -> bool:
        """Whether a state is due after a step.

        Args:
            steps_done: Steps of the run.
            ends_epoch: Whether the last one ended an epoch.
            now: The clock's time, in seconds.
        """
        interval, since = self._interval, now - self._last
        if interval.steps is not None and steps_done % interval.steps == 0:
            return True
        if interval.seconds is not None and since >= interval.seconds:
            return not interval.at_epochs or self._cost <= MAX_SHARE * since
        allowed = MAX_SHARE * (now - self._started)
        return interval.at_epochs and ends_epoch and self._spent + self._cost <= allowed

    def note_saved(self, *, began: float, ended: float) -> None:
        """Note that a state was saved, or that it was tried, and when."""
        self._last = ended
        self._cost = ended - began
        self._spent += self._cost
