"""`wiseft diff`: compare two checkpoints by their headers, and with --values by their data."""

from __future__ import annotations

from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wiseft_cli.cli.console import print_json, print_result, progress
from wiseft_cli.cli.options import Json
from wiseft_cli.errors import list_some

if TYPE_CHECKING:
    from wiseft_cli.checkpoint.reader import CheckpointReader
    from wiseft_cli.merging.compatibility import Comparison
    from wiseft_cli.merging.distance import BlockDistance, TensorDistance

EXAMPLES = """
wiseft diff zeroshot.safetensors finetuned.safetensors
wiseft diff zeroshot.safetensors finetuned.safetensors --values
"""

_CONTENT = {
    True: "values: equal, by the content digests in both cards",
    False: "values: different, by the content digests in both cards; --values shows where",
    None: "values: not compared; --values compares them",
}


def diff(
    a: Annotated[
        Path,
        typer.Argument(metavar="A", help="A safetensors file, an index of shards, or a folder."),
    ],
    b: Annotated[Path, typer.Argument(metavar="B", help="The checkpoint to compare with A.")],
    values: Annotated[
        bool,
        typer.Option(
            "--values",
            rich_help_panel="Content",
            help="Read all data; show ||B - A|| / ||A|| and the largest absolute difference of "
            "every tensor, the largest first, and of every block of layers in order.",
        ),
    ] = False,
    match_names: Annotated[
        bool,
        typer.Option(
            "--match-names",
            rich_help_panel="Content",
            help="Match tensors whose names differ only in spelling: wrappers such as module., "
            "prefixes, and the names of transformers, timm and open_clip.",
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Compare two checkpoints and name the likely cause of differences.

    Compares tensor names, shapes, dtypes, classes, model and preprocessing, all from the headers.
    The exit code is 0 whether or not they differ.
    """
    # lazy: numpy takes a tenth of a second, and --help does not need it
    from wiseft_cli.convert.matching import NameMatcher
    from wiseft_cli.merging.compatibility import compare
    from wiseft_cli.merging.merge import open_inputs

    matcher = NameMatcher()
    opens = matcher.open if match_names else open_inputs
    with opens([a, b]) as (theta_0, theta_1):
        found = compare(theta_0, theta_1)
        distances = _measure(theta_0, theta_1) if values else None
    if json:
        matched = {"matched": matcher.notes} if match_names else {}
        print_json(_document(found, distances) | matched)
    else:
        for note in matcher.notes:
            print_result(f"matched: {note}")
        _print(found, distances)


def _measure(theta_0: CheckpointReader, theta_1: CheckpointReader) -> list[TensorDistance]:
    # lazy: as above
    from wiseft_cli.merging.distance import measure_distances

    with progress(theta_0.size_bytes + theta_1.size_bytes, "comparing (bytes)") as advance:
        return measure_distances(theta_0, theta_1, on_progress=advance)


def _document(found: Comparison, distances: list[TensorDistance] | None) -> dict[str, Any]:
    differences = found.describe()
    document: dict[str, Any] = {
        "a": str(found.theta_0.path),
        "b": str(found.theta_1.path),
        "is_compatible": not differences,
        "n_common": found.n_common,
        "differences": differences,
        "equal_content": found.has_equal_content,
        "likely_cause": found.likely_cause(),
        "factored": [weight.describe() for weight in found.factored],
    }
    if distances is not None:
        # JSON has no infinity.
        document["distances"] = [_finite(one) for one in distances]
        document["blocks"] = [_finite(one) for one in _blocks(distances)]
        document["not_compared"] = dict(_uncompared(found))
    return document


def _finite(one: TensorDistance | BlockDistance) -> dict[str, Any]:
    fields = {name: value for name, value in vars(one).items() if not name.startswith("square_")}
    return {**fields, "relative_l2": one.relative_l2 if isfinite(one.relative_l2) else None}


def _blocks(distances: list[TensorDistance]) -> list[BlockDistance]:
    # lazy: as above
    from wiseft_cli.merging.distance import sum_by_block

    return sum_by_block(distances)


def _print(found: Comparison, distances: list[TensorDistance] | None) -> None:
    differences, cause = found.describe(), found.likely_cause()
    print_result(
        f"common tensors: {found.n_common}, differences in headers and cards: {len(differences)}"
    )
    for line in differences:
        print_result(f"  {line}")
    if cause:
        print_result(f"likely cause: {cause}")
    if found.factored:
        print_result(
            f"weights stored as several tensors: {len(found.factored)}, for example "
            f"{found.factored[0].describe()}; merge rejects those that differ"
        )
    if distances is None:
        print_result(_CONTENT[found.has_equal_content])
    else:
        _print_distances(distances)
        if uncompared := [f"{name} ({reason})" for name, reason in _uncompared(found)]:
            print_result(f"values not compared: {', '.join(list_some(uncompared))}")


def _uncompared(found: Comparison) -> list[tuple[str, str]]:
    # lazy: as above
    from wiseft_cli.merging.distance import uncompared_tensors

    return uncompared_tensors(found.theta_0, found.theta_1)


def _print_distances(distances: list[TensorDistance]) -> None:
    different = [distance for distance in distances if not distance.is_equal]
    if different:
        print_result("relative L2  largest    tensor")
    for distance in different:
        note = f"  ({distance.n_not_finite} not finite)" if distance.n_not_finite else ""
        print_result(
            f"{distance.relative_l2:<11.4g}  {distance.largest:<9.4g}  {distance.name}{note}"
        )
    if different and (blocks := _blocks(distances)):
        print_result("relative L2  largest    block, from the first to the last")
        for block in blocks:
            if block.relative_l2:
                print_result(f"{block.relative_l2:<11.4g}  {block.largest:<9.4g}  {block.name}")
    print_result(f"bitwise equal: {len(distances) - len(different)} of {len(distances)}")
