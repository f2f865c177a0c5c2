"""A zero-shot checkpoint is built with one call."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from wiseft_cli.checkpoint.card import Card
from wiseft_cli.checkpoint.reader import read_card
from wiseft_cli.errors import UsageError
from wiseft_cli.model import full_clip, zeroshot_checkpoint
from wiseft_cli.model.classifier import load_checkpoint
from wiseft_cli.model.full_clip import FullClip
from wiseft_cli.model.model_source import ModelSource
from wiseft_cli.model.zeroshot_checkpoint import build_zeroshot_checkpoint


def test_checkpoint_is_built_from_lists_with_one_call(vit_folder: Path, tmp_path: Path) -> None:
    messages: list[str] = []
    progress: list[tuple[int, int]] = []
    built = build_zeroshot_checkpoint(
        str(tmp_path / "z.safetensors"),
        model=f"local-dir:{vit_folder}",
        classes=["cat", "dog"],
        templates=["a {}.", "the {}"],
        device="cpu",
        on_message=messages.append,
        on_progress=lambda total, n: progress.append((total, n)),
    )
    assert built.path == tmp_path / "z.safetensors"
    assert built.digest == read_card(built.path).digest
    assert built.notes == ()
    assert [message.split(":")[0] for message in messages] == ["classes", "templates", "model"]
    assert {total for total, _ in progress} == {4}
    assert sum(n for _, n in progress) == 4
    assert load_checkpoint(built.path).class_names == ("cat", "dog")


def test_lists_and_files_give_the_same_bytes(vit_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    (tmp_path / "templates.txt").write_text("a {}.\nthe {}\n")
    inputs: list[dict[str, Any]] = [
        {"classes": ["cat", "dog"], "templates": ["a {}.", "the {}"]},
        {"classes": tmp_path / "classes.txt", "templates": str(tmp_path / "templates.txt")},
    ]
    files = []
    for index, given in enumerate(inputs):
        path = tmp_path / f"{index}.safetensors"
        build_zeroshot_checkpoint(path, model=f"local-dir:{vit_folder}", **given)
        files.append(path.read_bytes())
    assert files[0] == files[1]


def test_unsupported_precision_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="precision fp16: expected fp32 or bf16"):
        build_zeroshot_checkpoint(
            tmp_path / "z.safetensors", model="ViT-B-32", classes=["cat"], precision="fp16"
        )


def test_text_tower_is_freed_and_the_encoder_is_written_without_a_copy(
    vit_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text_weight: list[weakref.ref[torch.nn.Module]] = []
    encoder_address: list[int] = []
    load, write = full_clip.load_full_clip, zeroshot_checkpoint.write_checkpoint

    def load_and_record(source: ModelSource, **options: Any) -> FullClip:
        full = load(source, **options)
        model: Any = full.model
        text_weight.append(weakref.ref(model.token_embedding))
        encoder_address.append(model.visual.conv1.weight.data_ptr())
        return full

    def check_and_write(
        path: Path, tensors: dict[str, np.ndarray], card: Card, **options: Any
    ) -> str:
        gc.collect()
        assert text_weight[0]() is None
        assert tensors["visual.conv1.weight"].ctypes.data == encoder_address[0]
        return write(path, tensors, card, **options)

    monkeypatch.setattr(full_clip, "load_full_clip", load_and_record)
    monkeypatch.setattr(zeroshot_checkpoint, "write_checkpoint", check_and_write)
    built = build_zeroshot_checkpoint(
        tmp_path / "z.safetensors", model=f"local-dir:{vit_folder}", classes=["cat"], device="cpu"
    )
    assert built.digest.startswith("blake3:")
    assert text_weight
