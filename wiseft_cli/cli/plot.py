"""`wiseft plot`: the lines of an evaluation to the paper's figure."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from wiseft_cli.cli.console import print_json, print_message, print_result, warn
from wiseft_cli.errors import UsageError

FORMATS = ("png", "svg", "pdf")


class Scale(StrEnum):
    """What `--scale` accepts."""

    linear = "linear"
    logit = "logit"


def plot(
    results: Annotated[
        list[Path],
        typer.Argument(help="Files that wiseft eval --results wrote.", show_default=False),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help=f"The picture; its ending says which: {', '.join(FORMATS)}."
        ),
    ],
    reference: Annotated[
        str | None,
        typer.Option(help="Name of the in-distribution set.  [default: as in the results]"),
    ] = None,
    shifts: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,...",
            help="Names of the distribution shifts.  [default: all sets but the reference]",
        ),
    ] = None,
    baseline_csv: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Models to compare with: a column `model` and one for each image set, accuracies"
            " as fractions.",
        ),
    ] = None,
    scale: Annotated[
        Scale | None,
        typer.Option(help="Of both axes.  [default: logit with --baseline-csv, else linear]"),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing picture.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the numbers of every panel as a JSON document.")
    ] = False,
) -> None:
    """Draw in-distribution accuracy against accuracy under shift, a curve over alpha.

    One panel a shift, and one for their mean. The end points and alpha 0.5 are marked,
    with their 95 % intervals. The path of the picture is printed.
    """
    # lazy: --help of other commands must not wait for numpy
    from wiseft_cli.checkpoint.atomic import check_output, write_bytes_atomically
    from wiseft_cli.reporting.baselines import read_baselines
    from wiseft_cli.reporting.curves import collect_curves
    from wiseft_cli.reporting.panels import arrange_panels, panel_document, robustness_lines
    from wiseft_cli.reporting.plot import draw_figure
    from wiseft_cli.reporting.results import read_result_lines

    file_format = output.suffix.removeprefix(".").lower()
    if file_format not in FORMATS:
        raise UsageError(f"-o {output}: expected a name ending in .{', .'.join(FORMATS)}")
    inputs = [*results, *([] if baseline_csv is None else [baseline_csv])]
    check_output(output, force=force, inputs=inputs)
    lines = [line for path in results for line in read_result_lines(path)]
    data = collect_curves(lines, reference=reference, shifts=_names(shifts))
    for note in data.notes:
        warn(note)
    set_names = (data.reference, *data.shifts)
    baselines = () if baseline_csv is None else read_baselines(baseline_csv, set_names)
    panels = arrange_panels(data, baselines)
    for panel in panels:
        if baselines and panel.fit is None:
            warn(f"{panel.name}: fewer than two baseline models that differ, so no fit")
    scale = scale or (Scale.logit if baselines else Scale.linear)
    picture = draw_figure(data, panels, file_format, scale=scale.value)
    write_bytes_atomically(output, picture, force=force, inputs=inputs)
    if as_json:
        print_json(
            {
                "output": str(output),
                "scale": scale.value,
                "reference": data.reference,
                "panels": [panel_document(panel) for panel in panels],
            }
        )
        return
    for sentence in robustness_lines(panels):
        print_message(sentence)
    print_result(str(output))


def _names(text: str | None) -> list[str]:
    """Return the names of a list with commas."""
    if text is None:
        return []
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise UsageError(f"--shifts {text!r}: expected names with commas between them")
    return names
