"""Find files and check paths; a path that cannot be looked up raises an error.

`pathlib` reports a path in a folder without permissions as missing in some releases of Python.
"""

from __future__ import annotations

import contextlib
import os
import stat
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from wiseft_cli.errors import DatasetError


def path_exists(path: Path) -> bool:
    """Return whether a path exists.

    Raises:
        DatasetError: The path cannot be looked up, for example because a folder above it may not
            be searched.
    """
    return _mode(path) is not None


def is_folder(path: Path) -> bool:
    """Return whether a path is a folder; raises like `path_exists`."""
    mode = _mode(path)
    return mode is not None and stat.S_ISDIR(mode)


def is_regular_file(path: Path) -> bool:
    """Return whether a path is a regular file; raises like `path_exists`."""
    mode = _mode(path)
    return mode is not None and stat.S_ISREG(mode)


def _mode(path: Path) -> int | None:
    try:
        return os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a NUL byte
        return None
    except OSError as error:
        hint = "a folder above it may not be searched by this user (chmod u+rx FOLDER)"
        raise DatasetError(
            f"cannot look for {path}: {error.strerror}",
            hint=hint if isinstance(error, PermissionError) else None,
        ) from None


def walk_files(
    folder: Path, relative: str, *, parents: tuple[str, ...] = ()
) -> Iterator[tuple[str, int | None]]:
    """Yield the path and size of each file below a folder, sorted by name in each folder.

    Hidden files and folders are skipped, symbolic links are followed.

    Args:
        relative: Prefix of the yielded paths.
        parents: Real paths of the folders above that are being walked.
    Yields:
        Path, and size in bytes; the size is None for a broken link and for a file that is not
        regular.
    Raises:
        DatasetError: A folder cannot be read.
    """
    real = os.path.realpath(folder)
    if real in parents:  # a link to a folder above would be walked forever
        return
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise DatasetError(f"image folder {folder} cannot be read: {error.strerror}") from None
    for entry in entries:
        if entry.name.startswith("."):
            continue
        path = f"{relative}/{entry.name}"
        if is_folder_entry(entry):
            yield from walk_files(folder / entry.name, path, parents=(*parents, real))
        else:
            yield path, _size_bytes(entry)


def is_folder_entry(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry of a folder is itself a folder; raises like `path_exists`."""
    try:
        return entry.is_dir()
    except OSError as error:  # a link into a folder that may not be searched
        raise DatasetError(f"cannot look for {entry.path}: {error.strerror}") from None


def _size_bytes(entry: os.DirEntry[str]) -> int | None:
    try:
        status = entry.stat()
    except OSError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None  # opening a pipe would block


class FileInfo(NamedTuple):
    """A regular file: its size in bytes, and its device and inode, which hard links share."""

    size_bytes: int
    inode: tuple[int, int]


def look_up_files(root: Path, paths: Iterable[str]) -> tuple[dict[str, FileInfo], dict[str, str]]:
    """Look up files below a folder.

    Args:
        root: An existing folder; relative paths start there.
    Returns:
        The facts about each regular file, and for every other path the reason why it cannot be
        used.
    """
    found: dict[str, FileInfo] = {}
    missing: dict[str, str] = {}
    folder = os.open(root, os.O_RDONLY)  # lookups relative to it are a third faster
    try:
        for path in paths:
            try:
                status = os.stat(path, dir_fd=folder)
            except (OSError, ValueError) as error:
                reason = error.strerror if isinstance(error, OSError) else None
                missing[path] = reason or str(error)
                continue
            if stat.S_ISREG(status.st_mode):
                found[path] = FileInfo(status.st_size, (status.st_dev, status.st_ino))
            else:
                missing[path] = "is not a regular file"
    finally:
        os.close(folder)
    return found, missing


def file_sizes(root: Path, paths: Iterable[str]) -> tuple[dict[str, int], dict[str, str]]:
    """Return the size in bytes of each file, and why the others cannot be used.

    Args:
        root: As in `look_up_files`.
    """
    found, missing = look_up_files(root, paths)
    return {path: info.size_bytes for path, info in found.items()}, missing


def is_tar_file(path: Path) -> bool:
    """Return whether a regular file is a tar file by its content, whatever its name is."""
    if not is_regular_file(path):
        return False
    with contextlib.suppress(OSError), open(path, "rb") as file:
        return file.read(262)[257:] == b"ustar"
    return False


def expand_home(path: str) -> str:
    """Replace `~` at the start of a path, which shells leave alone after `NAME=`."""
    if not path.startswith("~") or "\0" in path or os.path.exists(path):
        return path
    return os.path.expanduser(path)


def find_unicode_spellings(root: Path, paths: Iterable[str]) -> dict[str, str]:
    """Return how paths are spelled on disk, if only the Unicode form of their names differs.

    Args:
        root: Folder that relative paths start at.
    """
    names_in: dict[str, dict[str, list[str]]] = {}
    found: dict[str, str] = {}
    for path in paths:
        spelled = ""
        for name in path.split("/"):
            same = [name]
            if name not in ("", ".", ".."):
                folder = os.path.join(root, spelled)
                if folder not in names_in:
                    names_in[folder] = _names_by_nfc(folder)
                same = names_in[folder].get(unicodedata.normalize("NFC", name), [])
            if name not in same and len(same) != 1:
                break
            spelled += f"{name if name in same else same[0]}/"
        else:
            found[path] = spelled.removesuffix("/")
    return found


def _names_by_nfc(folder: str) -> dict[str, list[str]]:
    names: dict[str, list[str]] = {}
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            names.setdefault(unicodedata.normalize("NFC", name), []).append(name)
    return names
