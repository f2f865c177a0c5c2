"""Check that a file system has space for files before they are written."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from wiseft_cli.errors import OutputError


def free_bytes(path: Path) -> int:
    """Return the free space of the file system of an existing folder, for this user."""
    disk = os.statvfs(os.path.realpath(path))
    return disk.f_bavail * disk.f_frsize


def require_space(outputs: Sequence[tuple[Path, int]]) -> None:
    """Reject outputs that do not fit on their disks.

    Args:
        outputs: Each path with the bytes that will be written there; its folder exists. Files
            on one file system are added up, and the files that they replace stay until the end.
    Raises:
        OutputError: A file system has less free space.
    """
    by_disk: dict[int, list[tuple[Path, int]]] = {}
    for path, size_bytes in outputs:
        folder = Path(os.path.realpath(path)).parent
        by_disk.setdefault(folder.stat().st_dev, []).append((path, size_bytes))
    for group in by_disk.values():
        first = group[0][0]
        folder = Path(os.path.realpath(first)).parent
        available = free_bytes(folder)
        needed = sum(size_bytes for _, size_bytes in group)
        if available < needed:
            others = f" and {len(group) - 1} more outputs need" if len(group) > 1 else ": needs"
            raise OutputError(
                f"{first}{others} {needed:,} bytes, and {available:,} are free",
                hint=f"free space in {folder}, or name another place with -o",
            )
