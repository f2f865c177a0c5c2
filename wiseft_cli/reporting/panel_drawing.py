"""Draws one panel of the figure on its axes: curves, points, intervals, baselines, labels.

Positions on the axes are per cent on a linear scale and logits on the other (`axis_scale.py`),
so that lines, labels and free places are computed in the space that is seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from wiseft_cli.reporting.axis_scale import ScaleName, from_logit, logit, logit_ticks, position
from wiseft_cli.reporting.label_layout import Box, place_labels
from wiseft_cli.reporting.panels import Panel, PanelPoint

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
"""Okabe and Ito's palette, which stays apart under every common colour blindness."""

LINE_STYLES = ("-", "--", "-.", ":")
"""Taken after each round through the colours, so that curves differ in grey print too."""

MARKED = {
    "0": ("s", 7.0, "zero-shot"),
    "0.5": ("*", 13.0, "\u03b1 = 0.5"),
    "1": ("D", 6.5, "fine-tuned"),
}
"""Marker, its size in points and its label, by alpha."""

SINGLE_MARKERS = ("o", "^", "v", "P", "X", "p", "h")
BASELINE_COLOUR = "#7A7A7A"
_BASELINE_STEPS = 60


def draw_panel(axes: Axes, panel: Panel, scale: ScaleName) -> None:
    """Draw everything but the labels."""
    for at, curve in enumerate(panel.curves):
        _draw_curve(axes, curve, at, scale)
    for at, point in enumerate(panel.singles):
        colour, marker = single_style(at, n_curves=len(panel.curves))
        _draw_interval(axes, point, colour, scale)
        _draw_marker(axes, point, marker, 7.0, colour, scale)
    axes.margins(0.12)
    _draw_baselines(axes, panel, scale)
    _set_ticks(axes, scale)


def curve_style(at: int) -> tuple[str, str]:
    """Return colour and line style of the curve at this place."""
    return COLOURS[at % len(COLOURS)], LINE_STYLES[at // len(COLOURS) % len(LINE_STYLES)]


def single_style(at: int, *, n_curves: int) -> tuple[str, str]:
    """Return colour and marker of the single point at this place."""
    return COLOURS[(at + n_curves) % len(COLOURS)], SINGLE_MARKERS[at % len(SINGLE_MARKERS)]


def _draw_curve(axes: Axes, curve: Sequence[PanelPoint], at: int, scale: ScaleName) -> None:
    colour, style = curve_style(at)
    x, y = zip(*(_at(point, scale) for point in curve), strict=True)
    axes.plot(
        x, y, linestyle=style, color=colour, linewidth=1.8, marker="o", markersize=3.6, zorder=3
    )
    for point in curve:
        if point.of.alpha in MARKED:  # intervals on every point would cover the curve
            _draw_interval(axes, point, colour, scale)
            marker, size, _ = MARKED[point.of.alpha]
            _draw_marker(axes, point, marker, size, colour, scale)


def _draw_marker(
    axes: Axes, point: PanelPoint, marker: str, size: float, colour: str, scale: ScaleName
) -> None:
    x, y = _at(point, scale)
    axes.plot(
        [x],
        [y],
        marker=marker,
        markersize=size,
        color=colour,
        markeredgecolor="white",
        markeredgewidth=0.8,
        linestyle="none",
        zorder=5,
    )


def _draw_interval(axes: Axes, point: PanelPoint, colour: str, scale: ScaleName) -> None:
    """Draw the intervals across and up; a mean over sets has none that is exact."""
    x, y = _at(point, scale)
    (left, right), (low, high) = _interval(point, scale)
    axes.errorbar(
        x,
        y,
        xerr=[[x - left], [right - x]],
        yerr=[[y - low], [high - y]] if point.y.low is not None else None,
        ecolor=colour,
        elinewidth=1.0,
        capsize=2.5,
        alpha=0.45,
        fmt="none",
        zorder=2,
    )


def _draw_baselines(axes: Axes, panel: Panel, scale: ScaleName) -> None:
    """Draw the baseline models and their line, as far as the models and the points reach."""
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
    reach = [logit(value) for value in (*x, *(point.x.value for point in panel.points))]
    across = [from_logit(at) for at in np.linspace(min(reach), max(reach), _BASELINE_STEPS)]
    axes.plot(
        [position(value, scale) for value in across],
        [position(panel.fit.predict(value), scale) for value in across],
        linestyle=(0, (4, 3)),
        color=BASELINE_COLOUR,
        linewidth=1.2,
        zorder=1,
    )


def _set_ticks(axes: Axes, scale: ScaleName) -> None:
    from matplotlib.ticker import MaxNLocator  # lazy: matplotlib costs half a second

    if scale == "linear":
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10]))
        return
    for axis, limits, keep in (
        (axes.xaxis, axes.get_xlim(), axes.set_xlim),
        (axes.yaxis, axes.get_ylim(), axes.set_ylim),
    ):
        ticks = logit_ticks(*limits)
        axis.set_ticks(
            [logit(value, half_image=1e-9) for value in ticks],
            labels=[f"{100 * value:.6g}" for value in ticks],
        )
        keep(*limits)


