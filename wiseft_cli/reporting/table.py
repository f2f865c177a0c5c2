"""The plain-text table of an evaluation, and warnings about implausible results.

Rows are weights, columns are image sets. Accuracies are per cent here and fractions everywhere
else. Names are never shortened to fit a terminal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import compress
from statistics import fmean, median

from wiseft_cli.checkpoint.card import describe_ignored_orientation
from wiseft_cli.reporting.results import N_ROTATED, ResultLine, join_names

BEST = "*"
"""Marks the best value of a column."""

FEW_IMAGES = 100
"""With fewer images a 95 % interval is up to 20 points wide."""

FAR_BELOW = 0.25
"""A set is far below the others if its skill is less than this share of their median skill. The
share is low, since a hard natural shift can take more than half of a model's skill."""


def render_table(
    lines: Sequence[ResultLine], *, width: int | None = None, columns: Sequence[str] = ()
) -> str:
    """Return the table, with one line of facts per set below it.

    The column of the reference set is the first. With two or more shifts the mean over them
    follows, and with any shift the average of the reference and the mean shift (arXiv:2109.01903,
    table 1). A set of video frames has a second column for pm0. A `*` marks the best values of
    each column. Rows that share no set, such as those of two heads on one suite, are shown in
    separate tables. The validation set is not counted as a shift.

    Args:
        lines: At least one; not every weight set needs a line for every set.
        width: Fold tables that are wider into blocks of fewer columns; by default never.
        columns: Columns to show, in this order: names of sets, `mean shift`, `average`, or
            `SET:METRIC` for another metric. By default all.
    """
    return "\n\n".join(_render(table, width, columns) for table in split_tables(lines))


def split_tables(lines: Sequence[ResultLine]) -> list[list[ResultLine]]:
    """Split the lines so that no set and no weights are in two tables."""
    sets_of: dict[object, set[str]] = {}
    for line in lines:
        sets_of.setdefault(_row_key(line), set()).add(line.set_name)
    tables: list[set[str]] = []
    for names in sets_of.values():
        connected = [table for table in tables if table & names]
        tables = [*(at for at in tables if at not in connected), names.union(*connected)]
    of_table = [[line for line in lines if line.set_name in table] for table in tables]
    return sorted(of_table, key=lambda table: lines.index(table[0]))


def _row_key(line: ResultLine) -> object:
    """Return a row's identity; files with equal tensors share a digest but not a row."""
    return line.weights_key, line.checkpoints


def _render(lines: Sequence[ResultLine], width: int | None, wanted: Sequence[str]) -> str:
    of_set: dict[str, list[ResultLine]] = {}
    by_weights: dict[object, dict[str, ResultLine]] = {}
    for line in sorted(lines, key=lambda line: not line.reference):
        of_set.setdefault(line.set_name, []).append(line)
    for line in lines:
        by_weights.setdefault(_row_key(line), {})[line.set_name] = line
    rows = list(by_weights.values())
    references = [name for name, (first, *_) in of_set.items() if first.reference]
    shifts = [name for name, (first, *_) in of_set.items() if first.role == "shift"]
    has_method = any(line.merged_by for line in lines)
    has_alpha = any(line.alpha is not None or line.ensemble for line in lines)
    is_shown = (True, has_method, has_alpha)
    columns = _set_columns(of_set, rows) | {
        "mean shift": [mean_over(row, shifts) for row in rows] if len(shifts) > 1 else [],
        "average": [_average_over(row, references, shifts) for row in rows],
    }
    if wanted:
        columns |= {name: _metric_column(name, rows) for name in wanted if name not in columns}
        columns = {name: columns[name] for name in wanted}
    shown = {
        title: _format_values(values)
        for title, values in columns.items()
        if any(value is not None for value in values)
    }
    header = [*compress(("checkpoint", "method", "alpha"), is_shown)]
    labels = [[*compress(_label(next(iter(row.values()))), is_shown)] for row in rows]
    blocks = [
        "\n".join(_align([*map(list.__add__, [header, *labels], block)], n_left=len(header)))
        for block in _fold([header, *labels], shown, width)
    ]
    facts = [_facts(of_one) for of_one in of_set.values()]
    return "\n\n".join([*blocks, "\n".join(facts)])


