"""`wiseft fisher`: the Fisher information of a checkpoint, for a Fisher-weighted merge."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from wiseft_cli.cli.completion import complete_data
from wiseft_cli.cli.console import print_data, print_json, print_message, progress, warn
from wiseft_cli.cli.options import Device, Force, Json, Threads, Workers
from wiseft_cli.errors import UsageError

if TYPE_CHECKING:
    from wiseft_cli.evaluation.fisher import FisherFile

EXAMPLES = """
wiseft fisher finetuned.safetensors --data photos/train -o fisher.safetensors
wiseft fisher finetuned.safetensors --data photos/train --labels data --samples all -o f.safetensors
"""

_data_option = partial(typer.Option, rich_help_panel="Images")
_output_option = partial(typer.Option, rich_help_panel="Output")
_compute_option = partial(typer.Option, rich_help_panel="Compute")


def fisher(
    checkpoint: Annotated[
        Path,
        typer.Argument(metavar="CHECKPOINT", help="A checkpoint that wiseft wrote, of any role."),
    ],
    data: Annotated[
        str,
        _data_option(
            autocompletion=complete_data,
            metavar="[NAME=]SPEC",
            help="Image set: a folder with one subfolder per class, a manifest (.csv, .tsv,"
            " .jsonl), shards (data-{000..127}.tar), or a published set (imagenet=FOLDER).",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path,
        _output_option("--output", "-o", metavar="FILE", help="Fisher file to write."),
    ],
    samples: Annotated[
        str,
        _data_option(
            metavar="N|all",
            help="Number of images, a random sample of the set, or all. Fewer than N are all used.",
        ),
    ] = "256",
    labels: Annotated[
        Literal["model", "data"],
        _data_option(
            metavar="model|data",
            help="Labels drawn from the model's own prediction (the true Fisher), or those of the"
            " image set (the empirical Fisher).",
        ),
    ] = "model",
    seed: Annotated[
        int,
        _data_option(min=0, metavar="N", help="Seed of the sample and of drawn labels."),
    ] = 0,
    max_bad: Annotated[
        int,
        _data_option(
            min=0,
            metavar="N",
            help="Maximum number of unreadable images in the sample; they are left out.",
        ),
    ] = 0,
    force: Force = False,
    as_json: Json = False,
    device: Device = "auto",
    workers: Workers = None,
    threads: Threads = None,
) -> None:
    """Compute how sensitive a classifier is to each of its weights.

    The diagonal Fisher information is the mean squared gradient of the log-probability of a label,
    per weight of the image encoder and the head (Matena and Raffel 2022, arXiv 2111.09832).
    `wiseft merge --method fisher` weights a merge with it. Prints the path of the file.
    """
    n_samples = _parse_samples(samples)
    # lazy: torch and open_clip take seconds
    from wiseft_cli.evaluation.fisher import compute_fisher, plan_fisher

    plan = plan_fisher(
        checkpoint,
        data,
        output,
        n_samples=n_samples,
        labels=labels,
        seed=seed,
        max_unreadable=max_bad,
        force=force,
    )
    for note in plan.notes:
        warn(note)
    with progress(len(plan.sample.records), "Fisher information (images)") as advance:
        done = compute_fisher(
            plan, device=device, workers=workers, threads=threads, on_progress=advance
        )
    for warning in done.warnings:
        warn(warning)
    if as_json:
        print_json(_document(done, plan.notes))
    else:
        print_message(done.info.describe())
        print_data(str(done.path))


def _parse_samples(text: str) -> int | None:
    if text == "all":
        return None
    if not (text.isascii() and text.isdigit() and int(text)):
        raise UsageError(f"--samples {text}: expected a number of images from 1, or all")
    return int(text)


def _document(done: FisherFile, notes: tuple[str, ...]) -> dict[str, Any]:
    return {
        "path": str(done.path),
        "role": "fisher",
        **vars(done.info),
        "warnings": [*notes, *done.warnings],
    }
