"""`wiseft export`: a checkpoint back to a whole CLIP model that open_clip loads by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wiseft_cli.cli.console import print_json, print_message, print_result
from wiseft_cli.errors import UsageError


def export(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            metavar="CHECKPOINT", help="A zero-shot, fine-tuned or merged checkpoint of wiseft."
        ),
    ],
    model: Annotated[
        str,
        typer.Option(
            help="CLIP model that CHECKPOINT was made from: an open_clip name such as ViT-B-32, "
            "hf-hub:ORG/REPO, or local-dir:FOLDER. Its text tower is taken."
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The open_clip model folder to write.")
    ],
    pretrained: Annotated[
        str | None,
        typer.Option(
            help="Weights of an open_clip name: one of its tags, or a local file (.safetensors, "
            ".bin, .pt). A hub or folder model brings its own."
        ),
    ] = None,
    random_weights: Annotated[
        bool,
        typer.Option(
            "--random-weights", help="Draw the weights at random, as zeroshot-head did; for trials."
        ),
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace a folder that export wrote before.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as JSON instead of the path alone.")
    ] = False,
) -> None:
    """Write a checkpoint's image encoder and its text tower as an open_clip model folder.

    `open_clip.create_model_and_transforms("local-dir:FOLDER")` loads it. The classification
    head is not part of it. The path of the folder is printed.
    """
    if random_weights and pretrained is not None:
        raise UsageError("--random-weights and --pretrained exclude each other")
    warnings: list[str] = []

    def note(text: str) -> None:
        warnings.append(text)
        print_message(f"note: {text}")

    from wiseft_cli.model.export import export_clip  # lazy: torch and open_clip cost seconds

    written = export_clip(
        checkpoint,
        output,
        model=model,
        pretrained=pretrained,
        random_weights=random_weights,
        force=force,
        on_model=lambda description: print_message(f"model: {description}"),
        on_note=note,
    )
    if as_json:
        print_json(
            {
                "path": str(output),
                "digest": written.digest,
                "checkpoint": written.checkpoint,
                "role": written.role,
                "alpha": written.alpha,
                "warnings": warnings,
            }
        )
    else:
        print_result(str(output))
