"""Reads named columns of a published set's CSV file, a row at a time.

It knows no set; unlike a manifest's, the columns have the names that the set's owners gave them.
"""

from __future__ import annotations

import codecs
import csv
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from wiseft_cli.errors import DatasetError, list_some


def read_columns(
    path: Path, names: Sequence[str], faults: list[str]
) -> Iterator[tuple[int, list[str]]]:
    """Yield each row's line and its cells of these columns, exactly as they stand there.

    Args:
        path: UTF-8, with or without a byte order mark; the first row is the header.
        names: Of the columns; others may be there.
        faults: Gets a line for each row that has more or fewer cells than the header.
    Raises:
        DatasetError: Unreadable, not UTF-8, not CSV, or without one of the columns.
    """
    try:
        with open(path, "rb") as file:
            yield from _read(path, file, names, faults)
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read: {error.strerror}") from None


def _read(
    path: Path, lines: Iterable[bytes], names: Sequence[str], faults: list[str]
) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(_texts(path, lines), strict=True)
    try:
        header = next(reader, [])
        at = _positions(path, header, names)
        for cells in reader:
            if len(cells) == len(header):
                yield reader.line_num, [cells[position] for position in at]
            elif cells:  # a blank line is no row
                found = f"{len(cells)} cells, expected {len(header)}"
                faults.append(f"  line {reader.line_num}: {found}")
    except csv.Error as error:
        raise DatasetError(f"{path}, line {reader.line_num}: is not CSV: {error}") from None


def _texts(path: Path, lines: Iterable[bytes]) -> Iterator[str]:
    for number, line in enumerate(lines, start=1):
        try:
            yield (line.removeprefix(codecs.BOM_UTF8) if number == 1 else line).decode()
        except UnicodeDecodeError as error:
            raise DatasetError(
                f"{path}, line {number}: is not UTF-8 text (byte 0x{line[error.start]:02x})"
            ) from None


def _positions(path: Path, header: list[str], names: Sequence[str]) -> list[int]:
    faults = [f"  it has no column {name!r}" for name in names if name not in header]
    faults += [
        f"  it has the column {name!r} more than once" for name in names if header.count(name) > 1
    ]
    if faults:
        found = ", ".join(list_some([repr(name) for name in header])) or "nothing"
        raise DatasetError(
            "\n".join([f"{path}, line 1: is no header with what is needed:", *faults]),
            hint=f"the first line has {found}; is it the set's own file, unchanged?",
        )
    return [header.index(name) for name in names]
