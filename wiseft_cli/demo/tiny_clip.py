"""The embedded model: its configuration, its folder, and how the folder is written.

The folder is what open_clip calls `local-dir:`. How the weights come about is `pretrain`'s.
"""

from __future__ import annotations

import gzip
import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

MERGES = 1536
CONTEXT_LENGTH = 24  # tokens
BPE_NAME = "bpe.txt.gz"

TEXT_CONFIG: dict[str, Any] = {
    "context_length": CONTEXT_LENGTH,
    "vocab_size": 512 + MERGES + 2,  # bytes, bytes at a word's end, merges, start and end of text
    "width": 64,
    "heads": 2,
    "layers": 2,
    "tokenizer_kwargs": {"bpe_path": BPE_NAME},
}
RESNET_CONFIG: dict[str, Any] = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 16, "head_width": 32},
    "text_cfg": TEXT_CONFIG,
}
VIT_CONFIG: dict[str, Any] = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 128, "layers": 4, "head_width": 32},
    "text_cfg": TEXT_CONFIG,
}
PREPROCESS_CONFIG: dict[str, Any] = {
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
    "interpolation": "bicubic",
    "resize_mode": "squash",
}


def embedded_model_folder() -> Path:
    """The folder of the model that ships with the package."""
    return Path(str(files("wiseft_cli.demo"))) / "assets" / "tiny-clip"


def write_merges(folder: Path, merges: str) -> Path:
    """Write the tokenizer's file into a model folder; the bytes depend on `merges` alone."""
    path = folder / BPE_NAME
    path.write_bytes(gzip.compress(merges.encode("utf-8"), mtime=0))
    return path


def write_model(folder: Path, model: nn.Module, model_config: dict[str, Any]) -> None:
    """Write configuration and weights (float16) as open_clip's `local-dir:` expects them."""
    config = {"model_cfg": model_config, "preprocess_cfg": PREPROCESS_CONFIG}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")
    tensors = {
        name: tensor.half().contiguous() if tensor.is_floating_point() else tensor
        for name, tensor in model.state_dict().items()
    }
    # One metadata key: with two the official writer orders them by a random hash.
    (folder / "open_clip_model.safetensors").write_bytes(save(tensors, {"format": "pt"}))


def normalize(pictures: torch.Tensor) -> torch.Tensor:
    """What the model's preprocessing does to pictures in [0, 1] that have the right size."""
    return (pictures - 0.5) / 0.5
