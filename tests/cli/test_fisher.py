from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.evaluation.tiny import CLASSES, VIT, make_checkpoint, make_images
from wiseft_cli.checkpoint.reader import read_card
from wiseft_cli.cli.app import main

LABELS = [entry.id for entry in CLASSES]


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    make_checkpoint(tmp_path / "c.safetensors", seed=1, config=VIT)
    make_images(tmp_path / "data", LABELS[:3], per_class=2)
    monkeypatch.chdir(tmp_path)
    return tmp_path


WORDS = ("fisher", "c.safetensors", "--data", "data", "--workers", "0")


def test_prints_the_path_alone_and_the_same_command_gives_the_same_bytes(
    room: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.safetensors", "b.safetensors"):
        assert main([*WORDS, "-o", name]) == 0
        out, err = capsys.readouterr()
        assert out == f"{name}\n"
        assert "6 images, fewer than the 256 asked for" in err
        assert "true Fisher, labels from the model" in err
    assert (room / "a.safetensors").read_bytes() == (room / "b.safetensors").read_bytes()


def test_json_says_what_the_values_are_of(room: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*WORDS, "-o", "f", "--labels", "data", "--samples", "4", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["checkpoint"] == read_card(room / "c.safetensors").digest
    assert (document["role"], document["labels"], document["n_images"]) == ("fisher", "data", 4)
    assert (document["path"], document["warnings"]) == ("f", [])


def test_inspect_describes_and_verifies_a_fisher_file(
    room: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*WORDS, "-o", "f.safetensors"]) == 0
    assert main(["inspect", "f.safetensors", "--verify"]) == 0
    assert "Fisher information of checkpoint" in capsys.readouterr().out
    data = bytearray((room / "f.safetensors").read_bytes())
    data[-1] ^= 1
    (room / "f.safetensors").write_bytes(data)
    assert main(["inspect", "f.safetensors", "--verify"]) == 1
    assert "do not match its description" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ("eval", "f.safetensors", "--data", "data"),
        ("predict", "f.safetensors", "data"),
        ("finetune", "f.safetensors", "--train", "data", "-o", "x.safetensors"),
        ("merge", "c.safetensors", "f.safetensors"),
        ("fisher", "f.safetensors", "--data", "data", "-o", "x.safetensors"),
        ("export", "f.safetensors", "--model", "ViT-B-32", "--random-weights", "-o", "x"),
    ],
    ids=lambda words: words[0],
)
def test_fisher_file_is_not_taken_for_a_checkpoint(
    room: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    assert main([*WORDS, "-o", "f.safetensors"]) == 0
    capsys.readouterr()
    assert main(list(words)) == 1
    assert "f.safetensors: is the Fisher information of a checkpoint" in capsys.readouterr().err
    assert not list(room.glob("x*"))


def test_fisher_file_is_not_taken_for_an_image_encoder(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    head = ["zeroshot-head", "--model", "local-dir:tiny", "--classes", "classes.txt"]
    assert main([*head, "-o", "base.safetensors"]) == 0
    make_images(place / "data", ["cat", "dog"], per_class=1)
    words = ["--data", "data", "--workers", "0", "-o", "f.safetensors"]
    assert main(["fisher", "base.safetensors", *words]) == 0
    capsys.readouterr()
    assert main([*head, "--image-encoder", "f.safetensors", "-o", "x.safetensors"]) == 1
    assert "f.safetensors: is the Fisher information" in capsys.readouterr().err
    assert not (place / "x.safetensors").exists()


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--samples", "0"), 2, "--samples 0: expected a number of images from 1, or all"),
        (("--samples", "-3"), 2, "--samples -3"),
        (("--samples", "some"), 2, "--samples some"),
        (("--labels", "both"), 2, "--labels"),
        (("--seed", "-1"), 2, "--seed"),
        (("--device", "toaster"), 2, "--device toaster: unknown device"),
        (("-o", "c.safetensors"), 1, "c.safetensors: is also an input"),
        (("-o", "nowhere/f"), 1, "nowhere/f: its folder"),
        (("--data", "nothing"), 1, "image folder nothing does not exist"),
    ],
)
def test_wrong_input_is_reported_and_writes_nothing(
    room: Path,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    code: int,
    message: str,
) -> None:
    before = sorted(room.rglob("*"))
    output = () if "-o" in words else ("-o", "f")
    assert main([*WORDS, *output, *words]) == code
    assert message in capsys.readouterr().err
    assert sorted(room.rglob("*")) == before
