"""Draw one panel of the figure: curves, intervals, baselines, ticks, labels.

Positions on the axes are per cent on a linear scale and fractions on matplotlib's logit scale;
labels and free places are computed in pixels. On logit axes models of one kind lie along a
straight line (Taori et al., arXiv:2007.00644; Miller et al., arXiv:2107.04649).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from wiseft_cli.reporting.curves import Panel, PanelPoint
from wiseft_cli.reporting.statistics import MIN_ACCURACY, from_logit, logit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ScaleName = Literal["linear", "logit"]
Position = tuple[float, float]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#7F7F7F")
"""Okabe and Ito's palette, distinguishable under every common colour blindness."""

LINE_STYLES = ("-", "--", "-.", ":")
"""They change after each round of the colours, so that curves differ in grey print too."""

MARKED = {
    "0": ("s", 7.0, "zero-shot"),
    "0.5": ("*", 13.0, "\u03b1 = 0.5"),
    "1": ("D", 6.5, "fine-tuned"),
}
"""Marker, its size in points, and its label, by alpha."""

SINGLE_MARKERS = ("o", "^", "v", "P", "X", "p", "h")
BASELINE_COLOUR = "#7A7A7A"
_BASELINE_STEPS = 60

_TICK_GAP = 0.1
"""Smallest distance between two ticks, as a fraction of the axis."""

_DIRECTIONS = 16
_DISTANCES = (9.0, 14.0, 22.0, 34.0, 50.0)
"""Gaps between a point and its label, in points of 1/72 inch."""

_PADDING = 5.0
"""Clear space around a label, in pixels."""


def line_scale() -> float:
    """Return the factor of lines and markers for the font size of the figure's style."""
    import matplotlib  # lazy: matplotlib takes half a second

    return float(matplotlib.rcParams["font.size"]) / 9.5


def position(value: float, scale: ScaleName, *, half_image: float = MIN_ACCURACY) -> float:
    """Return the position of a fraction on an axis: per cent, or itself inside (0, 1)."""
    if scale == "linear":
        return 100.0 * value
    return from_logit(logit(value, half_image=half_image))


def curve_style(at: int) -> tuple[str, str]:
    """Return colour and line style of the curve with this index."""
    return COLOURS[at % len(COLOURS)], LINE_STYLES[at // len(COLOURS) % len(LINE_STYLES)]


def single_style(at: int, *, n_curves: int) -> tuple[str, str]:
    """Return colour and marker of the single point with this index."""
    return COLOURS[(at + n_curves) % len(COLOURS)], SINGLE_MARKERS[at % len(SINGLE_MARKERS)]


def single_name(point: PanelPoint) -> str:
    """Return the label of a point that is not on a curve."""
    return "output ensemble" if point.of.ensemble else point.of.checkpoints_name


def draw_panel(axes: Axes, panel: Panel, scale: ScaleName) -> None:
    """Draw everything but the labels."""
    if scale == "logit":
        axes.set_xscale("logit")
        axes.set_yscale("logit")
    for at, curve in enumerate(panel.curves):
        _draw_curve(axes, curve, at, scale)
    for at, point in enumerate(panel.singles):
        colour, marker = single_style(at, n_curves=len(panel.curves))
        _draw_interval(axes, point, colour, scale)
        _draw_marker(axes, point, marker, 7.0, colour, scale)
    axes.margins(0.12)
    _draw_baselines(axes, panel, scale)
    _set_ticks(axes, scale)


def _draw_curve(axes: Axes, curve: Sequence[PanelPoint], at: int, scale: ScaleName) -> None:
    colour, style = curve_style(at)
    x, y = zip(*(_at(point, scale) for point in curve), strict=True)
    if len(curve) > 2:  # the chord, from which the bow is seen
        ends = (x[0], x[-1]), (y[0], y[-1])
        dotted: dict[str, Any] = {
            "linestyle": (0, (1, 2)),
            "linewidth": 0.9 * line_scale(),
            "alpha": 0.6,
        }
        axes.plot(*ends, color=colour, zorder=1, **dotted)
    axes.plot(
        x,
        y,
        linestyle=style,
        color=colour,
        linewidth=1.8 * line_scale(),
        marker="o",
        markersize=3.6 * line_scale(),
        zorder=3,
    )
    for point in curve:
        if point.of.alpha in MARKED:  # intervals on every point would cover the curve
            _draw_interval(axes, point, colour, scale)
            marker, size, _ = MARKED[point.of.alpha]
            _draw_marker(axes, point, marker, size, colour, scale)


def _draw_marker(
    axes: Axes, point: PanelPoint, marker: str, size: float, colour: str, scale: ScaleName
) -> None:
    import matplotlib  # lazy: matplotlib takes half a second

    x, y = _at(point, scale)
    axes.plot(
        [x],
        [y],
        marker=marker,
        markersize=size * line_scale(),
        color=colour,
        markeredgecolor=matplotlib.rcParams["axes.facecolor"],
        markeredgewidth=0.8,
        linestyle="none",
        zorder=5,
    )


def _draw_interval(axes: Axes, point: PanelPoint, colour: str, scale: ScaleName) -> None:
    x, y = _at(point, scale)
    (left, right), (low, high) = _interval(point, scale)
    axes.errorbar(
        x,
        y,
        xerr=[[x - left], [right - x]],
        yerr=[[y - low], [high - y]] if point.y.low is not None else None,
        ecolor=colour,
        elinewidth=1.0 * line_scale(),
        capsize=2.5 * line_scale(),
        alpha=0.45,
        fmt="none",
        zorder=2,
    )


def _draw_baselines(axes: Axes, panel: Panel, scale: ScaleName) -> None:
    """Draw the baseline models, and their line as far as models and points extend."""
    if not panel.baselines:
        return
    x, y = zip(*panel.baselines, strict=True)
    axes.scatter(
        [position(value, scale) for value in x],
        [position(value, scale) for value in y],
        s=20,
        facecolors="none",
        edgecolors=BASELINE_COLOUR,
        linewidths=1.0,
        zorder=2,
    )
    if panel.fit is None:
        return
    extent = [logit(value) for value in (*x, *(point.x.value for point in panel.points))]
    across = [from_logit(at) for at in np.linspace(min(extent), max(extent), _BASELINE_STEPS)]
    axes.plot(
        [position(value, scale) for value in across],
        [position(panel.fit.predict(value), scale) for value in across],
        linestyle=(0, (4, 3)),
        color=BASELINE_COLOUR,
        linewidth=1.2,
        zorder=1,
    )


def _set_ticks(axes: Axes, scale: ScaleName) -> None:
    from matplotlib.ticker import MaxNLocator, NullLocator  # lazy: as above

    if scale == "linear":
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10]))
        return
    for axis, limits, keep in (
        (axes.xaxis, axes.get_xlim(), axes.set_xlim),
        (axes.yaxis, axes.get_ylim(), axes.set_ylim),
    ):
        ticks = logit_ticks(*(logit(limit, half_image=1e-9) for limit in limits))
        axis.set_ticks(ticks, labels=[f"{100 * value:.6g}" for value in ticks])
        axis.set_minor_locator(NullLocator())
        keep(*limits)


