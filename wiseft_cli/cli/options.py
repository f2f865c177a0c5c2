"""Options that several commands share: one help text, heading and placeholder for each."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Literal

import typer

from wiseft_cli.compute.workers import MAX_DEFAULT_WORKERS

_compute = partial(typer.Option, rich_help_panel="Compute")
_output = partial(typer.Option, rich_help_panel="Output")

Device = Annotated[
    str, _compute(metavar="DEVICE", help="Where to compute: auto, cpu, cuda, cuda:N or mps.")
]
BatchSize = Annotated[int, _compute(min=1, metavar="N", help="Images per forward pass.")]
Precision = Annotated[
    Literal["fp32", "bf16", "fp16"],
    _compute(
        metavar="PRECISION",
        help="Precision of the image encoder: fp32, bf16 or fp16. The head is float32.",
    ),
]
Workers = Annotated[
    int | None,
    _compute(
        min=0,
        metavar="N",
        help="Processes that decode images; 0 decodes in this process.  [default: one per CPU,"
        f" up to {MAX_DEFAULT_WORKERS}]",
    ),
]
Threads = Annotated[
    int | None, _compute(min=1, metavar="N", help="CPU threads.  [default: torch's choice]")
]
Force = Annotated[bool, _output("--force", help="Overwrite existing outputs.")]
Json = Annotated[bool, _output("--json", help="Print the result as JSON.")]
