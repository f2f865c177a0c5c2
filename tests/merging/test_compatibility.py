"""Errors for two checkpoints that do not match: every difference and the likely cause."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.merging.pairs import (
    finetuned_card,
    tensors,
    write_foreign,
    write_pair,
    zeroshot_card,
)
from wiseft_cli.checkpoint.card import ClassEntry, ModelSpec
from wiseft_cli.checkpoint.reader import open_checkpoint
from wiseft_cli.checkpoint.writer import write_checkpoint
from wiseft_cli.errors import IncompatibleCheckpointsError
from wiseft_cli.merging.compatibility import require_compatible

ONE = np.zeros(1, np.float32)
BLOCK_NAMES = ("conv1.weight", "transformer.resblocks.0.ln_1.weight", "ln_post.bias")


def refusal(a: Path, b: Path, **options: bool) -> IncompatibleCheckpointsError:
    with (
        open_checkpoint(a, allow_shards=True) as theta_0,
        open_checkpoint(b, allow_shards=True) as theta_1,
        pytest.raises(IncompatibleCheckpointsError) as caught,
    ):
        require_compatible(theta_0, theta_1, **options)
    return caught.value


def refusal_of_names(tmp_path: Path, names_0: list[str], names_1: list[str]) -> str | None:
    a = write_foreign(tmp_path / "a", dict.fromkeys(names_0, ONE))
    b = write_foreign(tmp_path / "b", dict.fromkeys(names_1, ONE))
    return refusal(a, b).hint


def test_all_differences_are_in_one_error(tmp_path: Path) -> None:
    a = write_foreign(
        tmp_path / "a", {"x": ONE, "y": np.zeros((2, 3)), "z": ONE, "same": ONE, "n": ONE}
    )
    b = write_foreign(
        tmp_path / "b",
        {"w": ONE, "y": np.zeros((3, 2)), "z": ONE.astype(np.float16), "same": ONE, "n": ONE},
    )
    error = refusal(a, b)
    assert error.message == (
        f"{b} does not match {a} at 4 of 6 tensors:\n"
        f"  x: only in {a}\n"
        f"  w: only in {b}\n"
        "  y: shape (3, 2), expected (2, 3)\n"
        "  z: dtype F16, expected F32"
    )


def test_ten_differences_are_shown_and_the_rest_counted(tmp_path: Path) -> None:
    a = write_foreign(tmp_path / "a", {f"t{i:02}": np.zeros(2) for i in range(25)})
    b = write_foreign(tmp_path / "b", {f"t{i:02}": np.zeros(3) for i in range(25)})
    lines = refusal(a, b).message.splitlines()
    assert lines[0] == f"{b} does not match {a} at 25 of 25 tensors:"
    assert lines[10:] == ["  t09: shape (3,), expected (2,)", "  ... and 15 more"]


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model."])
@pytest.mark.parametrize("side", ["first", "second"])
def test_a_prefix_on_one_side_is_recognized(tmp_path: Path, prefix: str, side: str) -> None:
    plain, prefixed = list(BLOCK_NAMES), [prefix + name for name in BLOCK_NAMES]
    names = (prefixed, plain) if side == "first" else (plain, prefixed)
    assert refusal_of_names(tmp_path, *names) == (
        f"the names in the {side} file start with {prefix!r}; save it without the prefix; "
        "--match-names matches such names"
    )


def test_hugging_face_names_are_recognized(tmp_path: Path) -> None:
    hint = refusal_of_names(
        tmp_path, ["visual.conv1.weight"], ["vision_model.embeddings.patch_embedding.weight"]
    )
    assert hint == (
        "the second file has Hugging Face tensor names (vision_model.*); convert it "
        "with `wiseft convert`; --match-names matches such names"
    )


def test_a_lora_adapter_is_recognized(tmp_path: Path) -> None:
    hint = refusal_of_names(
        tmp_path, ["visual.proj"], ["base_model.model.visual.proj.lora_A.weight"]
    )
    assert hint is not None
    assert hint.startswith(
        "the second file has LoRA-like factors (base_model.model.visual.proj.lora"
    )


def test_a_lightning_file_is_recognized(tmp_path: Path) -> None:
    hint = refusal_of_names(
        tmp_path, ["visual.proj"], ["state_dict.visual.proj", "optimizer_states.0.state.0.exp_avg"]
    )
    assert (
        hint == "the second file is a Lightning checkpoint; save only the state dict of its model"
    )


def test_a_full_clip_against_an_image_encoder_is_recognized(tmp_path: Path) -> None:
    visual = ["visual." + name for name in BLOCK_NAMES]
    full = [*visual, "transformer.resblocks.0.ln_1.weight", "token_embedding.weight"]
    assert refusal_of_names(tmp_path, full, [*visual, "classification_head.weight"]) == (
        "the first file is a full CLIP model with its text tower, the second only an image "
        "encoder; --missing copy keeps tensors that only one file has"
    )


def test_different_shapes_suggest_different_architectures(tmp_path: Path) -> None:
    a = write_foreign(tmp_path / "a", {"visual.proj": np.zeros((4, 4))})
    b = write_foreign(tmp_path / "b", {"visual.proj": np.zeros((8, 4))})
    assert refusal(a, b).hint == (
        "the architectures differ: visual.proj has shape (4, 4) in the first file and (8, 4) in "
        "the second"
    )


def test_an_integer_and_a_float_tensor_have_no_hint(tmp_path: Path) -> None:
    a = write_foreign(tmp_path / "a", {"n": np.zeros(1, np.int64)})
    b = write_foreign(tmp_path / "b", {"n": np.zeros(1, np.float64)})
    for options in ({}, {"converts": True}):
        error = refusal(a, b, **options)
        assert error.message.endswith("n: dtype F64, expected I64")
        assert error.hint is None


def test_missing_copy_still_refuses_two_files_with_nothing_in_common(tmp_path: Path) -> None:
    a = write_foreign(tmp_path / "a", {"x": ONE})
    b = write_foreign(tmp_path / "b", {"y": ONE})
    assert "at 2 of 2 tensors" in refusal(a, b, copies_missing=True).message


def test_different_classes_of_equal_number_are_found_in_the_cards(tmp_path: Path) -> None:
    zeroshot, _ = write_pair(tmp_path)
    classes = (ClassEntry("n1", "tench"), ClassEntry("n3", "shark"))
    other = tmp_path / "other"
    write_checkpoint(other, tensors(1), replace(zeroshot_card(), classes=classes))
    assert refusal(zeroshot, other).message == (
        f"{other} does not match {zeroshot}:\n"
        "  classes: 1 of 2 differ, the first at index 1: 'n3', expected 'n2'"
    )


def test_different_numbers_of_classes_have_a_hint(tmp_path: Path) -> None:
    zeroshot, _ = write_pair(tmp_path)
    more = tensors(1) | {
        "classification_head.weight": np.zeros((3, 4), np.float32),
        "classification_head.bias": np.zeros(3, np.float32),
    }
    classes = (*zeroshot_card().classes, ClassEntry("n3", "shark"))
    other = tmp_path / "other"
    write_checkpoint(other, more, replace(zeroshot_card(), classes=classes))
    error = refusal(zeroshot, other)
    assert error.message == (
        f"{other} does not match {zeroshot} at 2 of 6 tensors:\n"
        "  classes: 3, expected 2\n"
        "  classification_head.bias: shape (3,), expected (2,)\n"
        "  classification_head.weight: shape (3, 4), expected (2, 4)"
    )
    assert error.hint == "the class lists differ; fine-tune from this zero-shot checkpoint"


def test_different_models_and_preprocessing_are_listed_entry_by_entry(tmp_path: Path) -> None:
    zeroshot, _ = write_pair(tmp_path)
    config = {"embed_dim": 4, "quick_gelu": True, "vision_cfg": {"width": 16}}
    card = replace(
        finetuned_card("sha256:" + "0" * 64),
        model=ModelSpec("tiny", "laion2b", config),
        preprocess={"size": [64, 64], "mode": "RGB"},
    )
    other = tmp_path / "other"
    write_checkpoint(other, tensors(1), card)
    assert refusal(zeroshot, other).message.splitlines()[1:] == [
        "  model.quick_gelu: true, expected false",
        "  model.vision_cfg.width: 16, expected 8",
        "  preprocessing.size: [64, 64], expected [32, 32]",
    ]
