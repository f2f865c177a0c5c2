"""Tiny random models of transformers and timm, and open_clip models of the same architecture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models import vision_transformer
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    Siglip2Config,
    Siglip2Model,
    SiglipConfig,
    SiglipModel,
    SiglipVisionModel,
)

WIDTH, LAYERS, HEADS, MLP, PATCH, SIDE = 32, 3, 2, 64, 8, 32
VOCABULARY, CONTEXT = 100, 12
EMBED_DIM = 24
_SHARED = {
    "hidden_size": WIDTH,
    "intermediate_size": MLP,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
}
_VISION = {**_SHARED, "patch_size": PATCH}
_TEXT = {
    **_SHARED,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": VOCABULARY - 2,
    "eos_token_id": VOCABULARY - 1,
    "pad_token_id": 1,
}
CLIP_CONFIG = {
    "text_config": _TEXT,
    "vision_config": {**_VISION, "image_size": SIDE},
    "projection_dim": EMBED_DIM,
}
SIGLIP_CONFIG = {"text_config": _TEXT, "vision_config": {**_VISION, "image_size": SIDE}}
SIGLIP2_CONFIG = {
    "text_config": _TEXT,
    "vision_config": {**_VISION, "num_patches": (SIDE // PATCH) ** 2},
}
TIMM_ARGS: dict[str, Any] = {
    "embed_dim": WIDTH,
    "depth": LAYERS,
    "num_heads": HEADS,
    "mlp_ratio": MLP / WIDTH,
    "img_size": SIDE,
    "patch_size": PATCH,
}


def vit_tiny_patch8_siglip_32(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """A SigLIP ViT of the tiny size, which open_clip finds by name as it finds timm's."""
    arguments = {**TIMM_ARGS, "class_token": False, "global_pool": "map", "act_layer": "gelu_tanh"}
    return vision_transformer._create_vision_transformer(
        "vit_base_patch16_siglip_224", pretrained=pretrained, **{**arguments, **kwargs}
    )


if "vit_tiny_patch8_siglip_32" not in timm.list_models():
    timm.models.register_model(vit_tiny_patch8_siglip_32)

_OPEN_CLIP_TEXT = {
    "context_length": CONTEXT,
    "vocab_size": VOCABULARY,
    "width": WIDTH,
    "heads": HEADS,
    "layers": LAYERS,
    "mlp_ratio": MLP / WIDTH,
}
OPEN_CLIP_CLIP: dict[str, Any] = {
    "embed_dim": EMBED_DIM,
    "quick_gelu": True,
    "vision_cfg": {
        "image_size": SIDE,
        "patch_size": PATCH,
        "width": WIDTH,
        "layers": LAYERS,
        "head_width": WIDTH // HEADS,
        "mlp_ratio": MLP / WIDTH,
    },
    "text_cfg": _OPEN_CLIP_TEXT,
}
OPEN_CLIP_SIGLIP: dict[str, Any] = {
    "embed_dim": WIDTH,
    "init_logit_bias": -10,
    "vision_cfg": {
        "image_size": SIDE,
        "timm_model_name": "vit_tiny_patch8_siglip_32",
        "timm_model_pretrained": False,
        "timm_pool": "map",
        "timm_proj": "none",
    },
    "text_cfg": {
        **_OPEN_CLIP_TEXT,
        "no_causal_mask": True,
        "proj_bias": True,
        "pool_type": "last",
        "norm_kwargs": {"eps": 1e-6},
        "act_kwargs": {"approximate": "tanh"},
    },
}


def randomized(model: nn.Module, seed: int = 0) -> Any:
    """Give every parameter random values, so that no two tensors are alike; evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise / max(parameter.shape[-1:] or (1,)) ** 0.5)
    return model.eval()


def transformers_model(kind: str) -> Any:
    """A random model of transformers: clip, siglip, siglip2, or an image encoder alone."""
    clip, siglip = CLIPConfig(**CLIP_CONFIG), SiglipConfig(**SIGLIP_CONFIG)
    models = {
        "clip": lambda: CLIPModel(clip),
        "clip-vision": lambda: CLIPVisionModel(clip.vision_config),
        "clip-projection": lambda: CLIPVisionModelWithProjection(clip.vision_config),
        "siglip": lambda: SiglipModel(siglip),
        "siglip-vision": lambda: SiglipVisionModel(siglip.vision_config),
        "siglip2": lambda: Siglip2Model(Siglip2Config(**SIGLIP2_CONFIG)),
    }
    return randomized(models[kind]())


def timm_model(kind: str, num_classes: int = EMBED_DIM) -> Any:
    """A random ViT of timm: clip, whose head is the projection, or siglip."""
    if kind == "siglip":
        return randomized(vit_tiny_patch8_siglip_32(num_classes=0))
    name = "vit_base_patch32_clip_quickgelu_224"
    model = randomized(timm.create_model(name, num_classes=num_classes, **TIMM_ARGS))
    with torch.no_grad():
        model.head.bias.zero_()
    return model


def open_clip_model(family: str, path: Path | None = None) -> Any:
    """An open_clip model of the tiny size; with a path, strictly loaded from a file."""
    if family == "clip":
        model: nn.Module = open_clip.CLIP(**OPEN_CLIP_CLIP)
    else:
        model = open_clip.CustomTextCLIP(**OPEN_CLIP_SIGLIP)
    if path is not None:
        model.load_state_dict(load_file(path), strict=True)
        return model.eval()
    return randomized(model)


def save(model: nn.Module, path: Path, prefix: str = "") -> Path:
    """Save a state dict as transformers and timm do."""
    tensors = {prefix + name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, path, metadata={"format": "pt"})
    return path


def raw_tensors(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Dtype, shape and bytes of every tensor of a file."""
    return {
        name: (str(tensor.dtype), tuple(tensor.shape), tensor.view(torch.uint8).numpy().tobytes())
        if tensor.ndim
        else (str(tensor.dtype), (), tensor[None].view(torch.uint8).numpy().tobytes())
        for name, tensor in load_file(path).items()
    }


def images(n: int = 3) -> torch.Tensor:
    """Random normalized images."""
    return torch.randn(n, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def tokens(n: int = 3) -> torch.Tensor:
    """Random prompts, each with an end-of-text token and padding after it."""
    generator = np.random.default_rng(2)
    rows = generator.integers(2, VOCABULARY - 2, (n, CONTEXT))
    for row, length in zip(rows, generator.integers(4, CONTEXT, n), strict=True):
        row[0], row[length - 1], row[length:] = VOCABULARY - 2, VOCABULARY - 1, 0
    return torch.from_numpy(rows)
