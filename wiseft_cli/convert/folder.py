"""Write the config, preprocessing and tokenizer files of a converted model folder.

They come from the files beside the source's weights. `convert.py` writes the weights.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wiseft_cli.convert.clip_vocabulary import default_merges, write_clip_tokenizer
from wiseft_cli.convert.configs import (
    CLIP_MEAN,
    CLIP_STD,
    CONFIG_NAME,
    merges_name,
    open_clip_model_config,
    read_json,
    read_preprocess,
    read_transformers_config,
)
from wiseft_cli.convert.names import Library, Naming
from wiseft_cli.convert.timm_config import timm_config
from wiseft_cli.convert.transformers_config import transformers_config, transformers_preprocessor
from wiseft_cli.errors import ModelError

OPEN_CLIP_CONFIG = "open_clip_config.json"
WEIGHTS_NAMES: Mapping[Library, str] = {
    "open_clip": "open_clip_model.safetensors",
    "transformers": "model.safetensors",
    "timm": "model.safetensors",
}
_TOKENIZER_FILES = (
    "tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "*.model",
)  # fmt: skip
_PREPROCESS = {
    "size": 224, "mode": "RGB", "mean": list(CLIP_MEAN), "std": list(CLIP_STD),
    "interpolation": "bicubic", "resize_mode": "shortest", "fill_color": 0,
}  # fmt: skip
CLEANED_NOTE = (
    "open_clip cleans prompts before its tokenizer ({}), which is not part of the tokenizer's "
    "files: clean prompts in the same way"
)
"""Note about `tokenizer_kwargs.clean` for users of another library."""


@dataclass(frozen=True)
class ModelFiles:
    """What the files beside the weights say, in open_clip's terms.

    Attributes:
        folder: The folder of the files.
        model_cfg: open_clip's model config.
        preprocess: open_clip's preprocessing fields, with the size.
    """

    folder: Path
    model_cfg: Mapping[str, Any]
    preprocess: Mapping[str, Any]


def read_model_files(folder: Path, naming: Naming) -> ModelFiles:
    """Read the config and preprocessing beside weights.

    Raises:
        ModelError: They are missing, damaged, or of a kind that cannot be converted.
    """
    if naming.library == "timm":
        raise ModelError(
            f"{folder}: a model of timm has no text tower, so no model folder of open_clip or "
            "transformers can be made",
            hint="write its weights alone: -o FILE.safetensors",
        )
    name = CONFIG_NAME if naming.library == "transformers" else OPEN_CLIP_CONFIG
    if not (folder / name).is_file():
        raise ModelError(
            f"{folder}: no {name} beside the weights, from which a model folder could be made",
            hint="write the weights alone: -o FILE.safetensors",
        )
    if naming.library == "transformers":
        config = read_transformers_config(folder)
        model_cfg = open_clip_model_config(config, folder / CONFIG_NAME)
        return ModelFiles(folder, model_cfg, read_preprocess(folder, config))
    document = read_json(folder / OPEN_CLIP_CONFIG)
    given = document.get("model_cfg")
    if not isinstance(given, dict) or not {"embed_dim", "vision_cfg", "text_cfg"} <= given.keys():
        raise ModelError(f"{folder / OPEN_CLIP_CONFIG}: has no model_cfg with two towers")
    size = {"size": given["vision_cfg"].get("image_size", 224)}
    return ModelFiles(
        folder, given, {**_PREPROCESS, **size, **(document.get("preprocess_cfg") or {})}
    )


def write_model_files(output: Path, files: ModelFiles, target: Naming) -> tuple[str, ...]:
    """Write the files of a library's model folder except the weights, and return notes.

    Raises:
        ModelError: The library cannot express the model, or tokenizer files are missing.
    """
    if target.library == "open_clip":
        return _write_open_clip(output, files)
    if target.family == "siglip2":
        raise ModelError(
            f"{files.folder}: a folder with NaFlex names cannot be written",
            hint="write the weights alone: -o FILE.safetensors",
        )
    config = transformers_config(files.model_cfg, kind=target.family)
    if target.library == "timm":
        tower = files.model_cfg["vision_cfg"].get("timm_model_name")
        document = timm_config(
            config["vision_config"],
            files.preprocess,
            feature_dim=files.model_cfg["embed_dim"],
            tower=tower,
        )
        _write_json(output / CONFIG_NAME, document)
        return ()
    names = {"clip": "CLIPModel", "siglip": "SiglipModel"}
    _write_json(output / CONFIG_NAME, {**config, "architectures": [names[target.family]]})
    _write_json(
        output / "preprocessor_config.json",
        transformers_preprocessor(files.preprocess, kind=target.family),
    )
    return _write_tokenizer(output, files)


def _write_open_clip(output: Path, files: ModelFiles) -> tuple[str, ...]:
    model_cfg = {**files.model_cfg, "text_cfg": dict(files.model_cfg["text_cfg"])}
    merges = _find_merges(files)
    copied = _copy_tokenizer(files.folder, output)
    if merges is not None:
        shutil.copyfile(merges, output / merges.name)
        options = {**model_cfg["text_cfg"]["tokenizer_kwargs"], "bpe_path": merges.name}
        model_cfg["text_cfg"]["tokenizer_kwargs"] = options
    elif copied:
        model_cfg["text_cfg"].setdefault("hf_tokenizer_name", files.folder.resolve().name)
    elif (files.folder / CONFIG_NAME).is_file():
        raise _no_tokenizer(files.folder)
    document = {"model_cfg": model_cfg, "preprocess_cfg": dict(files.preprocess)}
    _write_json(output / OPEN_CLIP_CONFIG, document)
    vision = model_cfg["vision_cfg"]
    if vision.get("timm_model_name") and vision.get("act_kwargs"):
        return (
            "open_clip may build this image encoder with exact GELU instead of the approximation "
            "that it was trained with; wiseft uses the approximation",
        )
    return ()


def _write_tokenizer(output: Path, files: ModelFiles) -> tuple[str, ...]:
    text_cfg = files.model_cfg["text_cfg"]
    options = text_cfg.get("tokenizer_kwargs") or {}
    if text_cfg.get("hf_tokenizer_name"):
        if not _copy_tokenizer(files.folder, output):
            raise _no_tokenizer(files.folder)
        clean = options.get("clean")
        return (CLEANED_NOTE.format(clean),) if clean else ()
    merges = _find_merges(files) or default_merges()
    write_clip_tokenizer(output, merges, context_length=text_cfg.get("context_length", 77))
    return ()


def _find_merges(files: ModelFiles) -> Path | None:
    """Return the model's own byte-pair file; None if it has none."""
    config = files.folder / OPEN_CLIP_CONFIG
    name = merges_name(files.model_cfg["text_cfg"], config)
    if name is not None and not (files.folder / name).is_file():
        raise ModelError(f"{files.folder / name}: not found, but bpe_path in {config} names it")
    return None if name is None else files.folder / name


def _copy_tokenizer(folder: Path, output: Path) -> bool:
    """Copy the tokenizer files of transformers; return whether there are any."""
    found = {path for pattern in _TOKENIZER_FILES for path in folder.glob(pattern)}
    for path in found:
        if path.is_file():
            shutil.copyfile(path, output / path.name)
    return bool(found)


def _no_tokenizer(folder: Path) -> ModelError:
    return ModelError(
        f"{folder}: no tokenizer files (tokenizer.json, vocab.json, spiece.model)",
        hint="fetch them from the place that the weights came from, or write the weights alone: "
        "-o FILE.safetensors",
    )


def _write_json(path: Path, document: Any) -> None:
    path.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n", encoding="utf-8")
