"""`wiseft export` writes a model folder that open_clip loads."""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
import pytest
import torch

from tests.cli.test_zeroshot_head import head
from wiseft_cli.checkpoint.reader import read_card
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
