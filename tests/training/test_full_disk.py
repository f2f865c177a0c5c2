"""A disk (tmpfs) that is too small for a run, or that fills up while the run saves."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.training.tiny import write_images, write_zeroshot

MOUNT = 'mount -t tmpfs -o size="$1" none "$2" || exit 77; shift 2; exec "$@"'

RUN = """
import contextlib, io, json, os, sys
from wiseft_cli.cli.app import main
from wiseft_cli.training.saving import StateSaver

fills_at, frees_at, *words = sys.argv[1:]
save = StateSaver.save
def save_on_a_disk_that_fills_up(saver, run):
    # Another program fills the disk before one state, and frees it before another.
    if run.steps_done == int(fills_at):
        with contextlib.suppress(OSError), open("disk/ballast", "wb", buffering=0) as ballast:
            while ballast.write(bytes(1 << 12)):
                pass
    if run.steps_done == int(frees_at):
        os.unlink("disk/ballast")
    return save(saver, run)
def run(*more):
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(
        io.StringIO()
    ) as err:
        code = main([*words, *more])
    return {"code": code, "out": out.getvalue(), "err": err.getvalue().splitlines(),
            "left": sorted(os.path.relpath(os.path.join(folder, name), "disk")
                           for folder, _, names in os.walk("disk") for name in names)}

assert main([*words, "-o", "whole"]) == 0
StateSaver.save = save_on_a_disk_that_fills_up
found = [run("-o", "disk/out")]
if os.path.exists("disk/ballast"):
    os.unlink("disk/ballast")
    StateSaver.save = save
    found.append(run("-o", "disk/out", "--resume"))
if os.path.exists("disk/out"):
    assert open("whole", "rb").read() == open("disk/out", "rb").read()
print(json.dumps(found))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_zeroshot(tmp_path / "vit.safetensors")
    write_images(tmp_path / "train")
    (tmp_path / "disk").mkdir()
    return tmp_path


def run(folder: Path, size: str, *, fills_at: int = 0, frees_at: int = 0) -> list[dict[str, Any]]:
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare")
    words = ["finetune", "vit.safetensors", "--train", "train", "--save-every", "1", "--steps", "6"]
    words += ["--batch-size", "5", "--workers", "0", "--device", "cpu", "--threads", "1"]
    mounting = ["unshare", "-rm", "sh", "-c", MOUNT, "sh", size, "disk"]
    done = subprocess.run(
        [*mounting, sys.executable, "-c", RUN, str(fills_at), str(frees_at), *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip("may not mount a small disk")
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_disk_without_space_for_three_states_is_rejected_before_training(folder):
    (found,) = run(folder, "2m")
    assert (found["code"], found["out"], found["left"]) == (1, "", [])
    error, hint = found["err"][-2:]
    assert error == (
        "error: disk/out: the run needs 4,454,328 bytes (a checkpoint of 130,860 and 3 states of"
        " 1,441,156), and 2,097,152 are free"
    )
    assert hint == (
        "hint: free space in disk, or name another place with -o; --save-every never needs no"
        " space for states"
    )


def test_states_that_cannot_be_saved_are_warnings_and_the_run_finishes(folder):
    (found,) = run(folder, "8m", fills_at=3, frees_at=5)
    assert (found["code"], found["out"], found["left"]) == (0, "disk/out\n", ["out"])
    warnings = [line for line in found["err"] if "without this state" in line]
    for step, line in zip((3, 4), warnings, strict=True):
        assert re.fullmatch(
            rf"warning: disk/out\.state/step-0000000{step}\.safetensors: needs 415,\d+ bytes, and 0"
            " are free; training continues without this state",
            line,
        )


def test_output_that_cannot_be_written_leaves_states_to_resume_from(folder):
    first, second = run(folder, "8m", fills_at=3)
    assert (first["code"], first["out"]) == (1, "")
    error, hint = first["err"][-2:]
    assert re.fullmatch(r"error: disk/out: needs 136,\d+ bytes, and 0 are free", error)
    assert re.fullmatch(
        r"hint: free space in \S+, or name another place with -o; the last good state is"
        r" disk/out\.state/step-00000002\.safetensors",
        hint,
    )
    states = [f"out.state/step-0000000{step}.safetensors" for step in (1, 2)]
    assert first["left"] == ["ballast", *states]
    assert (second["code"], second["out"], second["left"]) == (0, "disk/out\n", ["out"])
    assert f"resume   after step 2, from disk/{states[1]}" in second["err"]
