"""Reports as text: Markdown for a pull request, a table for a paper, CSV for a spreadsheet."""

from __future__ import annotations

import csv
import html
import io
import re
from collections.abc import Sequence
from urllib.parse import quote

from wiseft_cli.errors import escape_controls
from wiseft_cli.reporting.comparison import Comparison, Row
from wiseft_cli.reporting.paired import format_p_value, format_points
from wiseft_cli.reporting.report_data import (
    AVERAGE,
    PAPER_ORDER,
    Column,
    Report,
    first_line,
    row_label,
    thin_rows,
)
from wiseft_cli.reporting.results import Metric
from wiseft_cli.reporting.seeds import n_seeds, standard_deviation
from wiseft_cli.reporting.statistics import MODEL_COLUMN

MAX_ROWS = 30
"""Rows of a table in Markdown; GitHub cuts a job summary at 1 MiB."""

_URL = "/:@!$&'()*+,;=~?#%"
"""Characters of paths and addresses that a link in Markdown keeps."""

_MARKDOWN = re.compile(r"([\\`*_\[\]|~$])")
_TEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{character: f"\\{character}" for character in "{}$&#_%"},
}


def markdown_text(text: str) -> str:
    """Escape a text so that Markdown and the HTML in it show it as it is."""
    return _MARKDOWN.sub(r"\\\1", html.escape(escape_controls(text), quote=False))


def tex_text(text: str) -> str:
    """Escape a text for LaTeX."""
    return "".join(_TEX.get(character, character) for character in escape_controls(text))


def render_markdown(
    report: Report,
    *,
    title: str = "Evaluation",
    figure: str | None = None,
    comparisons: Sequence[Comparison] = (),
) -> str:
    """Return the report as GitHub's Markdown.

    Args:
        figure: Path of an image to show, relative to the file or absolute.
        comparisons: Paired differences to list below the table.
    """
    blocks = [
        f"## {markdown_text(title)}",
        *map(markdown_text, report.headlines),
        _gates(report),
        _markdown_table(report),
        ""
        if figure is None
        else f"![Accuracy under shift over alpha](<{quote(figure, safe=_URL)}>)",
        _paired(comparisons),
        _set_facts(report),
        "\n".join(f"- {markdown_text(note)}" for note in report.notes),
    ]
    return "\n\n".join(filter(None, blocks)) + "\n"


def _gates(report: Report) -> str:
    if not report.verdicts:
        return ""
    failed = sum(not verdict.passes for verdict in report.verdicts)
    state = f"{failed} of {len(report.verdicts)} gates failed" if failed else "All gates passed"
    has_rows = len({verdict.row for verdict in report.verdicts}) > 1
    rows = [
        [
            "pass" if verdict.passes else "**FAIL**",
            markdown_text(verdict.gate.text),
            *[markdown_text(verdict.row)] * has_rows,
            f"{verdict.value:.4f}",
            "" if verdict.low is None else f"{verdict.low:.4f}",
            f"{verdict.bound:.4f}",
        ]
        for verdict in report.verdicts
    ]
    header = ["", "gate", *["row"] * has_rows, "value", "lower end", "expected at least"]
    return f"**{state}**\n\n" + _pipe_table([header, *rows], n_left=2 + has_rows)


def _markdown_table(report: Report) -> str:
    """Return the accuracies in per cent, with the difference from the zero-shot row."""
    rows, n_left_out = thin_rows(report, MAX_ROWS)
    has_alphas = any(row_label(row)[1] for row in rows)
    header = ["checkpoint", *["alpha"] * has_alphas, *(column.title for column in report.columns)]
    table = [[markdown_text(name) for name in header]]
    for row in rows:
        labels = [markdown_text(label) for label in row_label(row)][: 1 + has_alphas]
        table.append([*labels, *(_markdown_cell(report, row, column) for column in report.columns)])
    n_labels = len(header) - len(report.columns)
    notes = ["Accuracies in %, best in bold."]
    if any(family.zeroshot for family in report.families):
        notes[0] = "Accuracies in %, best in bold; in parentheses, points above zero-shot."
    if any(n_seeds(line) > 1 for line in report.lines):
        notes.append("± is the standard deviation over seeds.")
    if n_left_out:
        notes.append(f"{n_left_out} of {len(report.rows)} rows are left out.")
    return _pipe_table(table, n_left=n_labels) + "\n\n" + " ".join(notes)


def _markdown_cell(report: Report, row: Row, column: Column) -> str:
    value = column.value(row)
    if value is None:
        return "-"
    spread = _spread(row, column)
    text = f"{100 * value:.2f}{f' ± {spread}' if spread else ''}"
    text = f"**{text}**" if value == report.best(column) else text
    zeroshot = report.family_of(row).zeroshot
    start = None if zeroshot is None or zeroshot is row else column.value(zeroshot)
    return text if start is None else f"{text} ({format_points(value - start)})"


