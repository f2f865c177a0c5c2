"""Outputs written in chunks, with limits low enough for small files."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from wiseft_cli.checkpoint import writer
from wiseft_cli.errors import OutputError
from wiseft_cli.merging import stream
from wiseft_cli.merging.alpha import parse_alphas
from wiseft_cli.merging.arithmetic import interpolate_arrays
from wiseft_cli.merging.merge import merge_checkpoints

SHAPES = {"a": (1000, 301), "b": (7,), "c": (4096, 33), "d": (), "e": (0, 3), "f": (64, 1024)}
ALPHAS = parse_alphas(["0:1:0.25"])


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    monkeypatch.setattr(writer, "_LARGE_BYTES", 1)
    monkeypatch.setattr(stream, "_CHUNK_BYTES", 64 << 10)
    generator = np.random.default_rng(0)
    paths = tmp_path / "zeroshot.safetensors", tmp_path / "finetuned.safetensors"
    for path in paths:
        arrays = {
            name: generator.standard_normal(shape).astype(np.float32)
            for name, shape in SHAPES.items()
        }
        arrays["half"] = generator.standard_normal((321, 77)).astype(np.float16)
        arrays["count"] = generator.integers(0, 9, 12345)
        save_file(arrays, path)
    return paths


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
@pytest.mark.parametrize("threads", [1, 3])
def test_streamed_values_equal_those_of_whole_arrays(
    pair: tuple[Path, Path], tmp_path: Path, dtype: str | None, threads: int
) -> None:
    outputs = [(alpha, tmp_path / f"{alpha.text}.safetensors") for alpha in ALPHAS]
    merge_checkpoints(*pair, outputs, dtype=dtype, threads=threads)
    theta_0, theta_1 = (load_file(path) for path in pair)
    for alpha, path in outputs:
        merged = load_file(path)
        assert set(merged) == set(theta_0)
        for name, x in theta_0.items():
            expected = interpolate_arrays(x, theta_1[name], alpha.value)
            if dtype and x.dtype.kind == "f":
                wide = (
                    x.astype(float) * (1 - alpha.value) + theta_1[name].astype(float) * alpha.value
                )
                found = merged[name].view(ml_dtypes.bfloat16).astype(float)
                np.testing.assert_allclose(found, wide, rtol=2**-8, atol=1e-30)
            else:
                assert merged[name].tobytes() == expected.tobytes(), (name, alpha.text)


def test_tensors_begin_at_a_page(pair: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    merge_checkpoints(*pair, [(ALPHAS[2], out)])
    length = int.from_bytes(out.read_bytes()[:8], "little")
    assert (8 + length) % 4096 == 0


def test_a_disk_that_fails_in_a_thread_leaves_nothing(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    pwrite = os.pwrite

    def fail_late(descriptor: int, data: memoryview, position: int) -> int:
        calls.append(1)
        if len(calls) > 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return pwrite(descriptor, data, position)

    monkeypatch.setattr(os, "pwrite", fail_late)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(OutputError, match=r"st: cannot be written: No space left on device"):
        merge_checkpoints(*pair, [(alpha, tmp_path / f"{alpha.text}.st") for alpha in ALPHAS])
    assert sorted(tmp_path.iterdir()) == before
