"""Translate open_clip's model and preprocessing configs to transformers'.

Values at their defaults are written too, so that the files mean the same in every version.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from wiseft_cli.convert.configs import CLIP_MEAN, CLIP_STD, INTERPOLATIONS, SIGLIP_TOWERS
from wiseft_cli.errors import ModelError


def transformers_config(
    model_cfg: Mapping[str, Any], *, kind: str, id2label: Sequence[str] = ()
) -> dict[str, Any]:
    """Translate open_clip's model config to transformers' config.json.

    Args:
        model_cfg: open_clip's config with `vision_cfg`; `text_cfg` may be missing.
        kind: clip or siglip.
        id2label: Class names of a head, for the config.
    Raises:
        ModelError: transformers cannot express the model.
    """
    vision = _vision_config(model_cfg, kind)
    config: dict[str, Any] = {"model_type": kind, "vision_config": vision}
    if "text_cfg" in model_cfg:
        config["text_config"] = _text_config(model_cfg, kind)
    if kind == "clip":
        config["projection_dim"] = model_cfg["embed_dim"]
        vision["projection_dim"] = model_cfg["embed_dim"]
        if "text_config" in config:
            config["text_config"]["projection_dim"] = model_cfg["embed_dim"]
    if id2label:
        config["id2label"] = {str(i): name for i, name in enumerate(id2label)}
        config["label2id"] = {name: i for i, name in enumerate(id2label)}
    return config


def _vision_config(model_cfg: Mapping[str, Any], kind: str) -> dict[str, Any]:
    given = model_cfg["vision_cfg"]
    size = given.get("image_size", 224)
    if not isinstance(size, int):
        if len(set(size)) > 1:
            raise ModelError(f"transformers cannot express images of {size[0]} x {size[1]} pixels")
        size = size[0]
    if kind == "clip":
        width = given.get("width", 768)
        unsupported = [key for key in _UNSUPPORTED_VISION if given.get(key)]
        if isinstance(given.get("layers", 12), (list, tuple)):
            unsupported.append("it is a ResNet")
        if unsupported:
            raise ModelError(
                "transformers and timm cannot express this image encoder: "
                + ", ".join(unsupported),
                hint="use --format open_clip",
            )
        shape: tuple[int, ...] = (
            width,
            given.get("layers", 12),
            width // given.get("head_width", 64),
            int(width * given.get("mlp_ratio", 4.0)),
            given.get("patch_size", 16),
        )
    else:
        shape = _shape_of_tower(given.get("timm_model_name", ""))
    names = (
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "patch_size",
    )
    return {
        "model_type": f"{kind}_vision_model",
        **dict(zip(names, shape, strict=True)),
        "image_size": size,
        "hidden_act": _hidden_act(model_cfg, given, kind, is_text=False),
        "layer_norm_eps": _eps(given, kind, is_text=False),
    }


_UNSUPPORTED_VISION = (
    "timm_model_name", "attentional_pool", "no_ln_pre", "final_ln_after_pool", "ls_init_value",
    "qk_norm", "scaled_cosine_attn", "scale_heads", "scale_attn_inner", "scale_attn", "scale_fc",
)  # fmt: skip


def _shape_of_tower(name: str) -> tuple[int, ...]:
    for shape, (base, sizes) in SIGLIP_TOWERS.items():
        if name in [f"{base}_{size}" for size in sizes]:
            return shape
    raise ModelError(
        f"transformers cannot express the image encoder {name or 'without a name'} as SigLIP",
        hint="use --format open_clip",
    )


def _text_config(model_cfg: Mapping[str, Any], kind: str) -> dict[str, Any]:
    given = model_cfg["text_cfg"]
    if given.get("hf_model_name") or given.get("embed_cls"):
        raise ModelError(
            "transformers cannot express this text tower", hint="use --format open_clip"
        )
    width, vocabulary = given.get("width", 512), given.get("vocab_size", 49408)
    config = {
        "model_type": f"{kind}_text_model",
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": int(width * given.get("mlp_ratio", 4.0)),
        "num_hidden_layers": given.get("layers", 12),
        "num_attention_heads": given.get("heads", 8),
        "max_position_embeddings": given.get("context_length", 77),
        "hidden_act": _hidden_act(model_cfg, given, kind, is_text=True),
        "layer_norm_eps": _eps(given, kind, is_text=True),
    }
    if kind == "clip":
        eos = vocabulary - 1 if given.get("pool_type") != "eos" else given.get("eos_id", 2)
        return {**config, "bos_token_id": vocabulary - 2, "eos_token_id": eos}
    return {**config, "bos_token_id": None, "eos_token_id": 1, "projection_size": width}


def _hidden_act(
    model_cfg: Mapping[str, Any], part: Mapping[str, Any], kind: str, *, is_text: bool
) -> str:
    if model_cfg.get("quick_gelu") and (kind == "clip"):
        return "quick_gelu"
    if (part.get("act_kwargs") or {}).get("approximate") == "tanh":
        return "gelu_pytorch_tanh"
    if kind == "siglip" and not is_text and _has_tanh(part["timm_model_name"]):
        return "gelu_pytorch_tanh"
    return "gelu"


def _has_tanh(tower: str) -> bool:
    """Return whether timm builds a SigLIP ViT with the approximation of GELU."""
    return tower.startswith(_TANH_TOWERS)


_TANH_TOWERS = (
    "vit_base_patch32_siglip", "vit_large_patch16_siglip_512", "vit_so400m_patch16_siglip",
    "vit_giantopt_patch16_siglip",
)  # fmt: skip


def _eps(part: Mapping[str, Any], kind: str, *, is_text: bool) -> float:
    default = 1e-6 if kind == "siglip" and not is_text else 1e-5
    return float((part.get("norm_kwargs") or {}).get("eps", default))


def transformers_preprocessor(preprocess: Mapping[str, Any], *, kind: str) -> dict[str, Any]:
    """Translate open_clip's preprocessing fields to a preprocessor_config.json.

    Raises:
        ModelError: transformers cannot express the resize mode.
    """
    size = preprocess["size"]
    height, width = (size, size) if isinstance(size, int) else size
    mode = preprocess.get("resize_mode", "shortest")
    if mode not in ("shortest", "squash") or (mode == "shortest" and height != width):
        raise ModelError(f"transformers cannot express the resize mode {mode!r}")
    sides = {"height": height, "width": width}
    numbers = {name: number for number, name in INTERPOLATIONS.items()}
    crops = mode == "shortest"
    return {
        "image_processor_type": "CLIPImageProcessor"
        if crops or kind == "clip"
        else "SiglipImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": height} if crops else sides,
        "do_center_crop": crops,
        **({"crop_size": sides} if crops else {}),
        "resample": numbers.get(preprocess.get("interpolation", "bicubic"), 3),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocess.get("mean", CLIP_MEAN)),
        "image_std": list(preprocess.get("std", CLIP_STD)),
        "do_convert_rgb": True,
    }
