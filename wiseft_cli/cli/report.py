"""`wiseft report`: results as a page, as Markdown, as a LaTeX table or as CSV."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from wiseft_cli.cli.console import print_data, print_json, print_message, warn
from wiseft_cli.cli.options import Force
from wiseft_cli.errors import GateFailedError, UsageError

EXAMPLES = """
wiseft report results.jsonl -o report.html --predictions predictions
wiseft report results.jsonl -o report.md --figure curve.png --fail-under 'shifts:top1>=0.6'
wiseft report seed-*.jsonl -o table.tex --group-by recipe
"""

_set_option = partial(typer.Option, rich_help_panel="Image sets")
_row_option = partial(typer.Option, rich_help_panel="Rows")
_input_option = partial(typer.Option, rich_help_panel="Further inputs")
_output_option = partial(typer.Option, rich_help_panel="Output")


def report(
    results: Annotated[
        list[Path],
        typer.Argument(
            metavar="RESULTS",
            help="Files that `wiseft eval --results` wrote.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path,
        _output_option(
            "--output",
            "-o",
            metavar="FILE",
            help="File to write. Its suffix chooses the form: .html, .md, .tex or .csv.",
        ),
    ],
    force: Force = False,
    as_json: Annotated[
        bool, _output_option("--json", help="Print the numbers of the report as a JSON document.")
    ] = False,
    title: Annotated[
        str, _output_option(metavar="TEXT", help="Heading of the report.")
    ] = "Evaluation",
    intervals: Annotated[
        bool, _output_option("--intervals", help="Write the 95 % intervals into a .tex table.")
    ] = False,
    figure: Annotated[
        str | None,
        _output_option(metavar="PATH", help="Image that a .md report shows, by this path."),
    ] = None,
    shifts: Annotated[
        str | None,
        _set_option(
            metavar="NAME,...",
            help="Names of the distribution shifts.  [default: all sets but the reference and"
            " validation sets]",
        ),
    ] = None,
    reference: Annotated[
        str | None,
        _set_option(
            metavar="NAME", help="Name of the in-distribution set.  [default: as in the results]"
        ),
    ] = None,
    alpha: Annotated[
        str | None,
        _row_option(
            metavar="ALPHA",
            help="The alpha that the report is about.  [default: the best on the validation set,"
            " else 0.5]",
        ),
    ] = None,
    baseline: Annotated[
        str | None,
        _row_option(metavar="NAME", help="Row of the table from which differences are also taken."),
    ] = None,
    group_by: Annotated[
        Literal["recipe"] | None,
        _row_option(
            metavar="recipe",
            help="Average runs of the same recipe over their seeds: mean and standard deviation.",
        ),
    ] = None,
    fail_under: Annotated[
        list[str] | None,
        _row_option(
            metavar="EXPR",
            help="Gate on the row that the report is about, as in `wiseft eval`. The report shows"
            " it, and the exit code is 3 if it fails. May be repeated.",
        ),
    ] = None,
    predictions: Annotated[
        Path | None,
        _input_option(
            metavar="DIR",
            help="Folder that `wiseft eval --save-predictions` wrote: adds paired differences,"
            " classes, confusions and calibration.",
        ),
    ] = None,
    images: Annotated[
        list[str] | None,
        _input_option(
            metavar="NAME=DIR",
            help="Folder of the images of a set: adds thumbnails of images whose prediction"
            " changed to a .html report. May be repeated.",
        ),
    ] = None,
    checkpoint: Annotated[
        list[Path] | None,
        _input_option(
            metavar="FILE",
            help="Checkpoint of the results: adds its history to a .html report. May be repeated.",
        ),
    ] = None,
) -> None:
    """Write results as a page, Markdown, a LaTeX table or CSV.

    A .html report is one file that needs no network: a headline, an interactive curve, a table,
    and what saved predictions tell about classes and calibration. The path of the file is
    printed.
    """
    # lazy: --help of other commands must not wait for the readers of results
    from wiseft_cli.reporting.report import ReportRequest, report_document, write_report

    done = write_report(
        ReportRequest(
            results=results,
            output=output,
            title=title,
            reference=reference,
            shifts=_split_names(shifts),
            alpha=alpha,
            baseline=baseline,
            group_by=group_by,
            predictions=predictions,
            images=dict(map(_split_images, images or ())),
            checkpoints=checkpoint or (),
            figure=figure,
            intervals=intervals,
            fail_under=fail_under or (),
            force=force,
        )
    )
    for note in done.notes:
        warn(note)
    if as_json:
        print_json(report_document(done))
    else:
        for sentence in done.headlines:
            print_message(sentence)
        print_data(str(output))
    failed = [str(verdict) for verdict in done.verdicts if not verdict.passes]
    if failed:
        raise GateFailedError(
            "\n  ".join([f"{len(failed)} of {len(done.verdicts)} gates failed:", *failed])
        )


def _split_names(text: str | None) -> list[str]:
    names = [] if text is None else [name.strip() for name in text.split(",")]
    if not all(names):
        raise UsageError(f"--shifts {text!r}: expected names separated by commas")
    return names


def _split_images(text: str) -> tuple[str, Path]:
    name, equals, folder = text.partition("=")
    if not (name and equals and folder):
        raise UsageError(f"--images {text!r}: expected NAME=DIR, the name of a set and its folder")
    return name, Path(folder)
