"""Evaluations that several processes share, with real gloo processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.evaluation.tiny import CLASSES, make_images, make_pair
from tests.training.fork_server import ForkServer
from wiseft_cli.cli.app import main

LABELS = [entry.id for entry in CLASSES]


def torchrun(cwd: Path, *words: str, count: int = 2) -> subprocess.CompletedProcess[str]:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    return subprocess.run(
        [sys.executable, *launch, "-m", "wiseft_cli", *words],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=240,
    )


def test_two_processes_give_the_lines_of_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_pair(tmp_path)
    # Eight batches of at most five, and two: uneven shares, and a process without any.
    make_images(tmp_path / "val", LABELS, per_class=5, seed=1)
    make_images(tmp_path / "one", LABELS[:2], per_class=1, seed=2)
    (tmp_path / "val" / "n07" / "4.png").write_bytes(b"damaged")
    words = ["eval", "zeroshot.safetensors", "finetuned.safetensors", "--alpha", "0,0.5", "--json"]
    words += ["--data", "val", "--data", "one", "--batch-size", "5", "--workers", "0"]
    words += ["--device", "cpu", "--max-bad", "1", "--output-ensemble"]
    shared = torchrun(tmp_path, *words, "--results", "2.jsonl", "--save-predictions", "two")
    assert shared.returncode == 0, shared.stderr
    monkeypatch.chdir(tmp_path)
    assert main([*words, "--save-predictions", "one-process"]) == 0
    assert json.loads(shared.stdout) == json.loads(capsys.readouterr().out)
    assert [line["n_images"] for line in json.loads(shared.stdout)] == [39] * 3 + [2] * 3
    written = (tmp_path / "2.jsonl").read_text().splitlines()
    assert [line.get("choice") for line in map(json.loads, written)] == [None] * 6
    for whole in (tmp_path / "one-process").iterdir():
        parts = [tmp_path / "two" / f"{whole.stem}.part-{rank}-of-2.jsonl" for rank in range(2)]
        assert "".join(part.read_text() for part in parts) == whole.read_text()


def test_mistake_that_all_processes_find_is_reported_once(
    tmp_path: Path, fork_server: ForkServer
) -> None:
    make_pair(tmp_path)
    words = ("eval", "zeroshot.safetensors", "--data", "nowhere")
    code, _, err = fork_server.run_two_ranks(*words, folder=tmp_path)
    assert code != 0
    assert err.count("error: image folder nowhere does not exist") == 1
