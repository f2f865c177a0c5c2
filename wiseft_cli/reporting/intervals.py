"""Confidence intervals of accuracies: exact binomial, after Clopper and Pearson.

Clopper and Pearson 1934, Biometrika 26(4), as in arXiv:2109.01903, section 2. The interval
covers at least the stated share of the time whatever the true accuracy; it says nothing of
data that are not independent. A mean over classes takes the same interval at an effective number
of images (Korn and Graubard 1998, Survey Methodology 24(2)).
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

CONFIDENCE = 0.95
"""The level of every interval that wiseft reports."""


def clopper_pearson(
    n_correct: int, n_images: int, *, confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """Return the exact interval of a proportion, both ends in [0, 1].

    Args:
        n_correct: Successes, 0 to `n_images`.
        n_images: Trials, at least 1.
        confidence: Coverage, in (0, 1).
    Raises:
        ValueError: The counts are no counts of a proportion.
    """
    if not 0 <= n_correct <= n_images or n_images < 1:
        raise ValueError(f"{n_correct} of {n_images} is no proportion")
    return _beta_interval(n_correct, n_images, confidence)


def stratified_interval(
    counts: Sequence[tuple[int, int]], *, confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """Return an interval of the mean of several proportions, each of its own images.

    With p the mean and V its estimated variance, sum of p_c (1 - p_c) / n_c over K^2, the interval
    is Clopper and Pearson's for p of p (1 - p) / V images, and never of more than there are.

    Args:
        counts: Successes and trials of each of the K proportions, trials at least 1.
        confidence: Coverage, in (0, 1); approximate, as V is estimated.
    Raises:
        ValueError: The counts are no counts of proportions.
    """
    if not counts or any(not 0 <= n_correct <= n_images for n_correct, n_images in counts):
        raise ValueError(f"{counts!r:.60} are no proportions")
    shares = [(n_correct / n_images, n_images) for n_correct, n_images in counts]
    mean = fmean(share for share, _ in shares)
    variance = sum(share * (1 - share) / n_images for share, n_images in shares) / len(shares) ** 2
    n_effective: float = sum(n_images for _, n_images in shares)
    if variance > 0:
        n_effective = min(n_effective, mean * (1 - mean) / variance)
    return _beta_interval(mean * n_effective, n_effective, confidence)


def _beta_interval(n_correct: float, n_images: float, confidence: float) -> tuple[float, float]:
    """Return Clopper and Pearson's interval; the counts need not be whole."""
    from scipy.special import betaincinv  # lazy: scipy costs a tenth of a second

    tail = (1 - confidence) / 2
    n_wrong = n_images - n_correct
    low = betaincinv(n_correct, n_wrong + 1, tail) if n_correct else 0.0
    high = betaincinv(n_correct + 1, n_wrong, 1 - tail) if n_wrong else 1.0
    return float(low), float(high)