def _fold(
    labels: Sequence[Sequence[str]], shown: Mapping[str, Sequence[str]], width: int | None
) -> list[list[list[str]]]:
    """Split the columns into blocks that fit beside the labels; each has at least one column.

    Returns:
        For each block its rows of cells, the header first.
    """
    of_labels = sum(max(map(len, column)) + 2 for column in zip(*labels, strict=True))
    blocks: list[list[list[str]]] = []
    used = 0
    for title, values in shown.items():
        needed = max(len(title), *map(len, values)) + 2
        if not blocks or (width is not None and used + needed - 2 > width):
            blocks.append([])
            used = of_labels
        blocks[-1].append([title, *values])
        used += needed
    # Without a column, rows have their labels alone.
    return [[list(row) for row in zip(*block, strict=True)] for block in blocks] or [
        [[] for _ in labels]
    ]


def table_columns(lines: Sequence[ResultLine]) -> list[str]:
    """Return the columns that a table of some lines can have."""
    names = list(dict.fromkeys(line.set_name for line in lines))
    metrics = [f"{line.set_name}:{metric}" for line in lines for metric in line.metrics]
    return [*names, "mean shift", "average", *dict.fromkeys(metrics)]


def _metric_column(name: str, rows: Sequence[Mapping[str, ResultLine]]) -> list[float | None]:
    """Return the values of `SET:METRIC`; None where a row has none."""
    set_name, _, metric = name.rpartition(":")
    found = [row[set_name].metrics.get(metric) if set_name in row else None for row in rows]
    return [None if at is None else at.value for at in found]


def _set_columns(
    of_set: Mapping[str, Sequence[ResultLine]], rows: Sequence[Mapping[str, ResultLine]]
) -> dict[str, list[float | None]]:
    """Return the primary metrics by column title, with pm0 beside pm10."""
    columns: dict[str, list[float | None]] = {}
    for name, (first, *_) in of_set.items():
        columns[name] = [row[name].value if name in row else None for row in rows]
        if first.primary == "pm10":
            beside = [row[name].metrics.get("pm0") if name in row else None for row in rows]
            columns[f"{name} pm0"] = [None if metric is None else metric.value for metric in beside]
    return columns


def mean_over(row: Mapping[str, ResultLine], names: Sequence[str]) -> float | None:
    """Return the mean of the sets' primary metrics; None if one is missing."""
    if not names or any(name not in row for name in names):
        return None
    return fmean(row[name].value for name in names)


def _average_over(
    row: Mapping[str, ResultLine], references: Sequence[str], shifts: Sequence[str]
) -> float | None:
    reference, shift = mean_over(row, references), mean_over(row, shifts)
    return None if reference is None or shift is None else (reference + shift) / 2


def _label(line: ResultLine) -> tuple[str, str, str]:
    """Return the checkpoints, the method and the alpha of a row."""
    names = [checkpoint.name for checkpoint in line.checkpoints]
    method = "" if line.merged_by is None else str(line.merged_by)
    weights = "output ensemble" if line.ensemble else line.alpha or ""
    return join_names(names, line.merged_by), method, weights


def _format_values(values: Sequence[float | None]) -> list[str]:
    """Write fractions as per cent, the best with a mark, the others with a space.

    Means of the same accuracies can differ in their last bits, so ties are found by 12 digits.
    """
    values = [None if value is None else round(value, 12) for value in values]
    known = [value for value in values if value is not None]
    best = max(known, default=None) if len(values) > 1 else None
    return [
        "-" + " " * (best is not None)
        if value is None
        else f"{100 * value:.2f}" + ("" if best is None else BEST if value == best else " ")
        for value in values
    ]


