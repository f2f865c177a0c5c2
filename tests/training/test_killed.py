"""kill -9 at any moment, and --resume: the very bytes of a run that was left alone.

A process that has torch loaded forks the runs, real processes that real signals end, so that a
life costs a tenth of a second.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.training.tiny import write_images, write_zeroshot

START = """
import contextlib, json, os, random, shutil, signal, sys, time
import wiseft_cli.cli.finetune_report, wiseft_cli.training.estimate
from wiseft_cli.cli.app import main
from wiseft_cli.training import finetune, plan, recipe_file
with contextlib.redirect_stdout(sys.stderr):
    main(["finetune", "--print-recipe"])  # loads what parses options

words = sys.argv[2:]
def start(*more, before=lambda: None):
    process = os.fork()
    if process == 0:
        os.dup2(os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
        os.dup2(1, 2)
        before()
        os._exit(main([*words, *more]))
    return process

def content(name):
    with open(name, "rb") as file:
        return file.read()

begin = time.monotonic()
assert os.waitpid(start("-o", "whole", "--keep-state"), 0)[1] == 0
length = time.monotonic() - begin
"""

RANDOM_MOMENTS = """
draw = random.Random(int(sys.argv[1]))
lives = []
while len(lives) < 20:
    process = start("-o", "out", "--resume")
    time.sleep(draw.uniform(0, length))
    os.kill(process, signal.SIGKILL)
    if os.waitpid(process, 0)[1] == signal.SIGKILL:
        states = os.listdir("out.state") if os.path.isdir("out.state") else []
        saved = max((name for name in states if name.startswith("step")), default="")
        lives.append([saved, any("tmp" in name for name in states)])
    if os.path.exists("out"):  # it came to the end: another run begins
        assert content("out") == content("whole")
        assert os.waitpid(start("-o", "out", "--resume"), 0)[1] == 0  # clears what is left
        assert not os.path.exists("out.state")
        os.unlink("out")
assert os.waitpid(start("-o", "out", "--resume"), 0)[1] == 0
print(json.dumps({"lives": lives, "equal": content("out") == content("whole"),
    "left": sorted(os.listdir("."))}))
"""

EACH_OPERATION = """
CHANGES = {"os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir"}
def die_at(number):
    # Before the number-th change to a folder; of the pieces written each twentieth counts, and is
    # cut in two.
    done, pieces = [0], [0]
    def is_last():
        done[0] += 1
        return done[0] == number
    def note(event, values):
        makes = event == "open" and values[2] & os.O_CREAT and "wiseft-tmp" in str(values[0])
        if (makes or event in CHANGES) and is_last():
            os.kill(os.getpid(), signal.SIGKILL)
    write = os.pwrite
    def cut_short(descriptor, data, offset):
        pieces[0] += 1
        if pieces[0] % 20 == 0 and is_last():
            write(descriptor, data[: len(data) // 2], offset)
            os.kill(os.getpid(), signal.SIGKILL)
        return write(descriptor, data, offset)
    def begin():
        sys.addaudithook(note)
        os.pwrite = cut_short
    return begin

# A run that has saved two states and is about to save its third and last one.
shutil.copytree("whole.state", "out.state")
os.unlink("out.state/step-00000003.safetensors")
shutil.copy("out.state/step-00000002.safetensors", "out.state/step-00000001.safetensors")
os.rename("out.state", "begun")
number, different, left = 0, [], set()
while True:
    number += 1
    shutil.copytree("begun", "out.state")
    status = os.waitpid(start("-o", "out", "--resume", before=die_at(number)), 0)[1]
    if status == 0:
        break
    assert status == signal.SIGKILL, status
    assert os.waitpid(start("-o", "out", "--resume"), 0)[1] == 0, number
    if content("out") != content("whole"):
        different.append(number)
    left |= set(os.listdir("."))
    os.unlink("out")
print(json.dumps({"operations": number - 1, "different": different, "left": sorted(left)}))
"""


SIGNALS = """
draw = random.Random(int(sys.argv[1]))
codes, equal = [], True
for number in [signal.SIGINT, signal.SIGTERM] * 12:
    ready, tell = os.pipe()
    process = start("-o", "out", "--resume", before=lambda: os.write(tell, b"."))
    os.read(ready, 1)  # what comes before the program's first line is Python's to answer
    time.sleep(draw.uniform(0.02, length))
    os.kill(process, number)
    codes.append([int(number), os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])])
    if os.path.exists("out"):
        equal = equal and content("out") == content("whole")
        os.unlink("out")
        shutil.rmtree("out.state", ignore_errors=True)  # a signal between the output and the end
print(json.dumps({"codes": codes, "equal": equal}))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_zeroshot(tmp_path / "vit.safetensors", "vit")
    write_images(tmp_path / "train")
    return tmp_path


def run(folder: Path, program: str, *words: str) -> dict[str, Any]:
    fixed = ["finetune", "vit.safetensors", "--train", "train", "--workers", "0"]
    fixed += ["--batch-size", "5", "--save-every", "1", "--device", "cpu", "--threads", "1"]
    done = subprocess.run(
        [sys.executable, "-c", START + program, "7", *fixed, *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr + (folder / "log").read_text()[-3000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_twenty_kills_at_random_moments_change_no_byte(folder):
    found = run(folder, RANDOM_MOMENTS, "--epochs", "10")
    assert found["equal"]
    assert len(found["lives"]) == 20
    assert len({saved for saved, _ in found["lives"]}) > 5  # all over the run
    assert any(was_saving for _, was_saving in found["lives"])
    assert found["left"] == ["log", "out", "train", "vit.safetensors", "whole", "whole.state"]


def test_a_kill_at_each_single_step_of_saving_and_of_ending_changes_no_byte(folder):
    found = run(folder, EACH_OPERATION, "--steps", "3")
    # A state, then the output: a file is made, written in pieces and renamed, old states go.
    assert found["operations"] > 10
    assert found["different"] == []
    left = ["begun", "log", "out", "train", "vit.safetensors", "whole", "whole.state"]
    assert found["left"] == left


def test_signals_at_random_moments_end_a_run_with_their_codes_and_no_traceback(folder):
    found = run(folder, SIGNALS, "--epochs", "10")
    assert found["equal"]
    ends = {(number, code) for number, code in found["codes"]}
    assert ends <= {(2, 130), (15, 143), (2, 0), (15, 0)}  # 0: it had ended before
    assert {(2, 130), (15, 143)} <= ends
    log = (folder / "log").read_text()
    assert "Traceback" not in log
    assert "Exception ignored" not in log
    assert "--resume in the same command continues" in log
