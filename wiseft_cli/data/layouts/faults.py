"""Refuses a file of a published set for all its faults at once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from wiseft_cli.errors import DatasetError, counted

_SINGULAR = {"entries": "entry", "lines": "line", "rows": "row"}


def refuse(
    path: Path, faults: Sequence[str], *, what: str = "entries", hint: str | None = None
) -> None:
    """Raise if there are faults.

    Args:
        faults: A line each.
        what: What they are of, in the plural.
        hint: The remedy.
    Raises:
        DatasetError: Names the file, and each fault.
    """
    if faults:
        counts = counted(len(faults), _SINGULAR.get(what, what), plural=what)
        lines = [fault.removeprefix("  ") for fault in faults]
        raise DatasetError(f"{path}: {counts} cannot be used", faults=lines, hint=hint)
