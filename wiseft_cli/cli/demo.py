"""`wiseft demo`: run the whole pipeline on digits that ship with the package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wiseft_cli.cli.console import print_block, print_data, print_message, print_result

EXAMPLES = """wiseft demo
wiseft demo --out demo --force"""


def demo(
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            metavar="DIR",
            help="Folder for data, checkpoints and results. Without --force, it must be "
            "empty or new.",
            rich_help_panel="Output",
        ),
    ] = Path("wiseft-demo"),
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Accept a folder that is not empty. Files that the demo writes are replaced, all "
            "others are kept.",
            rich_help_panel="Output",
        ),
    ] = False,
) -> None:
    """Run the whole pipeline on handwritten digits, without a network.

    Writes folders of handwritten digits and of ten distribution shifts, then runs zeroshot-head,
    finetune, merge, eval and plot on them, each in its own process, and prints every command
    line. Takes one to two minutes.
    """
    # lazy: torch costs seconds
    from wiseft_cli.demo.pipeline import run_demo

    report = run_demo(out, force=force, on_progress=print_message)
    print_block(report.table.rstrip("\n"))
    print_data(str(report.picture))
    for sentence in report.sentences:
        print_result(sentence)
