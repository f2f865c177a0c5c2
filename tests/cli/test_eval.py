from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import RunWiseft
from tests.evaluation.tiny import CLASSES, make_checkpoint, make_images, make_pair
from wiseft_cli.cli.app import Terminated, main
from wiseft_cli.data.loading import ImageBatch
from wiseft_cli.evaluation.scoring import load_images
from wiseft_cli.reporting.results import read_result_lines

LABELS = [entry.id for entry in CLASSES]


@pytest.fixture
def room(tmp_path: Path) -> Path:
    """Make a folder with a pair of checkpoints and two image sets, one joined by name."""
    make_pair(tmp_path)
    make_images(tmp_path / "val", LABELS, per_class=4, seed=1)
    names = [entry.name.replace(" ", "_").title() for entry in CLASSES[1:6]]
    make_images(tmp_path / "shift", names, per_class=3, seed=2)
    return tmp_path


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def run_here(
    room: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Done]:
    """Run the command in this process, which has imported torch already."""

    def run(*words: object) -> Done:
        monkeypatch.chdir(room)
        code = main([str(word) for word in words])
        return Done(code, *capsys.readouterr())

    return run


PAIR = ("zeroshot.safetensors", "finetuned.safetensors")
SETS = ("--data", "val", "--data", "other=shift", "--workers", "0")


def test_sweep_prints_a_table_and_writes_results(room: Path, run_wiseft_process: RunWiseft) -> None:
    done = run_wiseft_process("eval", *PAIR, "--alpha", "0:1:0.5", *SETS, "--results", "r.jsonl")
    assert done.returncode == 0, done.stderr
    rows = done.stdout.splitlines()
    assert rows[0].split() == ["checkpoint", "alpha", "val", "other", "average"]
    assert [row.split()[3] for row in rows[1:4]] == ["0", "0.5", "1"]
    assert rows[5].startswith("val: in-distribution, top1 in %, 32 images, 8 classes joined by id,")
    assert rows[6].startswith(
        "other: shift, top1 in %, 15 images, 5 classes joined by normalized-name,"
    )
    assert "warning: image set 'other': only 15 images" in done.stderr
    lines = read_result_lines(room / "r.jsonl")
    assert [(line.set_name, line.alpha) for line in lines] == [
        (name, alpha) for name in ("val", "other") for alpha in ("0", "0.5", "1")
    ]
    assert {line.set_name: (line.reference, sorted(line.metrics)) for line in lines} == {
        "val": (True, ["macro_f1", "mean_per_class", "top1", "top5"]),
        "other": (False, ["macro_f1", "mean_per_class", "top1"]),
    }
    assert f"{100 * lines[1].value:.2f}" in rows[2]
    assert "/" not in (room / "r.jsonl").read_text().replace(str(room), "")
    assert str(room) not in (room / "r.jsonl").read_text()


def test_json_output_equals_the_lines_of_the_results_file(
    room: Path, run_here: Callable[..., Done]
) -> None:
    done = run_here("eval", *PAIR, *SETS, "--results", "r.jsonl", "--json")
    held = [json.loads(line) for line in (room / "r.jsonl").read_text().splitlines()]
    assert json.loads(done.stdout) == held
    assert [line["checkpoints"][0]["name"] for line in held[:2]] == ["zeroshot", "finetuned"]


def test_held_results_are_not_computed_again_unless_forced(
    room: Path, run_here: Callable[..., Done]
) -> None:
    words = ("eval", *PAIR, "--alpha", "0,1", *SETS, "--results", "r.jsonl", "--json")
    first = run_here(*words)
    before = (room / "r.jsonl").read_bytes()
    # Images of the same size that no longer decode: only a run that reads them would notice.
    for path in room.rglob("*.png"):
        path.write_bytes(b"x" * path.stat().st_size)
    second = run_here(*words)
    assert (second.returncode, second.stdout) == (0, first.stdout)
    assert second.stderr.startswith(
        "r.jsonl holds 4 of 4 results already; --force evaluates them again"
    )
    more = run_here(*words, "--alpha", "0.5")
    assert more.returncode == 1
    assert "unreadable images among the first" in more.stderr
    forced = run_here(*words, "--force")
    assert forced.returncode == 1
    assert (room / "r.jsonl").read_bytes() == before


