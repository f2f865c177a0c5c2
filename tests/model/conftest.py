"""Tiny open_clip models with random weights, one per family, built from configs."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tests.clip_merges import write_clip_merges
from wiseft_cli.model.full_clip import build_untrained_clip

MERGES = 100
VOCAB_SIZE = 2 * 256 + MERGES + 2
CONTEXT_LENGTH = 20
TEXT = {
    "context_length": CONTEXT_LENGTH,
    "vocab_size": VOCAB_SIZE,
    "width": 32,
    "heads": 2,
    "layers": 2,
}
VIT = {"image_size": 32, "patch_size": 16, "width": 64, "layers": 2, "head_width": 32}


def timm_tower(name: str, image_size: int, **fields: Any) -> dict[str, Any]:
    return {"timm_model_name": name, "image_size": image_size, "timm_pool": "", **fields}


FAMILIES: dict[str, dict[str, Any]] = {
    "vit": {"embed_dim": 24, "vision_cfg": VIT, "text_cfg": TEXT},
    "vit-quickgelu": {"embed_dim": 24, "quick_gelu": True, "vision_cfg": VIT, "text_cfg": TEXT},
    "modified-resnet": {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 16},
        "text_cfg": TEXT,
    },
    "convnext": {
        "embed_dim": 24,
        "vision_cfg": timm_tower("test_convnext", 64, timm_drop_path=0.1),
        "text_cfg": TEXT,
    },
    "eva": {
        "embed_dim": 24,
        "custom_text": True,
        "vision_cfg": timm_tower("eva02_tiny_patch14_224", 224, timm_pool="token"),
        "text_cfg": TEXT,
    },
    "vitamin": {
        "embed_dim": 24,
        "custom_text": True,
        "vision_cfg": timm_tower("vitamin_small_224", 224),
        "text_cfg": TEXT,
    },
    "coca": {
        "embed_dim": 24,
        "custom_text": True,
        "vision_cfg": {
            **VIT,
            "attentional_pool": True,
            "attn_pooler_heads": 2,
            "output_tokens": True,
        },
        "text_cfg": {**TEXT, "embed_cls": True, "output_tokens": True},
        "multimodal_cfg": {**TEXT, "layers": 1, "attn_pooler_heads": 2},
    },
    "siglip": {
        "embed_dim": 64,
        "custom_text": True,
        "init_logit_bias": -10.0,
        "vision_cfg": timm_tower("test_vit", 160, timm_pool="token", timm_proj="none"),
        "text_cfg": {
            **TEXT,
            "no_causal_mask": True,
            "pool_type": "last",
            "proj_bias": True,
        },
    },
    "custom-text-eos": {
        "embed_dim": 24,
        "custom_text": True,
        "vision_cfg": VIT,
        "text_cfg": {**TEXT, "pool_type": "eos", "eos_id": VOCAB_SIZE - 1, "proj_bias": True},
    },
}


@pytest.fixture(scope="session")
def merges_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small byte-pair vocabulary."""
    return write_clip_merges(tmp_path_factory.mktemp("merges") / "bpe.txt.gz", MERGES)


@pytest.fixture(scope="session")
def simple_tokenizer(merges_path: Path) -> open_clip.SimpleTokenizer:
    return open_clip.SimpleTokenizer(bpe_path=str(merges_path), context_length=CONTEXT_LENGTH)


def random_clip(family: str, *, seed: int = 0) -> Any:
    """Return a model in evaluation mode; no parameter has its initial value."""
    torch.manual_seed(seed)
    model: nn.Module = build_untrained_clip(FAMILIES[family])
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def write_model_folder(folder: Path, family: str, merges: Path) -> Path:
    """Write an open_clip `local-dir` folder of a random model with its tokenizer."""
    config = copy.deepcopy(FAMILIES[family])
    config["text_cfg"]["tokenizer_kwargs"] = {"bpe_path": merges.name}
    document = {
        "model_cfg": config,
        "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3, "resize_mode": "squash"},
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps(document))
    (folder / merges.name).write_bytes(merges.read_bytes())
    state_dict = {name: t.clone() for name, t in random_clip(family).state_dict().items()}
    save_file(state_dict, folder / "open_clip_model.safetensors")
    return folder


@pytest.fixture
def vit_folder(tmp_path: Path, merges_path: Path) -> Path:
    return write_model_folder(tmp_path / "tiny-vit", "vit", merges_path)
