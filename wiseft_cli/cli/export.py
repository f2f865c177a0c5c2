"""`wiseft export`: write a checkpoint as a model folder of open_clip, transformers or timm."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from wiseft_cli.cli.console import print_data, print_json, print_message
from wiseft_cli.cli.options import Json
from wiseft_cli.errors import UsageError

EXAMPLES = """
wiseft export merged.safetensors --model ViT-B-32 --pretrained openai -o clip
wiseft export merged.safetensors --format transformers --results results.jsonl -o clip-hf
wiseft export merged.safetensors --format onnx -o clip-onnx
"""


class Format(StrEnum):
    """Values of `--format`."""

    open_clip = "open_clip"
    transformers = "transformers"
    timm = "timm"
    onnx = "onnx"


def export(
    checkpoint: Annotated[
        Path,
        typer.Argument(metavar="CHECKPOINT", help="A zero-shot, fine-tuned or merged checkpoint."),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            help="Model folder to write.",
            rich_help_panel="Output",
        ),
    ],
    format: Annotated[
        Format,
        typer.Option(
            metavar="LIBRARY",
            help="Library that loads the folder. open_clip: image encoder and text tower. "
            "transformers: image encoder and head, with --model the text tower too. timm, and "
            "onnx for onnxruntime: image encoder and head.",
            rich_help_panel="Output",
        ),
    ] = Format.open_clip,
    results: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Results of `wiseft eval`, whose metrics of CHECKPOINT go into the model card.",
            rich_help_panel="Output",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="CLIP model that CHECKPOINT was made from, which provides the text tower: an "
            "open_clip name such as ViT-B-32, hf-hub:ORG/REPO, local-dir:DIR, or a model folder "
            "of transformers. Required for open_clip.",
            rich_help_panel="Model",
        ),
    ] = None,
    pretrained: Annotated[
        str | None,
        typer.Option(
            metavar="TAG",
            help="Weights for an open_clip name: one of its tags, or a local file (.safetensors, "
            ".bin, .pt). hf-hub: and local-dir: models include their weights.",
            rich_help_panel="Model",
        ),
    ] = None,
    random_weights: Annotated[
        bool,
        typer.Option(
            "--random-weights",
            help="Use the random weights that zeroshot-head used, for trials.",
            rich_help_panel="Model",
        ),
    ] = False,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Replace a folder that an earlier export wrote.",
            rich_help_panel="Output",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Write a checkpoint as a model folder of another library.

    Each folder has a model card, README.md, and is ready for `hf upload`. Prints the path of the
    folder.
    """
    if random_weights and pretrained is not None:
        raise UsageError("--random-weights and --pretrained exclude each other")

    from wiseft_cli.model.export import export_checkpoint  # lazy: torch and open_clip cost seconds

    exported = export_checkpoint(
        checkpoint,
        output,
        format=format.value,
        model=model,
        pretrained=pretrained,
        random_weights=random_weights,
        results=results,
        force=force,
        on_message=print_message,
    )
    if as_json:
        card = exported.card
        print_json(
            {
                "path": str(output),
                "digest": exported.digest,
                "checkpoint": str(card.digest),
                "role": card.role,
                "alpha": card.alpha,
                "warnings": list(exported.notes),
            }
        )
    else:
        print_data(str(output))
