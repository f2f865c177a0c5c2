"""`wiseft finetune --sweep`: its runs equal single runs, and finished ones are skipped."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.training.tiny import write_images, write_zeroshot
from wiseft_cli.cli.app import main
from wiseft_cli.cli.finetune_sweep import run_sweep
from wiseft_cli.errors import DatasetError, RecipeError, UsageError
from wiseft_cli.training.sweep import plan_sweep

Captured = pytest.CaptureFixture[str]
QUIET = ["--workers", "0", "--device", "cpu", "--threads", "1", "--batch-size", "4"]
QUIET += ["--epochs", "1"]
START = ["finetune", "zeroshot.safetensors", "--train", "images"]
SWEEP = ["--sweep", "lr=1e-4,1e-2", "seed=0,1"]
OUTPUT = ["-o", "run-{lr}-{seed}.safetensors"]
NAMES = [f"run-{lr}-{seed}.safetensors" for lr in ("1e-4", "1e-2") for seed in (0, 1)]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_zeroshot(Path("zeroshot.safetensors"))
    write_images(Path("images"))
    write_images(Path("val"), seed=1)
    return tmp_path


def sweep(*more: str) -> int:
    return main([*START, *QUIET, *SWEEP, *OUTPUT, *more])


def test_runs_equal_single_runs_and_are_skipped_when_finished(capsys: Captured) -> None:
    assert sweep("--val", "val") == 0
    done = capsys.readouterr()
    assert done.out.split() == NAMES
    table = [line.split() for line in done.err.splitlines()[-5:]]
    assert table[0] == ["lr", "seed", "val"]
    assert [row[:2] for row in table[1:]] == [[lr, s] for lr in ("1e-4", "1e-2") for s in "01"]
    assert main([*START, *QUIET, "--lr", "1e-2", "--seed", "1", "-o", "single.safetensors"]) == 0
    assert Path(NAMES[3]).read_bytes() == Path("single.safetensors").read_bytes()

    Path(NAMES[1]).unlink()
    capsys.readouterr()
    assert sweep("--val", "val", "--json") == 0
    again = capsys.readouterr()
    assert again.err.count("has written it already") == 3
    documents = json.loads(again.out)
    assert [row["path"] for row in documents] == NAMES
    assert documents[2]["values"] == {"lr": "1e-2", "seed": "0"}
    shown = [f"{100 * row['accuracies']['val']:.2f}" for row in documents]
    assert shown == [row[2] for row in table[1:]]


def test_killed_sweep_continues_to_the_same_bytes(capsys: Captured) -> None:
    assert sweep("--epochs", "6") == 0
    whole = {name: Path(name).read_bytes() for name in NAMES}
    for name in NAMES:
        Path(name).unlink()
    words = [*START, *QUIET, *SWEEP, *OUTPUT, "--epochs", "6", "--save-every", "1"]
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [sys.executable, "-m", "wiseft_cli", *words], env=paths, stderr=subprocess.DEVNULL
    )
    try:
        while not list(Path(f"{NAMES[1]}.state").glob("step-0000000[5-9]*")):
            assert process.poll() is None
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    assert Path(NAMES[0]).exists()
    assert not Path(NAMES[2]).exists()
    capsys.readouterr()
    assert sweep("--epochs", "6") == 0
    assert capsys.readouterr().err.count("has written it already") >= 1
    assert {name: Path(name).read_bytes() for name in NAMES} == whole


def test_run_that_fails_does_not_stop_the_others(capsys: Captured) -> None:
    Path("1e-3.safetensors").write_bytes(b"of somebody else")
    words = [*START, *QUIET, "--sweep", "lr=1e-3,1e-4", "--val", "val"]
    assert main([*words, "-o", "{lr}.safetensors"]) == 1
    done = capsys.readouterr()
    assert done.out.split() == ["1e-4.safetensors"]
    assert re.search(r"1e-3 +failed", done.err)
    assert "1 run of 2 failed:" in done.err
    assert Path("1e-3.safetensors").read_bytes() == b"of somebody else"


def sweep_with_fakes(failing_run: str = "", failing_validation: str = "") -> None:
    """Run the sweep `lr=1,2` to outputs of the same names, without training."""

    def run(_: Any, output: Path) -> Any:
        if output.name == failing_run:
            raise UsageError("the option is wrong for this run")
        return output, "blake3:0", []

    def validate(output: Any) -> dict[str, float]:
        if output.name == failing_validation:
            raise DatasetError("an image is unreadable")
        return {"val": 0.5}

    read: Any = dict
    runs = plan_sweep(["lr=1,2"], "{lr}")
    run_sweep(runs, read_recipe=read, run=run, validate=validate, as_json=True)


def test_usage_error_of_one_run_does_not_stop_the_others(capsys: Captured) -> None:
    with pytest.raises(RecipeError, match="1 run of 2 failed"):
        sweep_with_fakes(failing_run="1")
    done = capsys.readouterr()
    assert [row["path"] for row in json.loads(done.out)] == ["2"]
    assert "error: the option is wrong for this run" in done.err
    assert re.search(r"1 +failed\n +2 +50.00", done.err)


def test_run_whose_validation_fails_is_done_with_an_unknown_accuracy(capsys: Captured) -> None:
    sweep_with_fakes(failing_validation="1")
    done = capsys.readouterr()
    first, second = json.loads(done.out)
    assert (first["path"], first["accuracies"]) == ("1", None)
    assert first["warnings"] == ["the accuracy is unknown: an image is unreadable"]
    assert (second["path"], second["accuracies"]) == ("2", {"val": 0.5})
    assert re.search(r"1 +unknown\n +2 +50.00", done.err)


def test_values_are_checked_before_the_first_run(capsys: Captured) -> None:
    assert main([*START, *QUIET, "--sweep", "lr=1e-4,fast", "-o", "{lr}.safetensors"]) == 2
    assert "'fast'" in capsys.readouterr().err
    assert not list(Path().glob("1e-4*"))


def test_printed_commands_make_the_runs_of_the_sweep(capsys: Captured) -> None:
    assert sweep("--print-commands", "--val", "v=val", "--weight-decay", "0.2") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert all("--val v=val" in line and "--weight-decay 0.2" in line for line in lines)
    assert main(shlex.split(lines[2])[1:]) == 0
    made = Path(NAMES[2]).read_bytes()
    Path(NAMES[2]).unlink()
    assert sweep("--weight-decay", "0.2") == 0
    assert Path(NAMES[2]).read_bytes() == made


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([*SWEEP, "-o", "x.safetensors"], "it lacks {lr}, {seed}"),
        ([*SWEEP, *OUTPUT, "--dry-run"], "--print-commands"),
        (["-o", "x.safetensors", "--print-commands"], "--sweep"),
    ],
)
def test_wrong_options_are_usage_errors(words: list[str], expected: str, capsys: Captured) -> None:
    assert main([*START, *words]) == 2
    assert expected in capsys.readouterr().err
