from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import top_k_accuracy_score
from torch import nn

from tests.evaluation.tiny import CLASSES, PREPROCESS, RESNET, make_checkpoint, make_images
from wiseft_cli.data.image_folder import list_image_folder
from wiseft_cli.data.image_set import ImageSet
from wiseft_cli.data.images import load_image
from wiseft_cli.data.label_space import join_labels
from wiseft_cli.errors import DatasetError, ModelError
from wiseft_cli.evaluation.accuracy import Tally, evaluate_image_set, target_ranks
from wiseft_cli.evaluation.metrics import SetAccuracy
from wiseft_cli.model.classifier import ImageClassifier, load_classifier
from wiseft_cli.model.transforms import eval_transform

LABELS = [entry.id for entry in CLASSES]
CPU = torch.device("cpu")


@given(st.integers(0, 2**32 - 1), st.integers(6, 12), st.integers(1, 40))
def test_top1_and_top5_are_scikit_learns(seed: int, n_classes: int, n_images: int) -> None:
    random = np.random.default_rng(seed)
    logits = random.normal(size=(n_images, n_classes)).astype(np.float32)
    targets = random.integers(0, n_classes, size=n_images)
    tally = Tally(range(n_classes))
    for part in np.array_split(np.arange(n_images), 3):
        tally.add(torch.tensor(logits[part]), torch.tensor(targets[part]))
    counts = tally.finish(n_unreadable=0)
    for k in (1, 5):
        expected = top_k_accuracy_score(
            targets, logits, k=k, labels=np.arange(n_classes), normalize=False
        )
        assert counts.n_correct[f"top{k}"] == expected
    assert counts.top1 == counts.n_correct["top1"] / n_images


@given(st.integers(0, 2**32 - 1), st.sets(st.integers(0, 9), min_size=1))
def test_a_subset_is_scored_as_if_the_head_had_no_other_class(seed: int, subset: set[int]) -> None:
    random = np.random.default_rng(seed)
    classes = sorted(subset)
    # Few distinct values, so that there are ties to break.
    logits = random.integers(0, 4, size=(20, 10)).astype(np.float32)
    targets = random.choice(classes, size=20)
    ranks = target_ranks(torch.tensor(logits), torch.tensor(targets), classes)
    for row, target, rank in zip(logits, targets, ranks.tolist(), strict=True):
        order = sorted(classes, key=lambda at: (-row[at], at))
        assert order.index(target) == rank


def test_logits_that_are_not_finite_are_an_error_and_not_a_hit() -> None:
    for bad in (float("nan"), float("inf"), float("-inf")):
        with pytest.raises(ModelError, match=r"^the classifier's logits are not finite$"):
            Tally(range(3)).add(torch.tensor([[bad, 0.0, 1.0]]), torch.tensor([0]))


def test_top5_is_told_from_six_classes_on() -> None:
    for n_classes, names in ((5, {"top1"}), (6, {"top1", "top5"})):
        tally = Tally(range(n_classes))
        tally.add(torch.zeros(2, n_classes), torch.tensor([0, 1]))
        assert set(tally.finish(n_unreadable=0).metrics()) == names


def test_metrics_carry_their_interval() -> None:
    metric = SetAccuracy(200, {"top1": 150}, 0, 10).metrics()["top1"]
    assert metric.value == 0.75
    assert 0.68 < metric.low < 0.75 < metric.high < 0.81


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
            f"cannot read image {path}: not an image in a format that Pillow knows"
        )
