"""Ctrl-C and SIGTERM as a wish that is read between steps.

It ends nothing itself.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Whether somebody wants the run to end; a context in which signals say so.

    The first signal is noted. From then on the handlers that were there before act again, so
    that a second one ends the process at once.

    Args:
        notes_all: Whether later signals are only noted too: torchrun passes on what it gets, as
            often as it gets it, and itself ends whoever takes longer than 30 s.

    Attributes:
        signal_number: The signal that came; None before.
    """

    def __init__(self, *, notes_all: bool = False) -> None:
        self.signal_number: int | None = None
        self._notes_all = notes_all
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        # Python lets no other thread set handlers, and delivers no signal to it either.
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._give_back()

    def __bool__(self) -> bool:
        return self.signal_number is not None

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.signal_number = number
        if not self._notes_all:
            self._give_back()

    def _give_back(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous.clear()
