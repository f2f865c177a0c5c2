"""Image sets in manifests: tables with one row per image.

A row has a path and a label, and optionally a split and a group. `.csv` and `.tsv` files have a
header row, `.jsonl` files one JSON object per line. Every row is checked and every image file
looked up before anything runs; no image is opened.
"""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from wiseft_cli.data.files import file_sizes
from wiseft_cli.data.image_set import ImageRecord, ImageSet
from wiseft_cli.errors import DatasetError, counted, list_some
from wiseft_cli.prompts.documents import read_text

MANIFEST_SUFFIXES = (".csv", ".tsv", ".jsonl")


@dataclass(frozen=True)
class Columns:
    """The column names of a manifest; label is None if labels are not read."""

    path: str = "path"
    label: str | None = "label"
    split: str = "split"
    group: str = "group"

    @property
    def names(self) -> dict[str, str]:
        """Field and column name of each column to read."""
        return {field: name for field, name in vars(self).items() if name is not None}

    @property
    def required(self) -> list[str]:
        """Fields that must be present: path and label, and every column given by the user."""
        return [
            field
            for field, name in self.names.items()
            if field in ("path", "label") or name != getattr(Columns, field)
        ]


class Row(NamedTuple):
    """One usable row; `line` counts from 1, the label is empty if labels are not read."""

    line: int
    path: str
    label: str
    split: str
    group: str | None


def list_manifest(
    path: Path, *, name: str, split: str | None = None, columns: Columns | None = None
) -> ImageSet:
    """List the images of a manifest.

    Args:
        path: The file; relative image paths start at its folder.
        name: Name of the set.
        split: Split to take; required if the file has more than one.
        columns: Column names that differ from the default ones.
    Raises:
        DatasetError: The file cannot be read, lacks a column or the split, or contains unusable
            rows or missing images; all of them are listed.
    """
    columns = columns or Columns()
    faults: list[str] = []
    rows = read_rows(path, columns, faults)
    rows = _rows_of_split(rows, split, path, columns.split)
    unique, n_repeated = _unique_rows(rows, faults)
    records = image_records(path.parent, unique, faults)
    if faults:
        raise DatasetError(
            f"{path}: {counted(len(faults), 'row')} cannot be used",
            faults=faults,
            hint=f"image paths are relative to the folder of {path.name}, or absolute",
        )
    if not records:
        raise DatasetError(f"{path}: contains no images", hint="expected one row per image")
    records.sort(key=lambda record: record.path)
    return ImageSet(name, path.parent, tuple(records), _notes(name, records, n_repeated))


def image_records(root: Path, rows: Sequence[Row], faults: list[str]) -> list[ImageRecord]:
    """Look up the image file of each row, and append a line to `faults` for each missing one.

    Args:
        root: An existing folder; relative paths start there.
    Returns:
        The records of the other rows, in their order.
    """
    sizes, missing = file_sizes(root, [row.path for row in rows])
    faults += [
        f"line {row.line}: {row.path}: {missing[row.path]}" for row in rows if row.path in missing
    ]
    return [
        ImageRecord(row.path, row.label, sizes[row.path], row.group)
        for row in rows
        if row.path in sizes
    ]


def _rows_of_split(rows: list[Row], split: str | None, path: Path, column: str) -> list[Row]:
    """Return the rows of one split; splits are never mixed."""
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
        found = f"found {known}" if counts else f"found no splits in column {column!r}"
        raise DatasetError(f"{path}: has no split {split!r}; {found}")
    return [row for row in rows if row.split == split]


def _unique_rows(rows: Iterable[Row], faults: list[str]) -> tuple[list[Row], int]:
    """Return the first row of each image and the number of repeats; contradictions are faults."""
    by_path: dict[str, Row] = {}
    n_repeated = 0
    for row in rows:
        first = by_path.setdefault(row.path, row)
        if first is row:
            continue
        if (first.label, first.group) == (row.label, row.group):
            n_repeated += 1
            continue
        field = "label" if first.label != row.label else "group"
        faults.append(
            f"line {row.line}: {row.path}: {field} {getattr(row, field)!r} contradicts"
            f" {getattr(first, field)!r} on line {first.line}"
        )
    return list(by_path.values()), n_repeated


