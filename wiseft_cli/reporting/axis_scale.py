"""Where accuracies lie on an axis: in proportion, or by their logit, and which ticks it carries.

On logit-scaled axes models of one kind lie along a straight line (Taori et al., arXiv:2007.00644,
and Miller et al., arXiv:2107.04649). It knows numbers and nothing of matplotlib.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

ScaleName = Literal["linear", "logit"]

LEAST = 0.0005
"""What an accuracy of 0 is drawn as on a logit axis where the number of images is unknown."""

_TICK_GAP = 0.1
"""Least distance between two ticks, as a share of the axis."""


def logit(value: float, *, half_image: float = LEAST) -> float:
    """Return log(p / (1 - p)) of an accuracy, kept half an image away from 0 and 1.

    Args:
        value: A fraction in [0, 1].
        half_image: Half of one image's share of the set.
    """
    half_image = min(half_image, 0.25)
    inside = min(max(value, half_image), 1.0 - half_image)
    return math.log(inside / (1.0 - inside))


def from_logit(value: float) -> float:
    """Return the fraction that has this logit."""
    return 1.0 / (1.0 + math.exp(-value))


def position(value: float, scale: ScaleName, *, half_image: float = LEAST) -> float:
    """Return where a fraction lies on an axis: in per cent, or as its logit."""
    return 100.0 * value if scale == "linear" else logit(value, half_image=half_image)


def logit_ticks(low: float, high: float) -> list[float]:
    """Return the fractions, rising, that a logit axis names between two of its positions.

    Round numbers come before less round ones, as long as there is room for their text.
    """
    chosen: list[float] = []
    for candidates in _roundness():
        for value in candidates:
            at = logit(value, half_image=1e-9)
            gaps = (abs(at - logit(other, half_image=1e-9)) for other in chosen)
            if low <= at <= high and all(gap >= _TICK_GAP * (high - low) for gap in gaps):
                chosen.append(value)
        if len(chosen) >= 5:
            break
    return sorted(chosen)


def _roundness() -> Iterator[list[float]]:
    """Yield fractions from the roundest to the least round."""
    yield [0.5, 0.1, 0.9, 0.01, 0.99, 0.001, 0.999]
    yield [tens / 10 for tens in range(1, 10)]
    yield [0.05, 0.95, 0.02, 0.98, 0.005, 0.995]
    yield [twentieth / 20 for twentieth in range(1, 20)]
    for steps in (100, 200, 1000, 10000):
        yield [step / steps for step in range(1, steps)]
