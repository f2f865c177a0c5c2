"""Write a report of results lines: a page, Markdown, a LaTeX table or CSV."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from wiseft_cli.checkpoint.atomic import check_output, write_bytes_atomically
from wiseft_cli.errors import OutputError, UsageError
from wiseft_cli.reporting.comparison import (
    Comparison,
    PredictionFolder,
    Row,
    compare_rows,
    compared_pairs,
)
from wiseft_cli.reporting.gates import Gate, Verdict, check_gates, judge_gate, parse_gate
from wiseft_cli.reporting.report_data import Report, arrange_report, first_line, judged_rows
from wiseft_cli.reporting.report_text import render_csv, render_markdown, render_tex
from wiseft_cli.reporting.results import ResultLine, exclusive_access, read_result_lines
from wiseft_cli.reporting.seeds import average_over_seeds
from wiseft_cli.reporting.table import split_tables

SUFFIXES = (".html", ".md", ".tex", ".csv")


@dataclass(frozen=True)
class ReportRequest:
    """The options of `wiseft report`, with the same names.

    Attributes:
        results: Files of results lines.
        output: File to write; its suffix chooses the form.
        title: Heading of the page.
        reference: Name of the in-distribution set; by default the one marked in the lines.
        shifts: Names of the distribution shifts; by default all other sets but validation sets.
        alpha: The alpha that the report is about.
        baseline: Name of the row that differences are also taken from.
        group_by: `recipe` to average over seeds, or None.
        predictions: Folder of `wiseft eval --save-predictions`.
        images: Folder of the images of each set, by set name, for sample images.
        checkpoints: Checkpoint files, for their history and for commands that name them.
        figure: Path of an image that Markdown shows.
        intervals: Whether a LaTeX table has the 95 % intervals.
        fail_under: Gates.
        force: Whether an existing file may be overwritten.
    """

    results: Sequence[Path]
    output: Path
    title: str = "Evaluation"
    reference: str | None = None
    shifts: Sequence[str] = ()
    alpha: str | None = None
    baseline: str | None = None
    group_by: str | None = None
    predictions: Path | None = None
    images: Mapping[str, Path] = field(default_factory=dict)
    checkpoints: Sequence[Path] = ()
    figure: str | None = None
    intervals: bool = False
    fail_under: Sequence[str] = ()
    force: bool = False


def write_report(request: ReportRequest) -> Report:
    """Read results lines and write the report; the same lines give the same bytes.

    Returns:
        What the report shows, with the notes on what is left out.
    Raises:
        UsageError: The suffix is unknown, or options contradict each other.
        ResultsError: The lines or the predictions cannot be used.
        CheckpointError: A checkpoint cannot be read.
        OutputError: The file cannot be written.
    """
    _check_options(request)
    inputs = [*request.results, *request.checkpoints]
    check_output(request.output, force=request.force, inputs=inputs)
    gates = [parse_gate(text) for text in request.fail_under]
    lines = tuple(line for path in request.results for line in read_result_lines(path))
    notes: tuple[str, ...] = ()
    if request.group_by is not None:
        lines, notes = average_over_seeds(lines)
    report = arrange_report(
        lines,
        reference=request.reference,
        shifts=request.shifts,
        alpha=request.alpha,
        baseline=request.baseline,
    )
    folder = PredictionFolder(request.predictions)
    report = replace(
        report,
        notes=(*notes, *report.notes, *_prediction_notes(report, request)),
        verdicts=judge_report(report, gates, folder),
    )
    text = _render(report, request, folder)
    # Names from JSON may hold halves of surrogate pairs; they are written as question marks.
    data = text.encode("utf-8", "replace")
    write_bytes_atomically(request.output, data, force=request.force, inputs=inputs)
    return report


def _check_options(request: ReportRequest) -> None:
    suffix = request.output.suffix.lower()
    if suffix not in SUFFIXES:
        raise UsageError(
            f"-o {request.output}: expected a name ending in {', '.join(SUFFIXES[:-1])} or"
            f" {SUFFIXES[-1]}"
        )
    for is_given, option, needed in (
        (bool(request.images), "--images", ".html"),
        (bool(request.checkpoints), "--checkpoint", ".html"),
        (request.figure is not None, "--figure", ".md"),
        (request.intervals, "--intervals", ".tex"),
    ):
        if is_given and suffix != needed:
            raise UsageError(
                f"{option} is only for reports in {needed}, and -o is {request.output}"
            )
    if request.images and request.predictions is None:
        raise UsageError("--images needs --predictions, which say what the images were taken for")
    if request.group_by is not None and request.predictions is not None:
        raise UsageError(
            "--group-by and --predictions: an average over seeds has no predictions",
            hint="write two reports",
        )


def _prediction_notes(report: Report, request: ReportRequest) -> list[str]:
    if request.predictions is None:
        return []
    missing = [line for line in report.lines if "predictions" not in line.extra]
    if not missing:
        return []
    names = list(dict.fromkeys(line.weights_name for line in missing))
    return [
        f"{len(missing)} of {len(report.lines)} results have no saved predictions, of"
        f" {', '.join(names[:3])}{' and others' * (len(names) > 3)}; wiseft eval --save-predictions"
        " writes them"
    ]


def judge_report(
    report: Report, gates: Sequence[Gate], folder: PredictionFolder
) -> tuple[Verdict, ...]:
    """Judge gates on the rows that the report is about, one per fine-tuning.

    Raises:
        UsageError: A gate names a set, a metric or a baseline that the report does not have.
        ResultsError: Predictions cannot be used, or no row can be judged.
    """
    rows = judged_rows(report) if gates else []
    return tuple(verdict for row in rows for verdict in _judge_row(report, row, gates, folder))


def _judge_row(
    report: Report, row: Row, gates: Sequence[Gate], folder: PredictionFolder
) -> list[Verdict]:
    baseline, shift_column = report.baseline, report.shift_column
    shifts = shift_column.sets if shift_column is not None else ()
    metrics = {
        name: [m for m in line.metrics if baseline is None or m in baseline[name].metrics]
        for name, line in row.items()
        if baseline is None or name in baseline
    }
    pairs = {name: folder.pair(row[name], baseline[name]) for name in metrics} if baseline else {}
    paired = {name: counts for name, counts in pairs.items() if counts is not None}
    check_gates(
        gates,
        metrics,
        shifts,
        has_baseline=baseline is not None,
        has_predictions=len(paired) == len(metrics),
        primaries={name: line.primary for name, line in row.items()},
    )
    name = first_line(row).weights_name
    verdicts = (judge_gate(gate, row, baseline, shifts, paired) for gate in gates)
    return [replace(verdict, row=name) for verdict in verdicts]


def compare_report(report: Report, folder: PredictionFolder) -> list[Comparison]:
    """Return the paired differences that a text report lists; empty without predictions."""
    if folder.path is None:
        return []
    pairs = compared_pairs(report.rows, report.baseline)
    merges = [family.merge for family in report.families]
    pairs += [
        (merge, end)
        for family, merge in zip(report.families, merges, strict=True)
        for end in (family.zeroshot, family.finetuned)
        if merge is not None
        and end is not None
        and not any(merge is row and end is other for row, other in pairs)
    ]
    compared = (compare_rows(*pair, folder) for pair in pairs)
    return [comparison for comparison in compared if comparison is not None]


def _render(report: Report, request: ReportRequest, folder: PredictionFolder) -> str:
    suffix = request.output.suffix.lower()
    if suffix == ".csv":
        return render_csv(report)
    if suffix == ".tex":
        return render_tex(report, intervals=request.intervals)
    if suffix == ".md":
        return render_markdown(
            report,
            title=request.title,
            figure=request.figure,
            comparisons=compare_report(report, folder),
        )
    # lazy: only the page needs the template engine and the charting library
    from wiseft_cli.reporting.report_page import render_page

    return render_page(report, request, folder)


def append_summary(
    path: Path,
    lines: Sequence[ResultLine],
    *,
    baseline: str | None = None,
    verdicts: Sequence[Verdict] = (),
    comparisons: Sequence[Comparison] = (),
) -> None:
    """Append the results of one evaluation as Markdown to a file, such as a CI job's summary.

    Rows that share no set, such as those of two heads on one suite, are separate tables.

    Args:
        baseline: Name of the row that gates compare with.
        verdicts: The gates.
        comparisons: Paired differences between rows.
    Raises:
        OutputError: The file cannot be read or written.
    """
    texts = []
    for at, of_table in enumerate(split_tables(lines)):
        names = {line.weights_name for line in of_table}
        named = {line.weights_key for line in of_table if line.weights_name == baseline}
        report = arrange_report(
            of_table, baseline=baseline if len(named) == 1 else None, needs_reference=False
        )
        if at == 0:  # gates are judged once
            report = replace(report, verdicts=tuple(verdicts))
        shown = [comparison for comparison in comparisons if comparison.name in names]
        texts.append(render_markdown(report, comparisons=shown))
    added = "\n".join(texts).encode("utf-8", "replace")
    try:
        with exclusive_access(path):
            held = path.read_bytes() if path.exists() else b""
            separator = b"" if not held or held.endswith(b"\n\n") else b"\n"
            write_bytes_atomically(path, held + separator + added, force=True)
    except OSError as error:
        raise OutputError(f"--summary {path}: cannot be read: {error.strerror}") from None


def report_document(report: Report) -> dict[str, object]:
    """Return the numbers of a report as a JSON object; accuracies are fractions."""
    return {
        "headlines": report.headlines,
        "columns": [column.title for column in report.columns],
        "rows": [
            {
                "weights": first_line(row).weights_name,
                "alpha": first_line(row).alpha,
                "values": [column.value(row) for column in report.columns],
            }
            for row in report.rows
        ],
        "gates": [
            {
                "gate": at.gate.text,
                "row": at.row,
                "passes": at.passes,
                "value": at.value,
                "bound": at.bound,
            }
            for at in report.verdicts
        ],
        "notes": list(report.notes),
    }
