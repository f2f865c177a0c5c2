"""`wiseft plot`: draw the results of an evaluation as the figure of the paper."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from wiseft_cli.cli.console import print_json, print_message, print_result, warn
from wiseft_cli.errors import UsageError

EXAMPLES = """
wiseft plot results.jsonl -o curve.png
wiseft plot results.jsonl -o curve.svg --shifts imagenet-r,sketch --baseline-csv models.csv
"""

_SETS = "Image sets"
_FIGURE = "Figure"
_OUTPUT = "Output"


def plot(
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
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Image file to write. Its suffix chooses the format: .png, .svg or .pdf.",
            rich_help_panel=_OUTPUT,
        ),
    ],
    force: Annotated[
        bool,
        typer.Option("--force", help="Overwrite an existing file.", rich_help_panel=_OUTPUT),
    ] = False,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json",
            help="Print the numbers of every panel as a JSON document.",
            rich_help_panel=_OUTPUT,
        ),
    ] = False,
    shifts: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...",
            help="Names of the distribution shifts.  [default: all sets but the reference]",
            rich_help_panel=_SETS,
        ),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Name of the in-distribution set.  [default: as in the results]",
            rich_help_panel=_SETS,
        ),
    ] = None,
    baseline_csv: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Models to compare with: a CSV file with a column `model` and one column per"
            " image set, accuracies as fractions.",
            rich_help_panel=_FIGURE,
        ),
    ] = None,
    scale: Annotated[
        Literal["linear", "logit"] | None,
        typer.Option(
            metavar="SCALE",
            help="Scale of both axes: linear or logit.  [default: logit with --baseline-csv,"
            " otherwise linear]",
            rich_help_panel=_FIGURE,
        ),
    ] = None,
) -> None:
    """Draw accuracy under shift against in-distribution accuracy.

    The figure has a curve over alpha for each pair of checkpoints, one panel per shift, and one
    for their mean. The end points and alpha 0.5 are marked, with their 95 % intervals. The path
    of the image file is printed.
    """
    # lazy: --help of other commands must not wait for numpy
    from wiseft_cli.reporting.figure import plot_results

    done = plot_results(
        results,
        output,
        reference=reference,
        shifts=_split_names(shifts),
        baseline_csv=baseline_csv,
        scale=scale,
        force=force,
    )
    for warning in done.warnings:
        warn(warning)
    if as_json:
        print_json(done.document())
        return
    for sentence in done.robustness():
        print_message(sentence)
    print_result(str(output))


def _split_names(text: str | None) -> list[str]:
    names = [] if text is None else [name.strip() for name in text.split(",")]
    if not all(names):
        raise UsageError(f"--shifts {text!r}: expected names separated by commas")
    return names
