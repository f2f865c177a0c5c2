"""`wiseft plot`: the lines of an evaluation to the paper's figure."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wiseft_cli.cli.console import print_result, warn
from wiseft_cli.errors import UsageError

FORMATS = ("png", "svg", "pdf")


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
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing picture.")] = False,
) -> None:
    """Draw in-distribution accuracy against mean accuracy under shift, a curve over alpha.

    The end points and alpha 0.5 are marked, with their 95 % intervals. The path of
    the picture is printed.
    """
    # lazy: --help of other commands must not wait for numpy
    from wiseft_cli.checkpoint.atomic import check_output, write_bytes_atomically
    from wiseft_cli.reporting.curves import collect_curves
    from wiseft_cli.reporting.plot import draw_curves
    from wiseft_cli.reporting.results import read_result_lines

    file_format = output.suffix.removeprefix(".").lower()
    if file_format not in FORMATS:
        raise UsageError(f"-o {output}: expected a name ending in .{', .'.join(FORMATS)}")
    check_output(output, force=force, inputs=results)
    lines = [line for path in results for line in read_result_lines(path)]
    data = collect_curves(lines, reference=reference)
    for note in data.notes:
        warn(note)
    write_bytes_atomically(output, draw_curves(data, file_format), force=force, inputs=results)
    print_result(str(output))