def draw_labels(
    figure: Figure, axes: Axes, panel: Panel, scale: ScaleName, *, name_singles: bool
) -> None:
    """Write the labels where they cover nothing; the layout of the axes must be final.

    Args:
        name_singles: Whether checkpoints as they are have labels; no, where a legend names them.
    """
    labelled = list(_labelled(panel, scale, name_singles=name_singles))
    texts = [
        axes.text(x, y, text, ha="center", va="center", color="#222222", zorder=6)
        for (x, y), text in labelled
    ]
    extents = [text.get_window_extent() for text in texts]
    to_pixels = axes.transData.transform
    to_data = axes.transData.inverted().transform
    frame = axes.get_window_extent()
    centres = place_labels(
        [tuple(to_pixels(at)) for at, _ in labelled],
        [(extent.width, extent.height) for extent in extents],
        [tuple(to_pixels(at)) for at in _ink(axes, panel, scale)],
        Box(frame.x0, frame.y0, frame.x1, frame.y1),
        pixels_per_point=figure.dpi / 72,
    )
    for text, centre in zip(texts, centres, strict=True):
        # In data coordinates, as each format has a resolution of its own.
        x, y = to_data(centre)
        text.set_position((float(x), float(y)))


def _labelled(
    panel: Panel, scale: ScaleName, *, name_singles: bool
) -> Iterator[tuple[tuple[float, float], str]]:
    """Yield positions and labels; one that several curves share at one place is there once."""
    marked = (point for curve in panel.curves for point in curve if point.of.alpha in MARKED)
    labels = [(_at(point, scale), MARKED[point.of.alpha or ""][2]) for point in marked]
    if name_singles:
        labels += [(_at(point, scale), single_name(point)) for point in panel.singles]
    yield from dict.fromkeys(labels)


def single_name(point: PanelPoint) -> str:
    """Return what stands beside a checkpoint or an ensemble."""
    return point.of.name if len(point.of.checkpoints) == 1 else "output ensemble"


def _ink(axes: Axes, panel: Panel, scale: ScaleName) -> Iterator[tuple[float, float]]:
    """Yield positions along everything drawn, in the axes' coordinates."""
    for line in axes.get_lines():
        ends = [(float(x), float(y)) for x, y in np.asarray(line.get_xydata(), dtype=float)]
        yield from ends[-1:]
        for start, stop in pairwise(ends):
            yield from _along(start, stop)
    for x, y in panel.baselines:
        yield position(x, scale), position(y, scale)
    on_curves = (point for curve in panel.curves for point in curve if point.of.alpha in MARKED)
    for point in (*on_curves, *panel.singles):
        x, y = _at(point, scale)
        (left, right), (low, high) = _interval(point, scale)
        yield from _along((left, y), (right, y))
        yield from _along((x, low), (x, high))


def _along(
    start: tuple[float, float], stop: tuple[float, float], *, steps: int = 40
) -> Iterator[tuple[float, float]]:
    for step in range(steps + 1):
        share = step / steps
        yield tuple((1 - share) * a + share * b for a, b in zip(start, stop, strict=True))  # type: ignore[misc]


def _at(point: PanelPoint, scale: ScaleName) -> tuple[float, float]:
    across, up = point.half_images
    return (
        position(point.x.value, scale, half_image=across),
        position(point.y.value, scale, half_image=up),
    )


def _interval(
    point: PanelPoint, scale: ScaleName
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return both intervals as positions."""
    (left, right), (low, high) = (
        (
            position(metric.interval[0], scale, half_image=half_image),
            position(metric.interval[1], scale, half_image=half_image),
        )
        for metric, half_image in zip((point.x, point.y), point.half_images, strict=True)
    )
    return (left, right), (low, high)
