"""Training images of `wiseft finetune`, its log, and the estimates of a dry run."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
import torch
from PIL import ExifTags, Image

from tests.training.tiny import write_images, write_zeroshot
from wiseft_cli.checkpoint.reader import read_card
from wiseft_cli.cli.app import main

WORDS = ["finetune", "zeroshot.safetensors", "--train", "train", "-o", "out.safetensors"]
QUICK = ["--epochs", "2", "--batch-size", "5", "--workers", "0", "--device", "cpu"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_zeroshot(tmp_path / "zeroshot.safetensors")
    write_images(tmp_path / "train", (8, 6, 4))
    return tmp_path


def train_record(path: str = "out.safetensors") -> dict:
    return dict(read_card(Path(path)).history[-1].options["train"])


def test_a_validation_fraction_is_taken_per_class_and_recorded(folder, capsys):
    assert main([*WORDS, *QUICK, "--val-fraction", "0.25"]) == 0
    err = capsys.readouterr().err
    assert "train    train: 14 images of 3 classes (joined by id), 3 to 6 per class\n" in err
    assert "classes  tench 6, tree frog 5, lamp 3\n" in err
    assert re.search(r"^epoch 2/2: loss .*, train-val \d+\.\d\d % \(\d/4\)$", err, re.MULTILINE)
    split = train_record()["split"]
    assert (split["val_fraction"], split["seed"], split["n_train"], split["n_val"]) == (
        0.25,
        0,
        14,
        4,
    )
    assert main([*WORDS, *QUICK, "--val-fraction", "1.5", "--force"]) == 2
    assert "--val-fraction is 1.5" in capsys.readouterr().err


def test_shots_take_k_images_per_class_and_are_recorded_in_the_log(folder, capsys):
    words = [*WORDS, *QUICK, "--shots", "2", "--log", "run.jsonl"]
    assert main(words) == 0
    assert "train    train: 6 images of 3 classes (joined by id), 2 per class\n" in (
        capsys.readouterr().err
    )
    assert train_record()["selection"]["shots"] == 2
    plan = json.loads(Path("run.jsonl").read_text().splitlines()[0])
    assert plan["event"] == "plan"
    assert [path.split("/")[0] for path in plan["train"]["images"]] == [
        *("n01", "n01", "n02", "n02", "n03", "n03")
    ]
    assert main([*words, "--force", "--shots", "7"]) == 1
    assert "2 of 3 classes have fewer than 7 images:\n" in capsys.readouterr().err


def test_numeric_labels_are_positions_only_on_request(folder, capsys):
    for number, name in enumerate(("n01", "n02", "n03")):
        (folder / "train" / name).rename(folder / "train" / str(number))
    assert main([*WORDS, *QUICK]) == 1
    assert "--labels-are-indices" in capsys.readouterr().err
    assert main([*WORDS, *QUICK, "--labels-are-indices"]) == 0
    assert "(joined by index)" in capsys.readouterr().err


def test_unreadable_images_are_left_out_up_to_max_bad(folder, capsys):
    for name in ("n01/000.png", "n02/001.png"):
        (folder / "train" / name).write_bytes(b"")
    assert main([*WORDS, *QUICK, "--max-bad", "2", "--freeze", "encoder"]) == 0
    err = capsys.readouterr().err
    for name in ("n01/000.png", "n02/001.png"):
        assert err.count(f"warning: cannot read image train/{name}") == 1
    assert not (folder / "cache").exists()  # each run must report them
    assert main([*WORDS, *QUICK, "--max-bad", "1", "--force"]) == 1
    assert "error: 2 images cannot be read, expected at most 1:\n" in capsys.readouterr().err


def test_the_log_has_a_line_for_each_step_and_epoch(folder, capsys):
    write_images(folder / "val", (1, 1, 1), seed=3)
    words = [*WORDS, *QUICK, "--val", "val", "--log", "run.jsonl"]
    assert main(words) == 0
    lines = [json.loads(line) for line in Path("run.jsonl").read_text().splitlines()]
    events = [line["event"] for line in lines]
    assert events == ["plan", "epoch", *(4 * ["step"] + ["epoch"]) * 2, "end"]
    steps = [line for line in lines if line["event"] == "step"]
    assert [step["step"] for step in steps] == list(range(1, 9))
    assert [step["n_images"] for step in steps] == [5, 5, 5, 3] * 2
    assert all(step["loss"] > 0 and step["grad_norm"] > 0 for step in steps)
    assert lines[-2]["val"]["val"]["n_images"] == 3
    assert lines[-1]["digest"] == read_card(Path("out.safetensors")).digest
    os.unlink("out.safetensors")
    capsys.readouterr()
    assert main(words) == 1
    assert capsys.readouterr().err.endswith(
        "error: run.jsonl: exists already\n"
        "hint: name another --log, overwrite with --force, or continue with --resume\n"
    )
    assert main([*words, "--resume"]) == 0
    assert len(Path("run.jsonl").read_text().splitlines()) == 2 * len(lines)
    assert main([*words, "--force", "--log", "nowhere/run.jsonl"]) == 1
    assert "nowhere/run.jsonl: the log cannot be opened: No such file" in capsys.readouterr().err


def test_a_dry_run_checks_the_data_and_writes_nothing(folder, capsys):
    before = sorted(folder.rglob("*"))
    assert main([*WORDS, *QUICK, "--dry-run", "--json", "--log", "run.jsonl"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert (found["dry_run"], found["path"], found["steps"]) == (True, "out.safetensors", 8)
    n_parameters = 32_715
    assert found["memory_bytes"] > 16 * n_parameters
    assert found["disk_bytes"] > (4 + 3 * 12) * n_parameters
    assert "decoded  18 of 18 images of train\n" in err
    assert "memory   about " in err
    assert err.endswith("dry run: nothing was trained, and nothing was written\n")
    assert sorted(folder.rglob("*")) == before
    (folder / "train/n02/001.png").write_bytes(b"")
    assert main([*WORDS, *QUICK, "--dry-run"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert (
        "error: image set 'train': 1 of 18 images tried cannot be read, at most 0 allowed:" in err
    )
    assert sorted(folder.rglob("*")) == before
    assert main([*WORDS, *QUICK, "--dry-run", "--json", "--max-bad", "1"]) == 0
    out, err = capsys.readouterr()
    assert "decoded  17 of 18 images of train\n" in err
    reason = "cannot read image train/n02/001.png: the file is empty"
    assert f"warning: {reason}\n" in err
    assert json.loads(out)["warnings"][-1] == reason


def test_a_dry_run_counts_states_only_if_states_are_saved(folder, capsys):
    def estimate(*words: str) -> tuple[int, str]:
        assert main([*WORDS, *QUICK, "--dry-run", "--json", *words]) == 0
        out, err = capsys.readouterr()
        (line,) = [line for line in err.splitlines() if line.startswith("disk")]
        return json.loads(out)["disk_bytes"], line

    saved, line = estimate("--save-every", "1")
    assert re.match(r"disk     about \S+ MB \(checkpoint 0\.1 MB, 3 states of \S+ MB\); ", line)
    unsaved, line = estimate("--save-every", "never")
    assert re.match(r"disk     about 0\.1 MB \(checkpoint 0\.1 MB\); ", line)
    assert 4 * 32_715 <= unsaved < saved / 8


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "mps"])
def test_a_dry_run_plans_for_a_device_that_is_not_here(folder, capsys, device):
    if torch.device(device).type == "cuda" and torch.cuda.is_available():
        pytest.skip("the device is here")
    words = [*WORDS, *QUICK, "--dry-run", "--json"]
    assert main(words) == 0
    here = json.loads(capsys.readouterr().out)
    assert main([*words, "--device", device]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert (found["device"], here["device"]) == (device, "cpu")
    assert found["memory_bytes"] == here["memory_bytes"]
    assert found["memory_free_bytes"] is None
    assert f"per process on {device}; how much it has is not known here\n" in err
    assert f"the time of the steps on {device} is not known here\n" in err
    assert not (folder / "out.safetensors").exists()
    assert main([*WORDS, *QUICK, "--device", device]) == 1  # a run needs the device itself


@pytest.mark.parametrize(
    ("free", "remedy"),
    [
        (10**12, None),
        (600_000, "--micro-batch-size 2 would fit"),
        (1_000, "which is too little for a single image; use another device"),
    ],
)
def test_a_dry_run_warns_of_more_memory_than_the_device_has(
    folder, capsys, monkeypatch, free, remedy
):
    monkeypatch.setattr("wiseft_cli.training.estimate.available_bytes", lambda *_, **__: free)
    assert main([*WORDS, *QUICK, "--batch-size", "18", "--dry-run", "--json"]) == 0
    out, err = capsys.readouterr()
    warnings = [text for text in json.loads(out)["warnings"] if "of memory" in text]
    assert len(warnings) == (remedy is not None)
    if remedy:
        assert warnings[0].endswith(remedy)
        assert f"warning: {warnings[0]}\n" in err
        size = ["--micro-batch-size", "2"]
        assert main([*WORDS, *QUICK, "--batch-size", "18", *size, "--dry-run", "--json"]) == 0
        needed = json.loads(capsys.readouterr().out)["memory_bytes"]
        assert (needed <= free) == ("--micro-batch-size" in remedy)


@pytest.mark.parametrize(
    ("words", "n_copies"),
    [(["--ema", "0.1"], 1), (["--l2-sp", "0.1"], 1), (["--ema", "3", "--distill", "1"], 2)],
)
def test_a_dry_run_counts_the_copies_of_methods(folder, capsys, words, n_copies):
    def memory(*more: str) -> int:
        assert main([*WORDS, *QUICK, *more, "--dry-run", "--json"]) == 0
        return int(json.loads(capsys.readouterr().out)["memory_bytes"])

    assert memory(*words) - memory() == n_copies * 4 * 32_715
    assert memory() - memory("--optimizer", "lion") == 4 * 32_715


@pytest.mark.parametrize("turned", [0, 1, 3])
def test_a_dry_run_counts_orientations_that_are_not_applied(folder, capsys, turned):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    for path in sorted((folder / "train").rglob("*.png"))[:turned]:
        Image.open(path).save(path, exif=exif)
    assert main([*WORDS, *QUICK, "--dry-run", "--json"]) == 0
    warnings = json.loads(capsys.readouterr().out)["warnings"]
    text = f"{turned} of 18 decoded images carry an EXIF orientation that is not applied"
    assert any(text in warning for warning in warnings) == (turned > 0)
    words = [word.replace("train", "train?exif_orientation=apply", 1) for word in WORDS[3:4]]
    assert main([*WORDS[:3], *words, *WORDS[4:], *QUICK, "--dry-run", "--json"]) == 0
    assert "EXIF" not in capsys.readouterr().out


@pytest.mark.parametrize("keys", [[], ["--freeze", "encoder"], ["--grad-checkpointing"]])
def test_the_estimated_activations_grow_with_the_micro_batch(folder, capsys, keys):
    def memory(size: str) -> int:
        words = [*WORDS, *QUICK, *keys, "--micro-batch-size", size, "--dry-run", "--json"]
        assert main(words) == 0
        return int(json.loads(capsys.readouterr().out)["memory_bytes"])

    one, two, four = memory("1"), memory("2"), memory("4")
    if "encoder" in keys:
        assert one == two == four
    else:
        assert one < two < four
        assert four - two == pytest.approx(2 * (two - one), rel=0.01)


def test_features_of_a_frozen_encoder_are_computed_once(folder, capsys, monkeypatch):
    words = [*WORDS, *QUICK, "--freeze", "encoder", "--force"]
    assert main(words) == 0
    first = Path("out.safetensors").read_bytes()
    (kept,) = (folder / "cache/wiseft/features").iterdir()
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr("wiseft_cli.data.loading.load_image_of", None)  # no image is decoded
        assert main(words) == 0
    assert f"features of 18 images from {kept}\n" in capsys.readouterr().err
    assert Path("out.safetensors").read_bytes() == first
    # Another image under the same name, size and label: only its modification time differs.
    image = folder / "train/n01/000.png"
    os.utime(image, ns=(0, 0))
    assert main(words) == 0
    assert "features of" not in capsys.readouterr().err
    assert len(list(kept.parent.iterdir())) == 2
    os.unlink("out.safetensors")
    assert main([*words, "--no-feature-cache"]) == 0
    assert Path("out.safetensors").read_bytes() == first
    assert main([*words, "--no-feature-cache", "--feature-cache", "x"]) == 2


def test_a_damaged_or_unwritable_feature_cache_gives_a_warning(folder, capsys):
    words = [*WORDS, *QUICK, "--freeze", "encoder", "--force"]
    assert main([*words, "--feature-cache", "kept"]) == 0
    first = Path("out.safetensors").read_bytes()
    (kept,) = (folder / "kept").iterdir()
    whole = bytearray(kept.read_bytes())
    whole[-3] ^= 1
    for damage in (bytes(whole), b"", bytes(whole[:-8])):
        kept.write_bytes(damage)
        capsys.readouterr()
        assert main([*words, "--feature-cache", "kept"]) == 0
        assert "; the features are computed again\n" in capsys.readouterr().err
        assert Path("out.safetensors").read_bytes() == first
    Path("file").touch()
    assert main([*words, "--feature-cache", "file"]) == 0
    assert "; the features are not cached\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "CUDA out of memory"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 9 bytes."),
            "DefaultCPUAllocator: can't allocate memory: you tried 9 bytes.",
        ),
        (MemoryError(), "out of memory"),
    ],
    ids=["cuda", "cpu", "host"],
)
def test_out_of_memory_is_reported_with_a_smaller_micro_batch(
    folder, capsys, monkeypatch, error, reason
):
    def full(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("wiseft_cli.model.classifier.ImageClassifier.forward", full)
    assert main([*WORDS, *QUICK, "--micro-batch-size", "4"]) == 1
    assert capsys.readouterr().err.endswith(
        f"error: not enough memory for a forward pass of 4 images on cpu: {reason}\n"
        "hint: try --micro-batch-size 2, which makes the same update; --grad-checkpointing and"
        " --precision bf16 need less too\n"
    )


@pytest.mark.parametrize("more", [[], ["--dry-run"]], ids=["run", "dry run"])
def test_model_that_does_not_fit_into_memory_is_reported(folder, capsys, monkeypatch, more):
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("wiseft_cli.training.state.load_classifier", full)
    assert main([*WORDS, *QUICK, *more]) == 1
    assert capsys.readouterr().err.endswith(
        "error: not enough memory for the model on cpu: CUDA out of memory\n"
        "hint: end other programs that use it, or choose another --device\n"
    )


def test_warnings_of_the_run_are_in_the_result_and_in_the_log(folder, capsys):
    words = [*WORDS, *QUICK, "--precision", "fp16", "--json", "--log", "run.jsonl"]
    (folder / "train/n01/000.png").write_bytes(b"")
    assert main([*words, "--max-bad", "1"]) == 0
    out, err = capsys.readouterr()
    expected = [
        "only 8 optimizer steps; --epochs 25 would make 100",
        "fp16 is made for GPUs; on a CPU bf16 or fp32 is faster",
        "cannot read image train/n01/000.png: the file is empty",
    ]
    assert json.loads(out)["warnings"] == expected
    assert [line for line in err.splitlines() if line.startswith("warning: ")] == [
        f"warning: {text}" for text in expected
    ]
    lines = [json.loads(line) for line in Path("run.jsonl").read_text().splitlines()]
    assert lines[0]["warnings"] == expected[:1]
    assert [line["text"] for line in lines if line["event"] == "warning"] == expected[1:]


@pytest.mark.parametrize("mode", ["RGBA", "CMYK", "L", "P", "I;16", "LA", "1"])
def test_images_of_every_mode_can_be_trained_on(folder, mode):
    for image in (folder / "train").rglob("*.png"):
        image.unlink()
        ending = ".jpg" if mode == "CMYK" else ".png"
        Image.new(mode, (24, 20)).save(image.with_suffix(ending))
    assert main([*WORDS, *QUICK]) == 0


def test_a_decompression_bomb_is_rejected(folder, capsys, monkeypatch):
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 100)
    assert main([*WORDS, *QUICK]) == 1
    assert "cannot read image train/" in capsys.readouterr().err
