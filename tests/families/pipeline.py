"""Run the commands on a family's small model, and load it with open_clip."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.clip_merges import write_clip_merges
from tests.families.catalog import Family, small_config
from tests.families.small_tokenizers import put_small_tower_on_the_hub, write_small_tokenizer
from tests.model.conftest import MERGES
from wiseft_cli.cli.app import main
from wiseft_cli.model.full_clip import build_untrained_clip

NAMES = ("cat", "sea lion")
TEMPLATES = ("a {}.", "one {} here", "{}")
IMAGES = 3
"""Images per class."""
PREPROCESS = {"mean": [0.5] * 3, "std": [0.25] * 3, "resize_mode": "squash"}


@dataclass(frozen=True)
class Run:
    """The outputs of the commands for one family, and open_clip's model.

    Attributes:
        model: The model that `open_clip.create_model_and_transforms` loads from `folder`.
        transform: Its evaluation transform.
        tokenizer: Its tokenizer from `open_clip.get_tokenizer`.
        rows: Rows of `eval --json` for the zero-shot, fine-tuned and merged checkpoints.
    """

    folder: Path
    model: Any
    transform: Any
    tokenizer: Any
    zeroshot: Path
    finetuned: Path
    merged: Path
    exported: Path
    rows: Sequence[dict[str, Any]]
    images: Path


def run_family(family: Family, place: Path) -> Run:
    """Run zeroshot-head, finetune, merge, eval and export on a family's small model."""
    folder = write_small_model(family, place / "model")
    size = small_config(family)["vision_cfg"]["image_size"]
    images = write_pictures(place / "images", size)
    zeroshot, finetuned, merged = (place / f"{name}.safetensors" for name in "zfm")
    command(*head_arguments(folder, place, zeroshot))
    recipe = ["--steps", 1, "--warmup", 0, "--batch-size", 6, "--lr", "1e-3"]
    options = ["--device", "cpu", "--workers", 0, "--threads", 1, "--save-every", "never"]
    command("finetune", zeroshot, "--train", images, "-o", finetuned, *recipe, *options)
    command("merge", "--alpha", "0.5", zeroshot, finetuned, "-o", merged)
    files = [zeroshot, finetuned, merged]
    evaluated = command(
        "eval", *files, "--data", images, "--json", "--device", "cpu", "--workers", 0
    )
    exported = place / "exported"
    command("export", merged, "--model", f"local-dir:{folder}", "-o", exported)
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    return Run(
        folder,
        model.eval(),
        transform,
        open_clip.get_tokenizer(f"local-dir:{folder}", **bpe_option(folder)),
        *files,
        exported,
        json.loads(evaluated),
        images,
    )


def head_arguments(folder: Path, place: Path, output: Path) -> list[str]:
    """Write a class list into `place` and return the command line of zeroshot-head."""
    classes = place / "classes.txt"
    classes.write_text("".join(f"{name.replace(' ', '_')}\t{name}\n" for name in NAMES))
    templates = [argument for text in TEMPLATES for argument in ("--template", text)]
    model = ["--model", f"local-dir:{folder}", "--classes", str(classes), "--device", "cpu"]
    return ["zeroshot-head", *model, *templates, "-o", str(output)]


def command(*arguments: object) -> str:
    """Run a wiseft command in this process and return its stdout."""
    out = StringIO()
    with redirect_stdout(out):
        code = main([str(argument) for argument in arguments])
    assert code == 0, f"wiseft {' '.join(map(str, arguments))}: exit code {code}"
    return out.getvalue()


def write_small_model(family: Family, folder: Path) -> Path:
    """Write an open_clip `local-dir` folder of the family's small model."""
    folder.mkdir(parents=True)
    if family.hub_tower is not None:
        put_small_tower_on_the_hub(family.hub_tower)
    config = small_config(family)
    if family.tokenizer == "clip":
        config["text_cfg"]["tokenizer_kwargs"] = {"bpe_path": "bpe.txt.gz"}
        write_clip_merges(folder / "bpe.txt.gz", MERGES)
    else:
        write_small_tokenizer(folder, family.tokenizer)
    document = {"model_cfg": config, "preprocess_cfg": PREPROCESS}
    (folder / "open_clip_config.json").write_text(json.dumps(document))
    save_file(random_weights(config), folder / "open_clip_model.safetensors")
    return folder


def random_weights(config: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Return random weights; no parameter or running statistic has its initial value."""
    torch.manual_seed(0)
    model = build_untrained_clip(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name == "text_decoder.text_projection":
                # open_clip does not initialize it: its values are whatever was in memory.
                parameter.zero_()
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
        for name, buffer in model.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer += 0.1 * torch.rand(buffer.shape, generator=generator)
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def bpe_option(folder: Path) -> dict[str, str]:
    """Return the option without which open_clip looks in the working directory."""
    path = folder / "bpe.txt.gz"
    return {"bpe_path": str(path)} if path.exists() else {}


def write_pictures(folder: Path, size: int) -> Path:
    """Write a few PNG files of noise per class, in the model's image size."""
    generator = np.random.default_rng(0)
    for name in NAMES:
        parent = folder / name.replace(" ", "_")
        parent.mkdir(parents=True)
        for index in range(IMAGES):
            pixels = generator.integers(0, 256, (size, size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(parent / f"{index}.png")
    return folder
