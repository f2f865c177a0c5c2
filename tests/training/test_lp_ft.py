"""`wiseft finetune --lp-ft`: a linear classifier, then fine-tuning from it, in one command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from tests.training.tiny import write_images, write_zeroshot
from wiseft_cli.checkpoint.reader import read_card
from wiseft_cli.cli.app import main

WORDS = ["finetune", "zs.safetensors", "--train", "train", "--batch-size", "5", "--lr", "1e-3"]
WORDS += ["--workers", "0", "--device", "cpu", "--threads", "1", "--epochs", "2"]
LP_FT = [*WORDS, "--lp-ft", "3", "--lp-lr", "0.01", "-o", "out.safetensors"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_zeroshot(tmp_path / "zs.safetensors")
    write_images(tmp_path / "train")
    return tmp_path


def test_one_command_writes_what_two_commands_write(capsys):
    assert main([*LP_FT, "--json", "--log", "run.jsonl"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["path"], found["other_paths"]) == ("out.safetensors", ["out-probe.safetensors"])
    probe = [*WORDS[:-2], "--epochs", "3", "--freeze", "encoder", "-o", "lp.safetensors"]
    probe[probe.index("1e-3")] = "0.01"
    assert main(probe) == 0
    assert main(["finetune", "lp.safetensors", *WORDS[2:], "-o", "ft.safetensors"]) == 0
    assert Path("lp.safetensors").read_bytes() == Path("out-probe.safetensors").read_bytes()
    ours, theirs = load_file("out.safetensors"), load_file("ft.safetensors")
    assert all((ours[name] == theirs[name]).all() for name in theirs)
    card = read_card(Path("out.safetensors"))
    assert [entry.command for entry in card.history] == ["zeroshot-head", "finetune", "finetune"]
    assert card.history[1].options["recipe"]["freeze"] == "encoder"
    assert card.history[2].options["recipe"]["lp_ft"] == 3
    events = [json.loads(line)["event"] for line in Path("run.jsonl").read_text().splitlines()]
    assert (events.count("plan"), events.count("end")) == (2, 2)


def test_resume_continues_in_either_run(capsys):
    assert main(LP_FT) == 0
    whole = {path: Path(path).read_bytes() for path in ("out.safetensors", "out-probe.safetensors")}
    Path("out.safetensors").unlink()
    assert main([*LP_FT, "--resume"]) == 0
    assert "out-probe.safetensors: this run has written it already" in capsys.readouterr().err
    assert Path("out.safetensors").read_bytes() == whole["out.safetensors"]
    assert main([*LP_FT, "--resume"]) == 0
    assert all(Path(path).read_bytes() == data for path, data in whole.items())


def test_mistakes_of_the_second_run_are_reported_before_the_first(capsys):
    Path("out.safetensors").write_bytes(b"mine")
    assert main(LP_FT) == 1
    assert "out.safetensors: exists already" in capsys.readouterr().err
    assert main([*LP_FT, "--force", "--keep", "best"]) == 2
    assert not Path("out-probe.safetensors").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--freeze", "head"], "--lp-ft is 3 with --freeze head: both parts train after the probe"),
        (["--lp-ft", "0"], "--lp-lr is 0.01 with --lp-ft 0: there is no linear classifier before"),
        (["--lp-ft", "-1"], "--lp-ft is -1, expected an integer of at least 0 (0 for none)"),
    ],
)
def test_contradictions_are_rejected(capsys, words, message):
    assert main([*LP_FT, *words]) == 2
    assert capsys.readouterr().err == f"error: {message}\n"


def test_two_processes_share_both_runs(folder, fork_server):
    words = [*LP_FT, "--eps", "0.001"]
    code, out, err = fork_server.run_two_ranks(*words, folder=folder)
    assert (code, out) == (0, "out.safetensors\n"), err
    assert len(read_card(Path("out.safetensors")).history) == 3