def test_new_reference_is_written_to_the_file_without_a_run(
    room: Path, run_here: Callable[..., Done]
) -> None:
    words = ("eval", PAIR[0], *SETS, "--results", "r.jsonl")
    run_here(*words)
    for path in room.rglob("*.png"):
        path.write_bytes(b"x" * path.stat().st_size)
    done = run_here(*words, "--reference", "other")
    assert done.returncode == 0
    lines = read_result_lines(room / "r.jsonl")
    assert [(line.set_name, line.reference) for line in lines] == [("val", False), ("other", True)]
    assert done.stdout.splitlines()[0].split() == ["checkpoint", "other", "val", "average"]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (
            (PAIR[0], "val", "--data", "val"),
            2,
            "error: val is a folder without a checkpoint, expected a checkpoint\n"
            "hint: did you mean `--data val`?\n",
        ),
        (
            (PAIR[0], "--alpha", "0.5", "--data", "val"),
            2,
            "error: --alpha and --method merge at least two checkpoints, 1 given\n",
        ),
        ((*PAIR, "--alpha", "2", "--data", "val"), 2, "error: alpha 2 is outside [0, 1]"),
        (
            (PAIR[0], "--data", "val", "--data", "val"),
            2,
            "error: more than one image set is named 'val'\n",
        ),
        (
            (PAIR[0], "--data", "val", "--reference", "x"),
            2,
            "error: --reference 'x' is not an image set; there are val\n",
        ),
        ((PAIR[0], "--data", "nowhere"), 1, "error: image folder nowhere does not exist\n"),
        (
            (PAIR[0], "--data", "strange"),
            1,
            "error: image set 'strange': 2 of 2 labels are not classes of the head",
        ),
        (("no.safetensors", "--data", "val"), 1, "error: no.safetensors"),
        ((PAIR[0], "--data", "val", "--results", "no/r.jsonl"), 1, "error: no/r.jsonl: its folder"),
        (
            (PAIR[0], "--data", "val", "--results", PAIR[0]),
            1,
            "error: zeroshot.safetensors: is also an input",
        ),
        (
            (PAIR[0], "--data", "val", "--results", "val/n00/0.png"),
            1,
            "error: val/n00/0.png: is not text",
        ),
        (
            (PAIR[0], "--data", "val", "--device", "toaster"),
            2,
            "error: --device toaster: unknown device",
        ),
        ((PAIR[0],), 2, ""),
        (("--data", "val"), 2, ""),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, str) else None,
)
def test_mistake_is_one_message(
    room: Path, run_here: Callable[..., Done], words: tuple[str, ...], code: int, message: str
) -> None:
    make_images(room / "strange", ["x", "y"], per_class=1)
    done = run_here("eval", *words)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith(message)
    assert "Traceback" not in done.stderr
    assert not (room / "r.jsonl").exists()


@pytest.mark.parametrize("option", ["--train", "--val", "--test", "--dataset"])
def test_name_of_a_set_as_an_option_suggests_data(
    run_here: Callable[..., Done], option: str
) -> None:
    done = run_here("eval", PAIR[0], option, "val")
    assert (done.returncode, done.stdout) == (2, "")
    assert f"No such option: {option} (Possible options: --data)" in done.stderr


def test_error_ends_the_workers(room: Path, run_wiseft_process: RunWiseft) -> None:
    for at in range(40):  # more than are decoded by the time of the error
        (room / "val" / LABELS[0] / f"{at}.bad.png").write_text("no picture")
    done = run_wiseft_process(
        "eval", PAIR[0], "--data", "val", "--workers", "2", "--batch-size", "2"
    )
    assert (done.returncode, done.stdout) == (1, "")  # and it has ended at all
    assert done.stderr.startswith("error: image set 'val': ")
    assert "hint: replace or remove the files" in done.stderr
    assert "Exception ignored" not in done.stderr


def test_max_bad_leaves_unreadable_images_out(room: Path, run_here: Callable[..., Done]) -> None:
    (room / "val" / "n03" / "2.png").write_bytes(b"damaged")
    words = ("eval", PAIR[0], "--data", "val", "--workers", "2")
    refused = run_here(*words)
    assert refused.returncode == 1
    assert "  cannot read image val/n03/2.png: not an image in a format that Pillow knows\n" in (
        refused.stderr
    )
    assert "hint: replace or remove the files, or allow some with --max-bad N\n" in refused.stderr
    done = run_here(*words, "--max-bad", "1")
    assert "31 images and 1 unreadable," in done.stdout


