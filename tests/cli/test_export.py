"""`wiseft export` writes a model folder that open_clip loads."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch

from tests.cli.test_zeroshot_head import head
from wiseft_cli.checkpoint.reader import open_checkpoint, read_card
from wiseft_cli.checkpoint.writer import write_checkpoint
from wiseft_cli.cli.app import main
from wiseft_cli.model.classifier import load_classifier

Captured = pytest.CaptureFixture[str]
pytestmark = pytest.mark.usefixtures("place")


def export(*arguments: str, model: str = "local-dir:tiny") -> int:
    return main(["export", *arguments, "--model", model])


def test_open_clip_loads_the_folder_with_the_features_of_both_towers(
    trained: str, capsys: Captured
) -> None:
    capsys.readouterr()
    assert export(trained, "-o", "clip") == 0
    assert capsys.readouterr().out == "clip\n"
    model, _, _ = open_clip.create_model_and_transforms("local-dir:clip")
    original = open_clip.create_model("local-dir:tiny").eval()
    tokenizer = open_clip.get_tokenizer("local-dir:clip", bpe_path="clip/bpe.txt.gz")
    classifier, card = load_classifier(Path(trained))
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = model.eval().encode_image(images, normalize=True)
        assert torch.equal(found, classifier.encode_image(images))
        tokens = tokenizer(["a cat", "a dog"])
        assert torch.equal(model.encode_text(tokens), original.encode_text(tokens))
        assert not torch.equal(found, original.encode_image(images, normalize=True))
    assert torch.equal(model.logit_scale, original.logit_scale)
    assert list(model.visual.preprocess_cfg["mean"]) == (card.preprocess or {})["mean"]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"visual.proj": [np.nan]}, "visual.proj (1 value)"),
        ({"visual.ln_post.bias": [np.inf, -np.inf, 0.0]}, "visual.ln_post.bias (2 values)"),
        (
            {"visual.proj": [np.inf], "visual.conv1.weight": [1.0, np.nan]},
            "visual.conv1.weight (1 value), visual.proj (1 value)",
        ),
        ({}, None),
    ],
)
def test_weights_that_are_not_finite_are_exported_with_a_warning(
    trained: str, capsys: Captured, values: dict[str, list[float]], expected: str | None
) -> None:
    with open_checkpoint(Path(trained)) as reader:
        arrays = {name: reader.read_array(name) for name in reader.tensors}
    for name, some in values.items():
        arrays[name].reshape(-1)[: len(some)] = some
    write_checkpoint(Path("damaged.safetensors"), arrays, read_card(Path(trained)))
    capsys.readouterr()
    assert export("damaged.safetensors", "-o", "clip") == 0
    warnings = [line for line in capsys.readouterr().err.splitlines() if "infinite" in line]
    assert warnings == [f"warning: weights are infinite or NaN: {expected}"] * bool(expected)


def test_manifest_has_the_history_and_no_path(trained: str, place: Path) -> None:
    assert export(trained, "-o", "clip") == 0
    text = Path("clip/wiseft_export.json").read_text()
    document = json.loads(text)
    assert str(place) not in text
    assert document["history"][-1]["inputs"] == [
        {"role": "image_encoder", "digest": read_card(Path(trained)).digest}
    ]


def test_existing_folder_is_rejected_and_never_replaced_if_it_has_other_files(
    trained: str, capsys: Captured
) -> None:
    assert export(trained, "-o", "clip") == 0
    assert export(trained, "-o", "clip") == 1
    assert "error: clip: exists already" in capsys.readouterr().err
    assert export(trained, "-o", "clip", "--force") == 0
    Path("clip/notes.txt").write_text("precious")
    assert export(trained, "-o", "clip", "--force") == 1
    assert "this command did not write:\n  notes.txt" in capsys.readouterr().err
    assert Path("clip/notes.txt").read_text() == "precious"


def test_wrong_model_is_rejected_and_leaves_no_folder(trained: str, capsys: Captured) -> None:
    assert export(trained, "-o", "clip", model="local-dir:tiny-siglip") == 1
    assert "its image encoder differs from that of tiny-siglip" in capsys.readouterr().err
    assert not list(Path().glob("*clip*"))


def test_head_built_from_the_folder_equals_the_head_on_the_checkpoints_encoder(
    trained: str,
) -> None:
    assert export(trained, "-o", "clip") == 0
    assert head("-o", "a.safetensors", model="local-dir:clip") == 0
    assert head("-o", "b.safetensors", "--image-encoder", trained) == 0
    assert read_card(Path("a.safetensors")).digest == read_card(Path("b.safetensors")).digest
