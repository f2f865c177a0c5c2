"""Every merge method from files to files: the bits of whole arrays, many inputs, interruptions."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from tests.merging.pairs import write_foreign, write_sharded
from tests.merging.test_arithmetic import round_exactly
from tests.merging.test_merge import read_all
from tests.merging.test_methods import SETTINGS, Tensors, merge
from wiseft_cli.checkpoint import atomic
from wiseft_cli.errors import IncompatibleCheckpointsError, OutputError
from wiseft_cli.merging.alpha import parse_alphas
from wiseft_cli.merging.fisher_file import FisherInfo, write_fisher
from wiseft_cli.merging.merge import merge_checkpoints, soup_checkpoints
from wiseft_cli.merging.methods import METHODS
from wiseft_cli.merging.reductions import REDUCTION_BLOCK
from wiseft_cli.merging.settings import resolve_settings

LARGE = "visual.transformer.resblocks.0.weight"
SIZES = {
    LARGE: 600_000,  # several chunks, and a part of a block
    "visual.transformer.resblocks.1.weight": 3 * REDUCTION_BLOCK,
    "visual.proj": 501,
    "visual.scale": 1,
    "visual.empty": 0,
}


def arrays(seed: int, base: Tensors | None = None) -> Tensors:
    random = np.random.default_rng(seed)
    found = {}
    for name, size in SIZES.items():
        values = random.standard_normal(size)
        if base:
            values = base[name] + 0.05 * values
        found[name] = values.astype(np.float32)
    return found


@pytest.fixture(scope="module")
def models() -> list[Tensors]:
    base = arrays(0)
    return [base, *(arrays(seed, base) for seed in (1, 2, 3))]


@pytest.fixture(scope="module")
def paths(models: list[Tensors], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("models")
    return [write_foreign(folder / f"m{i}", model) for i, model in enumerate(models)]


@pytest.mark.parametrize(("method", "options"), SETTINGS)
@pytest.mark.parametrize("threads", [1, 8])
def test_streamed_values_are_those_of_whole_arrays(
    models: list[Tensors],
    paths: list[Path],
    tmp_path: Path,
    method: str,
    options: dict[str, Any],
    threads: int,
) -> None:
    spec = METHODS[method]
    n = 2 if spec.max_finetuned == 1 else 4
    thetas, files, fishers, fisher_paths = models[:n], paths[:n], [], []
    if spec.takes_fisher:
        for index, path in enumerate(files):
            values = {k: np.abs(v) for k, v in arrays(9 + index).items() if k != "visual.proj"}
            info = FisherInfo(content_of(path), "x", 4, 0, "model", 0, "0.1.0")
            fisher_paths.append(tmp_path / f"f{index}")
            write_fisher(fisher_paths[-1], values, info)
            fishers.append(values)
    base, finetuned = (thetas[0], thetas[1:]) if spec.has_base else (None, thetas)
    settings = resolve_settings(
        method, n_finetuned=len(finetuned), options=options, has_base=spec.has_base
    )
    if not spec.has_base:
        soup_checkpoints(files, tmp_path / "out", threads=threads)
        alphas = [None]
    else:
        alphas = [None] if spec.default_alpha is None else list(parse_alphas(["0.3,0.8"]))
        outputs = [(a, tmp_path / f"out{a.text if a else ''}") for a in alphas]
        merge_checkpoints(
            files[0],
            files[1:],
            outputs,
            settings=settings,
            fishers=fisher_paths,
            threads=threads,
        )
    for alpha in alphas:
        text = alpha.text if alpha else None
        expected = merge(settings, base, finetuned, text, fishers)
        merged = read_all(tmp_path / f"out{text or ''}")
        for name, values in expected.items():
            assert merged[name].tobytes() == values.tobytes(), (name, text)


def content_of(path: Path) -> str:
    from wiseft_cli.checkpoint.reader import open_checkpoint, read_content

    with open_checkpoint(path) as reader:
        return read_content(reader).digest


def test_thirty_two_sharded_inputs_need_few_open_files(
    models: list[Tensors], tmp_path: Path
) -> None:
    names = list(SIZES)
    inputs = []
    for index in range(33):
        model = {name: values + np.float32(index) for name, values in models[0].items()}
        shards = {
            "model-00001-of-00002.safetensors": {name: model[name] for name in names[1:3]},
            "model-00002-of-00002.safetensors": {
                name: model[name][:1000] if name == LARGE else model[name]
                for name in (names[0], *names[3:])
            },
        }
        inputs.append(write_sharded(tmp_path / f"in{index}", shards))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(1024, hard), hard))
    try:
        settings = resolve_settings("model-stock", n_finetuned=32)
        merge_checkpoints(inputs[0], inputs[1:], [(None, tmp_path / "out")], settings=settings)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    merged = read_all(tmp_path / "out")["visual.proj"]
    # All changes are parallel, so t is 1 and the result is the mean.
    np.testing.assert_allclose(merged, models[0]["visual.proj"] + 16.5, rtol=1e-6)


def test_inputs_of_mixed_dtypes_are_promoted_by_dtype(
    models: list[Tensors], tmp_path: Path
) -> None:
    dtypes = [np.float32, np.float16, ml_dtypes.bfloat16]
    inputs = [
        {"w": model["visual.proj"].astype(dtype)}
        for model, dtype in zip(models, dtypes, strict=False)
    ]
    files = [write_foreign(tmp_path / f"m{i}", model) for i, model in enumerate(inputs)]
    outputs = [(parse_alphas(["0.6"])[0], tmp_path / "out")]
    with pytest.raises(IncompatibleCheckpointsError, match="dtype") as caught:
        merge_checkpoints(files[0], files[1:], outputs)
    assert "--dtype float32" in str(caught.value.hint)
    settings = resolve_settings("task-arithmetic", n_finetuned=2)
    merge_checkpoints(files[0], files[1:], outputs, settings=settings, dtype="bfloat16")
    x, y, z = (model["w"].astype(np.float64) for model in inputs)
    expected = [round_exactly(float(v), "bfloat16") for v in x + 0.6 * ((y - x) + (z - x))]
    assert read_all(tmp_path / "out")["w"].view(np.uint16).tolist() == expected


def test_only_equal_tensors_are_copied_from_a_part_of_the_inputs(tmp_path: Path) -> None:
    ones = np.ones(3, np.float32)
    heads = ({"w": ones}, {"w": ones, "head": ones}, {"w": ones, "head": 2 * ones})
    files = [write_foreign(tmp_path / f"m{i}", model) for i, model in enumerate(heads)]
    outputs = [(parse_alphas(["0.5"])[0], tmp_path / "out")]
    merge_checkpoints(files[0], [files[1], files[0]], outputs, copies_missing=True)
    assert read_all(tmp_path / "out")["head"].tolist() == [1.0, 1.0, 1.0]
    with pytest.raises(IncompatibleCheckpointsError, match=r"head: .*m1 and .*m2"):
        merge_checkpoints(files[0], files[1:], outputs, copies_missing=True, force=True)


@pytest.mark.parametrize("method", ["ties", "model-stock"])
def test_a_full_disk_leaves_nothing(
    paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    settings = resolve_settings(method, n_finetuned=3)
    alphas = [None] if method == "model-stock" else list(parse_alphas(["0.5,1"]))
    calls = []

    def write_or_fail(*_: object) -> int:
        calls.append(1)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic.os, "pwrite", write_or_fail)
    with pytest.raises(OutputError, match="No space left on device"):
        merge_checkpoints(
            paths[0],
            paths[1:],
            [(alpha, tmp_path / f"out{index}") for index, alpha in enumerate(alphas)],
            settings=settings,
        )
    assert calls
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_merge_by_a_method_leaves_the_old_outputs(
    tmp_path: Path, sent: signal.Signals
) -> None:
    random = np.random.default_rng(0)
    for name in ("zs", "a", "b"):
        write_foreign(tmp_path / name, {"w": random.random(3_000_000, np.float32)})
    (tmp_path / "out0.5").write_text("precious")
    words = "merge zs a b --method ties --alpha 0.5,0:1:0.1 -o out{alpha} --force --threads 1"
    process = subprocess.Popen(
        [sys.executable, "-m", "wiseft_cli", *words.split()],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while process.poll() is None and not list(tmp_path.glob(".out*")):
        time.sleep(0.001)
    process.send_signal(sent)
    stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (143 if sent == signal.SIGTERM else -sent, "")
    assert "Traceback" not in stderr
    assert (tmp_path / "out0.5").read_text() == "precious"
    assert [path.name for path in tmp_path.glob("out*")] == ["out0.5"]
    if sent == signal.SIGTERM:
        assert not list(tmp_path.glob(".out*"))
