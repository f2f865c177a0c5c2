"""Tiny classifiers with random weights, and image folders of noise, for the evaluation's tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from wiseft_cli.checkpoint.card import Card, ClassEntry, HistoryEntry, HistoryInput, ModelSpec
from wiseft_cli.checkpoint.reader import read_card
from wiseft_cli.checkpoint.writer import write_checkpoint
from wiseft_cli.data.image_folder import list_image_folder
from wiseft_cli.evaluation.plan import Job, plan_jobs
from wiseft_cli.evaluation.sweep import SweepSettings, sweep
from wiseft_cli.evaluation.weight_sets import plan_weight_sets, read_checkpoints
from wiseft_cli.merging.alpha import parse_alphas
from wiseft_cli.model.classifier import load_classifier
from wiseft_cli.model.image_encoder import build_image_encoder
from wiseft_cli.reporting.results import ResultLine

# Has batch norm, and so integer tensors and running statistics.
RESNET = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 16},
}
VIT = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 32, "layers": 1, "head_width": 16},
}
PREPROCESS: dict[str, Any] = {"size": 32, "mean": [0.5] * 3, "std": [0.25] * 3}
CLASSES = tuple(ClassEntry(f"n{at:02d}", f"class {name}") for at, name in enumerate("abcdefgh"))


def random_tensors(config: Mapping[str, Any], *, n_classes: int, seed: int) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    tensors: dict[str, Any] = {
        "classification_head.weight": random.normal(size=(n_classes, config["embed_dim"])),
        "classification_head.bias": random.normal(size=n_classes, scale=0.01),
    }
    for name, tensor in build_image_encoder(config).state_dict().items():
        if name.endswith("num_batches_tracked"):
            tensors[f"visual.{name}"] = np.array(seed, np.int64)
            continue
        scale = 1 / np.sqrt(max(1, np.prod(tensor.shape[1:])))
        values = random.normal(scale=scale, size=tuple(tensor.shape))
        tensors[f"visual.{name}"] = np.abs(values) + 0.5 if "running_var" in name else values
    return {
        name: values if values.dtype == np.int64 else values.astype(np.float32)
        for name, values in tensors.items()
    }


def make_checkpoint(
    path: Path,
    *,
    seed: int,
    role: str = "zeroshot",
    config: Mapping[str, Any] = VIT,
    preprocess: Mapping[str, Any] = PREPROCESS,
    classes: Sequence[ClassEntry] = CLASSES,
    parent: Path | None = None,
) -> Path:
    """A checkpoint of random weights; with a parent, a descendant of it in name."""
    inputs = () if parent is None else (HistoryInput("zeroshot", str(read_card(parent).digest)),)
    command = "zeroshot-head" if parent is None else "finetune"
    card = Card(
        role=role,
        model=ModelSpec("tiny", None, config),
        preprocess=preprocess,
        classes=tuple(classes),
        templates=("a {}",),
        history=(HistoryEntry(command, "0.1.0", {}, inputs),),
    )
    tensors = random_tensors(config, n_classes=len(classes), seed=seed)
    write_checkpoint(path, tensors, card)
    # A random encoder's features are nearly the same for every image: the bias takes out what
    # they share, so that predictions differ.
    noise = torch.rand(64, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    images = functional.interpolate(noise, size=(32, 32), mode="bicubic") * 4 - 2
    with torch.no_grad():
        logits = load_classifier(path)[0](images).mean(dim=0).numpy()
    tensors["classification_head.bias"] -= logits
    write_checkpoint(path, tensors, card, force=True)
    return path


def make_pair(folder: Path, **options: Any) -> tuple[Path, Path]:
    theta_0 = make_checkpoint(folder / "zeroshot.safetensors", seed=1, **options)
    theta_1 = make_checkpoint(
        folder / "finetuned.safetensors", seed=2, role="finetuned", parent=theta_0, **options
    )
    return theta_0, theta_1


def make_images(
    root: Path, labels: Sequence[str], *, per_class: int, seed: int = 0, size: int = 40
) -> Path:
    """Pictures of smooth noise, each different, `per_class` for each label."""
    random = np.random.default_rng(seed)
    for label in labels:
        (root / label).mkdir(parents=True)
        for at in range(per_class):
            coarse = random.integers(0, 256, size=(4, 4, 3), dtype=np.uint8)
            picture = Image.fromarray(coarse).resize(
                (size, size + at % 3), Image.Resampling.BICUBIC
            )
            picture.save(root / label / f"{at}.png")
    return root


def jobs_of(
    paths: Sequence[Path],
    folders: Sequence[Path],
    alphas: str | None = None,
    *,
    ensemble: bool = False,
    precision: str = "fp32",
) -> tuple[Job, ...]:
    """The jobs of checkpoints, or of points between two, on image folders."""
    rows = plan_weight_sets(
        read_checkpoints(paths),
        parse_alphas([alphas]) if alphas else (),
        output_ensemble=ensemble,
    )
    return plan_jobs(rows, [list_image_folder(folder) for folder in folders], precision=precision)


def run_jobs(jobs: Sequence[Job], **options: Any) -> list[ResultLine]:
    """The results lines of jobs, evaluated on the CPU in batches of eight."""
    defaults = {"batch_size": 8, "workers": 0, "device": torch.device("cpu")}
    settings = SweepSettings(**(defaults | options))
    return [line for lines in sweep(jobs, settings) for line in lines.values()]
