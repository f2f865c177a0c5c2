from __future__ import annotations

import numpy as np
import pytest

from wiseft_cli.reporting.effective_robustness import fit_on_logits


def test_the_line_is_least_squares_on_logits_and_what_lies_above_it_is_robustness() -> None:
    models = [(0.5, 0.3), (0.6, 0.37), (0.72, 0.5), (0.8, 0.61), (0.9, 0.7)]
    x, y = np.log(np.array(models) / (1 - np.array(models))).T
    slope, intercept = np.polyfit(x, y, 1)
    fit = fit_on_logits(models)
    assert fit is not None
    assert (fit.slope, fit.intercept) == (pytest.approx(slope), pytest.approx(intercept))
    assert fit.n_models == 5
    expected = 1 / (1 + np.exp(-(slope * np.log(0.75 / 0.25) + intercept)))
    assert fit.predict(0.75) == pytest.approx(expected)
    assert fit.effective_robustness(0.75, 0.7) == pytest.approx(0.7 - expected)


def test_models_on_one_line_have_none() -> None:
    fit = fit_on_logits([(0.2, 0.2), (0.5, 0.5), (0.9, 0.9)])
    assert fit is not None
    assert fit.effective_robustness(0.7, 0.7) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("models", [[], [(0.5, 0.4)], [(0.5, 0.4), (0.5, 0.6)]])
def test_too_few_models_have_no_line(models: list[tuple[float, float]]) -> None:
    assert fit_on_logits(models) is None
