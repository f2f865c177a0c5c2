"""Read the tables of published sets: CSV columns and JSON objects, with every fault located."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from wiseft_cli.data.manifest import allow_long_cells
from wiseft_cli.errors import DatasetError, counted, list_some
from wiseft_cli.prompts.documents import read_text


def reject_faults(
    path: Path, faults: Sequence[str], *, unit: str = "value", hint: str | None = None
) -> None:
    """Raise if a file has faults.

    Args:
        faults: One line per fault.
        unit: What each fault is about, in the singular.
        hint: The remedy.
    Raises:
        DatasetError: The file, the number of faults and the first ten of them.
    """
    if faults:
        message = f"{path}: {counted(len(faults), unit)} cannot be used"
        raise DatasetError(message, faults=faults, hint=hint)


def read_columns(
    path: Path, names: Sequence[str], faults: list[str]
) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, cells of the named columns) for each row of a CSV file.

    Args:
        path: UTF-8, with or without a byte order mark; the first row is the header.
        names: The columns to read; the file may have others.
        faults: Receives a line for each row with more or fewer cells than the header.
    Raises:
        DatasetError: The file cannot be read, is not CSV in UTF-8, or lacks a column.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            allow_long_cells(os.path.getsize(path))
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            at = _positions(path, header, names)
            for cells in reader:
                if len(cells) == len(header):
                    yield reader.line_num, [cells[position] for position in at]
                elif cells:  # a blank line is not a row
                    found = f"{len(cells)} cells, expected {len(header)}"
                    faults.append(f"line {reader.line_num}: {found}")
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path}: is not UTF-8 text: {error}") from None
    except csv.Error as error:
        raise DatasetError(f"{path}, line {reader.line_num}: is not CSV: {error}") from None


def _positions(path: Path, header: list[str], names: Sequence[str]) -> list[int]:
    faults = [
        f"column {name!r} is {'repeated' if name in header else 'missing'}"
        for name in names
        if header.count(name) != 1
    ]
    if faults:
        found = ", ".join(list_some([repr(name) for name in header])) or "empty"
        raise DatasetError(
            f"{path}, line 1: the header cannot be used",
            faults=faults,
            hint=f"the header is {found}; is this the set's original file?",
        )
    return [header.index(name) for name in names]


def read_object(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        DatasetError: The file cannot be read, is not JSON, does not hold an object, or an object
            in it repeats a key.
    """
    text = read_text(path, DatasetError)
    try:
        root = json.loads(text, object_pairs_hook=_unique_members)
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{path}: cannot be read as JSON: {error}") from None
    if not isinstance(root, dict):
        raise DatasetError(f"{path}: holds a JSON {type(root).__name__}, expected an object")
    return root


def _unique_members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of distinct keys; of a repeated one, `json` itself keeps the last."""
    members: dict[str, Any] = {}
    for key, value in pairs:
        if key in members:
            raise ValueError(f"the key {key!r} is repeated")
        members[key] = value
    return members


def items_at(positions: Any, names: Sequence[str]) -> list[str] | None:
    """Return the names at a list of positions; None if the value is not such a list."""
    is_valid = isinstance(positions, list) and all(
        type(at) is int and 0 <= at < len(names) for at in positions
    )
    return [names[at] for at in positions] if is_valid else None
