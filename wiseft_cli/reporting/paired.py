"""Paired comparison of two weight sets that were evaluated on the same images.

The p-value is McNemar's exact test (McNemar 1947, Psychometrika 12(2)): under the null hypothesis,
an image that only one of the two predicts correctly belongs to either with probability 1/2. The
interval is a percentile bootstrap over the images. A difference depends only on how many images
were gained and lost, so the resamples are drawn as counts from a multinomial distribution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from wiseft_cli.reporting.statistics import CONFIDENCE, clopper_pearson

if TYPE_CHECKING:
    import numpy as np

N_RESAMPLES = 9999
_SEED = 0


@dataclass(frozen=True)
class PairedCounts:
    """Images of one set on which two weight sets agree and differ.

    Attributes:
        n_images: Images that both could read.
        n_gained: Images that only the first predicts correctly.
        n_lost: Images that only the second predicts correctly.
    """

    n_images: int
    n_gained: int
    n_lost: int

    @property
    def difference(self) -> float:
        """Accuracy of the first minus that of the second, a fraction."""
        return (self.n_gained - self.n_lost) / self.n_images


@dataclass(frozen=True)
class PairedDifference:
    """Difference of two top-1 accuracies, over one image set or the mean of several.

    Attributes:
        difference: The first minus the second, a fraction.
        low: Lower end of the 95 % interval.
        high: Upper end of the 95 % interval.
        n_images: Number of images behind it.
        n_gained: Images that only the first predicts correctly.
        n_lost: Images that only the second predicts correctly.
        p_value: Of McNemar's exact test, two-sided; None for a mean over several sets.
    """

    difference: float
    low: float
    high: float
    n_images: int
    n_gained: int
    n_lost: int
    p_value: float | None

    def document(self) -> dict[str, Any]:
        """Return the fields as a JSON object."""
        return dict(vars(self))

    def __str__(self) -> str:
        """Describe it in points, as `+1.20 [+0.40, +2.00], p = 0.004`."""
        low, high = format_points(self.low), format_points(self.high)
        p_value = "" if self.p_value is None else f", {format_p_value(self.p_value)}"
        return f"{format_points(self.difference)} [{low}, {high}]{p_value}"


def format_points(difference: float) -> str:
    """Write a difference of fractions in percentage points, with its sign."""
    text = f"{100 * difference:+.2f}"
    return "0.00" if text in ("+0.00", "-0.00") else text


def format_p_value(p_value: float) -> str:
    """Write a p-value with three decimals, or as less than 0.001."""
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.3f}"


def paired_difference(
    counts: Sequence[PairedCounts], *, confidence: float = CONFIDENCE
) -> PairedDifference:
    """Compare two weight sets over one image set, or over the unweighted mean of several.

    Args:
        counts: One entry per image set, each with at least one image.
        confidence: Coverage of the interval, in (0, 1).
    Raises:
        ValueError: There are no counts, or they are not those of a set.
    """
    if not counts or any(of.n_images < max(1, of.n_gained + of.n_lost) for of in counts):
        raise ValueError(f"{counts!r:.80} cannot be compared")
    difference = sum(of.difference for of in counts) / len(counts)
    low, high = _interval(counts, confidence)
    return PairedDifference(
        difference=difference,
        low=low,
        high=high,
        n_images=sum(of.n_images for of in counts),
        n_gained=sum(of.n_gained for of in counts),
        n_lost=sum(of.n_lost for of in counts),
        p_value=mcnemar_p_value(counts[0]) if len(counts) == 1 else None,
    )


def mcnemar_p_value(counts: PairedCounts) -> float:
    """Return the two-sided p-value of McNemar's exact test; 1 if no image changed."""
    from scipy.stats import binomtest  # lazy: scipy.stats takes a second

    n_changed = counts.n_gained + counts.n_lost
    return float(binomtest(counts.n_gained, n_changed).pvalue) if n_changed else 1.0


def _interval(counts: Sequence[PairedCounts], confidence: float) -> tuple[float, float]:
    import numpy as np  # lazy: numpy takes a tenth of a second

    if not any(of.n_gained or of.n_lost for of in counts):
        # Every resample would be 0. No change in n images does not exclude a rare one.
        bounds = (clopper_pearson(0, of.n_images, confidence=confidence)[1] for of in counts)
        bound = fmean(bounds)
        return -bound, bound
    random = np.random.default_rng(_SEED)
    draws = sum(_resample(of, random) for of in counts) / len(counts)
    tail = 50 * (1 - confidence)
    low, high = np.percentile(draws, [tail, 100 - tail], method="inverted_cdf")
    return float(low), float(high)


def _resample(counts: PairedCounts, random: np.random.Generator) -> Any:
    """Draw differences of resampled sets, shape (N_RESAMPLES,)."""
    shares = [counts.n_gained / counts.n_images, counts.n_lost / counts.n_images]
    drawn = random.multinomial(counts.n_images, [*shares, 1 - sum(shares)], size=N_RESAMPLES)
    return (drawn[:, 0] - drawn[:, 1]) / counts.n_images
