from __future__ import annotations

import csv
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.evaluation.tiny import make_checkpoint, make_images
from wiseft_cli.checkpoint.card import ClassEntry
from wiseft_cli.checkpoint.writer import write_checkpoint
from wiseft_cli.cli.app import main

CLASSES = (ClassEntry("n01", "crane"), ClassEntry("n02", "crane"), ClassEntry("n03", "tench"))
PAGE = Path(__file__).parents[2] / "docs" / "predict.md"
WISEFT = [sys.executable, "-W", "error", "-m", "wiseft_cli"]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("predict")
    make_checkpoint(folder / "model.safetensors", seed=1, classes=CLASSES)
    make_images(folder, ["photos"], per_class=6)
    (folder / "photos" / "notes.txt").write_text("no image")
    (folder / "photos.csv").write_text("path,camera\nphotos/1.png,a\nphotos/0.png,b\n")
    (folder / "broken.png").write_bytes(b"no image")
    return folder


@pytest.fixture
def room(built: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(built)
    return built


@pytest.fixture
def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


def predict(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(["predict", "model.safetensors", *words, "--workers", "0"])
    return code, *capsys.readouterr()


def test_default_output_has_one_line_per_image(
    room: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = predict(capsys, "photos", "--top", "2")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert [line.split()[0] for line in lines] == [f"photos/{at}.png" for at in range(6)]
    names = r"(crane \(n01\)|crane \(n02\)|tench)"
    for line in lines:
        assert re.fullmatch(rf"\S+ +\d+\.\d\d % {names} +\d+\.\d\d % {names}", line), line


def test_text_json_and_csv_agree(room: Path, capsys: pytest.CaptureFixture[str]) -> None:
    objects = [json.loads(line) for line in predict(capsys, "photos", "--jsonl")[1].splitlines()]
    rows = list(csv.DictReader(io.StringIO(predict(capsys, "photos", "--csv")[1])))
    assert [
        (one["path"], str(rank), entry["id"], entry["name"], entry["probability"])
        for one in objects
        for rank, entry in enumerate(one["top"], start=1)
    ] == [
        (row["path"], row["rank"], row["id"], row["name"], float(row["probability"]))
        for row in rows
    ]
    first = predict(capsys, "photos/0.png")[1]
    assert f"{100 * objects[0]['top'][0]['probability']:.2f} %" in first


def test_predictions_agree_with_the_accuracy_of_eval(
    room: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_images(room / "set", [entry.id for entry in CLASSES], per_class=4, seed=3)
    words = ["eval", "model.safetensors", "--data", "set", "--json", "--workers", "0"]
    assert main(words) == 0
    (line,) = json.loads(capsys.readouterr().out)
    objects = [json.loads(text) for text in predict(capsys, "set", "--jsonl")[1].splitlines()]
    right = [one["top"][0]["id"] == Path(one["path"]).parent.name for one in objects]
    assert line["metrics"]["top1"]["value"] == np.mean(right)


def test_unreadable_image_is_reported_and_the_exit_code_is_1(
    room: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("broken.png", "photos/0.png", "gone.png", "--jsonl")
    code, out, err = predict(capsys, *words)
    assert code == 1
    bad, good, gone = map(json.loads, out.splitlines())
    reason = "cannot read image broken.png: not an image in a format that Pillow knows"
    assert bad == {"path": "broken.png", "error": reason}
    assert gone["error"] == "cannot read image gone.png: No such file or directory"
    assert good["path"] == "photos/0.png"
    assert err == (
        f"warning: {reason}\nwarning: {gone['error']}\nerror: 2 of 3 images could not be read\n"
    )
    assert predict(capsys, *words[:2], "--csv")[1].startswith(
        f"path,rank,id,name,probability,error\nbroken.png,,,,,{reason}\nphotos/0.png,1,"
    )


def test_threads_are_those_of_torch_and_change_no_prediction(
    room: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen: list[int] = []
    monkeypatch.setattr("torch.set_num_threads", chosen.append)
    assert predict(capsys, "photos", "--threads", "2")[1] == predict(capsys, "photos")[1]
    assert chosen == [2]


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["photos/0.jpg"], "photos/0.png"),
        (["photos/1.png", "phots/2.png"], "photos/2.png"),
        (["fotos"], "photos"),
        (["photo.csv"], "photos.csv or photos"),
        (["broken.png"], None),
    ],
)
def test_a_near_name_is_suggested_for_a_missing_image(
    words: list[str], found: str | None, room: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = predict(capsys, *words)
    assert code == 1
    hint = err.splitlines()[-1]
    assert hint == f"hint: did you mean {found}?" if found else not hint.startswith("hint")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["model.safetensors", "photos", "--csv", "--jsonl"], 2,
         "error: --jsonl and --csv exclude each other\n"),
        (["model.safetensors", "photos", "--top", "0"], 2,
         "Invalid value for '--top': "),
        (["model.safetensors"], 2, "Missing argument 'IMAGE|FOLDER|MANIFEST|-'"),
        (["gone.safetensors", "photos"], 1, "error: gone.safetensors: "),
        (["foreign.safetensors", "photos"], 1, "error: foreign.safetensors: has no wiseft card"),
        (["photos/0.png", "photos"], 1, "error: photos/0.png: "),
        (["model.safetensors", "photos.csv?map=x"], 2,
         "error: photos.csv: images without labels do not use map\n"),
        (["model.safetensors", "photos", "--device", "tpu9"], 2,
         "error: --device tpu9: unknown device\n"),
    ],
)  # fmt: skip
def test_mistake_is_one_message(
    room: Path, capsys: pytest.CaptureFixture[str], words: list[str], code: int, message: str
) -> None:
    write_foreign = room / "foreign.safetensors"
    if not write_foreign.exists():
        from safetensors.numpy import save_file

        save_file({"a": np.zeros(2, np.float32)}, write_foreign)
    assert main(["predict", *words, "--workers", "0"]) == code
    done = capsys.readouterr()
    assert done.out == ""
    assert message in done.err
    assert "Traceback" not in done.err


def test_merge_of_foreign_files_is_rejected_with_a_remedy(
    room: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from wiseft_cli.checkpoint.card import Card

    card = Card(role="merged", model=None, preprocess=None, classes=(), templates=())
    write_checkpoint(tmp_path / "m.safetensors", {"a": np.zeros(2, np.float32)}, card)
    assert main(["predict", str(tmp_path / "m.safetensors"), "photos"]) == 1
    assert "no classes, expected a classifier\nhint: it is a merge" in capsys.readouterr().err


def test_paths_on_stdin_are_answered_as_they_arrive_until_stdout_is_closed(
    room: Path, environment: dict[str, str]
) -> None:
    command = [*WISEFT, "predict", "model.safetensors", "-", "--batch-size", "1", "--workers", "0"]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        for at in (3, 1):
            process.stdin.write(f"photos/{at}.png\n")
            process.stdin.flush()
            assert process.stdout.readline().startswith(f"photos/{at}.png ")
        process.stdout.close()
        process.stdin.write("photos/2.png\n")
        process.stdin.flush()
        assert process.stderr.read() == ""
        assert process.wait() == 141


def test_help_ends_quietly_when_stdout_is_closed(room: Path, environment: dict[str, str]) -> None:
    with subprocess.Popen(
        [*WISEFT, "merge", "--help"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 141


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_full_stdout_is_an_error(room: Path, environment: dict[str, str]) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*WISEFT, "--version"], stdout=full, stderr=subprocess.PIPE, env=environment, text=True
        )
    reason = "No space left on device"
    assert done.stderr == f"error: the result cannot be written to stdout: {reason}\n"
    assert done.returncode == 1


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_ends_the_command_with_its_exit_code_and_without_a_traceback(
    room: Path, environment: dict[str, str], number: int, code: int
) -> None:
    # Both go to the whole group, as from a terminal or a scheduler.
    command = [*WISEFT, "predict", "model.safetensors", "-", "--batch-size", "1", "--workers", "2"]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        start_new_session=True,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("photos/0.png\n")
        process.stdin.flush()
        assert process.stdout.readline().startswith("photos/0.png ")
        os.killpg(process.pid, number)
        assert process.wait(timeout=60) == code
        assert process.stderr is not None
        assert process.stderr.read().strip() in (
            "interrupted",
            "terminated",
            "Aborted!\ninterrupted",
        )


def commands() -> list[str]:
    blocks = re.findall(r"^```console\n(.*?)^```$", PAGE.read_text(), re.M | re.S)
    return [
        line.removeprefix("$ ")
        for block in blocks
        for line in block.splitlines()
        if line[:2] == "$ "
    ]


@pytest.mark.parametrize("line", [line for line in commands() if not set(line) & set("|>")])
def test_command_of_the_page_runs(
    room: Path, capsys: pytest.CaptureFixture[str], line: str
) -> None:
    assert main([*shlex.split(line.removeprefix("wiseft ")), "--workers", "0"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("photos/")
    assert err == ""


@pytest.mark.parametrize("line", [line for line in commands() if set(line) & set("|>")])
def test_pipeline_of_the_page_runs(
    room: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    line: str,
) -> None:
    if "jq" in line and shutil.which("jq") is None:
        pytest.skip("jq is not installed")
    before, command, after = re.split(r"wiseft ([^|>]*)", line)
    paths = run_bash(before.rstrip(" |") or "true")
    (tmp_path / "stdin").write_text(paths)
    with open(tmp_path / "stdin") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert main([*shlex.split(command), "--workers", "0"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "photos/0.png" in run_bash(f"cat {after}", text=out)


def run_bash(script: str, *, text: str = "") -> str:
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", script], input=text, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_pipes_and_pictures_that_are_not_read_are_reported_and_not_waited_for(
    tmp_path: Path, built: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(built / "model.safetensors", "model.safetensors")
    shutil.copytree(built / "photos", "photos")
    os.mkfifo("photos/pipe.png")
    Path("photos/a.nef").write_bytes(b"II*\0" + b"?" * 20)
    for word in ("photos", "photos/pipe.png", "photos/a.nef"):
        code, _, err = predict(capsys, word)
        assert code == 1
        assert ("a.nef: a camera raw file" in err) == (word != "photos/pipe.png")
        assert ("pipe.png: not a regular file" in err) == (word != "photos/a.nef")
    assert "error: 2 of 8 images could not be read" in predict(capsys, "photos")[2]


@pytest.mark.usefixtures("room")
def test_shards_are_rejected_with_what_reads_them(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.tar", "a-{000..127}.tar", "b.TAR"):
        code, _, err = predict(capsys, name)
        assert code == 2
        assert err.startswith(f"error: {name}: predict reads images, not shards\nhint: unpack")


@pytest.mark.parametrize("command", ["eval", "finetune"])
def test_shards_after_an_expanded_pattern_get_a_hint(
    capsys: pytest.CaptureFixture[str], command: str
) -> None:
    option = "--data" if command == "eval" else "--train"
    words = [command, "model.safetensors", option, "a-0.tar", "a-1.tar", "a-2.tar"]
    assert main(words) in (1, 2)
    assert "hint: quote a pattern of shards" in capsys.readouterr().err
