"""Translate transformers' model and preprocessing configs to open_clip's.

Only fields that change features are translated; a value that open_clip cannot express is
rejected. transformers' files omit values at their defaults, so the defaults are here too, and
tests compare them with the library's own. `transformers_config.py` is the way back.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import isqrt
from pathlib import Path
from typing import Any

from wiseft_cli.checkpoint.format import TensorInfo
from wiseft_cli.checkpoint.shards import is_inside
from wiseft_cli.errors import ModelError, brief, list_some

CONFIG_NAME = "config.json"
PREPROCESSOR_NAMES = ("preprocessor_config.json", "processor_config.json")
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

_TEXT = {
    "vocab_size": 49408, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12,
    "num_attention_heads": 8, "max_position_embeddings": 77, "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5, "eos_token_id": 49407,
}  # fmt: skip
_VISION = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
    "num_attention_heads": 12, "image_size": 224, "patch_size": 32, "num_channels": 3,
    "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
}  # fmt: skip
_SIGLIP = {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}
_SIGLIP_TEXT = {
    **_TEXT, **_SIGLIP, "vocab_size": 32000, "hidden_size": 768, "intermediate_size": 3072,
    "num_attention_heads": 12, "max_position_embeddings": 64,
}  # fmt: skip
_SIGLIP_VISION = {**_VISION, **_SIGLIP, "patch_size": 16, "vision_use_head": True}
DEFAULTS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "clip": {"text_config": _TEXT, "vision_config": _VISION},
    "siglip": {"text_config": _SIGLIP_TEXT, "vision_config": _SIGLIP_VISION},
    "siglip2": {
        "text_config": _SIGLIP_TEXT,
        "vision_config": {
            **{key: value for key, value in _SIGLIP_VISION.items() if key != "image_size"},
            "num_patches": 256,
        },
    },
}
"""Defaults of transformers' configs by `model_type`."""

SIGLIP_TOWERS: dict[tuple[int, int, int, int, int], tuple[str, tuple[int, ...]]] = {
    (768, 12, 12, 3072, 16): ("vit_base_patch16_siglip", (224, 256, 384, 512)),
    (768, 12, 12, 3072, 32): ("vit_base_patch32_siglip", (256,)),
    (1024, 24, 16, 4096, 16): ("vit_large_patch16_siglip", (256, 384, 512)),
    (1152, 27, 16, 4304, 14): ("vit_so400m_patch14_siglip", (224, 378, 384)),
    (1152, 27, 16, 4304, 16): ("vit_so400m_patch16_siglip", (256, 384, 512)),
    (1536, 40, 16, 6144, 16): ("vit_giantopt_patch16_siglip", (256, 384)),
}
"""timm's SigLIP ViTs by width, blocks, heads, MLP width and patch size, with their image sizes."""

_TANH = {"approximate": "tanh"}
_ACTIVATIONS: Mapping[str, tuple[bool, Mapping[str, str]]] = {
    "quick_gelu": (True, {}),
    "gelu": (False, {}),
    "gelu_pytorch_tanh": (False, _TANH),
    "gelu_new": (False, _TANH),
}
INTERPOLATIONS = {2: "bilinear", 3: "bicubic"}
"""Interpolations that open_clip has, by Pillow's numbers."""


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ModelError: The file is missing or is not a JSON object.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"not JSON: {error}"
        raise ModelError(f"{path}: {reason}") from None
    if not isinstance(document, dict):
        raise ModelError(f"{path}: expected a JSON object")
    return document


