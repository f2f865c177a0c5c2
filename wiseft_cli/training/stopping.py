"""Turn Ctrl-C and SIGTERM into a request that is read between optimizer steps."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Whether a run should end; a context in which signals request it.

    The first signal is recorded. After it the previous handlers act again, so that a second
    signal ends the process at once.

    Args:
        records_all: Whether later signals are only recorded too. torchrun forwards each signal
            that it receives, and itself kills processes that take longer than 30 s.

    Attributes:
        signal_number: The signal that was received; None before.
    """

    def __init__(self, *, records_all: bool = False) -> None:
        self.signal_number: int | None = None
        self._records_all = records_all
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        # Python allows handlers in the main thread only, and runs them there.
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                self._previous[number] = signal.signal(number, self._record)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._restore_handlers()

    def __bool__(self) -> bool:
        return self.signal_number is not None

    def _record(self, number: int, _frame: FrameType | None) -> None:
        self.signal_number = number
        if not self._records_all:
            self._restore_handlers()

    def _restore_handlers(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous.clear()
