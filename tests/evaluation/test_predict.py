from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.evaluation.tiny import CLASSES, PREPROCESS, RESNET, make_checkpoint, make_images
from wiseft_cli.checkpoint.card import ClassEntry
from wiseft_cli.data.image_paths import PathStream
from wiseft_cli.data.images import load_image
from wiseft_cli.errors import ModelError, UsageError
from wiseft_cli.evaluation.predict import predict, top_classes
from wiseft_cli.model.classifier import load_classifier
from wiseft_cli.model.transforms import eval_transform
from wiseft_cli.reporting.prediction_text import Prediction


def predicted(checkpoint: Path, paths: object, **changes: object) -> list[Prediction]:
    options = {"top": 3, "batch_size": 4, "workers": 0, "device": "cpu"} | changes
    return list(predict(checkpoint, paths, **options))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("predict")
    make_checkpoint(folder / "c.safetensors", seed=1, config=RESNET)
    make_images(folder / "images", ["x"], per_class=10)
    return folder


def test_probabilities_equal_those_of_the_classifier_on_open_clips_transform(folder: Path) -> None:
    paths = sorted(map(str, (folder / "images").rglob("*.png")))
    found = predicted(folder / "c.safetensors", paths)
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


def stream_of(paths: list[str], asked: list[str]) -> PathStream:
    """A stream that delivers one path at a time, and notes each in `asked`."""
    left = iter(paths)

    def read(_: int) -> bytes:
        path = next(left, None)
        asked.extend([path] if path else [])
        return f"{path}\n".encode() if path else b""

    return PathStream(read)


@pytest.mark.parametrize(("workers", "is_stream"), [(0, True), (2, False), (2, True)], ids=str)
def test_workers_and_streaming_change_neither_numbers_nor_order(
    folder: Path, workers: int, is_stream: bool
) -> None:
    paths = sorted(map(str, (folder / "images").rglob("*.png")))
    paths.insert(5, str(folder / "missing.png"))
    expected = predicted(folder / "c.safetensors", paths)
    assert [one.error is None for one in expected].count(False) == 1
    words, stdin = (["-"], stream_of(paths, [])) if is_stream else (paths, None)
    found = predicted(folder / "c.safetensors", words, workers=workers, stdin=stdin)
    assert found == expected


def test_stream_is_read_no_further_than_the_current_batch(folder: Path) -> None:
    asked: list[str] = []
    paths = sorted(map(str, (folder / "images").rglob("*.png")))
    predictions = predict(
        folder / "c.safetensors",
        "-",
        workers=2,
        batch_size=3,
        device="cpu",
        stdin=stream_of(paths, asked),
    )
    for n_predicted, prediction in enumerate(predictions, start=1):
        assert len(asked) == min(10, 3 * -(-n_predicted // 3))
        assert prediction.path == paths[n_predicted - 1]


def test_every_mode_of_image_is_predicted(folder: Path, tmp_path: Path) -> None:
    ramp = np.linspace(0, 255, 40 * 40).reshape(40, 40).astype(np.uint8)
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK"):
        ending = "tif" if mode == "CMYK" else "png"
        Image.fromarray(ramp).convert("RGB").convert(mode).save(tmp_path / f"{mode}.{ending}")
    Image.fromarray(ramp.astype(np.uint16) * 257).save(tmp_path / "16bit.png")
    paths = sorted(map(str, tmp_path.iterdir()))
    found = {Path(one.path).stem: one for one in predicted(folder / "c.safetensors", paths)}
    assert len(found) == 8
    assert all(one.error is None for one in found.values())
    # The same grey ramp in every mode that holds it without loss.
    grey = [found[mode].top for mode in ("L", "LA", "RGB", "RGBA", "16bit")]
    assert [[entry.id for entry in top] for top in grey] == [[e.id for e in grey[0]]] * 5
    for top in grey:
        assert [e.probability for e in top] == pytest.approx(
            [e.probability for e in grey[0]], abs=0.02
        )


def test_top_larger_than_the_head_gives_all_classes_and_they_sum_to_one(folder: Path) -> None:
    (one, *_) = predicted(folder / "c.safetensors", [str(folder / "images/x/0.png")], top=100)
    assert len(one.top) == len(CLASSES)
    assert sum(entry.probability for entry in one.top) == pytest.approx(1, abs=1e-12)


def test_equal_logits_keep_the_order_of_the_classes_and_equal_names_are_ambiguous() -> None:
    (ranked,) = top_classes(torch.tensor([[1.0, 2.0, 2.0, 1.0]]), CLASSES[:4], 4)
    assert [entry.id for entry in ranked] == ["n01", "n02", "n00", "n03"]
    classes = (ClassEntry("1", "crane"), ClassEntry("2", "crane"), ClassEntry("3", "tench"))
    (ranked,) = top_classes(torch.tensor([[3.0, 2.0, 1.0]]), classes, 3)
    assert [entry.label for entry in ranked] == ["crane (1)", "crane (2)", "tench"]


def test_bfloat16_probabilities_are_close_to_float32(folder: Path) -> None:
    paths = sorted(map(str, (folder / "images").rglob("*.png")))
    full = predicted(folder / "c.safetensors", paths, top=8)
    half = predicted(folder / "c.safetensors", paths, top=8, precision="bf16")
    for a, b in zip(full, half, strict=True):
        shares = {entry.id: entry.probability for entry in b.top}
        assert [shares[entry.id] for entry in a.top] == pytest.approx(
            [entry.probability for entry in a.top], abs=0.05
        )
    assert full != half


def test_non_finite_logits_are_reported_with_the_image(folder: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    from wiseft_cli.checkpoint.reader import read_card
    from wiseft_cli.checkpoint.writer import write_checkpoint

    tensors = load_file(folder / "c.safetensors")
    tensors["classification_head.bias"][0] = np.inf
    bad = tmp_path / "bad.safetensors"
    write_checkpoint(bad, tensors, read_card(folder / "c.safetensors"))
    image = str(folder / "images/x/0.png")
    with pytest.raises(ModelError) as caught:
        predicted(bad, [str(tmp_path / "missing.png"), image])
    assert caught.value.message == f"the classifier's logits of {image} are not finite"


@pytest.mark.parametrize("first", ["images", "images/x/0.png", "list.csv", "-"])
def test_checkpoint_among_the_images_is_an_error_with_the_correct_order(first: str) -> None:
    with pytest.raises(UsageError) as caught:
        predict(first, ["d.safetensors", "more"])
    assert caught.value.message == "d.safetensors is a checkpoint, and is given among the images"
    assert str(caught.value.hint).endswith(f": wiseft predict d.safetensors {first} more")


def test_second_checkpoint_is_left_out_of_the_suggested_command() -> None:
    with pytest.raises(UsageError, match=r"^d\.safetensors is a checkpoint") as caught:
        predict("c.safetensors", ["d.safetensors"])
    assert str(caught.value.hint).endswith(": wiseft predict c.safetensors IMAGES")


def test_folder_in_place_of_the_checkpoint_is_not_called_data(folder: Path) -> None:
    with pytest.raises(UsageError, match="is a folder without a checkpoint") as caught:
        predict(folder / "images", [folder / "images"])
    assert str(caught.value.hint).endswith(f"`wiseft predict CHECKPOINT {folder / 'images'}`")
