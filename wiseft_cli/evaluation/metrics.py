"""The metrics of an image set: their names, the counts behind them, their intervals.

It needs no torch; `accuracy.py` does the counting.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from wiseft_cli.reporting.intervals import clopper_pearson
from wiseft_cli.reporting.results import Metric

MIN_CLASSES_FOR_TOP5 = 6
"""With fewer classes every image is among the top five."""


@dataclass(frozen=True)
class SetAccuracy:
    """Counts of one classifier on one image set.

    Attributes:
        n_images: Images scored; unreadable ones are not among them.
        n_correct: Images that are right, by metric: `top1`, and `top5` from six classes on.
        n_unreadable: Images that could not be decoded.
        n_classes: Classes of the set, over which the images were scored.
    """

    n_images: int
    n_correct: Mapping[str, int]
    n_unreadable: int
    n_classes: int

    @property
    def top1(self) -> float:
        """Share of the images whose highest logit is their class's, in [0, 1]."""
        return self.n_correct["top1"] / self.n_images

    def metrics(self) -> dict[str, Metric]:
        """Return each metric with its 95 % Clopper-Pearson interval."""
        return {
            name: Metric(n_correct / self.n_images, *clopper_pearson(n_correct, self.n_images))
            for name, n_correct in self.n_correct.items()
        }


def metric_names(n_classes: int) -> tuple[str, ...]:
    """Return the metrics of a set with so many classes, the primary one first."""
    return ("top1", "top5") if n_classes >= MIN_CLASSES_FOR_TOP5 else ("top1",)