def _notes(name: str, records: list[ImageRecord], n_repeated: int) -> tuple[str, ...]:
    notes = []
    if n_repeated:
        rows = counted(n_repeated, "repeated row")
        notes.append(f"image set {name!r}: {rows} ignored; each image counts once")
    n_without = sum(record.group is None for record in records)
    if 0 < n_without < len(records):
        notes.append(f"image set {name!r}: {n_without} of {len(records)} images have no group")
    return tuple(notes)


def read_rows(path: Path, columns: Columns, faults: list[str]) -> list[Row]:
    """Read the usable rows of a manifest, and append a line to `faults` for every other row.

    Raises:
        DatasetError: The file cannot be read, is not UTF-8, or lacks a required column.
    """
    text = read_text(path, DatasetError)
    if path.suffix.lower() == ".jsonl":
        lines = _json_cells(text, columns, faults)
    else:
        lines = _table_cells(path, text, columns, faults)
    rows = (_row(line, cells, faults) for line, cells in lines)
    return [row for row in rows if row is not None]


def _row(line: int, cells: Mapping[str, str], faults: list[str]) -> Row | None:
    path = cells["path"]
    if not path or not cells.get("label", "-").strip():
        faults.append(f"line {line}: the {'label' if path else 'path'} is empty")
        return None
    if "/." in path or path.startswith(".") or "//" in path:
        path = os.path.normpath(path)  # an image with two spellings would count twice
    # A million rows share a few labels, splits and groups.
    label = sys.intern(cells.get("label", "").strip())
    split = sys.intern(cells.get("split", "").strip())
    group = sys.intern(cells.get("group", "").strip())
    return Row(line, path, label, split, group or None)


def _table_cells(
    path: Path, text: str, columns: Columns, faults: list[str]
) -> Iterator[tuple[int, dict[str, str]]]:
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=delimiter, strict=True, skipinitialspace=True
    )
    try:
        header = [cell.strip() for cell in next(reader, [])]
        positions = _column_positions(path, header, columns)
        for cells in reader:
            if cells and len(cells) != len(header):
                faults.append(f"line {reader.line_num}: {len(cells)} cells, expected {len(header)}")
            elif cells:
                yield reader.line_num, {field: cells[at] for field, at in positions.items()}
    except csv.Error as error:
        raise DatasetError(f"{path}, line {reader.line_num}: not valid CSV: {error}") from None


def _column_positions(path: Path, header: list[str], columns: Columns) -> dict[str, int]:
    names = columns.names
    faults = [
        f"column {names[field]!r} is missing"
        for field in columns.required
        if names[field] not in header
    ]
    faults += [
        f"column {name!r} occurs more than once"
        for name in names.values()
        if header.count(name) > 1
    ]
    if faults:
        found = ", ".join(list_some([repr(name) for name in header])) or "nothing"
        fields = [field for field in ("path", "label") if field in names]
        options = ",".join(f"{field}=COLUMN" for field in fields)
        raise DatasetError(
            f"{path}, line 1: the header does not fit",
            faults=faults,
            hint=f"the first line contains {found}; expected a header with"
            f" {' and '.join(fields)}, or name the columns: '{path}?{options}'",
        )
    return {field: header.index(name) for field, name in names.items() if name in header}


def _json_cells(
    text: str, columns: Columns, faults: list[str]
) -> Iterator[tuple[int, dict[str, str]]]:
    names, required = columns.names, columns.required
    for number, line in enumerate(io.StringIO(text), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            faults.append(f"line {number}: not valid JSON: {getattr(error, 'msg', error)}")
            continue
        if not isinstance(entry, dict):
            faults.append(f"line {number}: not a JSON object")
            continue
        cells: dict[str, str] = {}
        wrong = []
        for field, name in names.items():
            value = entry.get(name)
            if isinstance(value, str | int) and not isinstance(value, bool):
                cells[field] = str(value)
            elif name not in entry and field in required:
                wrong.append(f"line {number}: {name!r} is missing")
            elif value is not None or field in required:
                wrong.append(f"line {number}: {name!r} is {json.dumps(value)[:40]}, expected text")
        faults += wrong
        if not wrong:
            yield number, cells
