"""`wiseft zeroshot-head`: build a zero-shot checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from wiseft_cli.cli.completion import complete_classes, complete_templates
from wiseft_cli.cli.console import deferred_progress, print_data, print_json, print_message
from wiseft_cli.cli.options import Device, Force, Json
from wiseft_cli.errors import UsageError
from wiseft_cli.prompts.templates import DEFAULT_TEMPLATES

EXAMPLES = """
wiseft zeroshot-head --model ViT-B-32 --pretrained openai --classes imagenet -o zeroshot.safetensors
wiseft zeroshot-head --model local-dir:clip --classes pets.yaml --templates openai -o z.safetensors
"""


def zeroshot_head(
    model: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="CLIP model: an open_clip name such as ViT-B-32, hf-hub:ORG/REPO, local-dir:DIR, "
            "or the path of a model folder of transformers.",
            rich_help_panel="Model",
        ),
    ],
    classes: Annotated[
        str,
        typer.Option(
            autocompletion=complete_classes,
            metavar="SPEC",
            help="Classes in the order of the head: a text file with one `name` or `id<TAB>name` "
            "per line; a YAML or JSON file, which may also give synonyms or prompts; a folder with "
            "one subfolder per class; imagenet or another set that `wiseft datasets` lists; or "
            "torchvision:CLASS.",
            rich_help_panel="Classes and prompts",
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Zero-shot checkpoint to write.",
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
    templates: Annotated[
        list[str] | None,
        typer.Option(
            autocompletion=complete_templates,
            metavar="SPEC",
            help="Prompt templates with {} for the class name: a text file with one per line, a "
            "YAML file with a list, a built-in set, openai (80) or simple (7), or the templates of "
            "a set that `wiseft datasets` lists. Repeatable.",
            rich_help_panel="Classes and prompts",
        ),
    ] = None,
    template: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT",
            help="One prompt template with {} for the class name. Repeatable.  [default: "
            f"{DEFAULT_TEMPLATES[0]}]",
            show_default=False,
            rich_help_panel="Classes and prompts",
        ),
    ] = None,
    truncate: Annotated[
        bool,
        typer.Option(
            "--truncate",
            help="Cut prompts that exceed the model's context, keeping the end-of-text token, "
            "instead of rejecting them.",
            rich_help_panel="Classes and prompts",
        ),
    ] = False,
    image_encoder: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Checkpoint, fine-tuned or merged from --model, whose image encoder gets the "
            "head; or a file of image encoder weights from another program (visual.*). The text "
            "tower remains that of --model.",
            rich_help_panel="Model",
        ),
    ] = None,
    quick_gelu: Annotated[
        bool | None,
        typer.Option(
            "--quick-gelu/--no-quick-gelu",
            help="Build the model with QuickGELU or with GELU, overriding its weights.",
            show_default="as the weights state",
            rich_help_panel="Model",
        ),
    ] = None,
    exif_orientation: Annotated[
        Literal["apply", "ignore"] | None,
        typer.Option(
            metavar="apply|ignore",
            help="Whether images are turned upright by their EXIF orientation, in every later "
            "command. open_clip ignores it.  [default: apply; with --image-encoder as its "
            "checkpoint states]",
            show_default=False,
            rich_help_panel="Model",
        ),
    ] = None,
    random_weights: Annotated[
        bool,
        typer.Option(
            "--random-weights",
            help="Use random weights from a fixed seed, for trials.",
            rich_help_panel="Model",
        ),
    ] = False,
    device: Device = "auto",
    batch_size: Annotated[
        int,
        typer.Option(
            min=1, metavar="N", help="Prompts per forward pass.", rich_help_panel="Compute"
        ),
    ] = 256,
    precision: Annotated[
        Literal["fp32", "bf16"],
        typer.Option(
            help="Precision of the text tower. The file is always float32.",
            rich_help_panel="Compute",
        ),
    ] = "fp32",
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Build a zero-shot classifier from a CLIP model and class names.

    The weight of each class is the normalized mean of its normalized prompt features, times
    exp(logit_scale). No images are needed. Prints the path of the checkpoint.
    """
    if random_weights and pretrained is not None:
        raise UsageError("--random-weights and --pretrained exclude each other")

    from wiseft_cli.model.zeroshot_checkpoint import build_zeroshot_checkpoint  # lazy: --help

    with deferred_progress("encoding prompts") as on_progress:
        written = build_zeroshot_checkpoint(
            output,
            model=model,
            pretrained=pretrained,
            classes=classes,
            templates=template or [],
            template_sources=templates or [],
            image_encoder=image_encoder,
            truncate=truncate,
            quick_gelu=quick_gelu,
            exif_orientation=exif_orientation,
            precision=precision,
            batch_size=batch_size,
            device=device,
            random_weights=random_weights,
            force=force,
            on_message=print_message,
            on_progress=on_progress,
        )
    if as_json:
        result = {"path": str(output), "digest": written.digest, "role": "zeroshot", "alpha": None}
        print_json({**result, "warnings": list(written.notes)})
    else:
        print_data(str(output))
