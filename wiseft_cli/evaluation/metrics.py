"""The metrics of an image set: their names, the counts behind them, their intervals.

    top1, top5      share of the images whose class is first, or among the first five
    mean_per_class  mean over the set's labels of their top-1 accuracy (balanced accuracy)
    macro_f1        mean over the set's labels of the F1 score of the top-1 predictions
    worst_group     lowest top-1 accuracy of a group (Sagawa et al. 2020, arXiv:1911.08731)
    pm0, pm10       share of a video set's anchor frames that are right, and that are right with
                    every frame around them (Shankar et al. 2021, arXiv:1906.02168)

Labels without a readable image take no part. The formulas are few lines over counts that are
gathered batch by batch, and fit joins of several classes, which no library's metrics do; the
tests compare them with scikit-learn's. This module needs no torch; `tally.py` does the counting.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from wiseft_cli.reporting.results import Metric
from wiseft_cli.reporting.statistics import clopper_pearson, stratified_interval

MIN_COLUMNS_FOR_TOP5 = 6
"""With fewer classes every image is among the top five."""

METRIC_NAMES = ("top1", "top5", "mean_per_class", "macro_f1", "worst_group", "pm0", "pm10")
"""Every metric there is; which of them a set has depends on its classes and groups."""


@dataclass(frozen=True)
class LabelCount:
    """Counts of one label of a set.

    Attributes:
        n_images: Its readable images.
        n_correct: Those of them whose top-1 prediction is right.
        n_predicted: Images of any label that were predicted to be of this one; None where a
            prediction can stand for several labels.
    """

    n_images: int
    n_correct: int
    n_predicted: int | None = None


@dataclass(frozen=True)
class AnchorCount:
    """Counts of a set of video frames.

    Attributes:
        n_anchors: Readable anchor frames.
        n_right: Those of them that are right.
        n_all_right: Those that are right with every readable frame around them.
    """

    n_anchors: int
    n_right: int
    n_all_right: int


@dataclass(frozen=True)
class SetAccuracy:
    """Counts of one classifier on one image set.

    Attributes:
        n_images: Images scored; unreadable ones are not among them.
        n_correct: Images that are right, by metric: `top1`, and `top5` from six classes on.
        n_unreadable: Images that could not be decoded.
        n_classes: Classes that competed: columns of the label join.
        labels: The counts of each label of the set.
        groups: By name of each group, its images and those of them that are right.
        anchors: The anchor frames, where the set has neighbourhoods of frames.
    """

    n_images: int
    n_correct: Mapping[str, int]
    n_unreadable: int
    n_classes: int
    labels: Sequence[LabelCount] = ()
    groups: Mapping[str, tuple[int, int]] | None = None
    anchors: AnchorCount | None = None

    @property
    def top1(self) -> float:
        """Share of the images whose highest score is their class's, in [0, 1]."""
        return self.n_correct["top1"] / self.n_images

    def metrics(self) -> dict[str, Metric]:
        """Return each metric, with a 95 % interval where it is an accuracy."""
        metrics = {
            name: _share(n_correct, self.n_images) for name, n_correct in self.n_correct.items()
        }
        seen = [label for label in self.labels if label.n_images]
        if seen:
            metrics["mean_per_class"] = mean_per_class(seen)
            if all(label.n_predicted is not None for label in seen):
                metrics["macro_f1"] = macro_f1(seen)
        worst = self.worst_group
        if worst is not None:
            metrics["worst_group"] = _share(worst[1][1], worst[1][0])
        if self.anchors is not None:
            metrics["pm0"] = _share(self.anchors.n_right, self.anchors.n_anchors)
            metrics["pm10"] = _share(self.anchors.n_all_right, self.anchors.n_anchors)
        return metrics

    @property
    def worst_group(self) -> tuple[str, tuple[int, int]] | None:
        """The group with the lowest accuracy, the first by name of equal ones, with its counts."""
        seen = {name: counts for name, counts in (self.groups or {}).items() if counts[0]}
        if not seen:
            return None
        return min(sorted(seen.items()), key=lambda item: item[1][1] / item[1][0])


def _share(n_correct: int, n_images: int) -> Metric:
    return Metric(n_correct / n_images, *clopper_pearson(n_correct, n_images))


def mean_per_class(labels: Sequence[LabelCount]) -> Metric:
    """Return the mean of the labels' accuracies, each with at least one image.

    Its interval is that of a mean over strata (`reporting/statistics.py`).
    """
    counts = [(label.n_correct, label.n_images) for label in labels]
    value = fmean(n_correct / n_images for n_correct, n_images in counts)
    return Metric(value, *stratified_interval(counts))


def macro_f1(labels: Sequence[LabelCount]) -> Metric:
    """Return the mean of the labels' F1 scores, 2 tp / (images + predictions); no interval."""
    value = fmean(
        2 * label.n_correct / (label.n_images + (label.n_predicted or 0)) for label in labels
    )
    return Metric(value)


def tells_labels(accepted: Mapping[str, Sequence[int]]) -> bool:
    """Return whether a prediction names a label: each column is right for at most one.

    Args:
        accepted: The columns that are right for each label.
    """
    columns = [column for of_label in accepted.values() for column in of_label]
    return len(columns) == len(set(columns))


def metric_names(
    n_columns: int, *, has_groups: bool, tells_labels: bool, has_anchors: bool = False
) -> tuple[str, ...]:
    """Return the metrics that a set will have, known before it is evaluated.

    Args:
        n_columns: Columns of its label join.
        has_groups: Whether any of its images is in a group.
        tells_labels: Whether each column is right for at most one label.
        has_anchors: Whether it has neighbourhoods of video frames.
    """
    names = ["top1"]
    if n_columns >= MIN_COLUMNS_FOR_TOP5:
        names.append("top5")
    names.append("mean_per_class")
    if tells_labels:
        names.append("macro_f1")
    if has_groups:
        names.append("worst_group")
    if has_anchors:
        names += ["pm0", "pm10"]
    return tuple(names)
