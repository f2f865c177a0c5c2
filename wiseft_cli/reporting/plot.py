"""The paper's figure: in-distribution accuracy across, mean accuracy under shift up.

Wortsman et al., arXiv:2109.01903, figure 1: the curve over alpha from the zero-shot to the
fine-tuned model. The same lines give the same bytes. matplotlib's pyplot is not used, so no
display is needed and no setting of the user's takes part.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from wiseft_cli.reporting.curves import CurveData, CurvePoint
from wiseft_cli.reporting.label_layout import Box, place_labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIZE_INCHES = (5.6, 4.4)
DPI = 200

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

# White behind everything: the figure is read in print and on dark screens.
_STYLE: dict[Any, Any] = {
    "font.size": 9.5,
    "axes.edgecolor": "#444444",
    "axes.labelcolor": "#222222",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "figure.constrained_layout.w_pad": 0.08,
    "figure.constrained_layout.h_pad": 0.08,
    "svg.hashsalt": "wiseft",
    "text.parse_math": False,  # a name may hold any character
}
_NO_DATES: dict[str, dict[str, Any]] = {
    "png": {"Software": None},
    "svg": {"Date": None},
    "pdf": {"CreationDate": None},
}


def draw_curves(data: CurveData, file_format: str) -> bytes:
    """Draw the figure.

    Args:
        data: The points.
        file_format: `png`, `svg` or `pdf`.
    Returns:
        The file's bytes, the same for the same data and matplotlib version.
    """
    import matplotlib  # lazy: matplotlib costs half a second
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        figure = Figure(figsize=SIZE_INCHES, dpi=DPI, layout="constrained")
        axes = figure.add_subplot()
        for at, curve in enumerate(data.curves):
            _draw_curve(axes, curve, at, named=len(data.curves) > 1)
        for at, point in enumerate(data.singles, start=len(data.curves)):
            _draw_single(axes, point, COLOURS[at % len(COLOURS)])
        _describe_axes(axes, data)
        if len(data.curves) > 1:
            figure.legend(loc="outside lower center", frameon=False, ncols=1)
        _draw_labels(figure, axes, data)
        file = io.BytesIO()
        figure.savefig(file, format=file_format, metadata=_NO_DATES[file_format])
    return file.getvalue()


def _draw_curve(axes: Axes, curve: Sequence[CurvePoint], at: int, *, named: bool) -> None:
    colour = COLOURS[at % len(COLOURS)]
    style = LINE_STYLES[at // len(COLOURS) % len(LINE_STYLES)]
    x, y = [_x(point) for point in curve], [_y(point) for point in curve]
    axes.plot(
        x,
        y,
        linestyle=style,
        color=colour,
        linewidth=1.8,
        marker="o",
        markersize=3.6,
        label=curve[0].name if named else None,
        zorder=3,
    )
    for point in curve:
        if point.alpha in MARKED:  # intervals on every point would cover the curve
            _draw_interval(axes, point, colour)
            marker, size, _ = MARKED[point.alpha]
            _draw_marker(axes, point, marker, size, colour)


def _draw_single(axes: Axes, point: CurvePoint, colour: str) -> None:
    _draw_interval(axes, point, colour)
    _draw_marker(axes, point, "o", 7.0, colour)


def _draw_marker(axes: Axes, point: CurvePoint, marker: str, size: float, colour: str) -> None:
    axes.plot(
        [_x(point)],
        [_y(point)],
        marker=marker,
        markersize=size,
        color=colour,
        markeredgecolor="white",
        markeredgewidth=0.8,
        linestyle="none",
        zorder=5,
    )


def _draw_interval(axes: Axes, point: CurvePoint, colour: str) -> None:
    """Draw the reference accuracy's interval; a mean over sets has none that is exact."""
    value = point.reference.value
    low, high = point.reference.interval
    axes.errorbar(
        _x(point),
        _y(point),
        xerr=[[100 * (value - low)], [100 * (high - value)]],
        ecolor=colour,
        elinewidth=1.0,
        capsize=2.5,
        alpha=0.45,
        fmt="none",
        zorder=2,
    )


def _describe_axes(axes: Axes, data: CurveData) -> None:
    from matplotlib.ticker import MaxNLocator  # lazy: as above

    axes.set_xlabel(f"in-distribution accuracy: {data.reference} (%)")
    shifts = data.shifts
    axes.set_ylabel(
        f"accuracy under shift: {shifts[0]} (%)"
        if len(shifts) == 1
        else f"mean accuracy over {len(shifts)} distribution shifts (%)"
    )
    axes.margins(0.12)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10]))


def _draw_labels(figure: Figure, axes: Axes, data: CurveData) -> None:
    """Write the labels where they cover nothing; the layout of the axes must be final."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    labelled = list(_labelled(data))
    texts = [
        axes.text(_x(point), _y(point), text, ha="center", va="center", color="#222222", zorder=6)
        for point, text in labelled
    ]
    extents = [text.get_window_extent() for text in texts]
    to_pixels = axes.transData.transform
    to_data = axes.transData.inverted().transform
    frame = axes.get_window_extent()
    centres = place_labels(
        [tuple(to_pixels((_x(point), _y(point)))) for point, _ in labelled],
        [(extent.width, extent.height) for extent in extents],
        [tuple(to_pixels(at)) for at in _ink(data)],
        Box(frame.x0, frame.y0, frame.x1, frame.y1),
        pixels_per_point=figure.dpi / 72,
    )
    for text, centre in zip(texts, centres, strict=True):
        # In data coordinates, as each format has a resolution of its own.
        x, y = to_data(centre)
        text.set_position((float(x), float(y)))


def _labelled(data: CurveData) -> Iterator[tuple[CurvePoint, str]]:
    """Yield the points that carry a label; one that several curves share carries it once."""
    seen = set()
    for curve in data.curves:
        for point in curve:
            if point.alpha in MARKED:
                text = MARKED[point.alpha][2]
                if (text, _x(point), _y(point)) not in seen:
                    seen.add((text, _x(point), _y(point)))
                    yield point, text
    for point in data.singles:
        yield point, point.name


def _ink(data: CurveData, *, steps: int = 40) -> Iterator[tuple[float, float]]:
    """Yield positions along everything drawn, in data coordinates."""
    for curve in data.curves:
        for start, stop in pairwise(curve):
            for step in range(steps):
                share = step / steps
                yield (
                    (1 - share) * _x(start) + share * _x(stop),
                    (1 - share) * _y(start) + share * _y(stop),
                )
    on_curves = (point for curve in data.curves for point in curve if point.alpha in MARKED)
    for point in (*on_curves, *data.singles):
        low, high = (100 * end for end in point.reference.interval)
        for step in range(steps + 1):
            yield low + (high - low) * step / steps, _y(point)


def _x(point: CurvePoint) -> float:
    return 100 * point.reference.value


def _y(point: CurvePoint) -> float:
    return 100 * point.shift
