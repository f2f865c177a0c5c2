"""`wiseft finetune` in several processes, started by torchrun or by `fork_server.py`."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.training.tiny import write_images, write_zeroshot
from wiseft_cli.checkpoint.reader import read_card
from wiseft_cli.cli.app import main
from wiseft_cli.training.stopping import StopRequest

WORDS = ["finetune", "zeroshot.safetensors", "--train", "train", "--val", "val=val"]
# A large eps: the gradient of a key's bias is a rounding error, from which Adam would make a step.
QUICK = ["--epochs", "2", "--batch-size", "5", "--lr", "0.001", "--workers", "0", "--eps", "0.001"]
CPU = ["--device", "cpu", "--threads", "1"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
STANDALONE = [*TORCHRUN, "--standalone", "--nproc-per-node", "2", "-m", "wiseft_cli"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_zeroshot(tmp_path / "zeroshot.safetensors")
    write_images(tmp_path / "train", (4, 4, 3))
    write_images(tmp_path / "val", (2, 2, 1), seed=5)
    return tmp_path


def start(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        words,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def torchrun(*words: str) -> tuple[int, str, str]:
    process = start(*STANDALONE, *words)
    out, err = process.communicate(timeout=240)
    return process.returncode, out, err


def epoch_lines(text: str) -> list[str]:
    """Return the lines about epochs."""
    return [line for line in text.splitlines() if line.startswith(("before:", "epoch "))]


def assert_alike(one: str, other: str) -> None:
    ours, theirs = load_file(one), load_file(other)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(theirs[name], tensor, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize(
    ("more", "starts_torchrun"),
    [
        (["--micro-batch-size", "2"], True),
        (["--freeze", "encoder"], False),
        (["--freeze", "head"], False),
    ],
    ids=["accumulation", "encoder", "head"],
)
def test_two_processes_write_what_one_writes(folder, capsys, fork_server, more, starts_torchrun):
    (folder / "train" / "n02" / "001.png").write_bytes(b"not an image")
    words = [*WORDS, *QUICK, *CPU, *more, "--max-bad", "1", "-o", "two.safetensors"]
    code, out, err = (
        torchrun(*words) if starts_torchrun else fork_server.run_two_ranks(*words, folder=folder)
    )
    assert (code, out) == (0, "two.safetensors\n"), err
    assert main([*words[:-1], "one.safetensors"]) == 0
    assert_alike("one.safetensors", "two.safetensors")
    assert read_card(Path("one.safetensors")).history == read_card(Path("two.safetensors")).history
    alone = capsys.readouterr().err
    assert epoch_lines(err) == epoch_lines(alone)
    assert err.count("cannot read image train/n02/001.png") == 1
    assert "batch size 5 (2 processes x 3" in err
    assert sorted(path.name for path in folder.glob("*.safetensors*")) == [
        "one.safetensors",
        "two.safetensors",
        "zeroshot.safetensors",
    ]


def test_more_unreadable_images_than_allowed_are_listed_once(folder, fork_server):
    for name in ("n01/000.png", "n02/001.png", "n03/002.png"):
        (folder / "train" / name).write_bytes(b"not an image")
    words = [*WORDS, *CPU, "--epochs", "1", "--batch-size", "11", "--workers", "0"]
    words += ["--max-bad", "1", "-o", "two.safetensors"]
    code, out, err = fork_server.run_two_ranks(*words, folder=folder)
    assert (code, out) == (1, "")
    assert err.count("error: 3 images cannot be read, expected at most 1:") == 1
    for name in ("n01/000.png", "n02/001.png", "n03/002.png"):
        assert err.count(f"train/{name}") == 1
    assert not (folder / "two.safetensors").exists()


def wait_for(process: subprocess.Popen[str], start_of_line: str) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith(start_of_line):
            return
    raise AssertionError(f"ended without {start_of_line!r}")


def test_stopped_run_resumes_to_the_bytes_of_an_uninterrupted_one(folder, fork_server):
    words = [*WORDS, *CPU, "--epochs", "30", "--batch-size", "5", "--workers", "0"]
    assert fork_server.run_two_ranks(*words, "-o", "whole.safetensors", folder=folder)[0] == 0
    process = start(*STANDALONE, *words, "-o", "out.safetensors")
    wait_for(process, "epoch 2/")
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert "to continue, add --resume to the same command" in err
    assert not (folder / "out.safetensors").exists()
    words += ["-o", "out.safetensors", "--resume"]
    code, out, err = fork_server.run_two_ranks(*words, folder=folder)
    assert (code, out) == (0, "out.safetensors\n"), err
    assert re.search(r"^resume   after step \d+, from out.safetensors.state", err, re.MULTILINE)
    assert Path("out.safetensors").read_bytes() == Path("whole.safetensors").read_bytes()
    code, out, err = fork_server.run_two_ranks(*words, folder=folder)
    assert (code, out) == (0, "out.safetensors\n")
    assert "this run has written it already" in err


def child_of_rank(parent: int, rank: int) -> int:
    for process in Path("/proc").iterdir():
        try:
            stat = (process / "stat").read_text()
            variables = (process / "environ").read_bytes().split(b"\0")
        except (OSError, ValueError):
            continue
        if int(stat.rpartition(")")[2].split()[1]) == parent and b"RANK=%d" % rank in variables:
            return int(process.name)
    raise AssertionError("no such process")


def take_one_step(_rank: int, *words: str) -> int:
    """Run a command whose stop is requested from the start."""
    StopRequest.__bool__ = lambda _self: True  # type: ignore[method-assign]
    return main(words)


def test_killed_process_ends_the_run_and_leaves_a_state(folder, fork_server):
    words = [*WORDS, *CPU, "--epochs", "100000", "--batch-size", "5", "--workers", "0"]
    process = start(*STANDALONE, *words, "-o", "out.safetensors", "--save-every", "2")
    wait_for(process, "epoch 2/")
    os.kill(child_of_rank(process.pid, 1), signal.SIGKILL)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (1, ""), err
    assert "error: process 0 lost the other processes of the run: " in err, err
    assert "the last good state is out.safetensors.state/step-" in err
    assert "terminate called" not in err
    resume = [*words, "-o", "out.safetensors", "--resume"]
    codes, _, err = fork_server.call(f"{__name__}:take_one_step", *resume, folders=[folder] * 2)
    assert codes == [143, 143], err
    resumed = re.search(r"^resume   after step (\d+), from ", err, re.MULTILINE)
    stopped = re.search(r"^stopped after step (\d+) of ", err, re.MULTILINE)
    assert resumed is not None
    assert stopped is not None
    assert int(stopped[1]) == int(resumed[1]) + 1


def test_two_nodes_on_one_machine_share_a_run(folder):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    nodes = [
        start(
            *TORCHRUN,
            *("--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d"),
            *("--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", "wiseft"),
            *("-m", "wiseft_cli", *WORDS, *QUICK, *CPU, "-o", "two.safetensors"),
        )
        for _ in range(2)
    ]
    deadline = time.monotonic() + 240
    outputs = [node.communicate(timeout=deadline - time.monotonic()) for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], outputs
    assert sorted(out for out, _ in outputs) == ["", "two.safetensors\n"]
    assert main([*WORDS, *QUICK, *CPU, "-o", "one.safetensors"]) == 0
    assert_alike("one.safetensors", "two.safetensors")


def test_processes_with_different_images_are_rejected(folder, fork_server):
    # Each process has a folder of its own under the same name.
    other = folder / "other"
    other.mkdir()
    write_zeroshot(other / "zeroshot.safetensors")
    write_images(other / "train", (4, 4, 4))
    write_images(other / "val", (2, 2, 1), seed=5)
    words = [*WORDS, *QUICK, *CPU, "-o", "out.safetensors"]
    code, out, err = fork_server.run_two_ranks(*words, folder=folder, other_folder=other)
    assert (code, out) == (1, "")
    assert (
        "error: process 1 of 2 has another checkpoint, recipe or training set than process 0 under"
        " the same names (1 differ)\n"
    ) in err
    assert not (folder / "out.safetensors").exists()


def test_single_process_beside_idle_gpus_prints_how_to_use_them(monkeypatch, capsys):
    from wiseft_cli.cli.finetune_report import note_idle_gpus
    from wiseft_cli.compute.torchrun import Launch

    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.setattr("sys.argv", ["wiseft", "finetune", "a b.safetensors"])
    note_idle_gpus("auto", torch.device("cuda"), Launch())
    assert capsys.readouterr().err == (
        "note: this machine has 4 GPUs and this run uses one; to use all of them:"
        " torchrun --nproc-per-node 4 -m wiseft_cli finetune 'a b.safetensors'\n"
    )
    note_idle_gpus("auto", torch.device("cpu"), Launch())
    note_idle_gpus("cuda:1", torch.device("cuda:1"), Launch())
    note_idle_gpus("auto", torch.device("cuda"), Launch(1, 1, 4, 4))
    assert capsys.readouterr().err == ""
