"""Reads the rows of a manifest: CSV and TSV with a header, or JSON lines.

It finds columns and refuses rows that lack something; whether images are there is
`manifest.py`'s.
"""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from wiseft_cli.errors import DatasetError, list_some
from wiseft_cli.prompts.documents import read_text


@dataclass(frozen=True)
class Columns:
    """What a manifest's header calls its columns; label is None where none is needed."""

    path: str = "path"
    label: str | None = "label"
    split: str = "split"
    group: str = "group"


class Row(NamedTuple):
    """One usable row, with its line in the file, counted from 1."""

    line: int
    path: str
    label: str
    split: str
    group: str | None


def read_rows(path: Path, columns: Columns, faults: list[str]) -> list[Row]:
    """Return the usable rows, and add a line to `faults` for each other one.

    Raises:
        DatasetError: Unreadable, not UTF-8, or without a column that is needed.
    """
    text = read_text(path, DatasetError)
    if path.suffix.lower() == ".jsonl":
        return list(_json_rows(text, columns, faults))
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    return list(_table_rows(path, text, delimiter, columns, faults))


def _table_rows(
    path: Path, text: str, delimiter: str, columns: Columns, faults: list[str]
) -> Iterator[Row]:
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=delimiter, strict=True, skipinitialspace=True
    )
    try:
        header = [cell.strip() for cell in next(reader, [])]
        at = _column_positions(path, header, columns)
        for cells in reader:
            if not cells:
                continue
            line = reader.line_num
            if len(cells) != len(header):
                faults.append(f"  line {line}: {len(cells)} cells, expected {len(header)}")
                continue
            row = _row(
                line,
                cells[at["path"]],
                cells[at["label"]] if "label" in at else None,
                cells[at["split"]] if "split" in at else "",
                cells[at["group"]] if "group" in at else "",
                faults,
            )
            if row is not None:
                yield row
    except csv.Error as error:
        raise DatasetError(f"{path}, line {reader.line_num}: is not CSV: {error}") from None


def _column_positions(path: Path, header: list[str], columns: Columns) -> dict[str, int]:
    """Return where each column is; those that may be missing only where they are there."""
    wanted = {what: name for what, name in vars(columns).items() if name is not None}
    # A column that was named is meant, even one that may be missing.
    needed = [
        name
        for what, name in wanted.items()
        if what in ("path", "label") or name != getattr(Columns, what)
    ]
    faults = [f"  it has no column {name!r}" for name in needed if name not in header]
    faults += [
        f"  it has the column {name!r} more than once"
        for name in wanted.values()
        if header.count(name) > 1
    ]
    if faults:
        found = ", ".join(list_some([repr(name) for name in header])) or "nothing"
        expected, option = (
            ("path", "path=COLUMN")
            if columns.label is None
            else ("path and label", "path=COLUMN,label=COLUMN")
        )
        raise DatasetError(
            "\n".join([f"{path}, line 1: is no header with what is needed:", *faults]),
            hint=f"the first line has {found}; expected a header with {expected}, or say"
            f" which columns they are: '{path}?{option}'",
        )
    return {what: header.index(name) for what, name in wanted.items() if name in header}


def _json_rows(text: str, columns: Columns, faults: list[str]) -> Iterator[Row]:
    for number, line in enumerate(io.StringIO(text), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            faults.append(f"  line {number}: is not JSON: {getattr(error, 'msg', error)}")
            continue
        if not isinstance(entry, dict):
            faults.append(f"  line {number}: is no JSON object")
            continue
        wanted = {columns.path: True, columns.split: False}
        wanted[columns.group] = columns.group != Columns.group
        if columns.label is not None:
            wanted[columns.label] = True
        cells = {
            name: _json_cell(number, entry, name, faults, needed=needed)
            for name, needed in wanted.items()
        }
        if None not in cells.values():
            row = _row(
                number,
                cells[columns.path] or "",
                None if columns.label is None else cells[columns.label],
                cells[columns.split] or "",
                cells[columns.group] or "",
                faults,
            )
            if row is not None:
                yield row


def _json_cell(
    line: int, entry: Mapping[str, Any], name: str, faults: list[str], *, needed: bool
) -> str | None:
    """Return a text, or a whole number as text; None after a fault was told."""
    if name not in entry and needed:
        faults.append(f"  line {line}: has no {name!r}")
        return None
    value = entry.get(name, "")
    if value is None and not needed:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int):
        faults.append(f"  line {line}: {name!r} is {json.dumps(value)[:40]}, expected a text")
        return None
    return str(value)


def _row(
    line: int, path: str, label: str | None, split: str, group: str, faults: list[str]
) -> Row | None:
    """Return the row, its label empty where none is needed; None after a fault was told."""
    if not path or (label is not None and not label.strip()):
        faults.append(f"  line {line}: the {'path' if not path else 'label'} is empty")
        return None
    label = (label or "").strip()
    if "/." in path or path.startswith(".") or "//" in path:
        path = os.path.normpath(path)  # one image under two spellings would count twice
    # A million rows share a few labels, splits and groups.
    group = sys.intern(group.strip())
    return Row(line, path, sys.intern(label), sys.intern(split.strip()), group or None)
