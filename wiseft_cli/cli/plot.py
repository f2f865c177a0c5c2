"""`wiseft plot`: draw the results of an evaluation as the figure of the paper."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from wiseft_cli.cli.console import print_data, print_json, print_message, warn
from wiseft_cli.cli.options import Force
from wiseft_cli.errors import UsageError

EXAMPLES = """
wiseft plot results.jsonl -o curve.png
wiseft plot results.jsonl -o curve.svg --shifts imagenet-r,sketch --baseline-csv models.csv
wiseft plot results.jsonl -o alpha.pdf --kind alpha --style paper
"""

_set_option = partial(typer.Option, rich_help_panel="Image sets")
_figure_option = partial(typer.Option, rich_help_panel="Figure")
_output_option = partial(typer.Option, rich_help_panel="Output")


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
        _output_option(
            "--output",
            "-o",
            metavar="FILE",
            help="Image file to write. Its suffix chooses the format: .png, .svg or .pdf.",
        ),
    ],
    force: Force = False,
    as_json: Annotated[
        bool,
        _output_option("--json", help="Print the numbers of every panel as a JSON document."),
    ] = False,
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
    baseline_csv: Annotated[
        Path | None,
        _figure_option(
            metavar="FILE",
            help="Models to compare with: a CSV file with a column `model` and one column per"
            " image set, accuracies as fractions.",
        ),
    ] = None,
    kind: Annotated[
        Literal["curve", "bars", "alpha", "effective-robustness"],
        _figure_option(
            metavar="KIND",
            help="What to draw: curve, bars (for few checkpoints), alpha (accuracy over alpha) or"
            " effective-robustness (needs --baseline-csv).",
        ),
    ] = "curve",
    panels: Annotated[
        str | None,
        _figure_option(
            metavar="NAME,...",
            help="Panels to draw: mean, all, or names of shifts.  [default: mean, and all if there"
            " are at most two shifts]",
        ),
    ] = None,
    style: Annotated[
        Literal["default", "paper", "slide", "dark"],
        _figure_option(
            metavar="STYLE",
            help="Sizes and colours: default, paper (3.3 inches, 8-point text), slide or dark.",
        ),
    ] = "default",
    width_in: Annotated[
        float | None,
        _figure_option(metavar="INCHES", help="Width of the figure.  [default: as the style]"),
    ] = None,
    group_by: Annotated[
        Literal["recipe"] | None,
        _set_option(
            metavar="recipe",
            help="Average runs of the same recipe over their seeds; intervals are standard"
            " deviations.",
        ),
    ] = None,
    scale: Annotated[
        Literal["linear", "logit"] | None,
        _figure_option(
            metavar="SCALE",
            help="Scale of both axes: linear or logit.  [default: logit with --baseline-csv,"
            " otherwise linear]",
        ),
    ] = None,
) -> None:
    """Draw accuracy under shift against in-distribution accuracy.

    The figure has a curve over alpha for each pair of checkpoints, a panel for the mean over the
    shifts, and one per shift if there are few. The end points and alpha 0.5 are marked, with
    their 95 % intervals, and joined by a dotted chord. --kind draws other figures of the same
    results. The path of the image file is printed.
    """
    # lazy: --help of other commands must not wait for numpy
    from wiseft_cli.reporting.figure import plot_results

    done = plot_results(
        results,
        output,
        reference=reference,
        shifts=_split_names(shifts, "--shifts"),
        baseline_csv=baseline_csv,
        scale=scale,
        kind=kind,
        panels=_split_names(panels, "--panels"),
        style=style,
        width_in=width_in,
        group_by=group_by,
        force=force,
    )
    for warning in done.warnings:
        warn(warning)
    if as_json:
        print_json(done.document())
        return
    for sentence in done.robustness():
        print_message(sentence)
    print_data(str(output))


def _split_names(text: str | None, option: str) -> list[str]:
    names = [] if text is None else [name.strip() for name in text.split(",")]
    if not all(names):
        raise UsageError(f"{option} {text!r}: expected names separated by commas")
    return names
