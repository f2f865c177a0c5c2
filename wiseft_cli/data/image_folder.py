"""Image sets as folders: one subfolder a class, the images anywhere below it.

It lists files and does not open them: decoding is `images.py`, the joining of folder names
with a classifier's classes is `label_space.py`.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from wiseft_cli.data.image_set import ImageRecord, ImageSet
from wiseft_cli.errors import DatasetError, counted, list_some

IMAGE_EXTENSIONS = frozenset(
    {".apng", ".avif", ".bmp", ".dib", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg"}
    | {".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"}
)
"""Endings that count as images, compared in lower case; every other file is ignored."""


def list_image_folder(root: Path, *, name: str | None = None) -> ImageSet:
    """List the images of a folder with one subfolder a class.

    Hidden files and folders are skipped; symbolic links are followed. A class folder without
    images gives a note and no label.

    Args:
        root: The folder whose subfolders are the classes.
        name: Name of the set; by default the folder's own.
    Raises:
        DatasetError: The folder is missing, holds no class folder or no image, or an image
            is a broken link or no regular file.
    """
    name = name if name is not None else Path(os.path.abspath(root)).name
    class_folders, loose_images = _scan_root(root)
    records: list[ImageRecord] = []
    broken: list[str] = []
    empty: list[str] = []
    for label in class_folders:
        found = list(walk_images(root / label, label))
        if not found:
            empty.append(label)
        for path, size_bytes in found:
            if size_bytes is None:
                broken.append(path)
            else:
                records.append(ImageRecord(path, label, size_bytes))
    _refuse_broken(name, root, broken)
    _refuse_empty(name, root, class_folders, loose_images, has_images=bool(records))
    records.sort(key=lambda record: record.path)
    return ImageSet(name, root, tuple(records), _notes(name, empty, loose_images))


def _scan_root(root: Path) -> tuple[list[str], int]:
    """Return the class folders, sorted, and the number of images that lie beside them."""
    try:
        with os.scandir(root) as entries:
            visible = [entry for entry in entries if not entry.name.startswith(".")]
            folders = sorted(entry.name for entry in visible if _is_folder(entry))
            loose = sum(is_image_name(entry.name) for entry in visible if not _is_folder(entry))
    except FileNotFoundError:
        raise DatasetError(f"image folder {root} does not exist") from None
    except NotADirectoryError:
        raise DatasetError(
            f"{root} is a file; expected an image folder with one subfolder a class"
        ) from None
    except OSError as error:
        raise DatasetError(f"image folder {root} cannot be read: {error.strerror}") from None
    return folders, loose


def walk_images(
    folder: Path, relative: str, *, parents: tuple[str, ...] = ()
) -> Iterator[tuple[str, int | None]]:
    """Yield (path, size in bytes) of each image anywhere below; size None where unusable.

    Args:
        folder: Where to look; what begins with a dot is skipped, links are followed.
        relative: What the yielded paths begin with.
        parents: The real paths of the folders above that were walked.
    Raises:
        DatasetError: A folder cannot be read.
    """
    real = os.path.realpath(folder)
    if real in parents:  # a link to a folder above would be walked without end
        return
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise DatasetError(f"image folder {folder} cannot be read: {error.strerror}") from None
    for entry in entries:
        if entry.name.startswith("."):
            continue
        path = f"{relative}/{entry.name}"
        if _is_folder(entry):
            yield from walk_images(folder / entry.name, path, parents=(*parents, real))
        elif is_image_name(entry.name):
            yield path, _size_bytes(entry)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:  # of a link to where nobody may look
        raise DatasetError(f"cannot look for {entry.path}: {error.strerror}") from None


def is_image_name(file_name: str) -> bool:
    """Return whether a file counts as an image, by its ending."""
    return os.path.splitext(file_name)[1].lower() in IMAGE_EXTENSIONS


def _size_bytes(entry: os.DirEntry[str]) -> int | None:
    """Size of a regular file; None for a broken link, and for a pipe, which would block."""
    try:
        status = entry.stat()
    except OSError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def _refuse_broken(name: str, root: Path, broken: list[str]) -> None:
    if broken:
        lines = [f"  {root / path}" for path in broken]
        raise DatasetError(
            "\n".join(
                [
                    f"image set {name!r} has {len(broken)} images that are broken links"
                    " or no regular files:",
                    *list_some(lines),
                ]
            ),
            hint="restore or remove them",
        )


def _refuse_empty(
    name: str, root: Path, class_folders: list[str], loose_images: int, *, has_images: bool
) -> None:
    layout = "expected one subfolder a class, as in DIR/<class id or name>/<image>"
    if not class_folders and any(root.glob("*.tar")):
        layout = f"name its shards by a pattern, as in '{root}/{{000..127}}.tar'"
    if not class_folders:
        lie = "lies" if loose_images == 1 else "lie"
        beside = f" ({counted(loose_images, 'image')} {lie} in it directly)" if loose_images else ""
        raise DatasetError(
            f"image set {name!r}: {root} has no class subfolder{beside}", hint=layout
        )
    if not has_images:
        raise DatasetError(
            f"image set {name!r}: the {len(class_folders)} class folders of {root}"
            f" hold no image ({' '.join(sorted(IMAGE_EXTENSIONS))})",
            hint=layout,
        )


def _notes(name: str, empty: list[str], loose_images: int) -> tuple[str, ...]:
    notes = []
    if empty:
        shown = ", ".join(list_some([repr(label) for label in empty]))
        notes.append(f"image set {name!r}: {len(empty)} class folders hold no image: {shown}")
    if loose_images:
        notes.append(
            f"image set {name!r}: {loose_images} images outside every class folder are ignored"
        )
    return tuple(notes)
