from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wiseft_cli.reporting.axis_scale import from_logit, logit, logit_ticks, position


@given(st.floats(0.001, 0.999))
def test_a_logit_goes_there_and_back(value: float) -> None:
    assert logit(value) == pytest.approx(math.log(value) - math.log1p(-value), abs=1e-9)
    assert from_logit(logit(value)) == pytest.approx(value)


def test_the_ends_lie_half_an_image_inside() -> None:
    assert from_logit(logit(0.0, half_image=0.01)) == pytest.approx(0.01)
    assert from_logit(logit(1.0, half_image=0.01)) == pytest.approx(0.99)
    assert logit(0.0, half_image=0.5) == pytest.approx(logit(0.25))  # a set of one image
    assert position(0.25, "linear") == 25.0


@given(st.floats(0.001, 0.98), st.floats(0.005, 0.5))
def test_ticks_are_rising_inside_and_apart(low: float, width: float) -> None:
    ends = logit(low), logit(min(0.9995, low + width))
    at = [logit(value, half_image=1e-9) for value in logit_ticks(*ends)]
    assert len(at) >= 2
    assert all(ends[0] <= value <= ends[1] for value in at)
    gap = 0.1 * (ends[1] - ends[0])
    assert all(right - left >= gap for left, right in pairwise(at))
