from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.evaluation.tiny import CLASSES, PREPROCESS, RESNET, make_checkpoint, make_images
from wiseft_cli.data.images import load_image
from wiseft_cli.errors import ModelError
from wiseft_cli.evaluation.top_classes import PredictSettings, predict_images, top_classes
from wiseft_cli.evaluation.weight_sets import read_checkpoints
from wiseft_cli.model.classifier import load_classifier
from wiseft_cli.model.transforms import eval_transform
from wiseft_cli.reporting.prediction_text import Prediction


def settings(**changes: object) -> PredictSettings:
    defaults = {"top": 3, "batch_size": 4, "workers": 0, "read_ahead": True}
    return PredictSettings(**(defaults | {"device": torch.device("cpu")} | changes))


def predict(checkpoint: Path, paths: object, **changes: object) -> list[Prediction]:
    (found,) = read_checkpoints([checkpoint])
    return [one for batch in predict_images(found, paths, settings(**changes)) for one in batch]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("predict")
    make_checkpoint(folder / "c.safetensors", seed=1, config=RESNET)
    make_images(folder / "images", ["x"], per_class=10)
    return folder


def test_probabilities_are_those_of_the_classifier_on_open_clips_transform(folder: Path) -> None:
    paths = sorted(map(str, (folder / "images").rglob("*.png")))
    found = predict(folder / "c.safetensors", paths)
    classifier, _ = load_classifier(folder / "c.safetensors")
    transform = eval_transform(PREPROCESS)
    images = torch.stack([transform(load_image(path)) for path in paths])
    with torch.no_grad():
        expected = classifier(images).softmax(dim=1).numpy()
    assert [one.path for one in found] == paths
    for one, row in zip(found, expected, strict=True):
        order = np.argsort(-row)[:3]
        assert [entry.id for entry in one.top] == [CLASSES[at].id for at in order]
        assert [entry.probability for entry in one.top] == pytest.approx(row[order], abs=1e-6)
    assert len({one.top[0].id for one in found}) > 1


@pytest.mark.parametrize(("workers", "read_ahead"), [(0, False), (2, True), (2, False)], ids=str)
def test_workers_and_reading_ahead_change_neither_numbers_nor_order(
    folder: Path, workers: int, read_ahead: bool
) -> None:
    paths = sorted(map(str, (folder / "images").rglob("*.png")))
    paths.insert(5, str(folder / "missing.png"))
    expected = predict(folder / "c.safetensors", paths)
    assert [one.error is None for one in expected].count(False) == 1
    found = predict(folder / "c.safetensors", paths, workers=workers, read_ahead=read_ahead)
    assert found == expected


def test_without_reading_ahead_a_batch_is_had_before_a_further_path_is_asked_for(
    folder: Path,
) -> None:
    asked = []

    def paths() -> Iterator[str]:
        for path in sorted(map(str, (folder / "images").rglob("*.png"))):
            asked.append(path)
            yield path

    (found,) = read_checkpoints([folder / "c.safetensors"])
    slow = settings(workers=2, read_ahead=False, batch_size=3)
    for n_batches, batch in enumerate(predict_images(found, paths(), slow), start=1):
        assert len(asked) == min(10, 3 * n_batches)
        assert [one.path for one in batch] == asked[-len(batch) :]


def test_every_mode_of_image_is_predicted(folder: Path, tmp_path: Path) -> None:
    ramp = np.linspace(0, 255, 40 * 40).reshape(40, 40).astype(np.uint8)
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK"):
        ending = "tif" if mode == "CMYK" else "png"
        Image.fromarray(ramp).convert("RGB").convert(mode).save(tmp_path / f"{mode}.{ending}")
    Image.fromarray(ramp.astype(np.uint16) * 257).save(tmp_path / "16bit.png")
    paths = sorted(map(str, tmp_path.iterdir()))
    found = {Path(one.path).stem: one for one in predict(folder / "c.safetensors", paths)}
    assert len(found) == 8
    assert all(one.error is None for one in found.values())
    # The same grey ramp in every mode that holds it without loss.
    grey = [found[mode].top for mode in ("L", "LA", "RGB", "RGBA", "16bit")]
    assert [[entry.id for entry in top] for top in grey] == [[e.id for e in grey[0]]] * 5
    for top in grey:
        assert [e.probability for e in top] == pytest.approx(
            [e.probability for e in grey[0]], abs=0.02
        )


def test_more_classes_than_there_are_gives_all_and_they_sum_to_one(folder: Path) -> None:
    (one, *_) = predict(folder / "c.safetensors", [str(folder / "images/x/0.png")], top=100)
    assert len(one.top) == len(CLASSES)
    assert sum(entry.probability for entry in one.top) == pytest.approx(1, abs=1e-12)


def test_equal_logits_stand_in_the_order_of_the_classes() -> None:
    (ranked,) = top_classes(torch.tensor([[1.0, 2.0, 2.0, 1.0]]), CLASSES[:4], 4)
    assert [entry.id for entry in ranked] == ["n01", "n02", "n00", "n03"]


def test_bfloat16_gives_nearly_the_same_probabilities(folder: Path) -> None:
    paths = sorted(map(str, (folder / "images").rglob("*.png")))
    full = predict(folder / "c.safetensors", paths, top=8)
    half = predict(folder / "c.safetensors", paths, top=8, precision="bf16")
    for a, b in zip(full, half, strict=True):
        shares = {entry.id: entry.probability for entry in b.top}
        assert [shares[entry.id] for entry in a.top] == pytest.approx(
            [entry.probability for entry in a.top], abs=0.05
        )
    assert full != half


def test_logits_that_are_not_finite_name_the_image(folder: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    from wiseft_cli.checkpoint.reader import read_card
    from wiseft_cli.checkpoint.writer import write_checkpoint

    tensors = load_file(folder / "c.safetensors")
    tensors["classification_head.bias"][0] = np.inf
    bad = tmp_path / "bad.safetensors"
    write_checkpoint(bad, tensors, read_card(folder / "c.safetensors"))
    image = str(folder / "images/x/0.png")
    with pytest.raises(ModelError) as caught:
        predict(bad, [str(tmp_path / "missing.png"), image])
    assert caught.value.message == f"the classifier's logits of {image} are not finite"
