"""`wiseft convert`: rename the tensors of a checkpoint to those of another library."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wiseft_cli.cli.console import deferred_progress, print_data, print_json, print_message
from wiseft_cli.cli.options import Force, Json

if TYPE_CHECKING:
    from wiseft_cli.convert.names import Naming

EXAMPLES = """
wiseft convert clip-vit-base-patch32/model.safetensors -o clip.safetensors
wiseft convert open_clip_model.safetensors --to transformers -o model.safetensors
wiseft convert clip-vit-base-patch32/ -o clip/
wiseft convert epoch_10.pt -o run-a.safetensors
wiseft convert lora-adapter/ --base clip.safetensors -o finetuned.safetensors
"""


class Target(StrEnum):
    """Values of `--to`."""

    open_clip = "open_clip"
    transformers = "transformers"
    timm = "timm"


def convert(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A safetensors file, an index of shards, or a folder, with the tensor names of "
            "transformers, timm or open_clip; a file of torch.save (.pt, .bin, .ckpt), which is "
            "never run; or the folder of a LoRA adapter of PEFT.",
        ),
    ],
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            metavar="OUT",
            help="Safetensors file to write. DIR/ with a slash at its end writes a model folder, "
            "with config, preprocessing and tokenizer from the files beside SOURCE's weights.",
            rich_help_panel="Output",
        ),
    ],
    to: Annotated[
        Target | None,
        typer.Option(
            metavar="LIBRARY",
            help="Library whose tensor names the output has: open_clip, transformers or timm. "
            "Default: open_clip; a file of torch.save and an adapter keep their names.",
            rich_help_panel="Conversion",
        ),
    ] = None,
    key: Annotated[
        str | None,
        typer.Option(
            metavar="KEY",
            help="Entry of a file of torch.save that holds the weights, if several do: "
            "state_dict_ema, or ema.model for one inside another.",
            rich_help_panel="Conversion",
        ),
    ] = None,
    base: Annotated[
        Path | None,
        typer.Option(
            metavar="CHECKPOINT",
            help="Model that a LoRA adapter was trained on; the output is the merged model.",
            rich_help_panel="Conversion",
        ),
    ] = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Convert models between libraries, bit for bit, .pt files, and LoRA.

    Tensors are renamed, and joined, split or transposed where the libraries differ. A file of
    torch.save is read as data and written as safetensors; a LoRA adapter is merged into its base
    model. Prints the path of the output.
    """
    from wiseft_cli.convert.convert import (
        convert_checkpoint,
    )  # lazy: numpy costs a tenth of a second

    with deferred_progress("converting (bytes)") as on_progress:
        done = convert_checkpoint(
            source,
            output,
            to=to.value if to else None,
            key=key,
            base=base,
            writes_folder=output.endswith("/"),
            force=force,
            on_progress=on_progress,
        )
    print_message(f"{_describe(done.source, done.target)}, {done.n_tensors} tensors")
    for note in done.notes:
        print_message(f"note: {note}")
    if as_json:
        print_json(
            {
                "path": output,
                "digest": done.digest,
                "from": done.source and f"{done.source.library}/{done.source.family}",
                "to": done.target and f"{done.target.library}/{done.target.family}",
                "tensors": done.n_tensors,
                "warnings": list(done.notes),
            }
        )
    else:
        print_data(output)


def _describe(source: Naming | None, target: Naming | None) -> str:
    if source is None:
        return "names kept"
    return f"{source}, kept" if source == target else f"{source} -> {target}"
