"""Arrange results lines into what every form of report shows: rows, columns, headline, gates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cached_property
from statistics import fmean

from wiseft_cli.errors import ResultsError, UsageError
from wiseft_cli.reporting.alpha_selection import DEFAULT_ALPHA, selected_alpha
from wiseft_cli.reporting.comparison import MEAN_SHIFT, Row
from wiseft_cli.reporting.curves import (
    find_reference,
    find_shifts,
    group_by_weights,
    primary_metrics,
    repeated_sets,
)
from wiseft_cli.reporting.gates import Gate, Verdict
from wiseft_cli.reporting.paired import format_points
from wiseft_cli.reporting.results import SOUP, Metric, ResultLine, parse_alpha

AVERAGE = "average"
"""Column of the mean of the in-distribution value and the mean over the shifts."""

_CHOSEN = "the chosen one"

PAPER_ORDER = ("imagenet-v2", "imagenet-r", "imagenet-sketch", "objectnet", "imagenet-a")
"""Order of the distribution shifts of ImageNet in table 1 of arXiv:2109.01903."""


@dataclass(frozen=True)
class Column:
    """A column of accuracies: one image set, or a mean over several.

    Attributes:
        title: The name of the set, `mean shift` or `average`.
        sets: Names of the sets behind it.
        kind: `reference`, `shift`, `selection`, `mean` or `average`.
    """

    title: str
    sets: tuple[str, ...]
    kind: str

    def metric(self, row: Row) -> Metric | None:
        """Return the value of a row, a fraction; None if a set is missing.

        Means have no interval.
        """
        if any(name not in row for name in self.sets):
            return None
        if len(self.sets) == 1:
            return row[self.sets[0]].metric
        if self.kind == "average":
            shifts = fmean(row[name].value for name in self.sets[1:])
            return Metric((row[self.sets[0]].value + shifts) / 2)
        return Metric(fmean(row[name].value for name in self.sets))

    def value(self, row: Row) -> float | None:
        """Return the value of a row without its interval, rounded to 12 digits.

        Means of the same accuracies can differ in their last bits.
        """
        metric = self.metric(row)
        return None if metric is None else round(metric.value, 12)


@dataclass(frozen=True)
class Family:
    """The rows of one fine-tuning: zero-shot, fine-tuned, and the merge that the report is about.

    Attributes:
        zeroshot: The row at alpha 0, or of the zero-shot checkpoint.
        finetuned: The row at alpha 1, or of the fine-tuned checkpoint.
        merge: The row of the chosen alpha, or of the merged checkpoint.
        reason: Why this alpha, such as `the default`; empty without a choice.
    """

    zeroshot: Row | None = None
    finetuned: Row | None = None
    merge: Row | None = None
    reason: str = ""


@dataclass(frozen=True)
class Report:
    """Everything that every form of report shows.

    Attributes:
        lines: The results lines that are shown.
        columns: The reference, the shifts, other sets, and the means over them.
        rows: One per weight set, those of a curve by rising alpha.
        families: The rows of each fine-tuning; empty if no row has a role in one.
        baseline: The row that differences are also taken from, if one is named.
        verdicts: The gates with their results.
        notes: What is left out or doubtful, one sentence each.
    """

    lines: tuple[ResultLine, ...]
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    families: tuple[Family, ...]
    baseline: Row | None = None
    verdicts: tuple[Verdict, ...] = ()
    notes: tuple[str, ...] = ()
    sets: Mapping[str, tuple[ResultLine, ...]] = field(default_factory=dict)

    def family_of(self, row: Row) -> Family:
        """Return the fine-tuning that a row belongs to; the first one if it is in none."""
        for family in self.families:
            ends = (family.zeroshot, family.finetuned, family.merge)
            if any(end is not None and curve_key(end) == curve_key(row) for end in ends):
                return family
        return self.families[0] if self.families else Family()

    def column(self, kind: str) -> Column | None:
        """Return the first column of a kind."""
        return next((column for column in self.columns if column.kind == kind), None)

    @property
    def shift_column(self) -> Column | None:
        """The mean over the shifts, or the only shift."""
        return self.column("mean") or self.column("shift")

    def best(self, column: Column) -> float | None:
        """Return the best value of a column; None for fewer than two rows."""
        return self._best[column.title]

    @cached_property
    def _best(self) -> dict[str, float | None]:
        values = {
            column.title: [at for row in self.rows if (at := column.value(row)) is not None]
            for column in self.columns
        }
        return {title: max(of) if len(of) > 1 else None for title, of in values.items()}

    @property
    def headlines(self) -> list[str]:
        """One sentence per fine-tuning on what it gained and lost, and what its merge keeps."""
        sentences = (describe_family(self, family) for family in self.families)
        return [sentence for sentence in sentences if sentence]


def first_line(row: Row) -> ResultLine:
    """Return the first results line of a row, which names its weights."""
    return next(iter(row.values()))


def row_label(row: Row) -> tuple[str, str]:
    """Return the name of the checkpoints and the alpha of a row."""
    line = first_line(row)
    return line.checkpoints_name, line.alpha or ""


def curve_key(row: Row) -> object:
    """Return the identity of the curve over alpha that a row is on."""
    line = first_line(row)
    return line.weights_key._replace(alpha=None), line.ensemble


def arrange_report(
    lines: Sequence[ResultLine],
    *,
    reference: str | None = None,
    shifts: Sequence[str] = (),
    alpha: str | None = None,
    baseline: str | None = None,
    needs_reference: bool = True,
) -> Report:
    """Arrange results lines into a report.

    Of two lines of the same measurement the later one is used.

    Args:
        lines: In the order in which they were written.
        reference: Name of the in-distribution set; by default the one marked in the lines.
        shifts: Names of the distribution shifts; by default all other sets but validation sets.
        alpha: The alpha that the report is about; by default the one that the validation set
            chooses, else 0.5, else the only one between 0 and 1.
        baseline: Name of the row that differences are also taken from.
        needs_reference: Whether lines without exactly one reference set are an error.
    Raises:
        UsageError: `alpha` is not a number.
        ResultsError: There are no lines, a name is unknown or that of several rows, the reference
            is missing, or the lines contradict each other.
    """
    latest = list({line.key: line for line in lines}.values())
    names = tuple(dict.fromkeys(line.set_name for line in latest))
    marked = {line.set_name for line in latest if line.reference}
    if needs_reference or reference is not None or len(marked) == 1:
        reference = find_reference(latest, names, reference)
    selection = {line.set_name for line in latest if line.selection}
    others = [name for name in names if name != reference and name not in selection]
    if shifts:
        shifts = find_shifts(names, reference or "", shifts, selection)
    else:
        shifts = others if reference is not None else [n for n in others if n not in marked]
    kept = [*shifts, *(name for name in names if name in selection and name not in shifts)]
    kept = [name for name in names if name in marked] + kept if reference is None else kept
    columns = _columns(reference, list(shifts), kept)
    shown = [line for line in latest if any(line.set_name in at.sets for at in columns)]
    rows = _sort_rows(group_by_weights(shown))
    primary_metrics(shown)  # raises if a set has several
    return Report(
        lines=tuple(shown),
        columns=columns,
        rows=tuple(rows),
        families=tuple(_families(rows, alpha)),
        baseline=None if baseline is None else _find_row(rows, baseline),
        notes=(*_incomplete_rows(rows, columns), *repeated_sets(shown), *_precisions(shown)),
        sets={
            name: tuple(line for line in shown if line.set_name == name)
            for column in columns
            for name in column.sets
        },
    )


def _columns(
    reference: str | None, shifts: Sequence[str], others: Sequence[str]
) -> tuple[Column, ...]:
    columns = [] if reference is None else [Column(reference, (reference,), "reference")]
    columns += [
        Column(name, (name,), "shift" if name in shifts else "selection")
        for name in others
        if name != reference
    ]
    if len(shifts) > 1:
        columns.append(Column(MEAN_SHIFT, tuple(shifts), "mean"))
    if shifts and reference is not None:
        columns.append(Column(AVERAGE, (reference, *shifts), "average"))
    return tuple(columns)


def _sort_rows(rows: Sequence[Row]) -> list[Row]:
    """Put the rows of a curve together, by rising alpha."""
    curves: dict[object, list[Row]] = {}
    for row in rows:
        curves.setdefault(curve_key(row), []).append(row)
    return [
        row
        for curve in curves.values()
        for row in sorted(curve, key=lambda row: Decimal(first_line(row).alpha or "0"))
    ]


def _find_row(rows: Sequence[Row], name: str) -> Row:
    found = [row for row in rows if first_line(row).weights_name == name]
    if not found:
        raise ResultsError(
            f"--baseline {name!r} is not in the results",
            faults=list(dict.fromkeys(first_line(row).weights_name for row in rows)),
            hint="name one of the rows above",
        )
    if len(found) > 1:
        raise ResultsError(
            f"--baseline {name!r}: {len(found)} rows of the results have this name",
            faults=[" and ".join(at.digest for at in first_line(row).checkpoints) for row in found],
            hint="leave the lines of all but one of them out of the results, or evaluate the others"
            " under other file names",
        )
    return found[0]


def _families(rows: Sequence[Row], alpha: str | None) -> list[Family]:
    curves: dict[object, list[Row]] = {}
    singles = []
    for row in rows:
        line = first_line(row)
        if line.alpha is not None:
            curves.setdefault(curve_key(row), []).append(row)
        elif len(line.checkpoints) == 1:
            singles.append(row)
    wanted = None if alpha is None else _wanted_alpha(alpha)
    families = [_family_of_curve(curve, rows, wanted) for curve in curves.values()]
    if alpha is not None and not any(family.merge for family in families):
        raise ResultsError(
            f"--alpha {alpha}: no row of the results has this alpha",
            hint="evaluate it with wiseft eval --alpha",
        )
    return families or _family_of_singles(singles)


def _wanted_alpha(text: str) -> Decimal:
    try:
        return parse_alpha(text)
    except ValueError:
        raise UsageError(f"--alpha {text!r}: expected a number such as 0.5") from None


def _family_of_curve(curve: Sequence[Row], rows: Sequence[Row], alpha: Decimal | None) -> Family:
    by_alpha = {Decimal(first_line(row).alpha or "0"): row for row in curve}
    merge, reason = _choose(by_alpha, alpha)
    line = first_line(curve[0])
    first, *others = (checkpoint.digest for checkpoint in line.checkpoints)
    is_soup = line.merged_by is not None and line.merged_by.method == SOUP
    return Family(
        zeroshot=None if is_soup else _end_point(rows, first, 0),
        finetuned=_end_point(rows, others[-1], 1) if len(others) == 1 else None,
        merge=merge,
        reason=reason,
    )


def _end_point(rows: Sequence[Row], digest: str, at: int) -> Row | None:
    """Return the row with the weights of one checkpoint: at an end of a plain curve, or alone."""
    for row in rows:
        line = first_line(row)
        is_end = line.alpha is not None and Decimal(line.alpha) == at and line.merged_by is None
        is_alone = line.alpha is None and len(line.checkpoints) == 1
        if (is_end or is_alone) and line.checkpoints[-at if is_end else 0].digest == digest:
            return row
    return None


def _choose(by_alpha: Mapping[Decimal, Row], alpha: Decimal | None) -> tuple[Row | None, str]:
    lines = [line for row in by_alpha.values() for line in row.values()]
    selected = selected_alpha(lines)
    between = [at for at in by_alpha if 0 < at < 1]
    if alpha is not None:
        return by_alpha.get(alpha), _CHOSEN
    if selected is not None:
        name = next(line.set_name for line in lines if line.selection)
        return by_alpha[Decimal(selected)], f"the best one on {name}"
    if Decimal(DEFAULT_ALPHA) in by_alpha:
        return by_alpha[Decimal(DEFAULT_ALPHA)], "the default"
    if len(between) == 1:
        return by_alpha[between[0]], "the only one"
    return None, ""


def _family_of_singles(singles: Sequence[Row]) -> list[Family]:
    by_role: dict[str, list[Row]] = {}
    for row in singles:
        by_role.setdefault(first_line(row).checkpoints[0].role, []).append(row)
    only = {role: rows[0] for role, rows in by_role.items() if len(rows) == 1}
    family = Family(only.get("zeroshot"), only.get("finetuned"), only.get("merged"))
    return [family] if only else []


def _incomplete_rows(rows: Sequence[Row], columns: Sequence[Column]) -> list[str]:
    names = dict.fromkeys(name for column in columns for name in column.sets)
    return [
        f"{first_line(row).weights_name} has no results on {', '.join(missing)}"
        for row in rows
        if (missing := [name for name in names if name not in row])
    ]


def _precisions(lines: Sequence[ResultLine]) -> list[str]:
    precisions = sorted({line.precision for line in lines})
    return [f"the rows have different precisions: {', '.join(precisions)}"] * (len(precisions) > 1)


def describe_family(report: Report, family: Family) -> str:
    """Return the headline of one fine-tuning; empty if there is nothing to compare."""
    zeroshot, finetuned, merge = family.zeroshot, family.finetuned, family.merge
    columns = [at for at in (report.column("reference"), report.shift_column) if at is not None]
    parts = []
    if zeroshot is not None and finetuned is not None:
        changes = [text for at in columns if (text := _change(at, zeroshot, finetuned))]
        parts += [f"fine-tuning {' and '.join(changes)}"] if changes else []
    if merge is not None:
        parts += [_describe_merge(columns, family, merge)]
    text = "; ".join(filter(None, parts))
    if text and len(report.families) > 1:
        rows = (row for row in (merge, finetuned, zeroshot) if row is not None)
        return f"{first_line(next(rows)).checkpoints_name}: {text}."
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def _change(column: Column, before: Row, after: Row) -> str:
    old, new = column.value(before), column.value(after)
    if old is None or new is None:
        return ""
    verb = "raised" if new > old else "lowered" if new < old else "did not change"
    numbers = f"from {100 * old:.2f} % to {100 * new:.2f} % ({format_points(new - old)} points)"
    return f"{verb} {describe_column(column)} {numbers if new != old else f'({100 * old:.2f} %)'}"


def describe_column(column: Column) -> str:
    """Return the name of a column in a sentence."""
    if column.kind == "mean":
        return f"the mean over {len(column.sets)} shifts"
    return f"{column.title} (in-distribution)" if column.kind == "reference" else column.title


def _describe_merge(columns: Sequence[Column], family: Family, merge: Row) -> str:
    alpha = first_line(merge).alpha
    name = "the merge" if alpha is None else f"the merge at alpha {alpha}"
    reason = f" ({family.reason})" if family.reason else ""
    reached = [
        f"{100 * value:.2f} % on {describe_column(at)}{_deltas(at, family, value)}"
        for at in columns
        if (value := at.value(merge)) is not None
    ]
    return f"{name}{reason} reaches {' and '.join(reached)}" if reached else ""


def _deltas(column: Column, family: Family, value: float) -> str:
    deltas = [
        f"{format_points(value - other)} points against {name}"
        for name, row in (("zero-shot", family.zeroshot), ("fine-tuned", family.finetuned))
        if row is not None and (other := column.value(row)) is not None
    ]
    return f" ({', '.join(deltas)})" if deltas else ""


def judged_rows(report: Report) -> list[Row]:
    """Return the rows that gates judge, one per fine-tuning.

    It is the merge, else the fine-tuned row; without either, the only row of the report. A chosen
    alpha leaves out the fine-tunings that do not have it.

    Raises:
        ResultsError: There is no such row, or none of some of the fine-tunings.
    """
    chosen = [at for at in report.families if at.merge is not None and at.reason == _CHOSEN]
    of_families = [
        family.merge if family.merge is not None else family.finetuned
        for family in chosen or report.families
    ]
    found: list[Row] = []
    for row in of_families:
        if row is not None and not any(row is at for at in (*found, report.baseline)):
            found.append(row)
    if found and None not in of_families:
        return found
    others = [row for row in report.rows if row is not report.baseline]
    if len(others) == 1:
        return others
    raise ResultsError(
        "--fail-under: the results do not say which row to judge", hint="use --alpha"
    )


def gate_metrics(row: Row, gates: Sequence[Gate]) -> dict[str, list[str]]:
    """Return the metrics of each set of a row, for checking gates."""
    return {name: list(line.metrics) for name, line in row.items()} if gates else {}


def thin_rows(report: Report, limit: int) -> tuple[list[Row], int]:
    """Choose at most `limit` rows, evenly spaced, with the end points and merges of every curve.

    Returns:
        The rows, and how many were left out.
    """
    rows = list(report.rows)
    if len(rows) <= limit:
        return rows, 0
    named = [
        end
        for family in report.families
        for end in (family.zeroshot, family.finetuned, family.merge)
    ]
    ends = [row for row in (*named, report.baseline) if row is not None][:limit]
    others = [row for row in rows if not any(row is end for end in ends)]
    n_others = max(0, limit - len(ends))
    chosen = [others[at * len(others) // n_others] for at in range(n_others)]
    kept = [row for row in rows if any(row is at for at in (*ends, *chosen))]
    return kept, len(rows) - len(kept)
