from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, f1_score, top_k_accuracy_score
from wiseft_cli.evaluation.tally import BATCHES_BETWEEN_LOOKS, Columns, Tally

from wiseft_cli.data.label_join import LabelJoin
from wiseft_cli.errors import ModelError
from wiseft_cli.evaluation.metrics import SetAccuracy

CPU = torch.device("cpu")


def plain_join(classes: Sequence[int], accepted: Mapping[str, Sequence[int]]) -> LabelJoin:
    return LabelJoin(
        "id",
        {},
        columns=tuple((at,) for at in classes),
        accepted={label: tuple(columns) for label, columns in accepted.items()},
    )


def count(
    join: LabelJoin,
    logits: np.ndarray,
    targets: np.ndarray,
    *,
    groups: Sequence[str] = (),
    of_group: np.ndarray | None = None,
    n_parts: int = 3,
) -> SetAccuracy:
    tally = Tally(Columns(join, list(join.accepted), CPU), groups, CPU)
    for part in np.array_split(np.arange(len(targets)), n_parts):
        tally.add(
            torch.tensor(logits[part]),
            torch.tensor(targets[part]),
            None if of_group is None else torch.tensor(of_group[part]),
        )
    return tally.finish(n_unreadable=0)


def labels_of(n: int) -> dict[str, tuple[int]]:
    return {f"label {at:02d}": (at,) for at in range(n)}


@given(st.integers(0, 2**32 - 1), st.integers(6, 12), st.integers(1, 40))
def test_metrics_are_scikit_learns(seed: int, n_classes: int, n_images: int) -> None:
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
def test_a_subset_is_scored_as_if_the_head_had_no_other_class(seed: int, subset: set[int]) -> None:
    random = np.random.default_rng(seed)
    classes = sorted(subset)
    # Few distinct values, so that there are ties to break.
    logits = random.integers(0, 4, size=(20, 10)).astype(np.float32)
    targets = random.integers(0, len(classes), size=20)
    labels = labels_of(len(classes))
    columns = Columns(plain_join(classes, labels), list(labels), CPU)
    ranks = columns.ranks(columns.scores(torch.tensor(logits)), torch.tensor(targets))
    for row, target, rank in zip(logits, targets, ranks.tolist(), strict=True):
        order = sorted(range(len(classes)), key=lambda at: (-row[classes[at]], at))
        assert order.index(target) == rank


@given(st.data())
def test_many_to_one_and_any_of_are_a_direct_computation(data: st.DataObject) -> None:
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


def test_the_winning_class_is_the_highest_of_its_column() -> None:
    join = LabelJoin("map", {}, ((0, 2), (1,)), {"x": (0,), "y": (1,)})
    columns = Columns(join, ["x", "y"], CPU)
    logits = torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 0.0], [1.5, 1.0, 0.0]])
    winners = columns.scores(logits).argmax(dim=1)
    assert winners.tolist() == [0, 1, 0]
    assert columns.winning_classes(logits, winners).tolist() == [2, 1, 0]


def test_the_worst_group_is_the_one_with_the_lowest_accuracy() -> None:
    targets = np.array([0, 0, 1, 1, 0, 1])
    logits = np.eye(2, dtype=np.float32)[[0, 0, 1, 0, 0, 0]]
    of_group = np.array([0, 0, 1, 1, -1, -1])
    counts = count(
        plain_join((0, 1), labels_of(2)),
        logits,
        targets,
        groups=("land", "water", "unseen"),
        of_group=of_group,
    )
    assert counts.worst_group == ("water", (2, 1))
    metric = counts.metrics()["worst_group"]
    assert (metric.value, counts.groups) == (
        0.5,
        {"land": (2, 2), "water": (2, 1), "unseen": (0, 0)},
    )


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_logits_that_are_not_finite_are_an_error_and_not_a_hit(bad: float) -> None:
    columns = Columns(plain_join(range(3), labels_of(3)), list(labels_of(3)), CPU)
    good, damaged = torch.tensor([[2.0, 0.0, 1.0]]), torch.tensor([[bad, 0.0, 1.0]])
    target = torch.tensor([0])
    with pytest.raises(ModelError, match=r"^the classifier's logits are not finite$"):
        Tally(columns, (), CPU).add(damaged, target)
    tally = Tally(columns, (), CPU)
    with pytest.raises(ModelError, match=r"^the classifier's logits are not finite$"):
        for at in range(2 * BATCHES_BETWEEN_LOOKS):
            tally.add(damaged if at == 1 else good, target)
    tally = Tally(columns, (), CPU)
    tally.add(good, target)
    tally.add(damaged, target)
    with pytest.raises(ModelError, match=r"^the classifier's logits are not finite$"):
        tally.finish(n_unreadable=0)


def test_top5_is_told_from_six_classes_on() -> None:
    for n_classes, has_top5 in ((5, False), (6, True)):
        join = plain_join(range(n_classes), labels_of(n_classes))
        found = count(join, np.zeros((2, n_classes), np.float32), np.array([0, 1]), n_parts=1)
        assert ("top5" in found.metrics()) == has_top5


def test_accuracies_carry_their_interval_and_macro_f1_none() -> None:
    metrics = SetAccuracy(200, {"top1": 150}, 0, 10).metrics()
    assert metrics["top1"].value == 0.75
    low, high = metrics["top1"].interval
    assert 0.68 < low < 0.75 < high < 0.81
    join = plain_join((0, 1), labels_of(2))
    found = count(join, np.eye(2, dtype=np.float32), np.array([0, 1]), n_parts=1).metrics()
    assert found["macro_f1"].low is None
    assert found["mean_per_class"].low is not None


def test_a_label_that_no_column_is_right_for_is_never_right() -> None:
    join = plain_join(range(7), {"a": [0], "none": [], "b": [6]})
    logits = np.eye(7, dtype=np.float32)[[0, 0, 3, 6]]
    columns = Columns(join, list(join.accepted), CPU)
    targets = torch.tensor([0, 1, 1, 2])
    assert columns.ranks(torch.tensor(logits), targets).tolist() == [0, 7, 7, 0]
    counts = count(join, logits, targets.numpy())
    assert (counts.n_correct["top1"], counts.n_correct["top5"]) == (2, 2)
    assert [label.n_correct for label in counts.labels] == [1, 0, 1]
