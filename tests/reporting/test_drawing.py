from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wiseft_cli.reporting.drawing import Box, logit_ticks, place_labels, position
from wiseft_cli.reporting.statistics import logit


def test_positions_are_per_cent_or_fractions_inside_the_logit_axis() -> None:
    assert position(0.25, "linear") == 25.0
    assert position(0.25, "logit") == pytest.approx(0.25)
    assert position(1.0, "logit", half_image=0.01) == pytest.approx(0.99)


@given(st.floats(0.001, 0.98), st.floats(0.005, 0.5))
def test_logit_ticks_are_rising_inside_the_axis_and_spaced(low: float, width: float) -> None:
    ends = logit(low), logit(min(0.9995, low + width))
    at = [logit(value, half_image=1e-9) for value in logit_ticks(*ends)]
    assert len(at) >= 2
    assert all(ends[0] <= value <= ends[1] for value in at)
    gap = 0.1 * (ends[1] - ends[0])
    assert all(right - left >= gap for left, right in pairwise(at))


positions = st.tuples(st.floats(200, 800), st.floats(200, 600))


@given(st.lists(positions, min_size=1, max_size=5), st.data())
def test_labels_stay_in_the_frame_and_do_not_overlap(
    anchors: list[tuple[float, float]], data: st.DataObject
) -> None:
    sizes = [data.draw(st.tuples(st.floats(20, 90), st.floats(10, 20))) for _ in anchors]
    frame = Box(0, 0, 1000, 800)
    centres = place_labels(anchors, sizes, anchors, frame, pixels_per_point=1.0)
    boxes = [
        Box(x - w / 2, y - h / 2, x + w / 2, y + h / 2)
        for (x, y), (w, h) in zip(centres, sizes, strict=True)
    ]
    for at, box in enumerate(boxes):
        assert box.overlap(frame) == pytest.approx((box.right - box.left) * (box.top - box.bottom))
        assert not any(box.contains(x, y) for x, y in anchors)
        assert all(box.overlap(other) == 0 for other in boxes[:at])
