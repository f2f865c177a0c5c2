"""Image sets in manifests: tables with one row per image.

A row has a path and a label, and optionally a split and a group. `.csv` and `.tsv` files have a
header row, `.jsonl` files one JSON object per line. Every row is checked and every image file
looked up before anything runs; no image is opened.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import NamedTuple

from wiseft_cli.data.files import (
    FileInfo,
    expand_home,
    find_unicode_spellings,
    is_tar_file,
    look_up_files,
)
from wiseft_cli.data.image_set import ImageSet
from wiseft_cli.data.records import ImageRecord, ImageRecords
from wiseft_cli.errors import DatasetError, counted, list_some
from wiseft_cli.prompts.documents import read_text

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_WINDOWS_DRIVE = re.compile(r"[A-Za-z]:[\\/]")
_MAX_HEADER = 2**16
"""Longest header, in characters, that separators are tried on."""
_JSON_HINT = "write one JSON object per line"

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
    faults = RowFaults(path)
    rows = read_rows(path, columns, faults)
    rows = _rows_of_split(rows, split, path, columns.split)
    rows, found, missing = locate_rows(path.parent, rows)
    for row in rows:
        if row.path in missing:
            faults.add(row.line, f"{row.path}: {missing[row.path]}", faults.path_hint)
    unique, n_repeated = _unique_rows(path.parent, rows, found, faults)
    faults.raise_if_any()
    if not unique:
        raise DatasetError(f"{path}: contains no images", hint="expected one row per image")
    unique.sort(key=attrgetter("path"))
    records = ImageRecords(
        ImageRecord(row.path, row.label, found[row.path].size_bytes, row.group) for row in unique
    )
    return ImageSet(name, path.parent, records, _notes(name, records, n_repeated))


class RowFaults:
    """Rows of a manifest that cannot be used, and what to do about each kind of fault."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lines: list[tuple[int, str]] = []
        self._hints: dict[str, None] = {}
        self.path_hint = f"image paths are relative to the folder of {path.name}, or absolute"

    def add(self, line: int, text: str, hint: str) -> None:
        """Add the fault of a line."""
        self._lines.append((line, text))
        self._hints[hint] = None

    def __len__(self) -> int:
        """Return the number of faults."""
        return len(self._lines)

    def raise_if_any(self) -> None:
        """Raise if a row cannot be used.

        Raises:
            DatasetError: Lists the faults by line, and the hint of each kind.
        """
        if self._lines:
            raise DatasetError(
                f"{self._path}: {counted(len(self._lines), 'row')} cannot be used",
                faults=[
                    f"line {line}: {text}" for line, text in sorted(self._lines, key=itemgetter(0))
                ],
                hint="; ".join(self._hints),
            )


def locate_rows(
    root: Path, rows: Sequence[Row]
) -> tuple[list[Row], dict[str, FileInfo], dict[str, str]]:
    """Look up the image file of each row.

    A path that does not exist as it is written is tried with `/` in place of the backslashes of
    Windows, with `~` expanded, and in the other Unicode form.

    Args:
        root: An existing folder; relative paths start there.
    Returns:
        The rows with the paths that exist, the facts about their files by path, and for every
        other path the reason why it cannot be used.
    """
    found, missing = look_up_files(root, [row.path for row in rows])
    if not missing:
        return list(rows), found, missing
    spelled = {path: expand_home(_without_empty_steps(path.replace("\\", "/"))) for path in missing}
    unlike_ascii = [path for path in spelled.values() if not path.isascii()]
    on_disk = find_unicode_spellings(root, unlike_ascii)
    spelled = {path: on_disk.get(other, other) for path, other in spelled.items()}
    others, _ = look_up_files(root, {*spelled.values()} - {*missing})
    instead = {path: other for path, other in spelled.items() if other in others}
    missing = {
        path: "is a path of Windows" if _WINDOWS_DRIVE.match(path) else reason
        for path, reason in missing.items()
        if path not in instead
    }
    rows = [row._replace(path=instead.get(row.path, row.path)) for row in rows]
    return rows, found | others, missing


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


def _unique_rows(
    root: Path, rows: Iterable[Row], found: Mapping[str, FileInfo], faults: RowFaults
) -> tuple[list[Row], int]:
    """Return the first row of each image and the number of repeats; contradictions are faults.

    Paths that lead to one file through links, `..` or an absolute path are of one image.
    """
    rows = [row for row in rows if row.path in found]
    n_paths = Counter(found[path].inode for path in {row.path for row in rows})
    by_file: dict[Hashable, Row] = {}
    n_repeated = 0
    for row in rows:
        inode = found[row.path].inode
        # Hard links share the inode, but can be different images of a set.
        is_shared = n_paths[inode] > 1
        file = os.path.realpath(os.path.join(root, row.path)) if is_shared else inode
        first = by_file.setdefault(file, row)
        if first is row:
            continue
        if (first.label, first.group) == (row.label, row.group):
            n_repeated += 1
            continue
        field = "label" if first.label != row.label else "group"
        where = f"line {first.line}" + (f" ({first.path})" if first.path != row.path else "")
        faults.add(
            row.line,
            f"{row.path}: {field} {getattr(row, field)!r} contradicts {getattr(first, field)!r} on"
            f" {where}",
            "remove one of two rows that contradict each other",
        )
    return list(by_file.values()), n_repeated


