"""`wiseft predict`: images in, class names with probabilities out, as a stream."""

from __future__ import annotations

import os
import sys
from contextlib import closing
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wiseft_cli.cli.console import print_result, warn
from wiseft_cli.compute.workers import MAX_DEFAULT_WORKERS, default_workers
from wiseft_cli.errors import DatasetError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from wiseft_cli.checkpoint.card import ClassEntry
    from wiseft_cli.reporting.prediction_text import Prediction, Render


class Precision(StrEnum):
    """What `--precision` accepts."""

    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


def predict(
    checkpoint: Annotated[
        Path,
        typer.Argument(help="A checkpoint that wiseft wrote, of any role.", show_default=False),
    ],
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE|FOLDER|MANIFEST|-",
            help="Images; folders, for the images anywhere below; manifests (.csv, .tsv, .jsonl),"
            " for their paths; - for paths on standard input, one a line.",
            show_default=False,
        ),
    ],
    top: Annotated[int, typer.Option(min=1, metavar="K", help="Classes an image.")] = 5,
    as_json_lines: Annotated[
        bool, typer.Option("--jsonl", help="Print a JSON object an image, one a line.")
    ] = False,
    as_csv: Annotated[
        bool, typer.Option("--csv", help="Print CSV, a row for each class of each image.")
    ] = False,
    null: Annotated[
        bool,
        typer.Option(
            "--null", "-0", help="Paths on standard input end with NUL, as find -print0 writes."
        ),
    ] = False,
    precision: Annotated[
        Precision, typer.Option(help="What the image encoder computes in; the head is float32.")
    ] = Precision.fp32,
    batch_size: Annotated[int, typer.Option(min=1, help="Images a forward pass.")] = 64,
    workers: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Processes that decode images; 0 decodes in this one.  [default: one a CPU,"
            f" at most {MAX_DEFAULT_WORKERS}]",
        ),
    ] = None,
    device: Annotated[
        str, typer.Option(help="Where to compute: auto, cpu, cuda, cuda:N or mps.")
    ] = "auto",
) -> None:
    """Name the classes of images, a line an image, each batch as soon as it is done.

    An image that cannot be read is reported, the others go on, and the exit code is 1. Paths on
    standard input are read no further than the batch at hand.
    """
    if as_json_lines and as_csv:
        raise UsageError("--jsonl and --csv exclude each other")
    # lazy: --help of other commands must not wait for numpy
    from wiseft_cli.data.image_paths import STANDARD_INPUT, PathStream, image_paths
    from wiseft_cli.evaluation.weight_sets import read_checkpoints

    (found,) = read_checkpoints([checkpoint])
    paths = image_paths(images, PathStream(_read_stdin, b"\0" if null else b"\n"))
    # lazy: torch costs seconds
    from wiseft_cli.compute.devices import resolve_device
    from wiseft_cli.evaluation.top_classes import PredictSettings, predict_images

    settings = PredictSettings(
        top=top,
        batch_size=batch_size,
        workers=default_workers() if workers is None else workers,
        read_ahead=STANDARD_INPUT not in images,
        device=resolve_device(device),
        precision=precision.value,
    )
    with closing(predict_images(found, paths, settings)) as batches:
        _print(batches, found.card.classes, as_json_lines=as_json_lines, as_csv=as_csv)


def _read_stdin(n_bytes: int) -> bytes:
    """Read what has arrived: Python's own buffer would wait for more."""
    return b"" if sys.stdin is None else os.read(sys.stdin.fileno(), n_bytes)


def _print(
    batches: Iterable[list[Prediction]],
    classes: Sequence[ClassEntry],
    *,
    as_json_lines: bool,
    as_csv: bool,
) -> None:
    """Print each batch as it comes.

    Raises:
        DatasetError: Some images could not be read; the others are printed.
    """
    # lazy: as above
    from wiseft_cli.reporting import prediction_text

    render: Render = prediction_text.text_renderer(classes)
    if as_json_lines:
        render = prediction_text.as_json_lines
    elif as_csv:
        render = prediction_text.as_csv_rows
        print_result(prediction_text.CSV_HEADER)
    n_images = n_unreadable = 0
    for batch in batches:
        for prediction in batch:
            if prediction.error is not None:
                n_unreadable += 1
                warn(prediction_text.printable(prediction.error))
        n_images += len(batch)
        print_result("\n".join(render(batch)))
    if n_unreadable:
        raise DatasetError(f"{n_unreadable} of {n_images} images could not be read")
