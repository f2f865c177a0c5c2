"""`wiseft predict`: the most probable classes of images, as a stream."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wiseft_cli.cli.console import print_data, warn
from wiseft_cli.cli.options import BatchSize, Device, Precision, Threads, Workers
from wiseft_cli.errors import DatasetError, UsageError, did_you_mean_path

if TYPE_CHECKING:
    from wiseft_cli.reporting.prediction_text import Prediction, Render

EXAMPLES = """
wiseft predict merged.safetensors photos --top 3
find photos -name '*.jpg' | wiseft predict merged.safetensors - --jsonl
"""

_prediction_option = partial(typer.Option, rich_help_panel="Prediction")
_output_option = partial(typer.Option, rich_help_panel="Output")
_compute_option = partial(typer.Option, rich_help_panel="Compute")


def predict(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            metavar="CHECKPOINT",
            help="A checkpoint that wiseft wrote, of any role.",
            show_default=False,
        ),
    ],
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE|FOLDER|MANIFEST|-",
            help="Images; folders, for all images below them; manifests (.csv, .tsv, .jsonl), for"
            " the paths in them; - for paths on standard input, one per line.",
            show_default=False,
        ),
    ],
    top: Annotated[
        int,
        _prediction_option(min=1, metavar="K", help="Classes per image."),
    ] = 5,
    null: Annotated[
        bool,
        _prediction_option(
            "--null",
            "-0",
            help="Paths on standard input end with NUL, as `find -print0` writes them.",
        ),
    ] = False,
    as_json_lines: Annotated[
        bool,
        _output_option("--jsonl", help="Print one JSON object per image."),
    ] = False,
    as_csv: Annotated[
        bool,
        _output_option("--csv", help="Print CSV, one row per image and class."),
    ] = False,
    device: Device = "auto",
    batch_size: BatchSize = 64,
    precision: Precision = "fp32",
    workers: Workers = None,
    threads: Threads = None,
) -> None:
    """Print the most probable classes of images, without labels.

    One line is printed per image, each batch as soon as it is done. An image that cannot be read
    is reported and the others go on; the exit code is then 1. Paths on standard input are read no
    further than the current batch.
    """
    if as_json_lines and as_csv:
        raise UsageError("--jsonl and --csv exclude each other")
    # lazy: --help of other commands must not wait for numpy
    from wiseft_cli.data.image_paths import PathStream
    from wiseft_cli.evaluation.predict import predict as predict_images
    from wiseft_cli.reporting import prediction_text

    predictions = predict_images(
        checkpoint,
        images,
        top=top,
        precision=precision,
        batch_size=batch_size,
        workers=workers,
        threads=threads,
        device=device,
        stdin=PathStream(_read_stdin, b"\0" if null else b"\n"),
    )
    render = prediction_text.as_text
    if as_json_lines:
        render = prediction_text.as_json_lines
    elif as_csv:
        render = prediction_text.as_csv_rows
        print_data(prediction_text.CSV_HEADER)
    with closing(predictions):
        _print(predictions, batch_size, render)


def _read_stdin(n_bytes: int) -> bytes:
    """Read what has arrived: Python's own buffer would wait for more."""
    return b"" if sys.stdin is None else os.read(sys.stdin.fileno(), n_bytes)


def _print(predictions: Iterator[Prediction], batch_size: int, render: Render) -> None:
    """Print each batch as it comes.

    Raises:
        DatasetError: Some images could not be read; the others are printed.
    """
    # lazy: as above
    from wiseft_cli.checkpoint.card import describe_ignored_orientation
    from wiseft_cli.reporting.prediction_text import printable

    n_images = n_unreadable = n_rotated = 0
    missing: str | None = None
    while batch := list(islice(predictions, batch_size)):
        unreadable = [prediction for prediction in batch if prediction.error is not None]
        for prediction in unreadable:
            warn(printable(str(prediction.error)))
            if missing is None and not os.path.lexists(prediction.path):
                missing = prediction.path
        n_images += len(batch)
        n_unreadable += len(unreadable)
        n_rotated += sum(prediction.is_rotated for prediction in batch)
        print_data("\n".join(render(batch)))
    if n_rotated:
        warn(describe_ignored_orientation(n_rotated, n_images))
    if n_unreadable:
        raise DatasetError(
            f"{n_unreadable} of {n_images} images could not be read",
            hint=did_you_mean_path(missing) if missing else None,
        )