def test_interrupted_run_leaves_the_results_file_intact(room: Path) -> None:
    make_images(room / "large", LABELS, per_class=100, seed=3)
    words = ["eval", *PAIR, *SETS, "--data", "large", "--alpha", "0:1:0.01", "--results", "r.jsonl"]
    process = subprocess.Popen(
        [sys.executable, "-m", "wiseft_cli", *words],
        cwd=room,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (room / "r.jsonl").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr
    lines = read_result_lines(room / "r.jsonl")
    assert len(lines) in (101, 202)
    assert [name for name in os.listdir(room) if "tmp" in name] == []


@pytest.fixture
def stop_at_third_set(monkeypatch: pytest.MonkeyPatch) -> Callable[[type[BaseException]], None]:
    """Make the third image set of an evaluation raise an exception."""

    def stop(kind: type[BaseException]) -> None:
        n_started = 0

        def load(*arguments: Any, **options: Any) -> Iterator[ImageBatch]:
            nonlocal n_started
            n_started += 1
            if n_started == 3:
                raise kind
            return load_images(*arguments, **options)

        monkeypatch.setattr("wiseft_cli.evaluation.sweep.load_images", load)

    return stop


@pytest.mark.parametrize(("kind", "code"), [(KeyboardInterrupt, 130), (Terminated, 143)])
def test_stopped_run_reports_which_results_are_in_the_file(
    room: Path,
    run_here: Callable[..., Done],
    stop_at_third_set: Callable[[type[BaseException]], None],
    kind: type[BaseException],
    code: int,
) -> None:
    words = ["eval", PAIR[0], *SETS, "--data", "third=val?all_classes=true", "--results", "r.jsonl"]
    stop_at_third_set(kind)
    done = run_here(*words)
    assert (done.returncode, done.stdout) == (code, "")
    assert "the results of 2 of 3 image sets are in r.jsonl; the same command" in done.stderr
    assert [line.set_name for line in read_result_lines(room / "r.jsonl")] == ["val", "other"]
    done = run_here(*words)
    assert (done.returncode, "holds 2 of 3 results" in done.stderr) == (0, True)


def test_stopped_run_without_results_file_prints_the_finished_sets(
    run_here: Callable[..., Done], stop_at_third_set: Callable[[type[BaseException]], None]
) -> None:
    stop_at_third_set(KeyboardInterrupt)
    done = run_here("eval", *PAIR, *SETS, "--data", "third=val?all_classes=true")
    assert (done.returncode, done.stdout) == (130, "")
    assert "the results of 2 of 3 image sets, which --results FILE would have kept:" in done.stderr
    assert "other: shift, top1" in done.stderr


def test_failed_run_reports_the_finished_sets_too(
    room: Path, run_here: Callable[..., Done]
) -> None:
    next((room / "shift").glob("*/0.png")).write_bytes(b"damaged")
    done = run_here("eval", PAIR[0], *SETS, "--results", "r.jsonl")
    assert done.returncode == 1
    assert "the results of 1 of 2 image sets are in r.jsonl" in done.stderr


def test_dry_run_describes_sets_rows_and_work_and_writes_nothing(
    room: Path, run_here: Callable[..., Done]
) -> None:
    words = ["eval", *PAIR, "--alpha", "0:1:0.5", *SETS, "--select-on", "other"]
    done = run_here(*words, "--results", "r.jsonl", "--dry-run")
    assert done.returncode == 0, done.stderr
    rows = done.stdout.splitlines()
    assert rows[:2] == [
        "val: reference, 32 images, 8 classes joined by id, top1, 3 rows; decoded 8 of 8 sampled"
        " images",
        "other: selection, 15 images, 5 classes joined by normalized-name, top1, 3 rows; decoded 8"
        " of 8 sampled images",
    ]
    assert rows[2].startswith("rows: zeroshot to finetuned at alpha 0, ")
    assert rows[3].startswith("work: 47 images to decode, 141 images times weights; ")
    assert not (room / "r.jsonl").exists()


def test_dry_run_counts_held_results_and_reports_unreadable_images(
    room: Path, run_here: Callable[..., Done]
) -> None:
    run_here("eval", PAIR[0], "--data", "val", "--workers", "0", "--results", "r.jsonl")
    min((room / "shift").glob("*/0.png")).write_bytes(b"damaged")
    words = ("eval", *PAIR, *SETS, "--results", "r.jsonl", "--dry-run")
    done = run_here(*words)
    assert "3 rows" not in done.stdout
    assert "val: reference, 32 images, 8 classes joined by id, top1, 2 rows, 1 of them held" in (
        done.stdout
    )
    assert "decoded 7 of 8 sampled images" in done.stdout
    assert "warning: cannot read image shift/" in done.stderr
    document = json.loads(run_here(*words, "--json").stdout)
    assert document["rows"] == ["zeroshot", "finetuned"]
    assert [(each["name"], each["n_held"]) for each in document["sets"]] == [
        ("val", 1),
        ("other", 0),
    ]


def test_validation_set_of_single_checkpoints_is_not_a_shift(
    run_here: Callable[..., Done],
) -> None:
    done = run_here("eval", *PAIR, *SETS, "--select-on", "other", "--json")
    assert [(line["set"], line["role"]) for line in json.loads(done.stdout)] == [
        ("val", "reference"),
        ("val", "reference"),
        ("other", "selection"),
        ("other", "selection"),
    ]


def test_each_checkpoint_has_a_row(room: Path, run_here: Callable[..., Done]) -> None:
    make_checkpoint(room / "third.safetensors", seed=5)
    done = run_here("eval", *PAIR, "third.safetensors", "--data", "val", "--workers", "0")
    assert [row.split()[0] for row in done.stdout.splitlines()[1:4]] == [
        "zeroshot",
        "finetuned",
        "third",
    ]
