"""Find the config, preprocessing, tokenizer and weights of a model folder of transformers.

The folder is one that `save_pretrained` writes, or a repository of the hub in that form. Config
and preprocessing are translated to open_clip's; the weights are renamed when they are read
(`weights_file.py`), and the tokenizer is transformers' own.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import EntryNotFoundError

from wiseft_cli.convert.configs import (
    CONFIG_NAME,
    check_config_against_tensors,
    open_clip_model_config,
    read_preprocess,
    read_transformers_config,
)
from wiseft_cli.convert.plain_names import read_plainly
from wiseft_cli.convert.source import open_source
from wiseft_cli.errors import ModelError
from wiseft_cli.model.quiet import quiet_libraries

OPEN_CLIP_CONFIG = "open_clip_config.json"
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
_SMALL_FILES = [
    CONFIG_NAME, "preprocessor_config.json", "processor_config.json", "tokenizer*", "vocab*",
    "merges.txt", "special_tokens_map.json", "added_tokens.json", "spiece.model",
]  # fmt: skip
_NAFLEX_NOTE = (
    "this is a NaFlex model, which keeps the aspect ratio of images; here every image is resized "
    "to a square of {0} x {0} pixels"
)


def is_transformers_folder(folder: Path) -> bool:
    """Return whether a folder has transformers' config.json, and not open_clip's."""
    return (folder / CONFIG_NAME).is_file() and not (folder / OPEN_CLIP_CONFIG).is_file()


def read_transformers_folder(
    folder: Path, *, random_weights: bool
) -> tuple[dict[str, Any], dict[str, Any], Path | None, tuple[str, ...]]:
    """Return open_clip's model config and preprocessing, the weights file, and notes.

    Raises:
        ModelError: The folder is incomplete, open_clip cannot express the model, or the config
            contradicts the weights.
    """
    path = folder / CONFIG_NAME
    config = read_transformers_config(folder)
    model_config = open_clip_model_config(config, path)
    preprocess = read_preprocess(folder, config)
    notes: tuple[str, ...] = ()
    if config["model_type"] == "siglip2":
        notes = (_NAFLEX_NOTE.format(preprocess["size"]),)
    if random_weights:
        return model_config, preprocess, None, notes
    weights = _find_weights(folder)
    with open_source(weights) as source:
        plain, naming, _ = read_plainly(source.reader)
        if naming is not None and naming.library == "transformers":
            check_config_against_tensors(config, plain.tensors, path)
    return model_config, preprocess, weights, notes


def _find_weights(folder: Path) -> Path:
    for name in _WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    raise ModelError(
        f"{folder}: no weights file, expected {' or '.join(_WEIGHTS)}",
        hint="add the weights, or use --random-weights for a trial",
    )


def download_transformers_folder(
    repository: str, *, random_weights: bool, is_offline: bool
) -> Path | None:
    """Return the local copy of a repository in transformers' form; None if it is another form.

    Args:
        is_offline: Whether only the cache is looked at.
    Raises:
        Exception: Those of huggingface_hub.
    """

    def fetch(*patterns: str) -> Path:
        return Path(
            huggingface_hub.snapshot_download(
                repository, allow_patterns=list(patterns), local_files_only=is_offline
            )
        )

    with quiet_libraries():
        try:
            huggingface_hub.hf_hub_download(repository, CONFIG_NAME, local_files_only=is_offline)
        except EntryNotFoundError:
            return None
        folder = fetch(*_SMALL_FILES)
        if not random_weights:
            folder = fetch(*_WEIGHTS[:2], "model-*-of-*.safetensors")
            if not any(folder.glob("model*.safetensors")):
                folder = fetch(_WEIGHTS[2])
    return folder


class TransformersTokenizer:
    """The tokenizer of a transformers folder, called as open_clip's tokenizers are.

    Args:
        folder: The folder with the tokenizer's files.
    """

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer  # lazy: part of the extra hf

        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)

    def __call__(self, texts: list[str], context_length: int) -> Any:
        """Return tokens, int64 of shape (len(texts), context_length)."""
        return self.tokenizer(
            texts,
            return_tensors="pt",
            max_length=context_length,
            padding="max_length",
            truncation=True,
        ).input_ids

    def save_pretrained(self, folder: str) -> None:
        """Write the tokenizer's files."""
        self.tokenizer.save_pretrained(folder)


def check_end_of_text(name: str, tokenizer: Any, text_config: Mapping[str, Any]) -> None:
    """Check that a tokenizer ends prompts with the token whose feature the text tower takes.

    Raises:
        ModelError: The tokenizer belongs to another model.
    """
    if text_config.get("pool_type") == "last":
        return
    expected = text_config.get("eos_id", text_config["vocab_size"] - 1)
    if tokenizer.eos_token_id != expected:
        raise ModelError(
            f"the tokenizer of {name} ends prompts with token {tokenizer.eos_token_id}, but its "
            f"text tower takes the feature of token {expected}",
            hint="the tokenizer belongs to another model; use the files that came with the weights",
        )
