from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file as save_arrays

from tests.training.tiny import write_images, write_zeroshot
from wiseft_cli.checkpoint.reader import read_card
from wiseft_cli.cli.app import main
from wiseft_cli.cli.finetune_log import RunLog
from wiseft_cli.cli.finetune_report import Reporter
from wiseft_cli.training.callbacks import StartReport
from wiseft_cli.training.recipe import Recipe, resolve


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a zero-shot checkpoint and a training folder."""
    monkeypatch.chdir(tmp_path)
    write_zeroshot(tmp_path / "zeroshot.safetensors")
    write_images(tmp_path / "train")
    return tmp_path


WORDS = ["finetune", "zeroshot.safetensors", "--train", "train", "-o", "out.safetensors"]
QUICK = ["--epochs", "2", "--batch-size", "5", "--workers", "0", "--device", "cpu"]


def test_stdout_is_the_path_and_stderr_has_the_plan_and_each_epoch(folder, capsys):
    write_images(folder / "check", (2, 1), seed=5)
    words = [*WORDS, *QUICK, "--val", "held-out=check"]
    assert main(words) == 0
    out, err = capsys.readouterr()
    assert out == "out.safetensors\n"
    assert err.startswith(
        "model    tiny-vit, 3 classes, from zeroshot.safetensors\n"
        "train    train: 12 images of 3 classes (joined by id), 4 per class\n"
        "classes  tench 4, tree frog 4, lamp 4\n"
        "val      held-out: 3 images of 2 classes (joined by id), 1 to 2 per class\n"
        "steps    6 = 2 epochs x 3, batch size 5, warm-up 0\n"
        "recipe   AdamW, lr 3e-5, weight decay 0.1, schedule cosine, clip grad norm 1, label"
        " smoothing 0, batch norm train, augment crop, seed 0\n"
        "warning: only 6 optimizer steps; --epochs 34 would make 102\n"
        "trains   image encoder and classification head: "
    )
    before, *epochs = err.splitlines()[-3:]
    assert re.fullmatch(r"before: held-out \d+\.\d\d % \(\d/3\)", before)
    for number, line in enumerate(epochs, 1):
        pattern = rf"epoch {number}/2: loss \d+\.\d{{4}}, held-out \d+\.\d\d % \(\d/3\)"
        assert re.fullmatch(pattern, line)


@pytest.mark.parametrize(
    ("precision", "kind", "text"),
    [
        ("fp32", "cpu", "float32"),
        ("fp32", "cuda", "float32 (TF32 on in matrix products, off in convolutions)"),
        (
            "bf16",
            "cuda",
            "encoder in bf16, weights float32 (TF32 on in matrix products, off in convolutions)",
        ),
    ],
)
def test_precision_is_printed_and_tf32_on_a_gpu(capsys, monkeypatch, precision, kind, text):
    monkeypatch.setattr("torch.get_float32_matmul_precision", lambda: "high")
    monkeypatch.setattr("torch.backends.cudnn.allow_tf32", False)
    plan = SimpleNamespace(recipe=SimpleNamespace(precision=precision, freeze="none"))
    reporter = Reporter(plan, lambda *_, **__: None, RunLog(None, plan, appends=False))
    reporter.report_start(StartReport(n_tensors=3, n_parameters=1234, device=torch.device(kind)))
    assert capsys.readouterr().err == (
        "trains   image encoder and classification head: 1,234 parameters in 3 tensors,"
        f" on {kind}, {text}\n"
    )


def test_json_has_the_file_its_digest_and_the_warnings(folder, capsys):
    assert main([*WORDS, *QUICK, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "path": "out.safetensors",
        "digest": read_card(folder / "out.safetensors").digest,
        "role": "finetuned",
        "alpha": None,
        "warnings": ["only 6 optimizer steps; --epochs 34 would make 102"],
    }


def test_each_recipe_option_reaches_the_card(folder, capsys):
    words = [*WORDS, *QUICK, "--micro-batch-size", "2", "--lr", "1e-4", "--warmup", "1"]
    words += ["--weight-decay", "0.2", "--label-smoothing", "0.1", "--clip-grad-norm", "2"]
    words += ["--freeze", "head", "--augment", "none", "--batch-norm", "frozen", "--seed", "11"]
    assert main(words) == 0
    card = read_card(folder / "out.safetensors")
    assert card.seed == 11
    expected = {
        "epochs": 2,
        "steps": 6,
        "batch_size": 5,
        "micro_batch_size": 2,
        "optimizer": "adamw",
        "lr": 1e-4,
        "weight_decay": 0.2,
        "warmup_steps": 1,
        "clip_grad_norm": 2.0,
        "label_smoothing": 0.1,
        "freeze": "head",
        "batch_norm": "frozen",
        "augment": "none",
    }
    defaults = resolve(Recipe(), 12).as_mapping()
    assert card.recipe == {**defaults, **expected}


def test_linear_classifier_needs_no_other_option(folder, capsys):
    assert main([*WORDS, *QUICK, "--freeze", "encoder"]) == 0
    assert "classification head (encoder frozen, features computed once)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (
            ["--epochs", "0"],
            2,
            "error: --epochs is 0, expected an integer of at least 1\n",
        ),
        (
            ["--lr", "-1e-5"],
            2,
            "error: --lr is -1e-05, expected a number above 0, at most 1e+06\n",
        ),
        (
            ["--spd", "1"],
            2,
            "error: --spd is 1 with weight_decay 0.1: SPD replaces weight decay\n",
        ),
        (
            ["--freeze", "encoder", "--augment", "crop"],
            2,
            "error: --augment is 'crop' with --freeze 'encoder', expected 'none':"
            " each image's features are computed once\n",
        ),
        (
            ["--train", "nowhere"],
            1,
            "error: image folder nowhere does not exist\n",
        ),
        (
            ["--val", "=there"],
            2,
            "error: --val '=there' has an empty name; expected [NAME=]SPEC[?OPTION=VALUE,...]\n",
        ),
        (
            ["-o", "zeroshot.safetensors", "--force"],
            1,
            "error: zeroshot.safetensors: is also an input (zeroshot.safetensors)\n"
            "hint: name another output with -o; an input is never overwritten\n",
        ),
        (
            ["-o", "missing/out.safetensors"],
            1,
            "error: missing/out.safetensors: its folder {folder}/missing does not exist\n"
            "hint: mkdir -p {folder}/missing\n",
        ),
    ],
    ids=["epochs", "lr", "warmup", "augment", "train", "val", "input", "folder"],
)
def test_mistake_is_reported_in_full_and_nothing_is_written(folder, capsys, words, code, message):
    before = sorted(folder.iterdir())
    assert main([*WORDS, *words]) == code
    out, err = capsys.readouterr()
    assert (out, err) == ("", message.format(folder=folder))
    assert sorted(folder.iterdir()) == before


def test_existing_output_is_rejected_without_force_and_kept(folder, capsys):
    output = folder / "out.safetensors"
    output.write_bytes(b"precious")
    assert main([*WORDS, *QUICK]) == 1
    assert capsys.readouterr().err == (
        "error: out.safetensors: exists already\n"
        "hint: name another output with -o, or overwrite with --force\n"
    )
    assert output.read_bytes() == b"precious"
    assert main([*WORDS, *QUICK, "--force"]) == 0
    assert read_card(output).role == "finetuned"


def test_unknown_labels_are_listed(folder, capsys):
    shutil.copytree(folder / "train" / "n01", folder / "train" / "dog")
    assert main([*WORDS, *QUICK]) == 1
    error, fault, hint = capsys.readouterr().err.splitlines()
    assert error == (
        "error: image set 'train': 1 of 4 labels are not classes of the head"
        " (3 classes, the first 'n01'):"
    )
    assert fault == "  'dog'"
    assert hint.startswith("hint: label the images with the ids or names of the head's classes")


def test_unreadable_image_is_named(folder, capsys):
    (folder / "train" / "n01" / "002.png").write_bytes(b"")
    assert main([*WORDS, *QUICK]) == 1
    assert capsys.readouterr().err.endswith(
        "error: cannot read image train/n01/002.png: the file is empty\n"
        "hint: replace or remove the files; --max-bad N ignores up to N unreadable images\n"
    )
    assert not (folder / "out.safetensors").exists()


def test_checkpoint_without_a_card_is_rejected(folder, capsys):
    import numpy as np

    save_arrays({"x": np.zeros(1, np.float32)}, folder / "zeroshot.safetensors")
    assert main([*WORDS, *QUICK]) == 1
    assert capsys.readouterr().err.startswith(
        "error: zeroshot.safetensors: has no wiseft card, expected a checkpoint written by"
        " wiseft\nhint: give its image encoder a head with `wiseft zeroshot-head --image-encoder"
    )


def test_mistakes_are_reported_without_torch(folder):
    (folder / "out.safetensors").touch()
    program = (
        "import sys; sys.modules['torch'] = None; sys.modules['open_clip'] = None\n"
        "from wiseft_cli.cli.app import main\n"
        f"sys.exit(main({WORDS!r}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr.splitlines()[0]) == (
        1,
        "error: out.safetensors: exists already",
    )


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_stopped_run_saves_its_state_and_prints_how_to_continue(folder, number, code):
    words = [*WORDS, "--epochs", "100000", "--batch-size", "5", "--workers", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "wiseft_cli", *words, "--device", "cpu"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("epoch 2"):
            break
    # To the whole group, as a terminal's Ctrl-C goes.
    os.killpg(process.pid, number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (code, "")
    assert "Traceback" not in err
    names = sorted(path.name for path in (folder / "out.safetensors.state").iterdir())
    assert re.search(
        r"^stopped after step \d+ of 300000\n"
        rf"the state is out\.safetensors\.state/{names[-1]};"
        " to continue, add --resume to the same command",
        err,
        re.MULTILINE,
    )
    deadline = time.monotonic() + 10
    while _group_lives(process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _group_lives(process.pid)
    assert sorted(path.name for path in folder.iterdir()) == [
        "out.safetensors.state",
        "train",
        "zeroshot.safetensors",
    ]


def test_first_sigterm_while_workers_decode_ends_the_run_after_its_step(folder):
    # Decoding these images takes seconds; the signal comes before the first batch is complete.
    pixels = np.random.default_rng(0).integers(0, 256, (2500, 2500, 3), dtype=np.uint8)
    large = folder / "train/n01/000.png"
    Image.fromarray(pixels).save(large, compress_level=1)
    for path in folder.glob("train/*/*.png"):
        if path != large:
            path.unlink()
            os.link(large, path)
    words = [*WORDS, "--epochs", "1000", "--batch-size", "12", "--workers", "2", "--log", "log"]
    process = subprocess.Popen(
        [sys.executable, "-m", "wiseft_cli", *words, "--device", "cpu"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while len(_children(process.pid)) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert '"event": "step"' not in Path("log").read_text()
    process.terminate()  # once, and only the main process
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (143, ""), err
    assert "Traceback" not in err
    assert "stopped after step 1 of 1000\n" in err
    assert [path.name for path in Path("out.safetensors.state").iterdir()] == [
        "step-00000001.safetensors"
    ]
    assert not _group_lives(process.pid)


def _children(pid: int) -> list[int]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(word) for word in path.read_text().split()] if path.exists() else []


def test_ctrl_c_before_the_options_are_read_has_its_code_and_no_traceback(monkeypatch, capsys):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("wiseft_cli.cli.app.build_app", interrupted)
    assert main(WORDS) == 130
    assert capsys.readouterr() == ("", "interrupted\n")


def test_state_is_resumed_only_with_resume(folder, capsys):
    words = [*WORDS, *QUICK, "--keep-state", "--save-every", "4"]
    assert main(words) == 0
    (folder / "out.safetensors").unlink()
    capsys.readouterr()
    assert main(words) == 1
    assert capsys.readouterr().err == (
        "error: out.safetensors.state: holds the state of an unfinished run"
        " (step-00000004.safetensors)\n"
        "hint: continue with --resume, or discard it and start again with --force\n"
    )
    assert main([*words, "--resume"]) == 0
    out, err = capsys.readouterr()
    assert out == "out.safetensors\n"
    assert "resume   after step 4, from out.safetensors.state/step-00000004.safetensors\n" in err
    assert main([*words, "--resume"]) == 0
    out, err = capsys.readouterr()
    assert (out, err) == (
        "out.safetensors\n",
        "out.safetensors: this run has written it already\n",
    )
    assert main([*WORDS, *QUICK, "--force"]) == 0
    assert not (folder / "out.safetensors.state").exists()


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize(("more", "stay"), [([], False), (["--lr", "1e-4"], True)])
def test_resume_of_a_finished_run_removes_its_own_states_and_no_others(folder, capsys, more, stay):
    assert main([*WORDS, *QUICK]) == 0
    other = ["other.safetensors" if word == "out.safetensors" else word for word in WORDS]
    assert main([*other, *QUICK, *more, "--save-every", "1", "--keep-state"]) == 0
    # As if that run had been killed on its way to overwrite the output.
    Path("other.safetensors.state").rename("out.safetensors.state")
    capsys.readouterr()
    assert main([*WORDS, *QUICK, "--resume"]) == 0
    out, err = capsys.readouterr()
    assert out == "out.safetensors\n"
    assert "out.safetensors: this run has written it already\n" in err
    assert len(list(Path("out.safetensors.state").glob("step-*"))) == (2 if stay else 0)
