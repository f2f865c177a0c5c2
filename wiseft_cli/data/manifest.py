"""Image sets as tables: a row an image, with its path, its label, and perhaps split and group.

`.csv` and `.tsv` with a header row, or `.jsonl` with an object a line. Every row is checked, and
every image looked up, before anything runs; no image is opened.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from wiseft_cli.data.image_set import ImageRecord, ImageSet
from wiseft_cli.data.listed_images import find_images
from wiseft_cli.data.manifest_rows import Columns, Row, read_rows
from wiseft_cli.errors import DatasetError, list_some

MANIFEST_SUFFIXES = (".csv", ".tsv", ".jsonl")


def list_manifest(
    path: Path, *, name: str, split: str | None = None, columns: Columns | None = None
) -> ImageSet:
    """List the images of a manifest.

    Args:
        path: The file; relative image paths start at its folder.
        name: Name of the set.
        split: Take the rows of this split; needed where the file has more than one.
        columns: The header's names of the columns, where they are not the usual ones.
    Raises:
        DatasetError: The file cannot be read, lacks a column or the split, or has rows that
            cannot be used or images that are not there; all lines are listed.
    """
    columns = columns or Columns()
    faults: list[str] = []
    rows = read_rows(path, columns, faults)
    rows = _rows_of_split(rows, split, path, columns.split)
    unique, n_repeated = _unique_rows(rows, faults)
    records = find_images(path.parent, unique, faults)
    if faults:
        raise DatasetError(
            "\n".join([f"{path}: {len(faults)} rows cannot be used:", *list_some(faults)]),
            hint=f"an image's path starts at the folder of {path.name}, or is absolute",
        )
    if not records:
        raise DatasetError(f"{path}: holds no image", hint="expected a row an image")
    records.sort(key=lambda record: record.path)
    return ImageSet(name, path.parent, tuple(records), _notes(name, records, n_repeated))


def _rows_of_split(rows: list[Row], split: str | None, path: Path, column: str) -> list[Row]:
    """Return the rows of the split; several splits are never mixed unasked."""
    counts = Counter(row.split for row in rows if row.split)
    known = ", ".join(f"{name} ({count})" for name, count in sorted(counts.items()))
    if split is None:
        if len(counts) > 1:
            raise DatasetError(
                f"{path}: has several splits: {known}",
                hint=f"choose one: '{path}?split={min(counts)}'",
            )
        return rows
    if split not in counts:
        found = f"there are {known}" if counts else f"its column {column!r} names none"
        raise DatasetError(f"{path}: has no split {split!r}; {found}")
    return [row for row in rows if row.split == split]


def _unique_rows(rows: Iterable[Row], faults: list[str]) -> tuple[list[Row], int]:
    """Return each image once, and how many rows repeated one; rows that disagree are faults."""
    by_path: dict[str, Row] = {}
    n_repeated = 0
    for row in rows:
        first = by_path.setdefault(row.path, row)
        if first is row:
            continue
        if (first.label, first.group) == (row.label, row.group):
            n_repeated += 1
            continue
        what = "label" if first.label != row.label else "group"
        faults.append(
            f"  line {row.line}: {row.path}: has the {what} {getattr(row, what)!r},"
            f" on line {first.line} {getattr(first, what)!r}"
        )
    return list(by_path.values()), n_repeated


def _notes(name: str, records: list[ImageRecord], n_repeated: int) -> tuple[str, ...]:
    notes = []
    if n_repeated:
        notes.append(f"image set {name!r}: {n_repeated} rows repeat an image, which counts once")
    n_without = sum(record.group is None for record in records)
    if 0 < n_without < len(records):
        notes.append(f"image set {name!r}: {n_without} of {len(records)} images have no group")
    return tuple(notes)