def read_transformers_config(folder: Path) -> dict[str, Any]:
    """Return the config.json of a CLIP or SigLIP model, with transformers' defaults filled in.

    Raises:
        ModelError: It is missing or damaged, or belongs to another kind of model.
    """
    path = folder / CONFIG_NAME
    config = read_json(path)
    kind = str(config.get("model_type"))
    if config.get("quantization_config"):
        method = config["quantization_config"]
        name = method.get("quant_method") if isinstance(method, dict) else method
        raise ModelError(
            f"{path}: the model is quantized ({name})",
            hint="use the weights it was made from, or save model.dequantize()",
        )
    if kind not in DEFAULTS:
        shown = config.get("model_type") or config.get("_class_name") or "unknown"
        raise ModelError(
            f"{path}: model type {shown!r}, expected {', '.join(DEFAULTS)} with image and text "
            "tower",
            hint="name the folder of a whole CLIP or SigLIP model",
        )
    filled: dict[str, Any] = {"model_type": kind, "projection_dim": 512}
    filled |= {key: value for key, value in config.items() if not key.endswith("_config_dict")}
    for part, defaults in DEFAULTS[kind].items():
        given: dict[str, Any] = {}
        for key in (part, f"{part}_dict"):  # old files have both; the second wins, as it does there
            value = config.get(key) or {}
            if not isinstance(value, dict):
                raise ModelError(f"{path}: {key} is a {type(value).__name__}, expected an object")
            given |= value
        filled[part] = {**defaults, **given}
        for key, default in defaults.items():
            is_used = key != "eos_token_id" or kind == "clip"
            if isinstance(default, int) and is_used and not _is_count(filled[part][key]):
                raise ModelError(
                    f"{path}: {part}.{key} is {filled[part][key]!r}, expected an integer"
                )
    return filled


def merges_name(text_cfg: Mapping[str, Any], where: object) -> str | None:
    """Return the `bpe_path` of a model's config, relative to its folder; None if it has none.

    Args:
        where: The file or model, for the error.
    Raises:
        ModelError: It is not a name inside the model folder: the file would be published with the
            model.
    """
    options = text_cfg.get("tokenizer_kwargs") or {}
    if not isinstance(options, Mapping):
        raise ModelError(f"{where}: tokenizer_kwargs is {options!r}, expected an object")
    name = options.get("bpe_path")
    if name is not None and not (isinstance(name, str) and is_inside(name)):
        raise ModelError(
            f"{where}: bpe_path is {name!r}, expected the name of a file inside the model folder",
            hint="copy the tokenizer's merges into the folder, and set"
            " text_cfg.tokenizer_kwargs.bpe_path to the name of the copy",
        )
    return name


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and value >= 0


