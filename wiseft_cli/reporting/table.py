"""The table of an evaluation for people, as plain text: rows are weights, columns image sets.

Accuracies are per cent here and fractions everywhere else. Nothing is cut to fit a terminal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from wiseft_cli.reporting.results import ResultLine

BEST = "*"
"""Stands behind the best value of a column."""


def render_table(lines: Sequence[ResultLine], *, select_on: str | None = None) -> str:
    """Return the table, with one line of facts about each set below it.

    The reference set's column is first; with two or more shifts their mean follows, and with any
    the paper's average, of the reference and the mean shift (arXiv:2109.01903, table 1). A set of
    video frames has a second column for pm0. The best value of each column carries a `*`, every one
    of them where several are equal. Rows without a set in common, such as those of two heads on a
    suite for both, stand in tables of their own.

    Args:
        lines: At least one; a weight set's lines need not cover every set.
        select_on: Name of the validation set that chooses alpha; it is no shift.
    """
    return "\n\n".join(_render(part, select_on=select_on) for part in _parts(lines))


def _parts(lines: Sequence[ResultLine]) -> list[list[ResultLine]]:
    """Part the lines so that neither a set nor weights are in two parts."""
    sets_of: dict[object, set[str]] = {}
    for line in lines:
        sets_of.setdefault(_row_key(line), set()).add(line.set_name)
    parts: list[set[str]] = []
    for names in sets_of.values():
        touched = [part for part in parts if part & names]
        parts = [*(part for part in parts if part not in touched), names.union(*touched)]
    of_part = [[line for line in lines if line.set_name in part] for part in parts]
    return sorted(of_part, key=lambda part: lines.index(part[0]))


def _row_key(line: ResultLine) -> object:
    """What tells rows apart: files with equal tensors have one digest, and still a row each."""
    return line.weights_key, line.checkpoints


def _render(lines: Sequence[ResultLine], *, select_on: str | None) -> str:
    of_set: dict[str, list[ResultLine]] = {}
    by_weights: dict[object, dict[str, ResultLine]] = {}
    for line in sorted(lines, key=lambda line: not line.reference):
        of_set.setdefault(line.set_name, []).append(line)
    for line in lines:
        by_weights.setdefault(_row_key(line), {})[line.set_name] = line
    rows = list(by_weights.values())
    shifts = [
        name for name, (first, *_) in of_set.items() if not first.reference and name != select_on
    ]
    references = [name for name, (first, *_) in of_set.items() if first.reference]
    n_labels = 2 if any(line.alpha is not None or line.ensemble for line in lines) else 1
    values_of = _columns(of_set, rows) | {
        "mean shift": [mean_over(row, shifts) for row in rows] if len(shifts) > 1 else [],
        "average": [average_over(row, references, shifts) for row in rows],
    }
    shown = {
        title: _marked(values)
        for title, values in values_of.items()
        if any(value is not None for value in values)
    }
    header = [*("checkpoint", "alpha")[:n_labels], *shown]
    labels = [_label(next(iter(row.values())))[:n_labels] for row in rows]
    cells = [
        [*label, *values]
        for label, values in zip(labels, zip(*shown.values(), strict=True), strict=True)
    ]
    facts = [_fact(of_one, is_validation=name == select_on) for name, of_one in of_set.items()]
    return "\n".join([*_aligned([header, *cells], n_left=n_labels), "", *facts])


def _columns(
    of_set: Mapping[str, Sequence[ResultLine]], rows: Sequence[Mapping[str, ResultLine]]
) -> dict[str, list[float | None]]:
    """Return by title what each row has of each set: its primary metric, and pm0 beside pm10."""
    columns: dict[str, list[float | None]] = {}
    for name, (first, *_) in of_set.items():
        columns[name] = [row[name].value if name in row else None for row in rows]
        if first.primary == "pm10":
            beside = [row[name].metrics.get("pm0") if name in row else None for row in rows]
            columns[f"{name} pm0"] = [None if at is None else at.value for at in beside]
    return columns


def mean_over(row: Mapping[str, ResultLine], names: Sequence[str]) -> float | None:
    """Return the mean of the sets' primary metrics, a fraction; None where one is missing."""
    if not names or any(name not in row for name in names):
        return None
    return fmean(row[name].value for name in names)


def average_over(
    row: Mapping[str, ResultLine], references: Sequence[str], shifts: Sequence[str]
) -> float | None:
    """Return the mean of the reference's metric and the mean over the shifts, a fraction."""
    reference, shift = mean_over(row, references), mean_over(row, shifts)
    return None if reference is None or shift is None else (reference + shift) / 2


def _label(line: ResultLine) -> tuple[str, str]:
    weights = "output ensemble" if line.ensemble else line.alpha or ""
    return " to ".join(checkpoint.name for checkpoint in line.checkpoints), weights


def _marked(values: Sequence[float | None]) -> list[str]:
    """Write fractions as per cent, the best with its mark, the others with a space for it."""
    known = [value for value in values if value is not None]
    best = max(known, default=None) if len(values) > 1 else None
    return [
        "-" + " " * (best is not None)
        if value is None
        else f"{100 * value:.2f}" + ("" if best is None else BEST if value == best else " ")
        for value in values
    ]


def _aligned(rows: Sequence[Sequence[str]], *, n_left: int) -> list[str]:
    """Pad the cells so that columns stand below each other, the first ones to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if at < n_left else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _fact(lines: Sequence[ResultLine], *, is_validation: bool) -> str:
    """Say what a set is: its part, size, join, and how wide the intervals are."""
    line = lines[0]
    intervals = [line.metrics[line.primary].interval for line in lines]
    half_width = max(50 * (high - low) for low, high in intervals)
    width = f", 95 % intervals within +-{half_width:.2f}" if half_width else ", no interval"
    part = "in-distribution" if line.reference else "validation" if is_validation else "shift"
    unreadable = f" and {line.n_unreadable} unreadable" if line.n_unreadable else ""
    anchors = f"{line.n_counted} anchor frames, " if line.n_counted != line.n_images else ""
    return (
        f"{line.set_name}: {part},"
        f" {line.primary} in %, {anchors}{line.n_images} images{unreadable},"
        f" {line.n_classes} classes joined by {line.join}{width}"
    )
