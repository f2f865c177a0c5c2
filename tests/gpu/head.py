"""Fast: `wiseft zeroshot-head` against open_clip's builder, on the same weights and prompts."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.numpy import load_file
from safetensors.torch import save_file

from tests.gpu.commands import Context, call

MODEL = "ViT-B-16"
N_FEW = 10


def measure(context: Context) -> None:
    """Compare the time of 1,000 classes x 80 prompts, and the weights."""
    from wiseft_cli.demo.tiny_clip import embedded_model_folder

    folder = context.folder("clip")
    names, templates = open_clip.IMAGENET_CLASSNAMES, open_clip.OPENAI_IMAGENET_TEMPLATES
    model_folder = folder / "model"
    if context.is_reduced:
        names, templates, model_folder = names[:20], templates[:4], embedded_model_folder()
    else:
        write_random_clip(model_folder, MODEL)
    for name, count in (("few", N_FEW), ("all", len(names))):
        lines = (f"c{at}\t{text}\n" for at, text in enumerate(names[:count]))
        (folder / f"{name}.txt").write_text("".join(lines))
    (folder / "templates.txt").write_text("".join(f"{t('{}')}\n" for t in templates))

    def run(classes: str) -> float:
        words: list[object] = ["zeroshot-head", "--model", f"local-dir:{model_folder}"]
        words += ["--classes", folder / f"{classes}.txt", "--templates", folder / "templates.txt"]
        words += ["--device", context.device, "--force", "-o", folder / f"{classes}.safetensors"]
        begin = time.perf_counter()
        call(words)
        return time.perf_counter() - begin

    run("few")
    few, whole = run("few"), run("all")
    ours = (whole - few) * len(names) / (len(names) - N_FEW)
    theirs, weight = build(context, model_folder, names, templates)
    what = f"{len(names)} classes x {len(templates)} prompts"
    context.figures.add(f"open_clip's builder, {what}", theirs, "s")
    context.figures.add(
        f"wiseft zeroshot-head, {what}", ours, "s", note=f"the whole command {whole:.1f} s"
    )
    limit = 0.0 if context.is_reduced else 1.0
    context.figures.at_least("speed, times the builder's", theirs / ours, limit)
    own = load_file(folder / "all.safetensors")["classification_head.weight"]
    difference = float(abs(own - weight).max() / abs(weight).max())
    context.figures.at_most("weights, largest relative difference", difference, 1e-5)


def write_random_clip(folder: Path, model: str) -> None:
    """Write an open_clip model folder with random weights."""
    folder.mkdir()
    torch.manual_seed(0)
    clip = open_clip.create_model(model)
    config = {"model_cfg": open_clip.get_model_config(model), "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    save_file(clip.state_dict(), folder / "open_clip_model.safetensors", {"format": "pt"})


def build(context: Context, folder: Path, names: Any, templates: Any) -> tuple[float, Any]:
    """Build the head with open_clip; return the seconds and the weight (C, D)."""
    source = f"local-dir:{folder}"
    vocabulary = folder / "bpe.txt.gz"
    more = {"bpe_path": str(vocabulary)} if vocabulary.exists() else {}
    model = open_clip.create_model(source, device=context.device).eval()
    tokenizer = open_clip.get_tokenizer(source, **more)

    def head(names: Any) -> torch.Tensor:
        return open_clip.build_zero_shot_classifier(
            model, tokenizer, names, templates, device=context.device
        )

    with torch.inference_mode():
        head(names[:N_FEW]).cpu()
        begin = time.perf_counter()
        weight = head(names).cpu()
        seconds = time.perf_counter() - begin
        return seconds, (weight.T * model.logit_scale.exp().cpu()).numpy()
