"""Effective robustness: accuracy under shift beyond what in-distribution accuracy predicts.

Taori et al., arXiv:2007.00644, section 2: a line is fitted to baseline models on logit-scaled
axes, and a model's effective robustness is its accuracy under shift minus the line's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wiseft_cli.reporting.axis_scale import from_logit, logit


@dataclass(frozen=True)
class LogitFit:
    """The line logit(shift) = slope * logit(reference) + intercept, fitted to some models."""

    slope: float
    intercept: float
    n_models: int

    def predict(self, reference: float) -> float:
        """Return the accuracy under shift that the baselines have at this reference accuracy."""
        return from_logit(self.slope * logit(reference) + self.intercept)

    def effective_robustness(self, reference: float, shift: float) -> float:
        """Return how far an accuracy under shift lies above the baselines', as a fraction."""
        return shift - self.predict(reference)


def fit_on_logits(models: Sequence[tuple[float, float]]) -> LogitFit | None:
    """Fit a line to (reference, shift) accuracies by ordinary least squares on their logits.

    Returns:
        None where the models do not determine one: fewer than two reference accuracies.
    """
    if not models:
        return None
    x, y = np.array([[logit(value) for value in model] for model in models]).T
    centred = x - x.mean()
    spread = float(centred @ centred)
    if spread < 1e-12:
        return None
    slope = float(centred @ (y - y.mean())) / spread
    return LogitFit(slope, float(y.mean() - slope * x.mean()), len(models))
