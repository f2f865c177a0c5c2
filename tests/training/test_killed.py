"""kill -9 at any moment, and --resume: the bytes of an uninterrupted run.

The runs are forked from a process that has torch loaded; they are real processes, and end by real
signals.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.training.fork_server import ForkServer
from tests.training.tiny import write_images, write_zeroshot
from wiseft_cli.cli.app import main
from wiseft_cli.training import recipe_file
from wiseft_cli.training.recipe import Recipe

WORDS = ["finetune", "vit.safetensors", "--train", "train", "--workers", "0", "--batch-size", "5"]
WORDS += ["--save-every", "1", "--device", "cpu", "--threads", "1"]
SEED = 7


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_zeroshot(tmp_path / "vit.safetensors", "vit")
    write_images(tmp_path / "train")
    return tmp_path


def call(server: ForkServer, function: Callable[..., None], folder: Path) -> dict[str, Any]:
    """Call a function of this module in a process of its own; return the JSON that it prints."""
    codes, out, err = server.call(f"{__name__}:{function.__name__}", folders=[folder])
    assert codes == [0], err + (folder / "log").read_text()[-3000:]
    found: dict[str, Any] = json.loads(out)
    return found


def start(*words: str, before: Callable[[], object] = lambda: None) -> int:
    """Start a run in a new process, which writes to the file `log`; return its id."""
    process = os.fork()
    if process == 0:
        os.dup2(os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
        os.dup2(1, 2)
        before()
        os._exit(main([*WORDS, *words]))
    return process


def finish(*words: str) -> None:
    assert os.waitpid(start(*words), 0)[1] == 0


def time_whole_run(*words: str) -> float:
    """Make the file `whole`; return the seconds that it takes."""
    began = time.monotonic()
    finish("-o", "whole", "--keep-state", *words)
    return time.monotonic() - began


def is_whole() -> bool:
    return Path("out").read_bytes() == Path("whole").read_bytes()


def kill_at_random_moments(_rank: int) -> None:
    words = ["-o", "out", "--resume", "--epochs", "8"]
    draw = random.Random(SEED)
    length = time_whole_run("--epochs", "8")
    lives = []
    while len(lives) < 20:
        process = start(*words)
        time.sleep(draw.uniform(0, length))
        os.kill(process, signal.SIGKILL)
        if os.waitpid(process, 0)[1] == signal.SIGKILL:
            states = os.listdir("out.state") if os.path.isdir("out.state") else []
            saved = max((name for name in states if name.startswith("step")), default="")
            lives.append([saved, any("tmp" in name for name in states)])
        if os.path.exists("out"):  # the run had finished, so another run starts
            assert is_whole()
            finish(*words)  # removes leftovers
            assert not os.path.exists("out.state")
            os.unlink("out")
    finish(*words)
    print(json.dumps({"lives": lives, "equal": is_whole(), "left": sorted(os.listdir())}))


def test_twenty_kills_at_random_moments_change_no_byte(folder, fork_server):
    found = call(fork_server, kill_at_random_moments, folder)
    assert found["equal"]
    assert len(found["lives"]) == 20
    assert len({saved for saved, _ in found["lives"]}) > 5  # all over the run
    assert any(was_saving for _, was_saving in found["lives"])
    left = set(found["left"]) - {"fork.out", "fork.err"}
    assert left == {"log", "out", "train", "vit.safetensors", "whole", "whole.state"}


CHANGES = {"os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir"}


def die_at(number: int) -> Callable[[], None]:
    """Return a function that makes its process die before the number-th change to a folder.

    Every twentieth piece that is written counts as a change too, and is cut in two.
    """
    done, pieces = [0], [0]

    def is_last() -> bool:
        done[0] += 1
        return done[0] == number

    def die_before_change(event: str, values: tuple[Any, ...]) -> None:
        creates = event == "open" and values[2] & os.O_CREAT and "wiseft-tmp" in str(values[0])
        if (creates or event in CHANGES) and is_last():
            os.kill(os.getpid(), signal.SIGKILL)

    write = os.pwrite

    def cut_short(descriptor: int, data: Any, offset: int) -> int:
        pieces[0] += 1
        if pieces[0] % 20 == 0 and is_last():
            write(descriptor, data[: len(data) // 2], offset)
            os.kill(os.getpid(), signal.SIGKILL)
        return write(descriptor, data, offset)

    def install() -> None:
        sys.addaudithook(die_before_change)
        os.pwrite = cut_short

    return install


def kill_at_each_operation(_rank: int) -> None:
    words = ["-o", "out", "--resume", "--steps", "3"]
    time_whole_run("--steps", "3")
    # A run that has saved two states and is about to save its third and last one.
    shutil.copytree("whole.state", "begun")
    os.unlink("begun/step-00000003.safetensors")
    shutil.copy("begun/step-00000002.safetensors", "begun/step-00000001.safetensors")
    number, different, left = 0, [], set()
    while True:
        number += 1
        shutil.copytree("begun", "out.state")
        status = os.waitpid(start(*words, before=die_at(number)), 0)[1]
        if status == 0:
            break
        assert status == signal.SIGKILL, status
        finish(*words)
        if not is_whole():
            different.append(number)
        left |= set(os.listdir())
        os.unlink("out")
    print(json.dumps({"operations": number - 1, "different": different, "left": sorted(left)}))


def test_kill_at_each_operation_of_saving_and_finishing_changes_no_byte(folder, fork_server):
    found = call(fork_server, kill_at_each_operation, folder)
    # A state, then the output: a file is created, written in pieces and renamed, old states go.
    assert found["operations"] > 10
    assert found["different"] == []
    left = set(found["left"]) - {"fork.out", "fork.err"}
    assert left == {"begun", "log", "out", "train", "vit.safetensors", "whole", "whole.state"}


def announce_start(pipe: int) -> Callable[[], None]:
    """Return a function that makes a run write to a pipe once its options are parsed.

    Before that, the signal is Python's and typer's to handle; pydantic, which converts options,
    can swallow a KeyboardInterrupt and print it.
    """
    load_recipe = recipe_file.load_recipe

    def load_and_announce(*values: Any) -> Recipe:
        os.write(pipe, b".")
        return load_recipe(*values)

    def install() -> None:
        recipe_file.load_recipe = load_and_announce

    return install


def send_signals(_rank: int) -> None:
    draw = random.Random(SEED)
    length = time_whole_run("--epochs", "8")
    codes, equal = [], True
    for number in [signal.SIGINT, signal.SIGTERM] * 12:
        ready, write = os.pipe()
        words = ["-o", "out", "--resume", "--epochs", "8"]
        process = start(*words, before=announce_start(write))
        os.read(ready, 1)
        time.sleep(draw.uniform(0.02, length))
        os.kill(process, number)
        codes.append([int(number), os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])])
        if os.path.exists("out"):
            equal = equal and is_whole()
            os.unlink("out")
            shutil.rmtree("out.state", ignore_errors=True)  # if the signal came at the very end
    print(json.dumps({"codes": codes, "equal": equal}))


def test_signals_at_random_moments_end_a_run_with_their_codes_and_no_traceback(folder, fork_server):
    found = call(fork_server, send_signals, folder)
    assert found["equal"]
    ends = {(number, code) for number, code in found["codes"]}
    assert ends <= {(2, 130), (15, 143), (2, 0), (15, 0)}  # 0: the run had finished before
    assert {(2, 130), (15, 143)} <= ends
    log = (folder / "log").read_text()
    assert "Traceback" not in log
    assert "Exception ignored" not in log
    assert "to continue, add --resume to the same command" in log
