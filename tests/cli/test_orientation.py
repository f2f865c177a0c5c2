"""The EXIF orientation in every command: applied as the card states, and reported if ignored."""

from __future__ import annotations

import json
import re
from pathlib import Path

import open_clip
import pytest
from PIL import ExifTags, Image

from tests.cli.test_zeroshot_head import head
from tests.evaluation.tiny import CLASSES, PREPROCESS, make_checkpoint, make_images, make_pair
from tests.training.tiny import random_classifier, write_images, zeroshot_card
from wiseft_cli.checkpoint.card import Card
from wiseft_cli.checkpoint.reader import open_checkpoint, read_card
from wiseft_cli.checkpoint.writer import write_checkpoint
from wiseft_cli.cli.app import main
from wiseft_cli.model.classifier import state_arrays

Captured = pytest.CaptureFixture[str]
LABELS = [entry.id for entry in CLASSES]
TURNS = (None, Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270)
ORIENTATIONS = (1, 6, 3, 8)  # a camera that is turned by these angles
APPLY = {**PREPROCESS, "exif_orientation": "apply"}
SLOW = ("--workers", "0")


def make_photographs(upright: Path, folder: Path) -> int:
    """Store the images of a folder as a turned camera does, and return how many are turned."""
    n_turned = 0
    for at, path in enumerate(sorted(upright.rglob("*.png"))):
        image, exif = Image.open(path), Image.Exif()
        exif[ExifTags.Base.Orientation] = ORIENTATIONS[at % 4]
        turn = TURNS[at % 4]
        n_turned += turn is not None
        stored = folder / path.relative_to(upright)
        stored.parent.mkdir(parents=True, exist_ok=True)
        (image if turn is None else image.transpose(turn)).save(stored, exif=exif)
    return n_turned


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with upright images, their photographs, and checkpoints of both kinds."""
    monkeypatch.chdir(tmp_path)
    make_images(tmp_path / "upright", LABELS, per_class=3, size=48)
    assert make_photographs(tmp_path / "upright", tmp_path / "photos") == 18
    make_checkpoint(tmp_path / "old.safetensors", seed=1)
    make_checkpoint(tmp_path / "new.safetensors", seed=1, preprocess=APPLY)
    return tmp_path


def evaluate(capsys: Captured, *words: str) -> tuple[list[dict], str]:
    assert main(["eval", *words, *SLOW, "--json"]) == 0
    out, err = capsys.readouterr()
    return json.loads(out), err


def predict(capsys: Captured, checkpoint: str, folder: str) -> tuple[dict[str, object], str]:
    assert main(["predict", f"{checkpoint}.safetensors", folder, "--jsonl", *SLOW]) == 0
    out, err = capsys.readouterr()
    lines = map(json.loads, out.splitlines())
    return {line["path"].partition("/")[2]: line["top"] for line in lines}, err


@pytest.mark.usefixtures("room")
def test_predictions_of_photographs_are_those_of_the_upright_images(capsys: Captured) -> None:
    upright, err = predict(capsys, "old", "upright")
    assert err == ""
    assert predict(capsys, "new", "photos") == (upright, "")
    turned, err = predict(capsys, "old", "photos")
    assert turned != upright
    assert err == (
        "warning: 18 of 24 images carry an EXIF orientation that is not applied (exif_orientation:"
        " ignore in the checkpoint), so the model sees them rotated or mirrored\n"
    )


@pytest.mark.usefixtures("room")
def test_eval_counts_the_images_that_it_does_not_turn(capsys: Captured) -> None:
    sets = ("--data", "upright", "--data", "photos", "--data", "t=photos?exif_orientation=apply")
    lines, err = evaluate(capsys, "old.safetensors", *sets, "--results", "r.jsonl")
    counts = {line["set"]: line.get("n_exif_ignored") for line in lines}
    assert counts == {"upright": None, "photos": 18, "t": None}
    assert re.findall(r"warning: image set '(\w+)': 18 of 24 images carry", err) == ["photos"]
    metrics = {line["set"]: line["metrics"] for line in lines}
    assert metrics["t"] == metrics["upright"]
    lines, err = evaluate(capsys, "new.safetensors", *sets)
    assert "EXIF" not in err
    metrics = {line["set"]: line["metrics"] for line in lines}
    assert metrics["photos"] == metrics["t"] == metrics["upright"]
    # A held line repeats the warning without decoding an image.
    again, err = evaluate(capsys, "old.safetensors", *sets, "--results", "r.jsonl")
    assert "18 of 24 images carry" in err
    assert [line.get("n_exif_ignored") for line in again] == [None, 18, None]


@pytest.mark.usefixtures("room")
def test_the_protocol_of_results_states_the_orientation(capsys: Captured) -> None:
    make_checkpoint(
        Path("same.safetensors"), seed=1, preprocess={**PREPROCESS, "exif_orientation": "ignore"}
    )
    words = ("--data", "photos", "--data", "t=photos?exif_orientation=apply")
    protocols = {}
    for name in ("old", "same", "new"):
        lines, _ = evaluate(capsys, f"{name}.safetensors", *words)
        protocols[name] = [line["protocol"] for line in lines]
    assert protocols["old"] == protocols["same"]  # cards of before mean `ignore`
    assert protocols["old"][0] != protocols["old"][1]
    assert set(protocols["new"]) == {protocols["old"][1]}


def test_checkpoints_that_treat_images_alike_can_be_merged(tmp_path: Path) -> None:
    ignore = {**PREPROCESS, "exif_orientation": "ignore"}
    for at, (mine, other, code) in enumerate(
        ((PREPROCESS, ignore, 0), (ignore, PREPROCESS, 0), (PREPROCESS, APPLY, 1))
    ):
        folder = tmp_path / str(at)
        folder.mkdir()
        theta_0, _ = make_pair(folder, preprocess=mine)
        theta_1 = make_checkpoint(
            folder / "f.safetensors", seed=2, role="finetuned", parent=theta_0, preprocess=other
        )
        out = str(folder / "m.safetensors")
        assert main(["merge", "--alpha", "0.5", str(theta_0), str(theta_1), "-o", out]) == code


def write_trainable(path: Path, **preprocess: str) -> None:
    card = zeroshot_card("vit")
    card = Card(**{**vars(card), "preprocess": {**(card.preprocess or {}), **preprocess}})
    write_checkpoint(path, state_arrays(random_classifier("vit")), card)


def tensors(path: str) -> dict[str, bytes]:
    with open_checkpoint(Path(path)) as reader:
        return {name: reader.read_array(name).tobytes() for name in reader.tensors}


@pytest.mark.parametrize("more", [(), ("--freeze", "encoder", "--feature-cache", "kept")])
def test_training_on_photographs_is_training_on_the_upright_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured, more: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "upright")
    assert make_photographs(tmp_path / "upright", tmp_path / "photos") == 9
    write_trainable(tmp_path / "old.safetensors")
    write_trainable(tmp_path / "new.safetensors", exif_orientation="apply")

    def train(checkpoint: str, data: str, out: str) -> str:
        words = ["finetune", checkpoint, "--train", data, "--val", f"val={data}", "-o", out]
        words += ["--epochs", "2", "--batch-size", "4", *SLOW, "--device", "cpu", "--force", *more]
        capsys.readouterr()
        assert main(words) == 0
        return capsys.readouterr().err

    assert "EXIF" not in train("old.safetensors", "upright", "a.safetensors")
    assert "EXIF" not in train("new.safetensors", "photos", "b.safetensors")
    err = train("old.safetensors", "photos", "c.safetensors")
    for name in ("photos", "val"):
        assert err.count(f"warning: image set '{name}': 9 of 12 images carry an EXIF") == 1
    assert "EXIF" not in train("old.safetensors", "photos?exif_orientation=apply", "d.safetensors")
    assert tensors("a.safetensors") == tensors("b.safetensors") == tensors("d.safetensors")
    assert tensors("c.safetensors") != tensors("a.safetensors")
    recorded = {
        name: read_card(Path(f"{name}.safetensors")).history[-1].options["train"] for name in "abcd"
    }
    assert [recorded[name].get("exif_orientation") for name in "abcd"] == [None] * 3 + ["apply"]
    assert "9 of 12 images carry" in train("old.safetensors", "photos", "c.safetensors")


@pytest.mark.usefixtures("place")
def test_new_zeroshot_checkpoints_apply_the_orientation_unless_told_otherwise(
    trained: str,
) -> None:
    for words, expected in (
        ((), "apply"),
        (("--exif-orientation", "ignore"), "ignore"),
        (("--exif-orientation", "apply"), "apply"),
        (("--image-encoder", trained), "apply"),
        (("--image-encoder", trained, "--exif-orientation", "ignore"), "ignore"),
    ):
        assert head("-o", "z.safetensors", "--force", *words) == 0
        card = read_card(Path("z.safetensors"))
        assert (card.preprocess or {})["exif_orientation"] == expected
    assert head("-o", "z.safetensors", "--force", "--exif-orientation", "both") == 2


@pytest.mark.usefixtures("place")
def test_the_encoder_of_an_old_checkpoint_keeps_its_orientation(trained: str) -> None:
    card = read_card(Path(trained))
    old = {name: at for name, at in (card.preprocess or {}).items() if name != "exif_orientation"}
    with open_checkpoint(Path(trained)) as reader:
        arrays = {name: reader.read_array(name) for name in reader.tensors}
    card = Card(**{**vars(card), "preprocess": old, "digest": None})
    write_checkpoint(Path("old.safetensors"), arrays, card)
    assert head("-o", "z.safetensors", "--image-encoder", "old.safetensors") == 0
    assert read_card(Path("z.safetensors")).preprocess == {**old, "exif_orientation": "ignore"}


@pytest.mark.usefixtures("place")
def test_export_leaves_the_orientation_to_the_reader_and_says_so(capsys: Captured) -> None:
    for value, n_notes in (("apply", 1), ("ignore", 0)):
        assert head("-o", f"{value}.safetensors", "--exif-orientation", value) == 0
        capsys.readouterr()
        words = ["export", f"{value}.safetensors", "--model", "local-dir:tiny", "-o", value]
        assert main(words) == 0
        assert (
            capsys.readouterr().err.count("note: open_clip's transform ignores the EXIF") == n_notes
        )
        config = json.loads(Path(value, "open_clip_config.json").read_text())
        assert "exif_orientation" not in config["preprocess_cfg"]
        open_clip.create_model_and_transforms(f"local-dir:{value}")