def logit_ticks(low: float, high: float) -> list[float]:
    """Return rising fractions for the ticks of a logit axis between two positions.

    Round numbers are preferred, as long as there is space for their text.
    """
    chosen: list[float] = []
    for candidates in _fractions_by_roundness():
        for value in candidates:
            at = logit(value, half_image=1e-9)
            gaps = (abs(at - logit(other, half_image=1e-9)) for other in chosen)
            if low <= at <= high and all(gap >= _TICK_GAP * (high - low) for gap in gaps):
                chosen.append(value)
        if len(chosen) >= 5:
            break
    return sorted(chosen)


def _fractions_by_roundness() -> Iterator[list[float]]:
    yield [0.5, 0.1, 0.9, 0.01, 0.99, 0.001, 0.999]
    yield [tens / 10 for tens in range(1, 10)]
    yield [0.05, 0.95, 0.02, 0.98, 0.005, 0.995]
    yield [twentieth / 20 for twentieth in range(1, 20)]
    for steps in (100, 200, 1000, 10000):
        yield [step / steps for step in range(1, steps)]


def draw_labels(
    figure: Figure, axes: Axes, panel: Panel, scale: ScaleName, *, name_singles: bool
) -> None:
    """Write the labels where they cover nothing; the layout of the axes must be final.

    Args:
        name_singles: Label single checkpoints too; False if a legend names them.
    """
    labelled = list(_labelled(panel, scale, name_singles=name_singles))
    texts = [axes.text(x, y, text, ha="center", va="center", zorder=6) for (x, y), text in labelled]
    extents = [text.get_window_extent() for text in texts]
    to_pixels = axes.transData.transform
    to_data = axes.transData.inverted().transform
    frame = axes.get_window_extent()
    centres = place_labels(
        [tuple(to_pixels(at)) for at, _ in labelled],
        [(extent.width, extent.height) for extent in extents],
        list(_ink(axes, panel, scale)),
        Box(frame.x0, frame.y0, frame.x1, frame.y1),
        pixels_per_point=figure.dpi / 72,
    )
    for text, centre in zip(texts, centres, strict=True):
        # In data coordinates, because each file format has its own resolution.
        x, y = to_data(centre)
        text.set_position((float(x), float(y)))


