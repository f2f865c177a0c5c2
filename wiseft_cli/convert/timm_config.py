"""Describe an open_clip image encoder as timm's config.json does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wiseft_cli.convert.configs import CLIP_MEAN, CLIP_STD
from wiseft_cli.errors import ModelError

CLIP_TOWERS: Mapping[tuple[int, int, int, int, int], tuple[str, int]] = {
    (768, 12, 12, 3072, 32): ("vit_base_patch32_clip_224", 224),
    (768, 12, 12, 3072, 16): ("vit_base_patch16_clip_224", 224),
    (1024, 24, 16, 4096, 14): ("vit_large_patch14_clip_224", 224),
    (1280, 32, 16, 5120, 14): ("vit_huge_patch14_clip_224", 224),
    (1408, 40, 16, 6144, 14): ("vit_giant_patch14_clip_224", 224),
    (1664, 48, 16, 8192, 14): ("vit_gigantic_patch14_clip_224", 224),
}
"""timm's CLIP ViTs by width, blocks, heads, MLP width and patch size, with their image size."""


def timm_config(
    vision_config: Mapping[str, Any],
    preprocess: Mapping[str, Any],
    *,
    feature_dim: int,
    tower: str | None,
) -> dict[str, Any]:
    """Return the config.json with which timm builds an image encoder.

    Args:
        vision_config: transformers' vision config, from `transformers_config`.
        preprocess: open_clip's preprocessing fields.
        feature_dim: Number of image features; the head of a CLIP is its projection.
        tower: Name of a SigLIP ViT in timm; None for CLIP.
    Raises:
        ModelError: timm cannot express the preprocessing.
    """
    size, mode = vision_config["image_size"], preprocess.get("resize_mode", "shortest")
    if mode not in ("shortest", "squash"):
        raise ModelError(f"timm cannot express the resize mode {mode!r}")
    arguments: dict[str, Any] = {}
    architecture = tower
    if tower is None:
        architecture, arguments = _clip_architecture(vision_config)
    elif vision_config["hidden_act"] == "gelu_pytorch_tanh":
        arguments["act_layer"] = "gelu_tanh"
    classes = feature_dim if tower is None else 0
    return {
        "architecture": architecture,
        "num_classes": classes,
        "num_features": feature_dim,
        "model_args": arguments,
        "pretrained_cfg": {
            "input_size": [3, size, size],
            "fixed_input_size": True,
            "interpolation": preprocess.get("interpolation", "bicubic"),
            "crop_pct": 1.0,
            "crop_mode": "center" if mode == "shortest" else "squash",
            "mean": list(preprocess.get("mean", CLIP_MEAN)),
            "std": list(preprocess.get("std", CLIP_STD)),
            "num_classes": classes,
        },
    }


def _clip_architecture(vision: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the name of a CLIP ViT and the arguments that differ from it."""
    shape = (
        vision["hidden_size"],
        vision["num_hidden_layers"],
        vision["num_attention_heads"],
        vision["intermediate_size"],
        vision["patch_size"],
    )
    activations = {"quick_gelu": "quick_gelu", "gelu": None, "gelu_pytorch_tanh": "gelu_tanh"}
    act_layer = activations[vision["hidden_act"]]
    arguments: dict[str, Any] = {} if act_layer is None else {"act_layer": act_layer}
    name, size = CLIP_TOWERS.get(shape, ("", 0))
    if not name:
        name, size = CLIP_TOWERS[768, 12, 12, 3072, 32]
        width, depth, heads, mlp, patch = shape
        arguments |= {"embed_dim": width, "depth": depth, "num_heads": heads, "patch_size": patch}
        arguments["mlp_ratio"] = (
            mlp / width if int(mlp / width * width) == mlp else (mlp + 0.5) / width
        )
    if vision["image_size"] != size:
        arguments["img_size"] = vision["image_size"]
    return name, arguments
