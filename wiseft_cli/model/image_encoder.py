"""Rebuild an image encoder from a model config, without its text tower.

This is the one place that touches open_clip's private tower builder, because its public API
builds image and text towers together. open_clip is capped at the tested minor version, and a
test compares each family with the full model, bit for bit.
It does not read files and does not know the classification head.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from open_clip.model import _build_vision_tower
from torch import Tensor, nn

from wiseft_cli.errors import ModelError
from wiseft_cli.model.quiet import quiet_libraries
from wiseft_cli.model.unfilled import parameters_on_meta


def image_encoder_config(model_config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of an open_clip model config that decides the image encoder.

    Pretrained weights of timm are switched off, as the encoder's own follow; so is CoCa's
    `output_tokens`, which would make the encoder return its tokens beside its features.

    Args:
        model_config: open_clip's model config: `embed_dim`, `vision_cfg`, perhaps `quick_gelu`,
            and fields of the text tower, which are left out.
    Raises:
        ModelError: `embed_dim` or `vision_cfg` is missing.
    """
    for field in ("embed_dim", "vision_cfg"):
        if field not in model_config:
            raise ModelError(f"the model config has no {field}, so no image encoder can be built")
    vision = {**model_config["vision_cfg"], "output_tokens": False}
    if vision.get("timm_model_name"):
        vision["timm_model_pretrained"] = False
    return {
        "embed_dim": model_config["embed_dim"],
        "quick_gelu": bool(model_config.get("quick_gelu", False)),
        "vision_cfg": vision,
    }


def build_image_encoder(model_config: Mapping[str, Any]) -> nn.Module:
    """Build open_clip's visual tower, ready for `assign_weights` and of no use before it.

    Parameters are on the meta device, so that none is allocated or drawn at random; buffers are
    real, since those outside the state dict (rotary embeddings) hold values no file has. A tower
    that cannot be built so, or whose buffers would depend on its parameters, is built plainly.
    torch's global generator is left as it was.

    Args:
        model_config: open_clip's model config; see `image_encoder_config`.
    Returns:
        The tower in evaluation mode; images (B, 3, H, W) -> image features (B, D).
    Raises:
        ModelError: open_clip or timm cannot build this config.
    """
    config = image_encoder_config(model_config)
    arguments = (config["embed_dim"], config["vision_cfg"], config["quick_gelu"])
    with quiet_libraries(), torch.random.fork_rng(devices=[]):
        try:
            with parameters_on_meta():
                tower = _build_vision_tower(*arguments)
            if not any(buffer.is_meta for buffer in tower.buffers()):
                return _eval(tower)
        except Exception:
            # Not every tower can be built without values; whether the config is at fault shows
            # when it is built with them.
            pass
        try:
            return _eval(_build_vision_tower(*arguments))
        except Exception as error:
            raise ModelError(
                f"the image encoder cannot be built from its config: {error}",
                hint="the card may come from a newer open_clip or timm; update them",
            ) from None


def assign_weights(image_encoder: nn.Module, state_dict: Mapping[str, Tensor]) -> nn.Module:
    """Give an encoder its weights, without a copy, and return it.

    Args:
        image_encoder: What `build_image_encoder` returned.
        state_dict: Every tensor of its state dict, and no other; they become its parameters.
    Raises:
        ModelError: Names or shapes differ.
    """
    try:
        image_encoder.load_state_dict(state_dict, strict=True, assign=True)
    except RuntimeError as error:
        raise ModelError(f"the weights do not fit the image encoder: {error}") from None
    return image_encoder


def _eval(module: nn.Module) -> nn.Module:
    return module.eval()
