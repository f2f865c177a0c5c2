"""The step as a whole: the text tower is gone before the first byte is written."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from wiseft_cli.checkpoint.card import Card, ClassEntry
from wiseft_cli.model import zeroshot_checkpoint
from wiseft_cli.model.full_clip import FullClip
from wiseft_cli.model.model_source import ModelSource
from wiseft_cli.model.zeroshot_checkpoint import ZeroshotRequest, write_zeroshot_checkpoint
from wiseft_cli.prompts.class_names import ClassList


def test_text_tower_is_freed_and_the_encoder_not_copied_when_the_file_is_written(
    vit_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text_weight: list[weakref.ref[torch.nn.Module]] = []
    encoder_address: list[int] = []
    load, write = zeroshot_checkpoint.load_full_clip, zeroshot_checkpoint.write_checkpoint

    def watch(source: ModelSource, **options: Any) -> FullClip:
        full = load(source, **options)
        model: Any = full.model
        text_weight.append(weakref.ref(model.token_embedding))
        encoder_address.append(model.visual.conv1.weight.data_ptr())
        return full

    def look(path: Path, tensors: dict[str, np.ndarray], card: Card, **options: Any) -> str:
        gc.collect()
        assert text_weight[0]() is None
        assert tensors["visual.conv1.weight"].ctypes.data == encoder_address[0]
        return write(path, tensors, card, **options)

    monkeypatch.setattr(zeroshot_checkpoint, "load_full_clip", watch)
    monkeypatch.setattr(zeroshot_checkpoint, "write_checkpoint", look)
    request = ZeroshotRequest(
        f"local-dir:{vit_folder}", None, ClassList((ClassEntry("cat", "cat"),), "text"), ("a {}",)
    )
    digest = write_zeroshot_checkpoint(
        tmp_path / "z.safetensors", request, device=torch.device("cpu")
    )
    assert digest.startswith("sha256:")
    assert text_weight