def open_clip_model_config(config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Translate transformers' config to open_clip's model config.

    Args:
        config: The result of `read_transformers_config`.
        path: For messages.
    Raises:
        ModelError: open_clip cannot express the model.
    """
    text, vision = config["text_config"], config["vision_config"]
    for name, part in (("text_config", text), ("vision_config", vision)):
        if part["hidden_act"] not in _ACTIVATIONS:
            raise _cannot_express(path, f"{name}.hidden_act is {part['hidden_act']!r}")
    is_quick = _ACTIVATIONS[text["hidden_act"]][0]
    if is_quick != _ACTIVATIONS[vision["hidden_act"]][0]:
        raise _cannot_express(path, "only one of the two towers has QuickGELU")
    text_cfg = {
        "context_length": text["max_position_embeddings"],
        "vocab_size": text["vocab_size"],
        "width": text["hidden_size"],
        "heads": text["num_attention_heads"],
        "layers": text["num_hidden_layers"],
        "mlp_ratio": _mlp_ratio(text),
        **_norm_and_act(text),
    }
    if config["model_type"] == "clip":
        return {
            "embed_dim": config["projection_dim"],
            "quick_gelu": is_quick,
            "vision_cfg": _vit(vision),
            "text_cfg": {**text_cfg, **_clip_pooling(text)},
        }
    if text.get("projection_size", text["hidden_size"]) != vision["hidden_size"]:
        raise _cannot_express(path, "text_config.projection_size differs from the image features")
    return {
        "embed_dim": vision["hidden_size"],
        "custom_text": True,
        "init_logit_bias": -10,
        "quick_gelu": False,
        "vision_cfg": _siglip_tower(vision, path),
        "text_cfg": {**text_cfg, "no_causal_mask": True, "proj_bias": True, "pool_type": "last"},
    }


def image_size_of(config: Mapping[str, Any]) -> int:
    """Return the side of the images of a model in pixels; for NaFlex, of its full square grid."""
    vision = config["vision_config"]
    if config["model_type"] == "siglip2":
        return int(vision["patch_size"]) * isqrt(vision["num_patches"])
    return int(vision["image_size"])


def _vit(vision: Mapping[str, Any]) -> dict[str, Any]:
    width, heads = vision["hidden_size"], vision["num_attention_heads"]
    return {
        "image_size": vision["image_size"],
        "patch_size": vision["patch_size"],
        "width": width,
        "layers": vision["num_hidden_layers"],
        "head_width": width // heads,
        "mlp_ratio": _mlp_ratio(vision),
        **_norm_and_act(vision),
    }


def _clip_pooling(text: Mapping[str, Any]) -> dict[str, Any]:
    """Return how the feature of a prompt is found, as transformers' CLIPTextModel does.

    With the id 2, which old configs have by mistake, the highest id of the prompt is used.
    """
    if text["eos_token_id"] in (2, text["vocab_size"] - 1):
        return {}
    return {"pool_type": "eos", "eos_id": text["eos_token_id"]}


def _siglip_tower(vision: Mapping[str, Any], path: Path) -> dict[str, Any]:
    key = tuple(
        vision[field]
        for field in (
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "intermediate_size",
            "patch_size",
        )
    )
    size = vision.get("image_size") or vision["patch_size"] * isqrt(vision["num_patches"])
    name, sizes = SIGLIP_TOWERS.get(key, ("", ()))
    if size not in sizes:
        raise _cannot_express(
            path,
            f"timm has no SigLIP ViT of width {key[0]} with {key[1]} blocks, patches of {key[4]} "
            f"and images of {size} pixels",
        )
    if not vision["vision_use_head"]:
        raise _cannot_express(path, "vision_config.vision_use_head is false")
    # open_clip ignores act_kwargs for towers of timm; wiseft applies them (image_encoder.py).
    return {
        "image_size": size,
        "timm_model_name": f"{name}_{size}",
        "timm_model_pretrained": False,
        "timm_pool": "map",
        "timm_proj": "none",
        **({"act_kwargs": act} if (act := dict(_ACTIVATIONS[vision["hidden_act"]][1])) else {}),
    }


def _norm_and_act(part: Mapping[str, Any]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    if part["layer_norm_eps"] != 1e-5:
        fields["norm_kwargs"] = {"eps": part["layer_norm_eps"]}
    if act := dict(_ACTIVATIONS[part["hidden_act"]][1]):
        fields["act_kwargs"] = act
    return fields


def _mlp_ratio(part: Mapping[str, Any]) -> float:
    """Return a ratio with which int(width * ratio) is the width of the MLP."""
    width, hidden = part["hidden_size"], part["intermediate_size"]
    ratio = float(hidden / width)
    return ratio if int(width * ratio) == hidden else float((hidden + 0.5) / width)


def _cannot_express(path: Path, what: str) -> ModelError:
    return ModelError(
        f"{path}: open_clip cannot express this model: {what}",
        hint="merge and compare its files under their own names",
    )


def _channels(value: Any, name: str, path: Path) -> list[float]:
    """Return one number per channel."""
    numbers = value if isinstance(value, list | tuple) else []
    if len(numbers) != 3 or not all(type(number) in (int, float) for number in numbers):
        raise ModelError(f"{path}: {name} is {brief(repr(value))}, expected three numbers")
    return [*numbers]


def read_preprocess(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Translate the image processor of a folder to open_clip's preprocessing fields.

    Raises:
        ModelError: The file is missing, contradicts the model, or has steps that open_clip does
            not have.
    """
    found = [folder / name for name in PREPROCESSOR_NAMES if (folder / name).is_file()]
    if not found:
        raise ModelError(
            f"{folder}: no {PREPROCESSOR_NAMES[0]}, which states how images are prepared",
            hint="fetch it from the place that the weights came from",
        )
    processor = read_json(found[0])
    processor = processor.get("image_processor", processor)
    size = image_size_of(config)
    fields = {
        "size": size,
        "mode": "RGB",
        "mean": _channels(processor.get("image_mean") or CLIP_MEAN, "image_mean", found[0]),
        "std": _channels(processor.get("image_std") or CLIP_STD, "image_std", found[0]),
        "interpolation": INTERPOLATIONS.get(processor.get("resample", 3)),
        "resize_mode": _resize_mode(processor, size, is_naflex="max_num_patches" in processor),
        "fill_color": 0,
    }
    faults = []
    if processor.get("do_resize", True) is not True or fields["resize_mode"] is None:
        shown = {key: processor.get(key) for key in ("do_resize", "size", "crop_size")}
        faults.append(f"{shown}: cannot make images of {size} x {size} pixels as open_clip does")
    if fields["interpolation"] is None:
        faults.append(f"resample: {processor.get('resample')}, expected 2 or 3")
    if processor.get("do_rescale", True) is not True or not _is_255(processor):
        faults.append(f"rescale_factor: {processor.get('rescale_factor')}, expected 1/255")
    if processor.get("do_normalize", True) is not True:
        fields |= {"mean": [0.0] * 3, "std": [1.0] * 3}
    if faults:
        raise ModelError(
            f"{found[0]}: its image preprocessing does not fit the model or open_clip",
            faults=faults,
            hint=f"expected are images of {size} pixels, as vision_config states",
        )
    return fields


def _is_255(processor: Mapping[str, Any]) -> bool:
    factor = processor.get("rescale_factor", 1 / 255)
    return isinstance(factor, (int, float)) and abs(factor * 255 - 1) < 1e-6


def _resize_mode(processor: Mapping[str, Any], size: int, *, is_naflex: bool) -> str | None:
    """Return open_clip's resize mode, or None if the result would not be size x size pixels."""
    if is_naflex:
        return "squash"
    resized, crop = processor.get("size") or {}, processor.get("crop_size")
    square = [size, size]
    if isinstance(resized, int):
        resized = {"shortest_edge": resized}
    if not processor.get("do_center_crop", False):
        return "squash" if [resized.get("height"), resized.get("width")] == square else None
    crop = [crop, crop] if isinstance(crop, int) else [(crop or {}).get(k) for k in _SIDES]
    if crop == square and resized.get("shortest_edge") == size:
        return "shortest"
    return "squash" if crop == square == [resized.get(k) for k in _SIDES] else None


_SIDES = ("height", "width")


def check_config_against_tensors(
    config: Mapping[str, Any], tensors: Mapping[str, TensorInfo], path: Path
) -> None:
    """Reject a config that contradicts the tensors, under transformers' names with wrappers.

    Raises:
        ModelError: With all contradictions.
    """
    text, vision = config["text_config"], config["vision_config"]
    blocks = "{}_model.encoder.layers.{}.mlp.fc1.weight"
    expected: dict[str, Sequence[Any]] = {
        "text_model.embeddings.token_embedding.weight": (text["vocab_size"], text["hidden_size"]),
        "text_model.embeddings.position_embedding.weight": (
            text["max_position_embeddings"],
            text["hidden_size"],
        ),
    }
    if config["model_type"] == "clip":
        grid = vision["image_size"] // vision["patch_size"]
        expected |= {
            "visual_projection.weight": (config["projection_dim"], vision["hidden_size"]),
            "vision_model.embeddings.position_embedding.weight": (
                grid**2 + 1,
                vision["hidden_size"],
            ),
        }
    for tower, part in (("text", text), ("vision", vision)):
        layers, shape = part["num_hidden_layers"], (part["intermediate_size"], part["hidden_size"])
        expected[blocks.format(tower, layers - 1)] = shape
        if blocks.format(tower, layers) in tensors:
            expected[blocks.format(tower, layers)] = ("absent",)
    faults = [
        f"{name}: shape {tensors[name].shape if name in tensors else 'absent'}, "
        f"expected {tuple(shape) if shape != ('absent',) else 'absent'} by the config"
        for name, shape in expected.items()
        if (tensors[name].shape if name in tensors else ("absent",)) != tuple(shape)
    ]
    if faults:
        raise ModelError(
            f"{path}: contradicts the weights",
            faults=list_some(faults),
            hint="use the config.json that came with the weights",
        )
