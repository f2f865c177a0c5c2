"""The study's rule for the learning rate, and its tables."""

from __future__ import annotations

from decimal import Decimal

import pytest

from tests.demo.makers.study import bow, choose_learning_rate, markdown, mean_curve
from wiseft_cli.demo.effect import IN_DISTRIBUTION, SHIFTS, CurvePoint


def point(alpha: str, shifts: float) -> CurvePoint:
    return CurvePoint(Decimal(alpha), {IN_DISTRIBUTION: 0.0, **dict.fromkeys(SHIFTS, shifts)})


def test_bow_is_the_height_above_the_line_between_the_end_points():
    curve = [point(alpha, shifts) for alpha, shifts in (("0", 0.8), ("0.5", 0.9), ("1", 0.6))]
    assert bow(curve) == pytest.approx(0.2)


def test_mean_curve_averages_each_set_over_the_seeds():
    first = CurvePoint(Decimal(0), {"x": 0.2, "y": 0.4})
    second = CurvePoint(Decimal(0), {"x": 0.4, "y": 0.4})
    (mean,) = mean_curve([(first,), (second,)])
    assert mean.by_set == pytest.approx({"x": 0.3, "y": 0.4})


@pytest.mark.parametrize(
    ("validation", "chosen"),
    [
        ({"3e-4": [0.9, 0.9], "1e-3": [0.95, 0.93], "4e-3": [0.9, 0.94]}, "1e-3"),
        # Equal counts of images whose floating-point sums differ by the order of summation.
        ({"4e-3": [0.3, 0.2, 0.1], "1e-3": [0.1, 0.2, 0.3], "2e-3": [0.2, 0.2, 0.2]}, "1e-3"),
    ],
    ids=["highest mean", "smallest of equal means"],
)
def test_learning_rate_is_chosen_by_the_documented_rule(
    validation: dict[str, list[float]], chosen: str
):
    assert choose_learning_rate(validation) == chosen


def test_first_row_of_a_markdown_table_is_its_header():
    assert markdown([["a", "b"], ["1", "2"]]) == "| a | b |\n|---|---|\n| 1 | 2 |"
