"""`wiseft verify`: redo the merge that made a file, and compare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wiseft_cli.cli.console import deferred_progress, print_json, print_result
from wiseft_cli.cli.options import Json
from wiseft_cli.errors import CheckpointError

EXAMPLES = """
wiseft verify merged.safetensors --inputs checkpoints
wiseft verify merged.safetensors --inputs . --json
"""


def verify(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A checkpoint that wiseft merge or soup made.")
    ],
    inputs: Annotated[
        Path,
        typer.Option(
            "--inputs",
            metavar="DIR",
            help="Folder that holds the inputs of the merge, under any names and at any depth. "
            "They are found by the digests in the card of FILE.",
        ),
    ] = Path(),
    json: Json = False,
) -> None:
    """Redo the merge that made a file from its inputs, and compare.

    The method, its options and the digests of the inputs are those in the card of FILE. The exit
    code is 1 if the tensors of FILE differ from its card or from the merge of its inputs.
    """
    # lazy: numpy takes a tenth of a second, and --help does not need it
    from wiseft_cli.merging.provenance import verify_merge

    with deferred_progress("merging (bytes)") as on_progress:
        found = verify_merge(file, inputs, on_progress=on_progress)
    faults = found.find_faults()
    if json:
        print_json(
            {
                "path": str(file),
                "digest": found.digest,
                "stated": found.stated,
                "redone": found.redone,
                "inputs": {digest: str(path) for digest, path in found.inputs.items()},
                "matches": not faults,
                "has_equal_bytes": found.has_equal_bytes,
            }
        )
    elif not faults:
        what = "bytes" if found.has_equal_bytes else "tensors, but another card,"
        print_result(f"{file}: has the same {what} as the merge of")
        for digest, path in found.inputs.items():
            print_result(f"  {digest}  {path}")
    if faults:
        raise CheckpointError(f"{file}: verification failed", faults=faults)
