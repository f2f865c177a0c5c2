"""`wiseft zeroshot-head`: CLIP weights, class names and prompts to a zero-shot checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from wiseft_cli.checkpoint.atomic import check_output
from wiseft_cli.cli.console import print_json, print_message, print_result, progress, warn
from wiseft_cli.cli.zeroshot_prompts import read_classes, read_prompt_templates, template_files
from wiseft_cli.errors import UsageError
from wiseft_cli.prompts.templates import DEFAULT_TEMPLATES

if TYPE_CHECKING:
    from wiseft_cli.prompts.class_names import ClassList


def zeroshot_head(
    model: Annotated[
        str,
        typer.Option(
            help="CLIP model: an open_clip name such as ViT-B-32, hf-hub:ORG/REPO, or "
            "local-dir:FOLDER."
        ),
    ],
    classes: Annotated[
        str,
        typer.Option(
            help="Classes in the order of the head: a text file with `name` or `id<TAB>name` a "
            "line, a YAML or JSON file (also with synonyms or prompts of each class), a folder "
            "with one subfolder a class, or imagenet or another published set "
            "that `wiseft datasets` lists, or torchvision:CLASS."
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Where the zero-shot checkpoint is written.")
    ],
    pretrained: Annotated[
        str | None,
        typer.Option(
            help="Weights of an open_clip name: one of its tags, or a local file (.safetensors, "
            ".bin, .pt). A hub or folder model brings its own."
        ),
    ] = None,
    templates: Annotated[
        list[str] | None,
        typer.Option(
            help="Prompt templates, {} for the class: a text file with one a line, a YAML file "
            "with a list, a built-in set, openai (80) or simple (7), or those of a set that "
            "`wiseft datasets` lists; repeatable."
        ),
    ] = None,
    template: Annotated[
        list[str] | None,
        typer.Option(
            help="One prompt template, {} for the class; repeatable.  [default: "
            f"{DEFAULT_TEMPLATES[0]}]",
            show_default=False,
        ),
    ] = None,
    image_encoder: Annotated[
        Path | None,
        typer.Option(
            help="Checkpoint whose image encoder gets the head, fine-tuned or merged from --model; "
            "the text tower stays that of --model."
        ),
    ] = None,
    truncate: Annotated[
        bool,
        typer.Option(
            "--truncate",
            help="Cut prompts longer than the model's context, keeping the end-of-text token, "
            "instead of refusing them.",
        ),
    ] = False,
    quick_gelu: Annotated[
        bool | None,
        typer.Option(
            "--quick-gelu/--no-quick-gelu",
            help="Build the model with QuickGELU, or with GELU, whatever its weights say.",
            show_default="what the weights say",
        ),
    ] = None,
    precision: Annotated[
        Literal["fp32", "bf16"],
        typer.Option(help="What the text tower computes in; the file is float32 always."),
    ] = "fp32",
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts a forward pass.")] = 256,
    device: Annotated[
        str, typer.Option(help="Where to compute: auto, cpu, cuda, cuda:N or mps.")
    ] = "auto",
    random_weights: Annotated[
        bool,
        typer.Option(
            "--random-weights", help="Draw the weights at random, from a fixed seed; for trials."
        ),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing output.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as JSON instead of the path alone.")
    ] = False,
) -> None:
    """Build a zero-shot classifier from a CLIP model, class names and prompt templates.

    Each class's weight is the mean of its normalised prompt features, normalised again, times
    exp(logit_scale). No images are needed. The path of the checkpoint is printed.
    """
    if random_weights and pretrained is not None:
        raise UsageError("--random-weights and --pretrained exclude each other")
    inputs = [Path(classes), *template_files(templates or [])]
    inputs += [Path(pretrained)] if pretrained else []
    inputs += [image_encoder] if image_encoder else []
    check_output(output, force=force, inputs=inputs)
    class_list = read_classes(classes)
    template_list = read_prompt_templates(class_list, templates or [], template or [])
    prompt_count = sum(1 for _ in class_list.prompts(template_list))
    print_message(f"classes: {len(class_list.entries)} from {classes} ({class_list.source_kind})")
    print_message(
        _describe_templates(class_list, template_list, prompt_count, bool(templates or template))
    )
    warnings = [*class_list.notes]

    def note(text: str) -> None:
        warnings.append(text)
        if isinstance(text, Doubt):
            warn(text)
        else:
            print_message(f"note: {text}")

    for text in class_list.notes:
        print_message(f"note: {text}")

    # lazy: torch and open_clip cost seconds
    from wiseft_cli.compute.devices import resolve_device
    from wiseft_cli.model.full_clip import Doubt
    from wiseft_cli.model.zeroshot_checkpoint import ZeroshotRequest, write_zeroshot_checkpoint

    with progress(prompt_count, "encoding prompts") as advance:
        digest = write_zeroshot_checkpoint(
            output,
            ZeroshotRequest(
                model,
                pretrained,
                class_list,
                template_list,
                random_weights,
                quick_gelu=quick_gelu,
                truncate=truncate,
                image_encoder=image_encoder,
                precision=precision,
            ),
            device=resolve_device(device),
            batch_size=batch_size,
            force=force,
            on_model=lambda description: print_message(f"model: {description}"),
            on_note=note,
            on_progress=advance,
        )
    result = {"path": str(output), "digest": digest, "role": "zeroshot", "alpha": None}
    if as_json:
        print_json({**result, "warnings": warnings})
    else:
        print_result(str(output))


def _describe_templates(
    class_list: ClassList, templates: Sequence[str], prompt_count: int, were_given: bool
) -> str:
    own = len(class_list.own_prompts)
    prompts = "1 prompt" if prompt_count == 1 else f"{prompt_count} prompts"
    if not templates:
        return f"templates: none, every class brings its own prompts; {prompts}"
    origin = "as given" if were_given else "the default"
    brought = f", {own} of {len(class_list.entries)} classes bring their own" if own else ""
    return f"templates: {len(templates)}, {origin}; {prompts}{brought}"