def _spread(row: Row, column: Column) -> str:
    """Return the standard deviation over seeds in points; empty if the row is not an average."""
    deviation = standard_deviation([row[name] for name in column.sets])
    return "" if deviation is None else f"{100 * deviation:.2f}"


def _paired(comparisons: Sequence[Comparison]) -> str:
    rows = [
        [
            markdown_text(f"{comparison.name} against {comparison.against}"),
            markdown_text(name),
            format_points(of_set.difference),
            f"{format_points(of_set.low)} to {format_points(of_set.high)}",
            "" if of_set.p_value is None else format_p_value(of_set.p_value),
            str(of_set.n_gained),
            str(of_set.n_lost),
        ]
        for comparison in comparisons
        for name, of_set in comparison.differences.items()
    ]
    if not rows:
        return ""
    header = ["rows", "set", "points", "95 % interval", "McNemar", "gained", "lost"]
    return "Paired differences, image by image:\n\n" + _pipe_table([header, *rows], n_left=2)


def _set_facts(report: Report) -> str:
    rows = [["set", "role", "metric", "images", "classes", "data fingerprint"]]
    for name, lines in report.sets.items():
        line = lines[0]
        role = "in-distribution" if line.reference else line.role
        facts = (line.primary, f"{line.n_counted:,}", f"{line.n_classes:,}")
        rows.append([markdown_text(name), role, *facts, f"`{line.data_fingerprint[:19]}`"])
    table = _pipe_table(rows, n_left=3)
    return f"<details><summary>Image sets</summary>\n\n{table}\n\n</details>"


def _pipe_table(rows: Sequence[Sequence[str]], *, n_left: int) -> str:
    header, *body = rows
    rule = ["---" if at < n_left else "---:" for at in range(len(header))]
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, rule, *body))


def render_tex(report: Report, *, intervals: bool = False) -> str:
    """Return a table of the package booktabs, with the columns of the paper's table 1.

    These are the in-distribution set, the shifts (those of ImageNet in the order of the paper),
    their mean, and the average of both. The best value of a column is bold.

    Args:
        intervals: Whether to write the 95 % interval behind each value.
    """
    columns = sorted(report.columns, key=_paper_position)
    columns = [column for column in columns if column.kind != "selection"]
    has_alphas = any(row_label(row)[1] for row in report.rows)
    header = ["Checkpoint", *["$\\alpha$"] * has_alphas, *(tex_text(at.title) for at in columns)]
    lines = [
        "% needs \\usepackage{booktabs}",
        f"\\begin{{tabular}}{{{'l' * (1 + has_alphas)}{'r' * len(columns)}}}",
        "\\toprule",
        f"{' & '.join(header)} \\\\",
        "\\midrule",
    ]
    for row in report.rows:
        labels = [tex_text(label) for label in row_label(row)][: 1 + has_alphas]
        cells = [_tex_cell(report, row, column, intervals=intervals) for column in columns]
        lines.append(f"{' & '.join([*labels, *cells])} \\\\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}"]) + "\n"


def _paper_position(column: Column) -> int:
    kinds = ("reference", "shift", "mean", AVERAGE, "selection")
    is_known = column.kind == "shift" and column.title in PAPER_ORDER
    within = PAPER_ORDER.index(column.title) if is_known else len(PAPER_ORDER)
    return 100 * kinds.index(column.kind) + within


def _tex_cell(report: Report, row: Row, column: Column, *, intervals: bool) -> str:
    value, metric = column.value(row), column.metric(row)
    if value is None or metric is None:
        return "--"
    text = f"{100 * value:.1f}"
    text = f"\\textbf{{{text}}}" if value == report.best(column) else text
    if spread := _spread(row, column):
        return f"{text} $\\pm$ {spread}"
    if intervals and metric.low is not None and metric.high is not None:
        text += f" {{\\scriptsize [{100 * metric.low:.1f}, {100 * metric.high:.1f}]}}"
    return text


def render_csv(report: Report) -> str:
    """Return the table as CSV with fractions in full, and the ends of the intervals.

    The first column is `model` and sets have their own names, so the file is one for
    `wiseft plot --baseline-csv`.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    has_seeds = any(n_seeds(line) > 1 for line in report.lines)
    header = [MODEL_COLUMN, "alpha", *["seeds"] * has_seeds]
    for column in report.columns:
        ends = (" low", " high") if len(column.sets) == 1 else ()
        header += [column.title, *(column.title + end for end in ends)]
    writer.writerow(header)
    for row in report.rows:
        line = first_line(row)
        cells = [line.weights_name, line.alpha or "", *[str(n_seeds(line))] * has_seeds]
        for column in report.columns:
            cells += _csv_cells(column.metric(row), has_interval=len(column.sets) == 1)
        writer.writerow(cells)
    return text.getvalue()


def _csv_cells(metric: Metric | None, *, has_interval: bool) -> list[str]:
    if metric is None:
        return [""] * (3 if has_interval else 1)
    values = (metric.value, metric.low, metric.high)[: 3 if has_interval else 1]
    return ["" if value is None else repr(value) for value in values]
