"""`wiseft zeroshot-head --image-encoder` builds a head on a trained encoder."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.cli.test_zeroshot_classes import head_weight
from tests.cli.test_zeroshot_head import head
from wiseft_cli.checkpoint.card import HistoryEntry, HistoryInput
from wiseft_cli.checkpoint.reader import open_checkpoint, read_card
from wiseft_cli.checkpoint.writer import write_checkpoint
from wiseft_cli.model.classifier import load_classifier

Captured = pytest.CaptureFixture[str]
pytestmark = pytest.mark.usefixtures("place")


def tensors(path: str) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
    with open_checkpoint(Path(path)) as reader:
        return {name: reader.read_array(name) for name in reader.tensors}


def test_checkpoint_holds_the_trained_encoder_and_the_head_of_the_text_tower(trained: str) -> None:
    assert head("-o", "plain.safetensors") == 0
    assert head("--image-encoder", trained, "-o", "z.safetensors") == 0
    found, expected = tensors("z.safetensors"), tensors(trained)
    assert found.keys() == expected.keys()
    for name in found:
        if name.startswith("visual."):
            assert np.array_equal(found[name], expected[name]), name
    assert np.array_equal(head_weight("z.safetensors"), head_weight("plain.safetensors"))
    assert found["classification_head.weight"].shape == (2, 24)
    load_classifier(Path("z.safetensors"))


def test_history_continues_that_of_the_encoder(trained: str) -> None:
    assert head("--image-encoder", trained, "-o", "z.safetensors") == 0
    encoder, card = read_card(Path(trained)), read_card(Path("z.safetensors"))
    assert card.role == "zeroshot"
    assert (card.model, card.preprocess) == (encoder.model, encoder.preprocess)
    first, last = card.history
    assert isinstance(first, HistoryEntry)
    assert first.output == encoder.digest
    assert last.inputs == (HistoryInput("image_encoder", str(encoder.digest)),)
    assert [entry.name for entry in card.classes] == ["boat", "plane"]


def test_encoder_of_another_model_is_rejected_with_all_differences(
    trained: str, capsys: Captured
) -> None:
    capsys.readouterr()
    arguments = ("--image-encoder", trained, "--quick-gelu", "-o", "z.safetensors")
    assert head(*arguments) == 1
    model = read_card(Path(trained)).model
    assert model is not None
    assert capsys.readouterr().err.splitlines()[-3:] == [
        f"error: {trained}: its image encoder differs from that of tiny:",
        "  quick_gelu: False, and True in the model",
        "hint: use the model it was made from: --model local-dir:FOLDER, for the folder named tiny"
        f" with the weights {model.source}",
    ]
    assert head("--image-encoder", trained, "-o", "z.safetensors", model="local-dir:tiny-siglip")
    lines = capsys.readouterr().err.splitlines()
    assert "  embed_dim: 24, and 64 in the model" in lines
    assert not Path("z.safetensors").exists()


def test_text_tower_with_other_weights_is_noted(trained: str, capsys: Captured) -> None:
    capsys.readouterr()
    arguments = ("--image-encoder", trained, "--random-weights", "-o", "z.safetensors")
    assert head(*arguments) == 0
    model = read_card(Path(trained)).model
    assert model is not None
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert notes[0] == (
        f"note: the image encoder of {trained} was made from {model.source}, the text tower "
        "from random weights; they may not share a feature space"
    )
    assert notes[1].startswith("note: the logit scale of tiny is 14.2857, that of trained.")


@pytest.mark.parametrize(
    ("prefix", "suffix", "others"),
    [
        ("visual.", ".safetensors", {}),
        ("", ".safetensors", {}),
        ("", ".pt", {}),
        ("model.visual.", ".bin", {"classification_head.weight": torch.ones(3, 24)}),
        ("module.visual.", ".pt", {"module.logit_scale": torch.tensor(1.0)}),
    ],
)
def test_encoder_of_another_program_gets_a_head(
    trained: str, prefix: str, suffix: str, others: dict[str, torch.Tensor], capsys: Captured
) -> None:
    tower = {name: array for name, array in tensors(trained).items() if name.startswith("visual.")}
    stored = {
        prefix + name.removeprefix("visual."): torch.from_numpy(array)
        for name, array in tower.items()
    } | others
    path = Path(f"foreign{suffix}")
    save_file(stored, path) if suffix == ".safetensors" else torch.save(stored, path)
    capsys.readouterr()
    assert head("--image-encoder", str(path), "-o", "z.safetensors") == 0
    assert f"note: {path} has no wiseft card" in capsys.readouterr().err
    card = read_card(Path("z.safetensors"))
    assert card.history[-1].inputs[0].role == "image_encoder"
    assert card.history[-1].inputs[0].digest == (
        f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
    )
    assert head("--image-encoder", trained, "-o", "same.safetensors") == 0
    found, same = tensors("z.safetensors"), tensors("same.safetensors")
    assert found.keys() == same.keys()
    assert all(np.array_equal(found[name], same[name]) for name in same)
    assert all(np.array_equal(found[name], array) for name, array in tower.items())


def test_encoder_that_does_not_fit_is_rejected_with_its_differences(
    trained: str, capsys: Captured
) -> None:
    save_file({"visual.proj": torch.ones(64, 7), "visual.x": torch.ones(1)}, "other.safetensors")
    capsys.readouterr()
    assert head("--image-encoder", "other.safetensors", "-o", "z.safetensors") == 1
    lines = capsys.readouterr().err.splitlines()
    assert "error: other.safetensors: does not hold the image encoder of this model:" in lines
    assert "  class_embedding: missing from the file" in lines
    assert not Path("z.safetensors").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_encoder_with_values_that_are_not_finite_is_rejected(
    trained: str, value: float, capsys: Captured
) -> None:
    arrays = tensors(trained)
    arrays["visual.proj"] = arrays["visual.proj"].copy()
    arrays["visual.proj"][0, 0] = value
    write_checkpoint(Path("bad.safetensors"), arrays, read_card(Path(trained)))
    capsys.readouterr()
    assert head("--image-encoder", "bad.safetensors", "-o", "z.safetensors") == 1
    assert capsys.readouterr().err.splitlines()[-3:-1] == [
        "error: bad.safetensors: has values that are infinite or NaN:",
        "  visual.proj: 1 of 1,536 values",
    ]


def test_output_that_is_the_encoder_is_rejected(trained: str, capsys: Captured) -> None:
    before = Path(trained).read_bytes()
    assert head("--image-encoder", trained, "-o", trained, "--force") == 1
    assert f"error: {trained}: is also an input" in capsys.readouterr().err
    assert Path(trained).read_bytes() == before
