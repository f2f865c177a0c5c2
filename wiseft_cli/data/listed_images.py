"""Looks up the files that a table or list names: each must be a regular one below the root.

It reads no table; `manifest.py` and the `layouts/` do.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path

from wiseft_cli.data.image_set import ImageRecord
from wiseft_cli.data.manifest_rows import Row


def find_images(root: Path, rows: Sequence[Row], faults: list[str]) -> list[ImageRecord]:
    """Return a record for each row, in their order, and add a line to `faults` for each other one.

    Args:
        root: The folder that relative paths start from; it is there.
    """
    sizes, missing = sizes_of(root, [row.path for row in rows])
    faults += [
        f"  line {row.line}: {row.path}: {missing[row.path]}" for row in rows if row.path in missing
    ]
    return [
        ImageRecord(row.path, row.label, sizes[row.path], row.group)
        for row in rows
        if row.path in sizes
    ]


def sizes_of(root: Path, paths: Iterable[str]) -> tuple[dict[str, int], dict[str, str]]:
    """Return the size in bytes of each path's file, and for each other path why it has none."""
    sizes: dict[str, int] = {}
    missing: dict[str, str] = {}
    folder = os.open(root, os.O_RDONLY)  # paths are then looked up from there, a third faster
    try:
        for path in paths:
            try:
                status = os.stat(path, dir_fd=folder)
            except (OSError, ValueError) as error:
                reason = error.strerror if isinstance(error, OSError) else None
                missing[path] = reason or str(error)
                continue
            if stat.S_ISREG(status.st_mode):
                sizes[path] = status.st_size
            else:
                missing[path] = "is no regular file"
    finally:
        os.close(folder)
    return sizes, missing
