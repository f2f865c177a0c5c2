"""`wiseft convert`: rename the tensors of a checkpoint to those of another library."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from wiseft_cli.cli.console import deferred_progress, print_data, print_json, print_message
from wiseft_cli.cli.options import Force, Json

EXAMPLES = """
wiseft convert clip-vit-base-patch32/model.safetensors -o clip.safetensors
wiseft convert open_clip_model.safetensors --to transformers -o model.safetensors
"""


class Target(StrEnum):
    """Values of `--to`."""

    open_clip = "open_clip"
    transformers = "transformers"
    timm = "timm"


def convert(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A safetensors file, an index of shards, or a folder, with the tensor names of "
            "transformers, timm or open_clip.",
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="OUT",
            help="Safetensors file to write.",
            rich_help_panel="Output",
        ),
    ],
    to: Annotated[
        Target,
        typer.Option(
            metavar="LIBRARY",
            help="Library whose tensor names the output has: open_clip, transformers or timm.",
            rich_help_panel="Conversion",
        ),
    ] = Target.open_clip,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Convert a CLIP or SigLIP model between libraries, bit for bit.

    Tensors are renamed, and joined, split or transposed where the libraries differ. Prints the
    path of the output.
    """
    from wiseft_cli.convert.convert import (
        convert_checkpoint,
    )  # lazy: numpy costs a tenth of a second

    with deferred_progress("converting (bytes)") as on_progress:
        done = convert_checkpoint(source, output, to=to.value, force=force, on_progress=on_progress)
    print_message(f"{done.source} -> {done.target}, {done.n_tensors} tensors")
    for note in done.notes:
        print_message(f"note: {note}")
    if as_json:
        print_json(
            {
                "path": str(output),
                "digest": done.digest,
                "from": f"{done.source.library}/{done.source.family}",
                "to": f"{done.target.library}/{done.target.family}",
                "tensors": done.n_tensors,
                "warnings": list(done.notes),
            }
        )
    else:
        print_data(str(output))
