"""`wiseft zeroshot-head`: CLIP weights, class names and prompts to a zero-shot checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wiseft_cli.checkpoint.atomic import check_output
from wiseft_cli.cli.console import print_json, print_result, progress, talk
from wiseft_cli.errors import UsageError
from wiseft_cli.prompts.templates import DEFAULT_TEMPLATES, read_templates


def zeroshot_head(
    model: Annotated[
        str,
        typer.Option(
            help="CLIP model: an open_clip name such as ViT-B-32, hf-hub:ORG/REPO, or "
            "local-dir:FOLDER."
        ),
    ],
    classes: Annotated[
        Path,
        typer.Option(
            help="Classes in the order of the head: a text file with `name` or `id<TAB>name` a "
            "line, a YAML or JSON mapping of id to name, or a folder with one subfolder a class."
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
        list[Path] | None,
        typer.Option(help="Text file with a prompt template a line, {} for the class; repeatable."),
    ] = None,
    template: Annotated[
        list[str] | None,
        typer.Option(
            help="One prompt template, {} for the class; repeatable.  [default: "
            f"{DEFAULT_TEMPLATES[0]}]",
            show_default=False,
        ),
    ] = None,
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
    # lazy: yaml costs a while, and --help needs none of it
    from wiseft_cli.prompts.class_names import read_class_names

    if random_weights and pretrained is not None:
        raise UsageError("--random-weights and --pretrained exclude each other")
    inputs = [classes, *(templates or []), *([Path(pretrained)] if pretrained else [])]
    check_output(output, force=force, inputs=inputs)
    class_list = read_class_names(classes)
    template_list = read_templates(templates or [], template or [])
    prompt_count = len(class_list.entries) * len(template_list)
    origin = "as given" if templates or template else "the default"
    talk(f"classes: {len(class_list.entries)} from {classes} ({class_list.source_kind})")
    talk(f"templates: {len(template_list)}, {origin}; {prompt_count} prompts")
    warnings = [*class_list.notes]

    def note(text: str) -> None:
        warnings.append(text)
        talk(f"note: {text}")

    for text in class_list.notes:
        talk(f"note: {text}")

    # lazy: torch and open_clip cost seconds
    from wiseft_cli.model.devices import resolve_device
    from wiseft_cli.model.zeroshot_checkpoint import ZeroshotRequest, write_zeroshot_checkpoint

    with progress(prompt_count, "encoding prompts") as advance:
        digest = write_zeroshot_checkpoint(
            output,
            ZeroshotRequest(model, pretrained, class_list.entries, template_list, random_weights),
            device=resolve_device(device),
            batch_size=batch_size,
            force=force,
            on_model=lambda description: talk(f"model: {description}"),
            on_note=note,
            on_progress=advance,
        )
    result = {"path": str(output), "digest": digest, "role": "zeroshot", "alpha": None}
    if as_json:
        print_json({**result, "warnings": warnings})
    else:
        print_result(str(output))