def _align(rows: Sequence[Sequence[str]], *, n_left: int) -> list[str]:
    """Pad the cells to columns; the first `n_left` columns are aligned to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if at < n_left else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _facts(lines: Sequence[ResultLine]) -> str:
    """Return the role, the size and the join of a set, and its widest interval."""
    line = lines[0]
    intervals = [line.metric.interval for line in lines]
    half_width = max(50 * (high - low) for low, high in intervals)
    width = f", 95 % intervals within +-{half_width:.2f}" if half_width else ", no interval"
    roles = ["in-distribution"] * line.reference + ["validation"] * line.selection
    role = " and ".join(roles) or "shift"
    unreadable = f" and {line.n_unreadable} unreadable" if line.n_unreadable else ""
    anchors = f"{line.n_counted} anchor frames, " if line.n_counted != line.n_images else ""
    return (
        f"{line.set_name}: {role},"
        f" {line.primary} in %, {anchors}{line.n_images} images{unreadable},"
        f" {line.n_classes} classes joined by {line.join}{width}"
    )


def implausible_results(lines: Sequence[ResultLine]) -> tuple[str, ...]:
    """Return warnings about results that look like a mistake.

    Results are implausible at chance, far below those of the same weights on other sets, on very
    few images, and over a single class.
    """
    of_set: dict[str, list[ResultLine]] = {}
    for line in lines:
        of_set.setdefault(line.set_name, []).append(line)
    return tuple(
        f"image set {name!r}: {doubt}"
        for name, of_one in of_set.items()
        for doubt in (*_doubts(of_one), *_doubts_beside_others(of_one, lines))
    )


def _doubts(lines: Sequence[ResultLine]) -> list[str]:
    return [*_orientation_doubts(lines), *_accuracy_doubts(lines)]


def _orientation_doubts(lines: Sequence[ResultLine]) -> list[str]:
    n_rotated = max(int(line.extra.get(N_ROTATED, 0)) for line in lines)
    if not n_rotated:
        return []
    ignored = describe_ignored_orientation(n_rotated, lines[0].n_images)
    return [f"{ignored}; ?exif_orientation=apply turns the images of this set upright"]


def _accuracy_doubts(lines: Sequence[ResultLine]) -> list[str]:
    first = lines[0]
    if first.n_classes == 1:
        return ["has a single class of the head, so every image counts as right"]
    doubts = []
    chance = 1 / first.n_classes
    at_chance = [line for line in lines if line.metrics["top1"].interval[0] <= chance]
    if at_chance:
        is_every = len(at_chance) == len(lines)
        rows = "every row" if is_every else f"{len(at_chance)} of {len(lines)} rows"
        if any(line.metrics["top1"].value > chance for line in at_chance):
            doubt = f"cannot be distinguished from chance ({100 * chance:.2f} %) with few images"
        else:
            doubt = f"no better than chance ({100 * chance:.2f} %)"
        doubts.append(
            f"{rows} {doubt}; check that the labels match the head's classes and their order"
        )
    if first.n_counted < FEW_IMAGES:
        what = "images" if first.n_counted == first.n_images else "anchor frames"
        doubts.append(f"only {first.n_counted} {what}, so the intervals are wide")
    return doubts


def _doubts_beside_others(
    lines: Sequence[ResultLine], everything: Sequence[ResultLine]
) -> list[str]:
    """Warn about a set on which all weights score far below their other sets."""
    skills: dict[object, dict[str, float]] = {}
    for line in everything:
        of_row = skills.setdefault(_row_key(line), {})
        of_row[line.set_name] = _skill(line, line.metrics["top1"].value)
    for line in lines:
        others = [skill for name, skill in skills[_row_key(line)].items() if name != line.set_name]
        low, high = line.metrics["top1"].interval
        if not others or line.n_classes == 1 or _skill(line, high) >= FAR_BELOW * median(others):
            return []
        if low <= 1 / line.n_classes:
            return []  # reported as being at chance
    return ["far below the same weights on the other sets; check the class order and the labels"]


def _skill(line: ResultLine, accuracy: float) -> float:
    """Scale an accuracy so that 0 is chance and 1 is no error."""
    chance = 1 / max(2, line.n_classes)
    return (accuracy - chance) / (1 - chance)
