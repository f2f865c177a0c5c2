"""Asks whether a file or folder is there: where nobody may look, that is an error and no `no`.

What `pathlib` answers then differs between releases of Python. It reads nothing.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from wiseft_cli.errors import DatasetError


def is_there(path: Path) -> bool:
    """Return whether a path leads to anything.

    Raises:
        DatasetError: A folder above it may not be searched, or it cannot be looked up.
    """
    return _mode(path) is not None


def is_folder(path: Path) -> bool:
    """Return whether a path leads to a folder.

    Raises:
        DatasetError: As in `is_there`.
    """
    mode = _mode(path)
    return mode is not None and stat.S_ISDIR(mode)


def is_regular_file(path: Path) -> bool:
    """Return whether a path leads to a regular file.

    Raises:
        DatasetError: As in `is_there`.
    """
    mode = _mode(path)
    return mode is not None and stat.S_ISREG(mode)


def _mode(path: Path) -> int | None:
    try:
        return os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):  # the last of a NUL byte
        return None
    except PermissionError as error:
        raise DatasetError(
            f"cannot look for {path}: {error.strerror}",
            hint="a folder above it may not be searched by this user (chmod u+rx FOLDER)",
        ) from None
    except OSError as error:
        raise DatasetError(f"cannot look for {path}: {error.strerror}") from None
