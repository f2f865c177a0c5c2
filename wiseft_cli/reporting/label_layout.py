"""Places labels beside points so that none covers another, a line, a marker or the frame.

Greedy and deterministic: each label takes the cheapest of a fixed list of places around its
point. It knows rectangles in pixels and nothing of matplotlib.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

DIRECTIONS = 16
DISTANCES = (9.0, 14.0, 22.0, 34.0, 50.0)
"""Gaps between a point and its label, in points of 1/72 inch."""

PADDING = 5.0
"""Clear space around a label, in pixels."""


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels."""

    left: float
    bottom: float
    right: float
    top: float

    def overlap(self, other: Box) -> float:
        """Return the area that both cover."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.top, other.top) - max(self.bottom, other.bottom)
        return max(0.0, width) * max(0.0, height)

    def holds(self, x: float, y: float) -> bool:
        """Tell whether a point lies inside."""
        return self.left <= x <= self.right and self.bottom <= y <= self.top


def place_labels(
    anchors: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    ink: Sequence[tuple[float, float]],
    frame: Box,
    *,
    pixels_per_point: float,
) -> list[tuple[float, float]]:
    """Return the centre of each label, in pixels.

    Args:
        anchors: The point that each label belongs to.
        sizes: Width and height of each label.
        ink: Points of the drawing that labels should leave free, densely along lines.
        frame: The area that labels must stay in.
        pixels_per_point: Scale of `DISTANCES`.
    """
    placed: list[Box] = []
    centres = []
    for anchor, size in zip(anchors, sizes, strict=True):
        candidates = [
            _candidate(anchor, size, distance * pixels_per_point, 2 * math.pi * turn / DIRECTIONS)
            for distance in DISTANCES
            for turn in range(DIRECTIONS)
        ]
        # The order of the candidates breaks ties, so that the nearest free place is taken.
        best = min(
            range(len(candidates)),
            key=lambda at: (_cost(candidates[at], placed, ink, frame) + at // DIRECTIONS, at),
        )
        box = candidates[best]
        placed.append(box)
        centres.append(((box.left + box.right) / 2, (box.bottom + box.top) / 2))
    return centres


def _candidate(
    anchor: tuple[float, float], size: tuple[float, float], gap: float, angle: float
) -> Box:
    """Return the box whose edge lies `gap` away from the anchor in one direction."""
    half_width, half_height = size[0] / 2 + PADDING, size[1] / 2 + PADDING
    x = anchor[0] + math.cos(angle) * (gap + half_width)
    y = anchor[1] + math.sin(angle) * (gap + half_height)
    return Box(x - half_width, y - half_height, x + half_width, y + half_height)


def _cost(box: Box, placed: Sequence[Box], ink: Sequence[tuple[float, float]], frame: Box) -> float:
    area = (box.right - box.left) * (box.top - box.bottom)
    outside = area - box.overlap(frame)
    covered = sum(box.overlap(other) for other in placed)
    return 100 * (outside + 2 * covered) / area + 10 * sum(box.holds(x, y) for x, y in ink)
