"""`wiseft diff`: how two checkpoints differ, from headers, and with --values from their data."""

from __future__ import annotations

from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wiseft_cli.cli.console import print_json, print_result, progress

if TYPE_CHECKING:
    from wiseft_cli.checkpoint.reader import CheckpointReader
    from wiseft_cli.merging.distance import TensorDistance


def diff(
    a: Annotated[
        Path,
        typer.Argument(metavar="A", help="A safetensors file, an index of shards, or a folder."),
    ],
    b: Annotated[Path, typer.Argument(metavar="B", help="Another one.")],
    values: Annotated[
        bool,
        typer.Option(
            "--values",
            help="Read the data: for each tensor ||B - A|| / ||A|| and the largest absolute "
            "difference, the largest first.",
        ),
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Show in what two checkpoints differ, and the likely cause.

    Compares names, shapes, dtypes, classes, model and preprocessing from the headers alone.
    Exits with 0 whatever it finds.
    """
    # lazy: numpy costs a tenth of a second, and --help needs none
    from wiseft_cli.checkpoint.reader import open_checkpoint
    from wiseft_cli.merging.compatibility import compare

    with (
        open_checkpoint(a, allow_shards=True) as theta_0,
        open_checkpoint(b, allow_shards=True) as theta_1,
    ):
        found = compare(theta_0, theta_1)
        differences = found.describe()
        cause = found.likely_cause()
        distances = _measure(theta_0, theta_1) if values else None
    if json:
        document: dict[str, Any] = {
            "a": str(a),
            "b": str(b),
            "is_compatible": not differences,
            "n_common": found.n_common,
            "differences": differences,
            "equal_content": _equal_content(theta_0, theta_1),
            "likely_cause": cause,
        }
        if distances is not None:
            document["distances"] = [_as_json(distance) for distance in distances]
        print_json(document)
        return
    print_result(
        f"common tensors: {found.n_common}, differences in headers and cards: {len(differences)}"
    )
    for line in differences:
        print_result(f"  {line}")
    if cause:
        print_result(f"likely cause: {cause}")
    if distances is not None:
        _print_distances(distances)
    else:
        print_result(_CONTENT[_equal_content(theta_0, theta_1)])


_CONTENT = {
    True: "values: equal, by the content digests of both cards",
    False: "values: different, by the content digests of both cards; --values shows where",
    None: "values: not compared; --values reads them",
}


def _equal_content(theta_0: CheckpointReader, theta_1: CheckpointReader) -> bool | None:
    """Whether the cards' digests are equal; None where a file has none."""
    if theta_0.card is None or theta_1.card is None:
        return None
    return theta_0.card.digest == theta_1.card.digest


def _measure(theta_0: CheckpointReader, theta_1: CheckpointReader) -> list[TensorDistance]:
    # lazy: as above
    from wiseft_cli.merging.distance import measure_distances

    with progress(theta_0.size_bytes + theta_1.size_bytes, "comparing (bytes)") as advance:
        return measure_distances(theta_0, theta_1, on_progress=advance)


def _print_distances(distances: list[TensorDistance]) -> None:
    moved = [distance for distance in distances if not distance.is_equal]
    if moved:
        print_result("relative L2  largest    tensor")
    for distance in moved:
        note = f"  ({distance.n_not_finite} not finite)" if distance.n_not_finite else ""
        print_result(
            f"{distance.relative_l2:<11.4g}  {distance.largest:<9.4g}  {distance.name}{note}"
        )
    print_result(f"equal to the bit: {len(distances) - len(moved)} of {len(distances)}")


def _as_json(distance: TensorDistance) -> dict[str, Any]:
    # JSON has no infinity.
    is_finite = isfinite(distance.relative_l2)
    return {**vars(distance), "relative_l2": distance.relative_l2 if is_finite else None}
