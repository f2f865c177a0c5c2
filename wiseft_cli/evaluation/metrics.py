"""The metrics of an image set: a table of names, conditions and formulas.

    top1, top5      fraction of images whose class is ranked first, or among the first five
    mean_per_class  mean over the labels of their top-1 accuracy (balanced accuracy)
    macro_f1        mean over the labels of the F1 score of the top-1 predictions
    worst_group     lowest top-1 accuracy of a group (Sagawa et al. 2020, arXiv:1911.08731)
    pm0, pm10       fraction of anchor frames of videos that are right, and that are right with all
                    frames around them (Shankar et al. 2021, arXiv:1906.02168)

Labels without a readable image are ignored. A new metric is a new entry of `METRICS`; counts that
it needs beyond those of `SetAccuracy` are gathered in `scoring.py`. The formulas are written here,
not taken from a library, because they apply to counts of many batches and to columns of several
classes; the tests compare them with scikit-learn.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from wiseft_cli.reporting.results import N_ANCHORS, N_ROTATED, Metric
from wiseft_cli.reporting.statistics import clopper_pearson, stratified_interval

MIN_COLUMNS_FOR_TOP5 = 6
"""With fewer classes every image is among the top five."""

SIX_CLASSES = "at least six classes"
SEPARATE_LABELS = "different classes for different labels"
GROUPS = "a column of groups"
VIDEO_FRAMES = "a published set of video frames"


@dataclass(frozen=True)
class LabelCount:
    """Counts of one label of a set.

    Attributes:
        n_images: Readable images of the label.
        n_correct: Those whose top-1 prediction is right.
        n_predicted: Images of any label that were predicted to have this one; None if a
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
        n_right: Those that are right.
        n_all_right: Those that are right with every readable frame around them.
    """

    n_anchors: int
    n_right: int
    n_all_right: int


@dataclass(frozen=True)
class SetAccuracy:
    """Counts of one classifier on one image set, and its metrics.

    Attributes:
        n_images: Images scored, without the unreadable ones.
        n_correct: Number of right images by metric: `top1`, and `top5` from six classes on.
        n_unreadable: Images that could not be decoded.
        n_classes: Classes that competed: columns of the label join.
        labels: Counts of each label of the set.
        groups: Number of images, and of right ones, by name of each group.
        anchors: Counts of the anchor frames, if the set has neighbourhoods of frames.
        n_rotated: Images whose EXIF orientation is not applied, unless that is explicit.
    """

    n_images: int
    n_correct: Mapping[str, int]
    n_unreadable: int
    n_classes: int
    labels: Sequence[LabelCount] = ()
    groups: Mapping[str, tuple[int, int]] | None = None
    anchors: AnchorCount | None = None
    n_rotated: int = 0

    @property
    def top1(self) -> float:
        """Fraction of images whose highest score is that of their class."""
        return self.n_correct["top1"] / self.n_images

    @property
    def seen_labels(self) -> list[LabelCount]:
        """Counts of the labels that have a readable image."""
        return [label for label in self.labels if label.n_images]

    @property
    def worst_group(self) -> tuple[str, tuple[int, int]] | None:
        """Name and counts of the group with the lowest accuracy, the first of equal ones."""
        seen = {name: counts for name, counts in (self.groups or {}).items() if counts[0]}
        if not seen:
            return None
        return min(sorted(seen.items()), key=lambda item: item[1][1] / item[1][0])

    def metrics(self) -> dict[str, Metric]:
        """Return the value of each metric, with a 95 % interval if it is an accuracy."""
        values = {metric.name: metric.compute(self) for metric in METRICS}
        return {name: value for name, value in values.items() if value is not None}

    def details(self) -> dict[str, Any]:
        """Return the further fields of the results line that explain the metrics."""
        details: dict[str, Any] = {}
        if self.worst_group is not None:
            details["worst_group"] = self.worst_group[0]
        if self.anchors is not None:
            details[N_ANCHORS] = self.anchors.n_anchors
        if self.n_rotated:
            details[N_ROTATED] = self.n_rotated
        return details


@dataclass(frozen=True)
class MetricDefinition:
    """One metric.

    Attributes:
        name: Name in options, tables and results lines.
        compute: Return the value from the counts; None if they lack what it needs.
        needs: What an image set must have, one of the constants above; None if any set will do.
    """

    name: str
    compute: Callable[[SetAccuracy], Metric | None]
    needs: str | None = None


def _share(n_correct: int, n_images: int) -> Metric:
    return Metric(n_correct / n_images, *clopper_pearson(n_correct, n_images))


def _top(name: str) -> Callable[[SetAccuracy], Metric | None]:
    return lambda counts: (
        _share(counts.n_correct[name], counts.n_images) if name in counts.n_correct else None
    )


def _mean_per_class(counts: SetAccuracy) -> Metric | None:
    pairs = [(label.n_correct, label.n_images) for label in counts.seen_labels]
    if not pairs:
        return None
    value = fmean(n_correct / n_images for n_correct, n_images in pairs)
    return Metric(value, *stratified_interval(pairs))


def _macro_f1(counts: SetAccuracy) -> Metric | None:
    """Return the mean over the labels of 2 tp / (images + predictions)."""
    scores = [
        2 * label.n_correct / (label.n_images + label.n_predicted)
        for label in counts.seen_labels
        if label.n_predicted is not None
    ]
    return Metric(fmean(scores)) if scores and len(scores) == len(counts.seen_labels) else None


def _worst_group(counts: SetAccuracy) -> Metric | None:
    if counts.worst_group is None:
        return None
    n_images, n_correct = counts.worst_group[1]
    return _share(n_correct, n_images)


def _anchors(counted: Callable[[AnchorCount], int]) -> Callable[[SetAccuracy], Metric | None]:
    return lambda counts: (
        None
        if counts.anchors is None
        else _share(counted(counts.anchors), counts.anchors.n_anchors)
    )


METRICS = (
    MetricDefinition("top1", _top("top1")),
    MetricDefinition("top5", _top("top5"), SIX_CLASSES),
    MetricDefinition("mean_per_class", _mean_per_class),
    MetricDefinition("macro_f1", _macro_f1, SEPARATE_LABELS),
    MetricDefinition("worst_group", _worst_group, GROUPS),
    MetricDefinition("pm0", _anchors(lambda frames: frames.n_right), VIDEO_FRAMES),
    MetricDefinition("pm10", _anchors(lambda frames: frames.n_all_right), VIDEO_FRAMES),
)
"""All metrics, in the order in which they are listed."""

METRIC_NAMES = tuple(metric.name for metric in METRICS)


def metric_names(traits: Collection[str]) -> tuple[str, ...]:
    """Return the names of the metrics that a set has, before it is evaluated.

    Args:
        traits: Those of the constants above that the set has.
    """
    return tuple(metric.name for metric in METRICS if metric.needs in (None, *traits))


def predicts_labels(accepted: Mapping[str, Sequence[int]]) -> bool:
    """Return whether each column is right for at most one label.

    Args:
        accepted: The right columns of each label.
    """
    columns = [column for of_label in accepted.values() for column in of_label]
    return len(columns) == len(set(columns))
