"""The files a tokenizer is loaded from again, written into a model folder.

open_clip finds the tokenizer of a `local-dir:` folder in another way than that of a name, so
what was written is loaded again and compared before anybody relies on it.
It does not load a model's own tokenizer; `tokenizer.py` does.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import open_clip
import open_clip.tokenizer
import torch

from wiseft_cli.errors import ModelError
from wiseft_cli.model.model_source import FOLDER_PREFIX, ModelSource
from wiseft_cli.model.quiet import quiet_libraries
from wiseft_cli.model.tokenizer import PromptTokenizer, merges_of

PROBES = ("a photo of a tree-house.", "", "Ünicode 語, 123!", "it's  SPACED", "long " * 200)
"""Texts on which two tokenizers that differ are likely to differ."""


def check_exportable(source: ModelSource, tokenizer: PromptTokenizer) -> None:
    """Refuse a model whose tokenizer open_clip would not find in a folder.

    Raises:
        ModelError: open_clip picks the tokenizer by the model's name, or the text tower is
            described by files outside the folder.
    """
    if isinstance(tokenizer.tokenize, open_clip.tokenizer.SigLipTokenizer):
        raise ModelError(
            f"{source.name}: open_clip chooses its tokenizer by the model's name, and in a folder "
            "it would choose another",
            hint="load `visual.*` into the named model instead",
        )
    tower_name = str(source.config["text_cfg"].get("hf_model_name") or "")
    if tower_name and Path(tower_name).is_dir():
        raise ModelError(
            f"{source.name}: the config of its text tower is read from the folder {tower_name}, "
            "which open_clip looks for outside the model's folder",
            hint="name a text tower of the hub in text_cfg.hf_model_name",
        )


def write_tokenizer(
    folder: Path, source: ModelSource, tokenizer: PromptTokenizer
) -> dict[str, Any]:
    """Write what a model's tokenizer needs into a folder.

    CLIP's own vocabulary ships with open_clip and needs no file; a byte-pair file of the
    model's own is copied, and a hub tokenizer saves itself.

    Returns:
        The `text_cfg` under which open_clip finds it there.
    """
    text_config = dict(source.config["text_cfg"])
    merges = merges_of(source)
    if merges is not None:
        shutil.copyfile(merges, folder / merges.name)
        options = {**text_config["tokenizer_kwargs"], "bpe_path": merges.name}
        text_config["tokenizer_kwargs"] = options
    if isinstance(tokenizer.tokenize, open_clip.tokenizer.HFTokenizer):
        tokenizer.tokenize.save_pretrained(str(folder))
    return text_config


def check_tokenizer(
    folder: Path, text_config: Mapping[str, Any], tokenizer: PromptTokenizer
) -> None:
    """Load the tokenizer of a model folder as open_clip does, and compare it with the model's.

    Raises:
        ModelError: It cannot be loaded, or gives other tokens.
    """
    merges = (text_config.get("tokenizer_kwargs") or {}).get("bpe_path")
    options = {} if merges is None else {"bpe_path": str(folder / merges)}
    try:
        with quiet_libraries():
            found = open_clip.get_tokenizer(f"{FOLDER_PREFIX}{folder}", **options)
            same = torch.equal(found(list(PROBES)), tokenizer.tokenize(list(PROBES)))
    except Exception as error:  # file and format errors of two libraries
        raise ModelError(f"open_clip cannot load the tokenizer that was written: {error}") from None
    if not same:
        raise ModelError(
            "open_clip loads a tokenizer from the folder that gives other tokens than the model's",
            hint="load `visual.*` into the named model instead",
        )
