"""The paper's figure: in-distribution accuracy across, accuracy under shift up, a panel a shift.

Wortsman et al., arXiv:2109.01903, figure 1: the curve over alpha from the zero-shot to the
fine-tuned model. The same lines give the same bytes. matplotlib's pyplot is not used, so no
display is needed and no setting of the user's takes part.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from wiseft_cli.reporting.axis_scale import ScaleName
from wiseft_cli.reporting.curves import CurveData
from wiseft_cli.reporting.panel_drawing import (
    BASELINE_COLOUR,
    MARKED,
    curve_style,
    draw_labels,
    draw_panel,
    single_name,
    single_style,
)
from wiseft_cli.reporting.panels import MEAN, Panel

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

ONE_PANEL_INCHES = (5.6, 4.4)
PANEL_INCHES = (3.5, 2.9)
MAX_COLUMNS = 4
DPI = 200

# White behind everything: the figure is read in print and on dark screens.
_STYLE: dict[Any, Any] = {
    "font.size": 9.5,
    "axes.edgecolor": "#444444",
    "axes.labelcolor": "#222222",
    "axes.titlesize": 10,
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


def draw_figure(
    data: CurveData, panels: Sequence[Panel], file_format: str, *, scale: ScaleName = "linear"
) -> bytes:
    """Draw the figure.

    Args:
        data: The points.
        panels: From `arrange_panels`.
        file_format: `png`, `svg` or `pdf`.
        scale: Of both axes of every panel.
    Returns:
        The file's bytes, the same for the same data and matplotlib version.
    """
    import matplotlib  # lazy: matplotlib costs half a second
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        n_columns = _n_columns(len(panels))
        n_rows = math.ceil(len(panels) / n_columns)
        width, height = ONE_PANEL_INCHES if len(panels) == 1 else PANEL_INCHES
        figure = Figure((width * n_columns, height * n_rows), dpi=DPI, layout="constrained")
        all_axes = [figure.add_subplot(n_rows, n_columns, at + 1) for at in range(len(panels))]
        for axes, panel in zip(all_axes, panels, strict=True):
            draw_panel(axes, panel, scale)
            _describe(axes, data, panel, alone=len(panels) == 1)
        _draw_legend(figure, panels)
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
        # In one panel only: the markers are the same in all.
        draw_labels(figure, all_axes[0], panels[0], scale, name_singles=len(panels) == 1)
        file = io.BytesIO()
        figure.savefig(file, format=file_format, metadata=_NO_DATES[file_format])
    return file.getvalue()


def _n_columns(n_panels: int) -> int:
    """Return how many panels stand in a row: few as a square, many in rows of a page's width."""
    if n_panels == 4:
        return 2
    return min(n_panels, 3 if n_panels <= 9 else MAX_COLUMNS)


def _describe(axes: Axes, data: CurveData, panel: Panel, *, alone: bool) -> None:
    across = _metric_name(data.metrics[data.reference])
    axes.set_xlabel(f"in-distribution {across}: {data.reference} (%)")
    up = _metric_name(panel.metric)
    if alone:
        axes.set_ylabel(f"{up} under shift: {panel.shifts[0]} (%)")
        return
    axes.set_ylabel(f"{up} (%)")
    is_mean = panel.name == MEAN and len(panel.shifts) > 1
    title = f"mean over {len(panel.shifts)} distribution shifts" if is_mean else panel.shifts[0]
    axes.set_title(title, fontweight="bold" if is_mean else "normal")


def _metric_name(metric: str) -> str:
    return "accuracy" if metric in ("", "top1") else metric.replace("_", " ")


def _draw_legend(figure: Figure, panels: Sequence[Panel]) -> None:
    """Say what colours and markers are, where the labels of the first panel do not."""
    first = panels[0]
    handles: list[Line2D] = []
    if len(panels) > 1:
        alphas = {point.of.alpha for curve in first.curves for point in curve}
        handles += [
            _handle(label, "#444444", marker=marker, size=size)
            for alpha, (marker, size, label) in MARKED.items()
            if alpha in alphas
        ]
        for at, point in enumerate(first.singles):
            colour, marker = single_style(at, n_curves=len(first.curves))
            handles.append(_handle(single_name(point), colour, marker=marker, size=7.0))
    if len(first.curves) > 1:
        for at, curve in enumerate(first.curves):
            colour, style = curve_style(at)
            handles.append(_handle(curve[0].of.name, colour, style=style, marker="o", size=3.6))
    if any(panel.baselines for panel in panels):
        hollow = _handle("baseline models", BASELINE_COLOUR, marker="o", size=4.5)
        hollow.set_markerfacecolor("none")
        handles.append(hollow)
    if any(panel.fit for panel in panels):
        handles.append(_handle("their fit on logits", BASELINE_COLOUR, style=(0, (4, 3))))
    if handles:
        n_columns = _legend_columns(handles, figure.get_figwidth())
        figure.legend(handles=handles, loc="outside lower center", frameon=False, ncols=n_columns)


def _legend_columns(handles: Sequence[Line2D], width: float) -> int:
    """Return how many entries fit beside each other in so many inches."""
    longest = max(len(str(handle.get_label())) for handle in handles)
    return max(1, min(len(handles), int(width / (0.55 + 0.075 * longest))))


def _handle(
    label: str, colour: str, *, style: Any = "none", marker: str = "none", size: float = 6.0
) -> Line2D:
    from matplotlib.lines import Line2D  # lazy: as above

    return Line2D(
        [], [], color=colour, linestyle=style, marker=marker, markersize=size, label=label
    )