def _notes(name: str, records: Sequence[ImageRecord], n_repeated: int) -> tuple[str, ...]:
    notes = []
    if n_repeated:
        rows = counted(n_repeated, "repeated row")
        notes.append(f"image set {name!r}: {rows} ignored; each image counts once")
    n_without = sum(record.group is None for record in records)
    if 0 < n_without < len(records):
        notes.append(f"image set {name!r}: {n_without} of {len(records)} images have no group")
    return tuple(notes)


def read_rows(path: Path, columns: Columns, faults: RowFaults) -> list[Row]:
    """Read the usable rows of a manifest, and add every other row to `faults`.

    Raises:
        DatasetError: The file cannot be read, is not UTF-8, or lacks a required column.
    """
    if is_tar_file(path):
        raise DatasetError(
            f"{path}: is a tar file, expected a table with one row per image",
            hint="the names of shards end in .tar",
        )
    text = read_text(path, DatasetError)
    if path.suffix.lower() == ".jsonl":
        lines = _json_cells(text, columns, faults)
    else:
        lines = _table_cells(path, text, columns, faults)
    rows = (_row(line, cells, faults) for line, cells in lines)
    return [row for row in rows if row is not None]


def _row(line: int, cells: Mapping[str, str], faults: RowFaults) -> Row | None:
    path = cells["path"]
    if not path or not cells.get("label", "-").strip():
        what = "path" if not path else "label"
        faults.add(line, f"the {what} is empty", f"give each row a {what}, or remove it")
        return None
    if _URL.match(path):
        faults.add(line, f"{path} is a URL", "download the images, and give the paths of the files")
        return None
    # A million rows share a few labels, splits and groups.
    label = sys.intern(cells.get("label", "").strip())
    split = sys.intern(cells.get("split", "").strip())
    group = sys.intern(cells.get("group", "").strip())
    return Row(line, _without_empty_steps(path), label, split, group or None)


def _without_empty_steps(path: str) -> str:
    """Remove `.` and empty names from a path; `..` stays, because it can follow a link."""
    if "/." not in path and "//" not in path and not path.startswith("."):
        return path
    steps = [name for name in path.split("/") if name not in ("", ".")]
    return ("/" if path.startswith("/") else "") + "/".join(steps)


def _table_cells(
    path: Path, text: str, columns: Columns, faults: RowFaults
) -> Iterator[tuple[int, dict[str, str]]]:
    allow_long_cells(len(text))
    reader = csv.reader(
        io.StringIO(text, newline=""),
        delimiter=_delimiter(path, text, columns),
        strict=True,
        skipinitialspace=True,
    )
    line = 1
    try:
        header = [cell.strip() for cell in next(reader, [])]
        positions = _column_positions(path, header, columns)
        line = reader.line_num + 1
        for cells in reader:
            if cells and len(cells) != len(header):
                faults.add(
                    reader.line_num,
                    f"{len(cells)} cells, expected {len(header)}",
                    "quote cells that contain the separator",
                )
            elif cells:
                yield reader.line_num, {field: cells[at] for field, at in positions.items()}
            line = reader.line_num + 1
    except csv.Error as error:
        raise DatasetError(
            f"{path}, line {line}: not valid CSV: {error}",
            hint=f"a quote in the row that begins on line {line} is not closed"
            if reader.line_num > line
            else None,
        ) from None


def allow_long_cells(n_characters: int) -> None:
    """Raise the limit of the `csv` library on the length of a cell, 131,072 by default."""
    csv.field_size_limit(max(csv.field_size_limit(), n_characters))


def _delimiter(path: Path, text: str, columns: Columns) -> str:
    """Return the separator of a table: that of its suffix, or the one that its header fits."""
    usual = "\t" if path.suffix.lower() == ".tsv" else ","
    required = {columns.names[field] for field in columns.required}
    for delimiter in (usual, *",\t;"):
        start = io.StringIO(text[:_MAX_HEADER], newline="")
        with contextlib.suppress(csv.Error):
            header = next(csv.reader(start, delimiter=delimiter, skipinitialspace=True), [])
            if required <= {cell.strip() for cell in header}:
                return str(delimiter)
    return usual


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
    text: str, columns: Columns, faults: RowFaults
) -> Iterator[tuple[int, dict[str, str]]]:
    names, required = columns.names, columns.required
    keys = " and ".join(repr(names[field]) for field in required)
    hint = f"each line needs {keys}; other keys are named with ?path=KEY,label=KEY"
    for number, line in enumerate(io.StringIO(text), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            faults.add(number, f"not valid JSON: {getattr(error, 'msg', error)}", _JSON_HINT)
            continue
        if not isinstance(entry, dict):
            faults.add(number, "not a JSON object", _JSON_HINT)
            continue
        cells: dict[str, str] = {}
        is_usable = True
        for field, name in names.items():
            value = entry.get(name)
            if isinstance(value, str | int) and not isinstance(value, bool):
                cells[field] = str(value)
            elif value is not None or field in required:
                is_missing = name not in entry
                found = "missing" if is_missing else f"{json.dumps(value)[:40]}, expected text"
                faults.add(number, f"{name!r} is {found}", hint)
                is_usable = False
        if is_usable:
            yield number, cells
