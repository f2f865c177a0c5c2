"""Counting and metrics, against scikit-learn, direct computations and plain loops."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, f1_score, top_k_accuracy_score
from torch import nn

from tests.evaluation.tiny import (
    CLASSES,
    PREPROCESS,
    RESNET,
    make_checkpoint,
    make_images,
)
from wiseft_cli.data import loading as loading_module
from wiseft_cli.data.image_folder import list_image_folder
from wiseft_cli.data.image_set import ImageSet
from wiseft_cli.data.images import load_image
from wiseft_cli.data.label_join import LabelJoin, join_image_set, join_labels
from wiseft_cli.data.loading import ImageBatch
from wiseft_cli.data.records import ImageRecord, ImageRecords
from wiseft_cli.data.sources import open_image_set
from wiseft_cli.errors import DatasetError, ModelError
from wiseft_cli.evaluation.metrics import AnchorCount, SetAccuracy
from wiseft_cli.evaluation.scoring import (
    BATCHES_BETWEEN_CHECKS,
    FrameTally,
    LabelColumns,
    ScoredSet,
    Tally,
    evaluate_image_set,
)
from wiseft_cli.model.classifier import ImageClassifier, load_classifier
from wiseft_cli.model.transforms import eval_transform
from wiseft_cli.reporting.statistics import clopper_pearson

CPU = torch.device("cpu")
LABELS = [entry.id for entry in CLASSES]


def plain_join(classes: Sequence[int], accepted: Mapping[str, Sequence[int]]) -> LabelJoin:
    return LabelJoin(
        "id",
        {},
        columns=tuple((at,) for at in classes),
        accepted={label: tuple(columns) for label, columns in accepted.items()},
    )


def set_with(
    labels: Sequence[str], targets: Sequence[int], groups: Sequence[str | None]
) -> ImageSet:
    """An image set with these targets and groups; further images give every label an image."""
    records = [
        ImageRecord(f"{at:04d}", labels[target], 1, group)
        for at, (target, group) in enumerate(zip(targets, groups, strict=True))
    ]
    records += [ImageRecord(f"unread {label}", label, 1) for label in labels]
    image_set = ImageSet("set", Path("/"), ImageRecords(records))
    assert image_set.labels == tuple(labels)
    return image_set


def batch_of(targets: np.ndarray, indices: np.ndarray) -> ImageBatch:
    return ImageBatch(torch.empty(0), torch.tensor(targets), torch.tensor(indices), {})


def count(
    join: LabelJoin,
    logits: np.ndarray,
    targets: np.ndarray,
    *,
    groups: Sequence[str | None] | None = None,
    n_parts: int = 3,
) -> SetAccuracy:
    image_set = set_with(list(join.accepted), targets.tolist(), groups or [None] * len(targets))
    tally = Tally(ScoredSet(image_set, CPU), join)
    for part in np.array_split(np.arange(len(targets)), n_parts):
        tally.add(torch.tensor(logits[part]), batch_of(targets[part], part))
    return tally.finish()


def labels_of(n: int) -> dict[str, tuple[int]]:
    return {f"label {at:02d}": (at,) for at in range(n)}


@given(st.integers(0, 2**32 - 1), st.integers(6, 12), st.integers(1, 40))
def test_metrics_equal_scikit_learns(seed: int, n_classes: int, n_images: int) -> None:
    random = np.random.default_rng(seed)
    logits = random.normal(size=(n_images, n_classes)).astype(np.float32)
    targets = random.integers(0, n_classes, size=n_images)
    counts = count(plain_join(range(n_classes), labels_of(n_classes)), logits, targets)
    metrics = {name: metric.value for name, metric in counts.metrics().items()}
    for k in (1, 5):
        expected = top_k_accuracy_score(targets, logits, k=k, labels=np.arange(n_classes))
        assert metrics[f"top{k}"] == pytest.approx(expected, abs=1e-12)
    predicted, seen = logits.argmax(axis=1), np.unique(targets)
    expected = np.mean([np.mean(predicted[targets == at] == at) for at in seen])
    assert metrics["mean_per_class"] == pytest.approx(expected, abs=1e-12)
    if np.isin(predicted, targets).all():  # otherwise scikit-learn warns of labels without images
        balanced = balanced_accuracy_score(targets, predicted)
        assert metrics["mean_per_class"] == pytest.approx(balanced, abs=1e-12)
    expected = f1_score(targets, predicted, labels=seen, average="macro", zero_division=0)
    assert metrics["macro_f1"] == pytest.approx(expected, abs=1e-12)


@given(st.integers(0, 2**32 - 1), st.sets(st.integers(0, 9), min_size=1))
def test_subset_is_scored_as_if_the_head_had_no_other_class(seed: int, subset: set[int]) -> None:
    random = np.random.default_rng(seed)
    classes = sorted(subset)
    # Few distinct values, so that there are ties to break.
    logits = random.integers(0, 4, size=(20, 10)).astype(np.float32)
    targets = random.integers(0, len(classes), size=20)
    labels = labels_of(len(classes))
    columns = LabelColumns(plain_join(classes, labels), list(labels), CPU)
    ranks = columns.ranks(columns.scores(torch.tensor(logits)), torch.tensor(targets))
    for row, target, rank in zip(logits, targets, ranks.tolist(), strict=True):
        order = sorted(range(len(classes)), key=lambda at: (-row[classes[at]], at))
        assert order.index(target) == rank


@given(st.data())
def test_many_to_one_and_any_of_columns_equal_a_direct_computation(data: st.DataObject) -> None:
    n_head = data.draw(st.integers(2, 8))
    indices = st.lists(st.integers(0, n_head - 1), min_size=1, max_size=3, unique=True).map(tuple)
    columns = data.draw(st.lists(indices, min_size=2, max_size=7))
    some = st.lists(st.integers(0, len(columns) - 1), min_size=1, max_size=3, unique=True)
    accepted = {
        f"label {at}": tuple(sorted(columns_of))
        for at, columns_of in enumerate(data.draw(st.lists(some, min_size=1, max_size=4)))
    }
    random = np.random.default_rng(data.draw(st.integers(0, 99)))
    logits = random.integers(0, 5, size=(15, n_head)).astype(np.float32)
    targets = random.integers(0, len(accepted), size=15)
    join = LabelJoin("map", {}, tuple(columns), accepted)
    found = count(join, logits, targets)
    right = {1: 0, 5: 0}
    for row, target in zip(logits, targets, strict=True):
        scores = [max(row[at] for at in column) for column in columns]
        order = sorted(range(len(columns)), key=lambda at: (-scores[at], at))
        for k in right:
            right[k] += bool(set(order[:k]) & set(accepted[f"label {target}"]))
    assert found.n_correct["top1"] == right[1]
    assert found.n_correct.get("top5", right[5]) == right[5]
    owned = [column for of_label in accepted.values() for column in of_label]
    assert ("macro_f1" in found.metrics()) == (len(owned) == len(set(owned)))


def test_winning_class_has_the_highest_logit_of_its_column() -> None:
    join = LabelJoin("map", {}, ((0, 2), (1,)), {"x": (0,), "y": (1,)})
    columns = LabelColumns(join, ["x", "y"], CPU)
    logits = torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 0.0], [1.5, 1.0, 0.0]])
    winners = columns.scores(logits).argmax(dim=1)
    assert winners.tolist() == [0, 1, 0]
    assert columns.winning_classes(logits, winners).tolist() == [2, 1, 0]


def test_worst_group_is_the_readable_group_of_lowest_accuracy() -> None:
    targets = np.array([0, 0, 1, 1, 0, 1])
    logits = np.eye(2, dtype=np.float32)[[0, 0, 1, 0, 0, 0]]
    join = plain_join((0, 1), labels_of(2))
    groups = ["land", "land", "water", "water", None, None]
    counts = count(join, logits, targets, groups=groups)
    assert counts.worst_group == ("water", (2, 1))
    assert counts.metrics()["worst_group"].value == 0.5
    assert counts.groups == {"land": (2, 2), "water": (2, 1)}
    # A group without a readable image is ignored.
    image_set = set_with(list(join.accepted), targets.tolist(), [*groups[:5], "unseen"])
    tally = Tally(ScoredSet(image_set, CPU), join)
    tally.add(torch.tensor(logits[:5]), batch_of(targets[:5], np.arange(5)))
    counts = tally.finish(n_unreadable=1)
    assert counts.groups == {"land": (2, 2), "unseen": (0, 0), "water": (2, 1)}
    assert counts.details() == {"worst_group": "water"}


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_non_finite_logits_are_an_error_and_not_a_hit(bad: float) -> None:
    join = plain_join(range(3), labels_of(3))
    scored = ScoredSet(set_with(list(labels_of(3)), [0], [None]), CPU)
    good, damaged = torch.tensor([[2.0, 0.0, 1.0]]), torch.tensor([[bad, 0.0, 1.0]])
    batch = batch_of(np.array([0]), np.array([0]))
    with pytest.raises(ModelError, match=r"^the classifier's logits are not finite$"):
        Tally(scored, join).add(damaged, batch)
    tally = Tally(scored, join)
    with pytest.raises(ModelError, match=r"^the classifier's logits are not finite$"):
        for at in range(2 * BATCHES_BETWEEN_CHECKS):
            tally.add(damaged if at == 1 else good, batch)
    tally = Tally(scored, join)
    tally.add(good, batch)
    tally.add(damaged, batch)
    with pytest.raises(ModelError, match=r"^the classifier's logits are not finite$"):
        tally.finish()


def test_top5_is_reported_from_six_classes_on() -> None:
    for n_classes, has_top5 in ((5, False), (6, True)):
        join = plain_join(range(n_classes), labels_of(n_classes))
        found = count(join, np.zeros((2, n_classes), np.float32), np.array([0, 1]), n_parts=1)
        assert ("top5" in found.metrics()) == has_top5


def test_accuracies_have_an_interval_and_macro_f1_has_none() -> None:
    metrics = SetAccuracy(200, {"top1": 150}, 0, 10).metrics()
    assert metrics["top1"].value == 0.75
    low, high = metrics["top1"].interval
    assert 0.68 < low < 0.75 < high < 0.81
    join = plain_join((0, 1), labels_of(2))
    found = count(join, np.eye(2, dtype=np.float32), np.array([0, 1]), n_parts=1).metrics()
    assert found["macro_f1"].low is None
    assert found["mean_per_class"].low is not None


def test_label_that_no_column_accepts_is_never_right() -> None:
    join = plain_join(range(7), {"a": [0], "b": [6], "none": []})
    logits = np.eye(7, dtype=np.float32)[[0, 0, 3, 6]]
    columns = LabelColumns(join, list(join.accepted), CPU)
    targets = torch.tensor([0, 2, 2, 1])
    assert columns.ranks(torch.tensor(logits), targets).tolist() == [0, 7, 7, 0]
    counts = count(join, logits, targets.numpy())
    assert (counts.n_correct["top1"], counts.n_correct["top5"]) == (2, 2)
    assert [label.n_correct for label in counts.labels] == [1, 1, 0]


def frames(n: int, neighbourhoods: dict[int, tuple[int, ...]]) -> ImageSet:
    names = {str(at): tuple(map(str, around)) for at, around in neighbourhoods.items()}
    records = ImageRecords(ImageRecord(str(at), "a", 1) for at in range(n))
    return ImageSet("video", Path("/"), records, neighbourhoods=names)


@given(st.integers(0, 2**32 - 1))
def test_anchor_counts_follow_the_definition_for_any_batches(seed: int) -> None:
    random = np.random.default_rng(seed)
    n = 20
    sets = {
        int(anchor): tuple(
            int(at) for at in random.choice(n, random.integers(0, 4)) if at != anchor
        )
        for anchor in random.choice(n, 6, replace=False)
    }
    state = random.choice(["right", "right", "wrong", "unreadable"], n)
    state[next(iter(sets))] = "right"
    tally = FrameTally(frames(n, sets), CPU)
    order = [at for at in random.permutation(n) if state[at] != "unreadable"]
    for part in np.array_split(order, 3):
        tally.add(torch.tensor(part), torch.tensor(state[part] == "right"))
    anchors = [anchor for anchor in sets if state[anchor] != "unreadable"]
    right = [anchor for anchor in anchors if state[anchor] == "right"]
    all_right = [anchor for anchor in right if not any(state[at] == "wrong" for at in sets[anchor])]
    assert tally.finish() == AnchorCount(len(anchors), len(right), len(all_right))


def test_single_images_have_no_anchor_counts_and_no_readable_anchor_is_an_error() -> None:
    single = FrameTally(frames(3, {}), CPU)
    single.add(torch.tensor([0]), torch.tensor([True]))
    assert single.finish() is None
    tally = FrameTally(frames(3, {0: (1,), 2: ()}), CPU)
    tally.add(torch.tensor([1]), torch.tensor([True]))
    with pytest.raises(DatasetError) as caught:
        tally.finish()
    assert caught.value.message == "image set 'video': none of its 2 anchor frames is readable"


def test_pm0_and_pm10_have_the_exact_interval_over_the_anchors() -> None:
    counts = SetAccuracy(70, {"top1": 60}, 0, 5, anchors=AnchorCount(9, 7, 4))
    metrics = counts.metrics()
    assert (metrics["pm0"].value, metrics["pm10"].value) == (7 / 9, 4 / 9)
    assert metrics["pm0"].interval == clopper_pearson(7, 9)
    assert metrics["pm10"].interval == clopper_pearson(4, 9)


def test_evaluate_image_set_counts_anchor_frames(
    tmp_path: Path,
) -> None:
    classifier, card = load_classifier(make_checkpoint(tmp_path / "z.safetensors", seed=1))
    root = make_images(tmp_path / "v", [entry.id for entry in CLASSES[:2]], per_class=3)
    images = open_image_set(str(root))
    paths = [record.path for record in images.records]
    images = ImageSet("v", root, images.records, neighbourhoods={paths[0]: (paths[1], paths[4])})
    counts = evaluate_image_set(
        classifier,
        images,
        join_image_set(images, card.classes),
        card.preprocess,
        batch_size=2,
        workers=0,
        device=CPU,
    )
    assert counts.anchors is not None
    assert counts.anchors.n_anchors == 1


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


def test_evaluate_image_set_equals_a_plain_loop_over_the_files(
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


def test_evaluation_draws_no_random_number_and_restores_every_mode(
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


def test_unreadable_image_is_an_error_also_in_a_worker_and_ends_the_workers(
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
        assert multiprocessing.active_children() == []


def test_killed_worker_is_reported(
    classifier: ImageClassifier, image_set: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = os.getpid()

    def die(*_: object, **__: object) -> None:
        assert os.getpid() != parent
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(loading_module, "load_image_of", die)
    with pytest.raises(DatasetError, match=r"^one of the 2 workers that decode images died"):
        evaluate(classifier, image_set, workers=2)
