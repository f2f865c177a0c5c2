"""Whole CLIP models, image and text tower together, through open_clip's public interface.

It does not build classifiers: that needs the image tower alone and is done elsewhere.
"""

from __future__ import annotations

import copy
import gzip
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import open_clip
from open_clip.tokenizer import default_bpe
from torch import nn


def build_untrained_clip(model_config: Mapping[str, Any]) -> nn.Module:
    """Build a CLIP with random weights from an open_clip model config.

    Args:
        model_config: `embed_dim`, `vision_cfg`, `text_cfg`, as in open_clip's JSON files.
    Returns:
        A model in training mode; its weights follow torch's global random state.
    """
    model: nn.Module = open_clip.CLIP(**copy.deepcopy(dict(model_config)))
    return model


def build_simple_tokenizer(bpe_path: Path, context_length: int) -> open_clip.SimpleTokenizer:
    """Build CLIP's byte-pair tokenizer over the merges of a file.

    Args:
        bpe_path: Gzipped merges, a header line first.
        context_length: Tokens a text is padded or cut to.
    """
    return open_clip.SimpleTokenizer(bpe_path=str(bpe_path), context_length=context_length)


def read_clip_merges(count: int) -> str:
    """The header and the first `count` byte-pair merges of CLIP's own vocabulary."""
    lines = gzip.decompress(Path(default_bpe()).read_bytes()).decode("utf-8").split("\n")
    return "\n".join(lines[: count + 1])
