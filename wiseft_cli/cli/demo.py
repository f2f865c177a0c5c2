"""`wiseft demo`: run the whole pipeline on digits that ship with the package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wiseft_cli.cli.console import print_message, print_result


def demo(
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Folder to fill; it must be empty.")
    ] = Path("wiseft-demo"),
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Take a folder in use: replace the demo's own files, keep all others."
        ),
    ] = False,
) -> None:
    """Show the effect on real digits in a minute or two, without a network.

    Writes image folders of handwritten digits and of ten distribution shifts, then runs
    zeroshot-head, finetune, merge, eval and plot on them as separate processes, printing each
    command line first.
    """
    # lazy: torch costs seconds
    from wiseft_cli.demo.pipeline import run_demo

    report = run_demo(out, force=force, say=print_message)
    print_result(report.table.rstrip("\n"))
    print_result(str(report.picture))
    for sentence in report.sentences:
        print_result(sentence)
