from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.evaluation.tiny import CLASSES, PREPROCESS, RESNET, make_checkpoint, make_images
from wiseft_cli.data import loading
from wiseft_cli.data.image_folder import list_image_folder
from wiseft_cli.data.image_set import ImageSet
from wiseft_cli.data.images import load_image
from wiseft_cli.data.label_join import join_labels
from wiseft_cli.errors import DatasetError
from wiseft_cli.evaluation.metrics import SetAccuracy
from wiseft_cli.evaluation.scoring import evaluate_image_set
from wiseft_cli.model.classifier import ImageClassifier, load_classifier
from wiseft_cli.model.transforms import eval_transform

LABELS = [entry.id for entry in CLASSES]
CPU = torch.device("cpu")


@pytest.fixture
def classifier(tmp_path: Path) -> ImageClassifier:
    return load_classifier(make_checkpoint(tmp_path / "a.safetensors", seed=3, config=RESNET))[0]


@pytest.fixture
def image_set(tmp_path: Path) -> ImageSet:
    return list_image_folder(make_images(tmp_path / "val", LABELS[2:7], per_class=5))


def evaluate(classifier: ImageClassifier, image_set: ImageSet, **options: int) -> SetAccuracy:
    join = join_labels(image_set.labels, CLASSES, set_name="val")
    settings = {"batch_size": 7, "workers": 0} | options
    return evaluate_image_set(
        classifier,
        image_set,
        join,
        PREPROCESS,
        batch_size=settings["batch_size"],
        workers=settings["workers"],
        device=CPU,
    )


def test_a_set_is_scored_as_by_a_plain_loop_over_its_files(
    classifier: ImageClassifier, image_set: ImageSet
) -> None:
    transform = eval_transform(PREPROCESS)
    n_right = 0
    for record in image_set.records:
        with torch.no_grad():
            logits = classifier(transform(load_image(image_set.root / record.path))[None])[0]
        n_right += LABELS[2:7][int(logits[2:7].argmax())] == record.label
    accuracy = evaluate(classifier, image_set)
    assert (accuracy.n_images, accuracy.n_classes, accuracy.n_unreadable) == (25, 5, 0)
    assert accuracy.n_correct["top1"] == n_right
    assert 0 < n_right < 25


def test_workers_and_batch_size_do_not_change_the_counts(
    classifier: ImageClassifier, image_set: ImageSet
) -> None:
    expected = evaluate(classifier, image_set)
    assert evaluate(classifier, image_set, workers=2) == expected
    assert evaluate(classifier, image_set, batch_size=25) == expected


def test_an_evaluation_draws_no_random_number_and_restores_every_mode(
    classifier: ImageClassifier, image_set: ImageSet
) -> None:
    classifier.train()
    frozen = [part for part in classifier.modules() if isinstance(part, nn.BatchNorm2d)]
    for part in frozen:
        part.eval()
    before = {part: part.training for part in classifier.modules()}
    state, weights = torch.get_rng_state(), [x.clone() for x in classifier.state_dict().values()]
    evaluate(classifier, image_set)
    assert torch.equal(torch.get_rng_state(), state)
    assert {part: part.training for part in classifier.modules()} == before
    assert all(map(torch.equal, weights, classifier.state_dict().values()))
    assert frozen


def test_an_unreadable_image_is_an_error_also_from_a_worker(
    classifier: ImageClassifier, image_set: ImageSet
) -> None:
    path = image_set.root / image_set.records[4].path
    path.write_bytes(b"damaged")
    for workers in (0, 2):
        with pytest.raises(DatasetError) as caught:
            evaluate(classifier, image_set, workers=workers)
        assert caught.value.message == (
            "1 image cannot be read:\n"
            f"  cannot read image {path}: not an image in a format that Pillow knows"
        )


def test_a_killed_worker_is_told_without_a_traceback(
    classifier: ImageClassifier, image_set: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = os.getpid()

    def die(*_: object, **__: object) -> None:
        assert os.getpid() != parent
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(loading, "load_image_of", die)
    with pytest.raises(DatasetError, match=r"^one of the 2 workers that decode images died"):
        evaluate(classifier, image_set, workers=2)
