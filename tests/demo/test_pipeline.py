"""`wiseft demo` protects other files, reports failed steps and shows the effect."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from wiseft_cli.cli.app import main
from wiseft_cli.demo import pipeline
from wiseft_cli.demo.effect import SHIFTS, at_half, best_inside, describe, read_curve
from wiseft_cli.demo.image_folders import DemoData
from wiseft_cli.demo.pipeline import (
    DemoStepError,
    check_out,
    remove_own_files,
    run_command,
    show_command,
)
from wiseft_cli.errors import OutputError
from wiseft_cli.reporting.results import read_result_lines


def write_leftovers(out: Path) -> list[Path]:
    """Write some of the files of an earlier demo."""
    image = out / "data" / "mnist" / "train" / "zero" / "0003.png"
    paths = [image, out / "results.jsonl", out / "classes.txt", out / "tiny-clip" / "bpe.txt.gz"]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("old")
    return paths


def test_folder_that_is_not_empty_is_rejected_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "mine.txt").write_text("mine")
    assert main(["demo", "--out", str(tmp_path)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == (
        f"error: {tmp_path} is not empty\n"
        "hint: choose a new folder with --out, or replace the demo's own files with --force\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_file_in_place_of_the_folder_is_rejected_even_with_force(tmp_path: Path):
    path = tmp_path / "file"
    path.write_text("mine")
    with pytest.raises(OutputError, match=re.escape(f"{path} is not a folder")):
        check_out(path, force=True)


def test_empty_or_new_folder_is_accepted(tmp_path: Path):
    check_out(tmp_path, force=False)
    check_out(tmp_path / "new", force=False)


def test_force_deletes_only_files_that_the_demo_writes(tmp_path: Path):
    leftovers = write_leftovers(tmp_path)
    mine = [tmp_path / "mine.txt", tmp_path / "tiny-clip" / "mine", tmp_path / "notes" / "0003.png"]
    for path in mine:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    check_out(tmp_path, force=True)
    remove_own_files(tmp_path)
    assert not any(path.exists() for path in leftovers)
    assert [path.read_text() for path in mine] == ["mine"] * 3


def test_force_deletes_every_file_of_an_earlier_demo(demo_data: DemoData, tmp_path: Path):
    for path in demo_data.classes.parent.rglob("*"):
        target = tmp_path / path.relative_to(demo_data.classes.parent)
        if path.is_dir():
            target.mkdir()
        else:
            target.touch()
    remove_own_files(tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_foreign_files_in_the_data_folder_are_rejected_and_counted(tmp_path: Path):
    write_leftovers(tmp_path)
    folder = tmp_path / "data" / "mnist" / "train" / "zero"
    for number in range(12):
        (folder / f"mine-{number:02d}.png").write_text("mine")
    with pytest.raises(OutputError) as caught:
        check_out(tmp_path, force=True)
    lines = caught.value.message.split("\n")
    assert lines[0] == f"{tmp_path}: 12 files were not written by the demo:"
    assert lines[1] == "  data/mnist/train/zero/mine-00.png"
    assert lines[-1] == "  ... and 2 more"
    assert caught.value.hint == (
        "they would be evaluated as data; move them, or choose another folder with --out"
    )


def test_exit_code_of_a_failed_command_is_passed_on(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    lines: list[str] = []
    with pytest.raises(DemoStepError) as caught:
        run_command(("demo", "--no-such-option"), on_progress=lines.append)
    assert caught.value.exit_code == 2
    assert caught.value.message == "`wiseft demo --no-such-option` ended with exit code 2"
    assert lines == ["$ wiseft demo --no-such-option"]
    assert "No such option: --no-such-option" in capfd.readouterr().err


def test_failed_step_ends_the_demo(
    demo_data: DemoData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
):
    empty = tmp_path / "no-model"
    empty.mkdir()
    monkeypatch.setattr(pipeline, "write_image_folders", lambda out: demo_data)
    monkeypatch.setattr(pipeline, "embedded_model_folder", lambda: empty)
    out = tmp_path / "out"
    assert main(["demo", "--out", str(out)]) == 1
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err.count("$ wiseft") == 1
    assert re.search(
        r"^error: `wiseft zeroshot-head .*` ended with exit code 1$", captured.err, re.M
    )
    assert not (out / "zeroshot.safetensors").exists()


def test_commands_are_shown_as_shell_input():
    assert show_command(("plot", "a b.jsonl", "-o", "c.png")) == "wiseft plot 'a b.jsonl' -o c.png"


@pytest.mark.timeout(600)
def test_the_demo_shows_the_effect(run_wiseft_process, tmp_path: Path):
    """Run the real commands with a fixed seed; docs/demo.md claims these thresholds."""
    finished = run_wiseft_process("demo", "--out", "demo")
    assert finished.returncode == 0, finished.stderr
    steps = [line.split()[2] for line in finished.stderr.splitlines() if line.startswith("$ ")]
    assert steps == ["zeroshot-head", "finetune", "merge", "eval", "plot"]

    curve = read_curve(read_result_lines(tmp_path / "demo" / "results.jsonl"))
    zero_shot, half, fine_tuned = curve[0], at_half(curve), curve[-1]
    assert best_inside(curve).shifts >= max(zero_shot.shifts, fine_tuned.shifts) + 0.03
    assert half.shifts >= fine_tuned.shifts + 0.04
    assert half.shifts >= zero_shot.shifts + 0.02
    assert half.in_distribution >= fine_tuned.in_distribution - 0.025
    assert fine_tuned.in_distribution >= zero_shot.in_distribution + 0.05

    *table, picture, first, second = finished.stdout.splitlines()
    assert all(any(name in line for line in table) for name in ("mnist", *SHIFTS))
    assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")
    assert (first, second) == describe(curve)
