"""The head, features and logits of the embedded model equal recorded values.

The values were computed with open_clip 3.3.0 (`build_zero_shot_classifier` times the scale,
`encode_image`). Digits beyond the fourth differ between processors.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from wiseft_cli.cli.app import main
from wiseft_cli.demo.embedded import embedded_model_folder
from wiseft_cli.model.classifier import load_classifier

LOGIT_SCALE = 19.0537815
FIRST_WEIGHTS = [
    [2.3796, -1.6698, -3.0806, -5.9638],
    [-1.1795, 0.1664, -2.4344, 0.2246],
    [-4.6425, 2.6605, -3.2923, 0.2061],
]
SUMS = [-17.3263, 9.3488, -3.7846]
FIRST_FEATURES = [0.0438, 0.1074, -0.1707, -0.1843]
LOGITS = [8.4279, 9.6413, 8.5661]


def test_embedded_model_gives_the_recorded_head_features_and_logits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("classes.txt").write_text("zero\none\ntwo\n")
    model = ["--model", f"local-dir:{embedded_model_folder()}", "--classes", "classes.txt"]
    templates = ["--template", "a photo of a {}.", "--template", "the digit {}."]
    assert main(["zeroshot-head", *model, *templates, "-o", "z.safetensors"]) == 0
    classifier, card = load_classifier(Path("z.safetensors"))
    assert card.logit_scale == pytest.approx(LOGIT_SCALE, rel=1e-6)
    head = classifier.classification_head
    images = torch.linspace(-1, 1, 3 * 32 * 32).reshape(1, 3, 32, 32)
    with torch.no_grad():
        assert head.weight.shape == (3, 64)
        close = {"rtol": 0, "atol": 2e-4}
        torch.testing.assert_close(head.weight[:, :4], torch.tensor(FIRST_WEIGHTS), **close)
        torch.testing.assert_close(head.weight.sum(dim=1), torch.tensor(SUMS), rtol=0, atol=1e-3)
        features = classifier.encode_image(images)[0, :4]
        torch.testing.assert_close(features, torch.tensor(FIRST_FEATURES), **close)
        torch.testing.assert_close(classifier(images)[0], torch.tensor(LOGITS), rtol=0, atol=1e-3)
    assert not head.bias.any()