def _labelled(
    panel: Panel, scale: ScaleName, *, name_singles: bool
) -> Iterator[tuple[Position, str]]:
    """Yield positions and texts; a label that several curves share is yielded once."""
    marked = (point for curve in panel.curves for point in curve if point.of.alpha in MARKED)
    labels = [(_at(point, scale), MARKED[point.of.alpha or ""][2]) for point in marked]
    if name_singles:
        labels += [(_at(point, scale), single_name(point)) for point in panel.singles]
    yield from dict.fromkeys(labels)


def _ink(axes: Axes, panel: Panel, scale: ScaleName) -> Iterator[Position]:
    """Yield positions along everything that is drawn, in pixels."""

    def pixels(at: Position) -> Position:
        x, y = axes.transData.transform(at)
        return float(x), float(y)

    for line in axes.get_lines():
        ends = [pixels((float(x), float(y))) for x, y in np.asarray(line.get_xydata(), dtype=float)]
        yield from ends[-1:]
        for start, stop in pairwise(ends):
            yield from _along(start, stop)
    for x, y in panel.baselines:
        yield pixels((position(x, scale), position(y, scale)))
    on_curves = (point for curve in panel.curves for point in curve if point.of.alpha in MARKED)
    for point in (*on_curves, *panel.singles):
        x, y = _at(point, scale)
        (left, right), (low, high) = _interval(point, scale)
        yield from _along(pixels((left, y)), pixels((right, y)))
        yield from _along(pixels((x, low)), pixels((x, high)))


def _along(start: Position, stop: Position) -> Iterator[Position]:
    for step in range(41):
        share = step / 40
        yield (
            (1 - share) * start[0] + share * stop[0],
            (1 - share) * start[1] + share * stop[1],
        )


def _at(point: PanelPoint, scale: ScaleName) -> Position:
    across, up = point.half_images
    return (
        position(point.x.value, scale, half_image=across),
        position(point.y.value, scale, half_image=up),
    )


def _interval(point: PanelPoint, scale: ScaleName) -> tuple[Position, Position]:
    """Return the ends of the horizontal and of the vertical interval."""
    horizontal, vertical = (
        (
            position(metric.interval[0], scale, half_image=half_image),
            position(metric.interval[1], scale, half_image=half_image),
        )
        for metric, half_image in zip((point.x, point.y), point.half_images, strict=True)
    )
    return horizontal, vertical


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels."""

    left: float
    bottom: float
    right: float
    top: float

    def overlap(self, other: Box) -> float:
        """Return the area that both rectangles cover."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.top, other.top) - max(self.bottom, other.bottom)
        return max(0.0, width) * max(0.0, height)

    def contains(self, x: float, y: float) -> bool:
        """Return whether a point lies inside."""
        return self.left <= x <= self.right and self.bottom <= y <= self.top


def place_labels(
    anchors: Sequence[Position],
    sizes: Sequence[Position],
    ink: Sequence[Position],
    frame: Box,
    *,
    pixels_per_point: float,
) -> list[Position]:
    """Place labels beside points so that they cover nothing.

    Each label in turn takes the cheapest of a fixed list of places around its point.

    Args:
        anchors: The point that each label belongs to, in pixels.
        sizes: Width and height of each label, in pixels.
        ink: Points of the drawing that labels should not cover, close together along lines.
        frame: The area that labels must stay in.
        pixels_per_point: Pixels per 1/72 inch.
    Returns:
        The centre of each label, in pixels.
    """
    placed: list[Box] = []
    centres = []
    for anchor, size in zip(anchors, sizes, strict=True):
        candidates = [
            _candidate(anchor, size, distance * pixels_per_point, 2 * math.pi * turn / _DIRECTIONS)
            for distance in _DISTANCES
            for turn in range(_DIRECTIONS)
        ]
        # The order of the candidates breaks ties: the nearest free place is taken.
        best = min(
            range(len(candidates)),
            key=lambda at: (_cost(candidates[at], placed, ink, frame) + at // _DIRECTIONS, at),
        )
        box = candidates[best]
        placed.append(box)
        centres.append(((box.left + box.right) / 2, (box.bottom + box.top) / 2))
    return centres


def _candidate(anchor: Position, size: Position, gap: float, angle: float) -> Box:
    """Return the box whose edge is `gap` away from the anchor in one direction."""
    half_width, half_height = size[0] / 2 + _PADDING, size[1] / 2 + _PADDING
    x = anchor[0] + math.cos(angle) * (gap + half_width)
    y = anchor[1] + math.sin(angle) * (gap + half_height)
    return Box(x - half_width, y - half_height, x + half_width, y + half_height)


def _cost(box: Box, placed: Sequence[Box], ink: Sequence[Position], frame: Box) -> float:
    area = (box.right - box.left) * (box.top - box.bottom)
    outside = area - box.overlap(frame)
    covered = sum(box.overlap(other) for other in placed)
    return 100 * (outside + 2 * covered) / area + 10 * sum(box.contains(x, y) for x, y in ink)
