"""Count the lines of a module that a function runs."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from types import CodeType, FrameType
from typing import Any


def lines_covered(module: str, run: Callable[[], None]) -> tuple[int, int]:
    """Return the number of lines inside functions of a module that run, and their number."""
    path = importlib.import_module(module).__file__
    assert path is not None
    seen: set[int] = set()

    def trace(frame: FrameType, event: str, _argument: Any) -> Any:
        if frame.f_code.co_filename != path:
            return None
        if event == "line":
            seen.add(frame.f_lineno)
        return trace

    sys.settrace(trace)
    try:
        run()
    finally:
        sys.settrace(None)
    with open(path) as file:
        code = compile(file.read(), path, "exec")
    lines = {line for function in _functions(code) for line in _lines_of(function)}
    return len(seen & lines), len(lines)


def _functions(code: CodeType) -> Iterator[CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            if constant.co_flags & 0x2:  # CO_NEWLOCALS: a function rather than a class
                yield constant
            yield from _functions(constant)


def _lines_of(code: CodeType) -> set[int]:
    lines = {line for _, _, line in code.co_lines() if line is not None}
    return lines - {code.co_firstlineno}
