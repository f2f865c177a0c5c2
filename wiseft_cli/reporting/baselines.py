"""Baseline models from a CSV file: a row a model, a column an image set, fractions in the cells."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from wiseft_cli.errors import ResultsError, list_some

MODEL = "model"
"""The column that names the models."""


@dataclass(frozen=True)
class BaselineModel:
    """A model to compare with, and its accuracies by image set, fractions in [0, 1]."""

    name: str
    accuracies: Mapping[str, float]


def read_baselines(path: Path, set_names: Sequence[str]) -> tuple[BaselineModel, ...]:
    """Read the models of a CSV file.

    The header names the column `model` and image sets. Columns of other sets are ignored, and an
    empty cell is a number that is not known.

    Args:
        set_names: The image sets that are drawn, the reference first.
    Raises:
        ResultsError: The file cannot be read, lacks the column `model` or the reference's, has
            none of the shifts', holds no model, or cells that are no fractions.
    """
    rows = csv.reader(io.StringIO(_text(path)), strict=True)
    try:
        header = [name.strip() for name in next(rows, [])]
        numbered = [(rows.line_num, row) for row in rows if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise ResultsError(f"{path}, line {rows.line_num}: no CSV: {error}") from None
    _check_header(path, header, set_names)
    faults: list[str] = []
    models = []
    for number, row in numbered:
        if len(row) != len(header):
            faults.append(f"  line {number}: {len(row)} cells, expected {len(header)}")
            continue
        cells = dict(zip(header, row, strict=True))
        models.append(_model(cells, set_names, number, faults))
    if faults:
        raise ResultsError(
            "\n".join([f"{path}: {len(faults)} cells or lines are wrong:", *list_some(faults)]),
            hint="accuracies are fractions: 0.77, not 77 or 77%",
        )
    if not models:
        raise ResultsError(f"{path}: holds no model", hint="a line a model, below the header")
    return tuple(models)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ResultsError(f"{path}: is not text; expected a CSV file") from None
    except OSError as error:
        raise ResultsError(f"{path}: cannot be read: {error.strerror}") from None


def _check_header(path: Path, header: Sequence[str], set_names: Sequence[str]) -> None:
    reference, *shifts = set_names
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        raise ResultsError(f"{path}: columns of one name: {', '.join(repeated)}")
    missing = [name for name in (MODEL, reference) if name not in header]
    if not any(name in header for name in shifts):
        missing.append(" or ".join(shifts))
    if missing:
        raise ResultsError(
            f"{path}: its header lacks {', '.join(missing)}; it has {', '.join(header) or 'none'}",
            hint=f"the first line names the columns: {','.join((MODEL, *set_names))}",
        )


def _model(
    cells: Mapping[str, str], set_names: Sequence[str], number: int, faults: list[str]
) -> BaselineModel:
    accuracies = {}
    for name in set_names:
        text = cells.get(name, "").strip()
        if not text:
            continue
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if 0 <= value <= 1:  # false for NaN too
            accuracies[name] = value
        else:
            faults.append(f"  line {number}, column {name}: {text!r}, expected a number in [0, 1]")
    return BaselineModel(cells[MODEL].strip(), accuracies)
