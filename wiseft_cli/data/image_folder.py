"""Image sets in folders: one subfolder per class, with images at any depth below it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from wiseft_cli.data.files import is_folder_entry, walk_files
from wiseft_cli.data.image_formats import (
    IMAGE_EXTENSIONS,
    IgnoredFiles,
    is_image_name,
    is_picture_name,
)
from wiseft_cli.data.image_set import ImageSet
from wiseft_cli.data.records import ImageRecord, ImageRecords
from wiseft_cli.data.suggestions import parent_of
from wiseft_cli.errors import DatasetError, counted, did_you_mean_path, list_some


def list_image_folder(root: Path, *, name: str | None = None) -> ImageSet:
    """List the images of a folder with one subfolder per class.

    Hidden files and folders are skipped; symbolic links are followed. A class folder without
    images gives a note and no label. Files that may be images of other formats give a warning.

    Args:
        root: The folder whose subfolders are the classes.
        name: Name of the set; by default the name of the folder.
    Raises:
        DatasetError: The folder is missing, has no class folders or no images, or an image is a
            broken link or not a regular file.
    """
    name = name if name is not None else Path(os.path.abspath(root)).name
    class_folders, n_loose = _scan_root(root)
    unusable: list[str] = []
    empty: list[str] = []
    ignored = IgnoredFiles()

    def walk() -> Iterator[ImageRecord]:
        for label in class_folders:
            n_found = 0
            for path, size in walk_files(root / label, label):
                if not is_image_name(path):
                    ignored.add(path)
                    continue
                n_found += 1
                if size is None:
                    unusable.append(str(root / path))
                else:
                    yield ImageRecord(path, label, size)
            if not n_found:
                empty.append(label)

    records = ImageRecords(walk())
    if unusable:
        raise DatasetError(
            f"image set {name!r} has {len(unusable)} images that are broken links or not regular"
            " files",
            faults=unusable,
            hint="restore or remove them",
        )
    if not records:
        raise _no_images(name, root, class_folders, n_loose, ignored)
    n_ignored = ignored.counts.total()
    warnings = (f"image set {name!r}: {counted(n_ignored, 'file')} ignored: {ignored}",)
    return ImageSet(
        name,
        root,
        records.sorted_by_path(),
        _notes(name, empty, n_loose),
        warnings=warnings if n_ignored else (),
    )


def _scan_root(root: Path) -> tuple[list[str], int]:
    """Return the class folders, sorted, and the number of images beside them."""
    try:
        with os.scandir(root) as entries:
            visible = [entry for entry in entries if not entry.name.startswith(".")]
            folders = sorted(entry.name for entry in visible if is_folder_entry(entry))
            return folders, sum(
                is_picture_name(entry.name) for entry in visible if not is_folder_entry(entry)
            )
    except FileNotFoundError:
        raise DatasetError(
            f"image folder {root} does not exist", hint=did_you_mean_path(root)
        ) from None
    except NotADirectoryError:
        raise DatasetError(
            f"{root} is a file; expected an image folder with one subfolder per class"
        ) from None
    except OSError as error:
        raise DatasetError(f"image folder {root} cannot be read: {error.strerror}") from None


def _no_images(
    name: str, root: Path, class_folders: list[str], n_loose: int, ignored: IgnoredFiles
) -> DatasetError:
    layout = "expected one subfolder per class, as in DIR/<class id or name>/<image>"
    if class_folders:
        return DatasetError(
            f"image set {name!r}: the {len(class_folders)} class folders of {root} contain no"
            f" images ({' '.join(sorted(IMAGE_EXTENSIONS))})"
            + (f"; found {ignored}" if ignored.counts else ""),
            hint=layout,
        )
    if any(root.glob("*.tar")):
        layout = f"name its shards with a pattern, as in '{root}/{{000..127}}.tar'"
    beside = f"; it directly contains {counted(n_loose, 'image')}" if n_loose else ""
    if n_loose and len(_scan_root(above := Path(parent_of(root)))[0]) > 1:
        layout += f"; if the name of this folder is a class, did you mean {above}?"
    return DatasetError(f"image set {name!r}: {root} has no class subfolders{beside}", hint=layout)


def _notes(name: str, empty: list[str], n_loose: int) -> tuple[str, ...]:
    notes = []
    if empty:
        labels = ", ".join(list_some([repr(label) for label in empty]))
        folders = counted(len(empty), "class folder")
        notes.append(f"image set {name!r}: {folders} without images: {labels}")
    if n_loose:
        images = counted(n_loose, "image")
        notes.append(f"image set {name!r}: {images} outside the class folders ignored")
    return tuple(notes)
