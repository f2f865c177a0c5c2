"""The GPU check on a small scale, and its summary, rates and packages."""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from torch.autograd import DeviceType

from tests.gpu import bounds, check, commands, contracts, figures, packages, right, speed

ROOT = Path(__file__).parents[2]


def run_check(out: Path, *options: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(ROOT / "tests" / "gpu" / "check.sh"), str(out), *options],
        env={**os.environ, "PYTHON": sys.executable, **env},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.timeout(1800)
def test_the_reduced_check_measures_every_part_and_passes(tmp_path):
    done = run_check(tmp_path, "--cpu")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gpu.json", "gpu.md", "log"]
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert [figure["check"] for figure in figures.failed(found)] == [], done.stdout
    assert [figure["check"] for figure in figures.not_run(found)] == [], done.stdout
    assert done.returncode == 0
    ended = {figure["part"] for figure in found if figure["check"] == "the whole part"}
    assert ended == {name for stage in check.STAGES for name in stage}
    keys = {"part", "check", "value", "unit", "limit", "passed", "note"}
    assert all({"part", "check", "value", "unit"} <= set(figure) <= keys for figure in found)
    assert (tmp_path / "gpu.md").read_text() == figures.summarize(found)


def test_without_a_gpu_the_check_is_an_error(tmp_path):
    done = run_check(tmp_path, "--only=machine", CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 2
    assert "error: torch finds no CUDA GPU" in (tmp_path / "log").read_text()


@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_a_part_that_fails_or_is_late_leaves_the_others_alone(tmp_path):
    options = argparse.Namespace(out=tmp_path, work=tmp_path / "work", figures=tmp_path, cpu=True)
    options.deadline = time.monotonic() + 60
    options.work.mkdir()
    stage = {
        "broken": ("inputs:no_such_function", 10),
        "late": ("inputs:write_digits", 0.1),
        "good": ("inputs:describe_machine", 60),
    }
    check.run_stage(stage, options)
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert [figure["part"] for figure in figures.failed(found)] == ["broken"]
    assert [figure["part"] for figure in figures.not_run(found)] == ["late"]
    assert ("good", "card") in {(figure["part"], figure["check"]) for figure in found}


def test_a_figure_fails_beyond_its_limit_and_where_it_is_not_a_number(tmp_path):
    of_part = figures.Figures("part", tmp_path / "1-part.jsonl")
    of_part.at_most("good", 1.0, 1.0)
    of_part.at_most("over", 1.1, 1.0)
    of_part.at_least("under", 0.9, 1.0)
    of_part.at_least("nan", math.nan, 0.0)
    of_part.skip("skipped", "no GPU")
    (tmp_path / "2-killed.jsonl").write_text('{"part": "killed", "che')
    found = figures.read_figures(tmp_path)
    assert [figure["check"] for figure in figures.failed(found)] == ["over", "under", "nan"]
    assert [figure["check"] for figure in figures.not_run(found)] == ["skipped"]


def test_the_summary_begins_with_the_card_and_with_what_failed(tmp_path):
    of_part = figures.Figures("machine", tmp_path / "machine.jsonl")
    of_part.add("card", "NVIDIA X")
    of_part.at_most("a | b", 1234.5678, 2, "s", note="two\nlines")
    lines = figures.summarize(figures.read_figures(tmp_path)).splitlines()
    assert lines[:3] == ["# GPU check: NVIDIA X", "", "0 checks passed, 1 failed, 0 did not run."]
    assert lines[4] == "## Failed"
    assert lines[8] == r"| machine: a \| b | 1,234.6 s | <= 2 | FAIL | two lines |"


def test_rates_leave_out_the_first_batches_and_count_waiting():
    fetches = [speed.Fetch(at, at + 0.25, 10, is_pinned=False) for at in (0.0, 1.0, 2.0, 3.0)]
    assert speed.rates(fetches, skip=1) == (10.0, 0.25)
    assert speed.rates(fetches, end=5.0) == (8.0, 0.2)


def test_busy_time_counts_overlaps_once():
    assert bounds.busy_time([(4, 5), (0, 2), (1, 3), (1, 2)]) == 4


def test_the_profile_of_a_gpu_counts_kernels_and_not_annotations(tmp_path):
    def event(name: str, kind: DeviceType, start: int, end: int, **more: bool) -> SimpleNamespace:
        span = SimpleNamespace(start=start, end=end)
        return SimpleNamespace(
            name=name, device_type=kind, time_range=span, cpu_parent=None, **more
        )

    events = [
        event("aten::mm", DeviceType.CPU, 0, 100_000),
        event("Optimizer.step", DeviceType.CUDA, 0, 90_000, is_user_annotation=True),
        event("gemm", DeviceType.CUDA, 20_000, 40_000),
        event("gemm", DeviceType.CUDA, 60_000, 70_000),
        event("copy", DeviceType.CUDA, 65_000, 75_000),
    ]
    of_part = figures.Figures("bounds", tmp_path / "bounds.jsonl")
    bounds.record(commands.Context("cuda", tmp_path, of_part, is_reduced=False), "x", events)
    found = {figure["check"]: figure["value"] for figure in figures.read_figures(tmp_path)}
    expected = {"x: time": 10, "x: idle share of the device": 0.65, "gemm": 3, "copy": 1}
    assert found == pytest.approx(expected)


def test_every_setup_of_a_command_compiles():
    for setup in (right.TF32_OFF, right.TF32_ON, contracts.SMALL_SHM):
        compile(setup, "setup", "exec")
    for setup in contracts.LITTLE_MEMORY.values():
        compile(setup.format(1_000_000), "setup", "exec")


def test_wheels_are_needed_for_packages_that_are_missing_or_too_old():
    wheels = [
        Path(f"{name}-py3-none-any.whl") for name in ("no_such_package-1.0", "numpy-9.9", "rich-1")
    ]
    assert packages.wheels_to_install(wheels, ["numpy>=9", "torch"]) == [wheels[0], wheels[1]]


def test_every_wheel_is_pinned_with_its_hash():
    lines = (ROOT / "tests" / "gpu" / "wheels.txt").read_text().splitlines()
    pinned = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w-]+==[\d.]+ --hash=sha256:[0-9a-f]{64}", line) for line in pinned)
    names = {line.split("==")[0] for line in pinned}
    assert {"open_clip_torch", "timm", "typer", "rich", "webdataset", "ftfy"} <= names
