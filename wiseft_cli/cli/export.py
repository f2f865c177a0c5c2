"""`wiseft export`: write a checkpoint as a whole CLIP model that open_clip loads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wiseft_cli.cli.console import print_data, print_json, print_message
from wiseft_cli.cli.options import Json
from wiseft_cli.errors import UsageError

EXAMPLES = """
wiseft export merged.safetensors --model ViT-B-32 --pretrained openai -o clip
wiseft export merged.safetensors --model local-dir:original-clip -o clip --force
"""


def export(
    checkpoint: Annotated[
        Path,
        typer.Argument(metavar="CHECKPOINT", help="A zero-shot, fine-tuned or merged checkpoint."),
    ],
    model: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="CLIP model that CHECKPOINT was made from, which provides the text tower: an "
            "open_clip name such as ViT-B-32, hf-hub:ORG/REPO, or local-dir:DIR.",
            rich_help_panel="Model",
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            help="open_clip model folder to write.",
            rich_help_panel="Output",
        ),
    ],
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
    """Write a checkpoint as a whole CLIP model that open_clip loads.

    The folder holds the image encoder and the text tower, but not the classification head;
    `open_clip.create_model_and_transforms("local-dir:DIR")` loads it. Prints the path of the
    folder.
    """
    if random_weights and pretrained is not None:
        raise UsageError("--random-weights and --pretrained exclude each other")

    from wiseft_cli.model.export import export_checkpoint  # lazy: torch and open_clip cost seconds

    exported = export_checkpoint(
        checkpoint,
        output,
        model=model,
        pretrained=pretrained,
        random_weights=random_weights,
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
