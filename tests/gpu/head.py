"""Fast: `wiseft zeroshot-head` against open_clip's builder, on the same weights and prompts."""

from __future__ import annotations

import json
import time
from pathlib import Path

import open_clip
import torch
from safetensors.numpy import load_file
from safetensors.torch import save_file

from tests.gpu.commands import Context, call

MODEL = "ViT-B-16"
N_FEW = 10


def measure(context: Context) -> None:
    """Compare the time of 1,000 classes x 80 prompts, and the weights."""
    from wiseft_cli.demo.embedded import embedded_model_folder

    folder = context.folder("clip")
    names, templates = open_clip.IMAGENET_CLASSNAMES, open_clip.OPENAI_IMAGENET_TEMPLATES
    if context.is_reduced:
        names, templates, model = names[:20], templates[:4], embedded_model_folder()
    else:
        model = write_random_clip(folder / "model")
    for count in (N_FEW, len(names)):
        lines = (f"c{at}\t{text}\n" for at, text in enumerate(names[:count]))
        (folder / f"{count}.txt").write_text("".join(lines))
    (folder / "templates.txt").write_text("".join(f"{t('{}')}\n" for t in templates))
    words = ["zeroshot-head", "--model", f"local-dir:{model}", "--device", context.device]
    words += ["--templates", folder / "templates.txt", "--force", "-o", folder / "head"]
    seconds = []
    for count in (N_FEW, N_FEW, len(names)):  # the first one warms up
        begin = time.perf_counter()
        call([*words, "--classes", folder / f"{count}.txt"])
        seconds.append(time.perf_counter() - begin)
    own = load_file(folder / "head")["classification_head.weight"]
    # On a few names the difference can be smaller than its noise, and below zero.
    ours = max((seconds[2] - seconds[1]) * len(names) / (len(names) - N_FEW), 1e-3)
    theirs, weight = build(context.device, model, names, templates)
    what = f"{len(names)} classes x {len(templates)} prompts"
    note = f"the command takes {seconds[2]:.1f} s in all"
    context.figures.add(f"open_clip's builder, {what}", theirs, "s")
    context.figures.add(f"wiseft zeroshot-head, {what}", ours, "s", note=note)
    limit = 0.0 if context.is_reduced else 1.0
    context.figures.at_least("speed, times the builder's", theirs / ours, limit)
    difference = float(abs(own - weight.numpy()).max() / weight.abs().max())
    context.figures.at_most("weights, largest relative difference", difference, 1e-5)


def write_random_clip(folder: Path) -> Path:
    """Write an open_clip model folder with random weights, and return it."""
    folder.mkdir()
    clip = open_clip.create_model(MODEL)
    config = {"model_cfg": open_clip.get_model_config(MODEL), "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    save_file(clip.state_dict(), folder / "open_clip_model.safetensors", {"format": "pt"})
    return folder


def build(
    device: str, folder: Path, names: list[str], templates: list
) -> tuple[float, torch.Tensor]:
    """Build the head with open_clip; return the seconds and the weight (C, D)."""
    source, vocabulary = f"local-dir:{folder}", folder / "bpe.txt.gz"
    more = {"bpe_path": str(vocabulary)} if vocabulary.exists() else {}
    model = open_clip.create_model(source, device=device).eval()
    tokenizer = open_clip.get_tokenizer(source, **more)
    builder = open_clip.build_zero_shot_classifier
    with torch.inference_mode():
        builder(model, tokenizer, names[:N_FEW], templates, device=device).cpu()
        begin = time.perf_counter()
        weight = builder(model, tokenizer, names, templates, device=device).cpu()
        seconds = time.perf_counter() - begin
        return seconds, weight.T * model.logit_scale.exp().cpu()
