"""Find image files and check paths; a path that cannot be looked up raises an error.

`pathlib` reports a path in a folder without permissions as missing in some releases of Python.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from wiseft_cli.errors import DatasetError

IMAGE_EXTENSIONS = frozenset(
    {".apng", ".avif", ".bmp", ".dib", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg"}
    | {".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"}
)
"""File name extensions of images, in lower case; files with other extensions are ignored."""


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


def is_image_name(file_name: str) -> bool:
    """Return whether a file name has the extension of an image."""
    return os.path.splitext(file_name)[1].lower() in IMAGE_EXTENSIONS


def walk_images(
    folder: Path, relative: str, *, parents: tuple[str, ...] = ()
) -> Iterator[tuple[str, int | None]]:
    """Yield the path and size of each image below a folder, sorted by name in each folder.

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
            yield from walk_images(folder / entry.name, path, parents=(*parents, real))
        elif is_image_name(entry.name):
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


def file_sizes(root: Path, paths: Iterable[str]) -> tuple[dict[str, int], dict[str, str]]:
    """Look up files below a folder.

    Args:
        root: An existing folder; relative paths start there.
    Returns:
        The size in bytes of each regular file, and for every other path the reason why it cannot
        be used.
    """
    sizes: dict[str, int] = {}
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
                sizes[path] = status.st_size
            else:
                missing[path] = "is not a regular file"
    finally:
        os.close(folder)
    return sizes, missing
