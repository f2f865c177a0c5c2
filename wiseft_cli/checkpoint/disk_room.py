"""Whether there is room on the disks for files that are going to be written together."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from wiseft_cli.errors import OutputError


def require_room(outputs: Sequence[tuple[Path, int]]) -> None:
    """Refuse outputs that do not fit, before any work is spent on them.

    Args:
        outputs: Each path with the bytes that will be written there; its folder exists. Files
            on one file system are counted together, and those they replace stay until the end.
    Raises:
        OutputError: A file system has less room.
    """
    by_disk: dict[int, list[tuple[Path, int]]] = {}
    for path, nbytes in outputs:
        folder = Path(os.path.realpath(path)).parent
        by_disk.setdefault(folder.stat().st_dev, []).append((path, nbytes))
    for group in by_disk.values():
        first = group[0][0]
        folder = Path(os.path.realpath(first)).parent
        disk = os.statvfs(folder)
        free_bytes = disk.f_bavail * disk.f_frsize
        needed_bytes = sum(nbytes for _, nbytes in group)
        if free_bytes < needed_bytes:
            others = f" and {len(group) - 1} more outputs need" if len(group) > 1 else ": needs"
            raise OutputError(
                f"{first}{others} {needed_bytes:,} bytes, and {free_bytes:,} are free",
                hint=f"free space in {folder}, or name another place with -o",
            )
