"""Confidence intervals of accuracies: exact binomial, after Clopper and Pearson.

Clopper and Pearson 1934, Biometrika 26(4), as in arXiv:2109.01903, section 2. The interval
covers at least the stated share of the time whatever the true accuracy; it says nothing of
data that are not independent.
"""

from __future__ import annotations

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
    from scipy.special import betaincinv  # lazy: scipy costs a tenth of a second

    tail = (1 - confidence) / 2
    n_wrong = n_images - n_correct
    low = betaincinv(n_correct, n_wrong + 1, tail) if n_correct else 0.0
    high = betaincinv(n_correct + 1, n_wrong, 1 - tail) if n_wrong else 1.0
    return float(low), float(high)
