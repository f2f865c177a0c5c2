"""The written file: round trip, reproducible bytes, digest, layout, other readers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from blake3 import blake3

from wiseft_cli.checkpoint.card import Card, ClassEntry, HistoryEntry, ModelSpec
from wiseft_cli.checkpoint.format import read_header
from wiseft_cli.checkpoint.reader import open_checkpoint, read_card
from wiseft_cli.checkpoint.writer import CheckpointWriter, TensorSpec, write_checkpoint
from wiseft_cli.errors import CheckpointError, NotACheckpointError


def make_card() -> Card:
    return Card(
        role="zeroshot",
        model=ModelSpec("tiny", None, {"embed_dim": 4}),
        preprocess={"size": [32, 32]},
        classes=(ClassEntry("n1", "tench"), ClassEntry("n2", "größer")),
        templates=("a photo of a {}.",),
        logit_scale=100.0,
        history=(HistoryEntry("zeroshot-head", "0.1.0", {"model": "tiny"}, ()),),
    )


def make_tensors() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {
        "visual.weight": random.standard_normal((5, 3)).astype(np.float32).T,
        "visual.scalar": np.float32(3.5).reshape(()),
        "visual.half": random.standard_normal(7).astype(np.float16),
        "visual.bfloat": np.ones((2, 2), ml_dtypes.bfloat16),
        "visual.float8": np.ones(3, ml_dtypes.float8_e4m3fn),
        "visual.empty": np.zeros((0, 3), np.float32),
        "visual.steps": np.array(7, np.int64),
        "visual.mask": np.array([True, False]),
        "classification_head.größe": np.arange(4, dtype=np.float64),
    }


def test_every_tensor_is_read_back_bit_for_bit(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_checkpoint(path, make_tensors(), make_card())
    with open_checkpoint(path) as reader:
        assert set(reader.tensors) == set(make_tensors())
        for name, array in make_tensors().items():
            found = reader.read_array(name)
            assert found.dtype == array.dtype
            assert found.shape == array.shape
            assert found.tobytes() == array.tobytes()


def test_safetensors_and_torch_read_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_checkpoint(path, make_tensors(), make_card())
    loaded = safetensors.torch.load_file(path)
    assert torch.equal(
        loaded["visual.weight"], torch.from_numpy(make_tensors()["visual.weight"].copy())
    )
    assert loaded["visual.bfloat"].dtype == torch.bfloat16


def data_start(path: Path) -> int:
    return min(info.start for info in read_header(path).tensors.values())


def test_the_data_equals_that_of_the_official_writer(tmp_path: Path) -> None:
    tensors = {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.array([1], np.int64)}
    ours = tmp_path / "ours.safetensors"
    write_checkpoint(ours, tensors, make_card())
    official = tmp_path / "official.safetensors"
    safetensors.numpy.save_file(tensors, official)
    assert list(read_header(ours).tensors) == list(read_header(official).tensors)
    ours_data = ours.read_bytes()[data_start(ours) :]
    assert ours_data == official.read_bytes()[data_start(official) :]


def test_every_tensor_is_aligned_to_its_type(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_checkpoint(path, make_tensors(), make_card())
    assert data_start(path) % 8 == 0
    with open_checkpoint(path) as reader:
        for info in reader.tensors.values():
            assert info.start % reader.read_array(info.name).dtype.itemsize == 0


def test_two_processes_write_the_same_bytes(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[2])\n"
        "from tests.checkpoint.test_writer import make_card, make_tensors\n"
        "from wiseft_cli.checkpoint.writer import write_checkpoint\n"
        "write_checkpoint(Path(sys.argv[1]), make_tensors(), make_card())\n"
    )
    root = str(Path(__file__).parents[2])
    for name in ("a", "b"):
        subprocess.run(
            [sys.executable, "-c", program, str(tmp_path / name), root], check=True, cwd=root
        )
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_digest_is_the_documented_hash(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    digest = write_checkpoint(path, make_tensors(), make_card())
    lines = []
    with open_checkpoint(path) as reader:
        for name in sorted(reader.tensors, key=lambda name: name.encode("utf-8")):
            info = reader.tensors[name]
            data = path.read_bytes()[info.start : info.end]
            row = [name, info.dtype, list(info.shape), blake3(data).hexdigest()]
            lines.append(json.dumps(row, separators=(",", ":"), ensure_ascii=True) + "\n")
    expected = "blake3:" + blake3("".join(lines).encode()).hexdigest()
    assert digest == expected
    assert read_card(path).digest == expected


def test_tensors_may_be_written_in_alternating_pieces(tmp_path: Path) -> None:
    whole = tmp_path / "whole.safetensors"
    tensors = {"a": np.arange(4, dtype=np.float32), "b": np.arange(8, dtype=np.int64)}
    write_checkpoint(whole, tensors, make_card())
    pieces = tmp_path / "pieces.safetensors"
    specs = [TensorSpec("a", "F32", (4,)), TensorSpec("b", "I64", (8,))]
    with CheckpointWriter(pieces, specs, make_card()) as writer:
        b = tensors["b"].tobytes()
        writer.append("b", b[:10])
        writer.append("a", tensors["a"].tobytes())
        writer.append("b", b[10:])
        writer.commit()
    assert pieces.read_bytes() == whole.read_bytes()


def test_an_incomplete_tensor_raises_and_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with (
        pytest.raises(ValueError, match="incomplete tensors: a"),
        CheckpointWriter(path, [TensorSpec("a", "F32", (4,))], make_card()) as writer,
    ):
        writer.append("a", b"1234")
        writer.commit()
    assert list(tmp_path.iterdir()) == []


def test_a_digest_known_at_the_end_replaces_its_placeholder(tmp_path: Path) -> None:
    from dataclasses import replace

    from wiseft_cli.checkpoint.card import HistoryInput
    from wiseft_cli.checkpoint.digest import UNKNOWN_DIGEST

    path = tmp_path / "a.safetensors"
    step = HistoryEntry("merge", "0.1.0", {}, (HistoryInput("zeroshot", UNKNOWN_DIGEST),))
    card = replace(make_card(), history=(step,))
    known = "sha256:" + "a" * 64
    with CheckpointWriter(path, [TensorSpec("a", "F32", (1,))], card) as writer:
        writer.append("a", b"\0\0\0\0")
        known_step = replace(step, inputs=(HistoryInput("zeroshot", known),))
        writer.commit(replace(card, history=(known_step,)))
    assert read_card(path).history[0].inputs[0].digest == known


def test_a_foreign_file_has_no_card(tmp_path: Path) -> None:
    path = tmp_path / "foreign.safetensors"
    safetensors.numpy.save_file({"a": np.zeros(1, np.float32)}, path)
    with pytest.raises(NotACheckpointError) as caught:
        read_card(path)
    assert str(caught.value) == (
        f"{path}: has no wiseft card, expected a checkpoint written by wiseft"
    )


def test_a_checkpoint_of_another_role_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_checkpoint(path, make_tensors(), make_card())
    with pytest.raises(CheckpointError) as caught:
        read_card(path, roles=("finetuned", "merged"))
    assert str(caught.value) == (f"{path}: is a zeroshot checkpoint, expected finetuned or merged")
