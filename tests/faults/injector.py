"""Make one file operation of this process fail: the n-th that changes the disk."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

CHANGING = (
    *("open", "write", "pwrite", "ftruncate", "fsync", "fdatasync", "link", "replace"),
    *("rename", "mkdir", "unlink", "rmdir", "remove"),
)
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
SHORT = -1
"""In place of an error number: the operation writes half of its bytes."""


class FaultInjector:
    """Counts the operations that change the disk, and makes one of them fail.

    Args:
        fails_at: Number of the operation that fails, from 0; None for none.
        fault: An error number, or `SHORT`.

    Attributes:
        done: Name of every operation so far.
    """

    def __init__(self, fails_at: int | None, fault: int = errno.EIO) -> None:
        self._fails_at = fails_at
        self._fault = fault
        self.done: list[str] = []

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Replace the functions of `os`, and `io.open`, which pathlib uses."""
        for name in CHANGING:
            patch.setattr(os, name, self._wrap(name, getattr(os, name)))
        patch.setattr(io, "open", self._wrap("io.open", io.open))

    def _wrap(self, name: str, operation: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            if not _changes_disk(name, arguments, options):
                return operation(*arguments, **options)
            fails = len(self.done) == self._fails_at
            self.done.append(name)
            if not fails:
                return operation(*arguments, **options)
            if self._fault != SHORT:
                raise OSError(self._fault, os.strerror(self._fault), *_path_of(arguments))
            if name in ("write", "pwrite"):
                descriptor, data, *rest = arguments
                return operation(descriptor, data[: (len(data) + 1) // 2], *rest)
            return operation(*arguments, **options)

        return run


def _changes_disk(name: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> bool:
    if arguments and str(arguments[0]) == os.devnull:
        return False
    if name == "open":
        return bool(arguments[1] & _WRITING)
    if name == "io.open":
        mode = options.get("mode", arguments[1] if len(arguments) > 1 else "r")
        return any(letter in mode for letter in "wax+")
    return True


def _path_of(arguments: tuple[Any, ...]) -> tuple[str, ...]:
    return tuple(str(path) for path in arguments[:1] if isinstance(path, str | Path))
