"""Heads whose rows are other classes are noticed, or mentioned by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from wiseft_cli.checkpoint.reader import open_checkpoint
from wiseft_cli.checkpoint.writer import write_checkpoint
from wiseft_cli.errors import IncompatibleCheckpointsError
from wiseft_cli.merging.head_rows import head_warnings

N_CLASSES, WIDTH = 12, 32


@pytest.fixture
def rows() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((N_CLASSES, WIDTH)).astype(np.float32)


def warnings_of(folder: Path, *heads: np.ndarray, name: str = "classifier.weight") -> list[str]:
    paths = [folder / "a.safetensors", folder / "b.safetensors"]
    for path, head in zip(paths, heads, strict=True):
        write_checkpoint(path, {name: head}, None, force=True)
    with open_checkpoint(paths[0]) as first, open_checkpoint(paths[1]) as second:
        return list(head_warnings(first, second))


@pytest.mark.parametrize("name", ["classifier.weight", "model.head.weight", "fc.weight"])
def test_a_head_without_a_card_is_mentioned_by_name(
    tmp_path: Path, rows: np.ndarray, name: str
) -> None:
    moved = rows + 0.05 * np.random.default_rng(1).standard_normal(rows.shape).astype(np.float32)
    (warning,) = warnings_of(tmp_path, rows, moved, name=name)
    assert warning.startswith(f"{name}: nothing in {tmp_path}/a.safetensors and ")
    assert "its 12 rows are the same classes in the same order" in warning


@pytest.mark.parametrize("noise", [0.0, 0.3])
@pytest.mark.parametrize("swapped", [2, N_CLASSES])
def test_rows_in_another_order_are_rejected_with_their_numbers(
    tmp_path: Path, rows: np.ndarray, noise: float, swapped: int
) -> None:
    order = np.arange(N_CLASSES)
    order[:swapped] = np.roll(order[:swapped], 1)
    values = noise * np.random.default_rng(1).standard_normal(rows.shape) + rows[order]
    with pytest.raises(IncompatibleCheckpointsError) as raised:
        warnings_of(tmp_path, rows, values.astype(np.float32))
    assert f"row 0 is nearest to row {swapped - 1}" in raised.value.message
    assert raised.value.message.count("is nearest to") == min(swapped, 10)


def test_unrelated_heads_are_only_mentioned(tmp_path: Path, rows: np.ndarray) -> None:
    other = np.random.default_rng(5).standard_normal(rows.shape).astype(np.float32)
    assert len(warnings_of(tmp_path, rows, other)) == 1


def test_rows_that_are_zero_or_not_finite_are_no_permutation(
    tmp_path: Path, rows: np.ndarray
) -> None:
    damaged = rows.copy()
    damaged[0], damaged[1, 0], damaged[2, 0] = 0, np.nan, np.inf
    assert len(warnings_of(tmp_path, rows, damaged)) == 1


@pytest.mark.parametrize(
    "name", ["text_model.head.weight", "vision_model.head.mlp.fc1.weight", "lm_head.weight"]
)
def test_other_tensors_are_not_taken_for_heads(tmp_path: Path, rows: np.ndarray, name: str) -> None:
    assert warnings_of(tmp_path, rows, rows[::-1].copy(), name=name) == []
