"""Other figures of the same results: bars, accuracy over alpha, effective robustness."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from wiseft_cli.reporting.alpha_selection import selected_alpha
from wiseft_cli.reporting.curves import MEAN, CurveData, Panel, PanelPoint, Row
from wiseft_cli.reporting.drawing import (
    COLOURS,
    LINE_STYLES,
    MARKED,
    curve_style,
    line_scale,
    single_name,
)
from wiseft_cli.reporting.results import Metric, ResultLine

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_BARS = 8
"""Rows in a figure of bars; of more, the end points and alpha 0.5 are drawn."""


def _columns(data: CurveData) -> list[tuple[str, tuple[str, ...]]]:
    """Return the reference, the shifts, and their mean if there are several."""
    columns: list[tuple[str, tuple[str, ...]]] = [
        (name, (name,)) for name in (data.reference, *data.shifts)
    ]
    return [*columns, (f"{MEAN} shift", data.shifts)] if len(data.shifts) > 1 else columns


def _metric(row: Row, names: Sequence[str]) -> Metric:
    if len(names) == 1:
        return row[names[0]].metric
    return Metric(fmean(row[name].value for name in names))


def bar_rows(data: CurveData) -> tuple[list[Row], int]:
    """Return the rows that have bars, and how many are left out."""
    rows = [*(row for curve in data.curves for row in curve), *data.singles]
    if len(rows) <= MAX_BARS:
        return rows, 0
    kept = [row for row in rows if row[data.reference].alpha in (None, *MARKED)][:MAX_BARS]
    return kept, len(rows) - len(kept)


def draw_bars(axes: Axes, data: CurveData) -> None:
    """Draw groups of bars, one per image set and one bar per row, with 95 % intervals."""
    import matplotlib  # lazy: matplotlib takes half a second

    rows, _ = bar_rows(data)
    columns = _columns(data)
    width = 0.8 / len(rows)
    for number, row in enumerate(rows):
        metrics = [_metric(row, names) for _, names in columns]
        places = [at + (number - (len(rows) - 1) / 2) * width for at in range(len(columns))]
        lows, highs = zip(*(metric.interval for metric in metrics), strict=True)
        values = [metric.value for metric in metrics]
        axes.bar(
            places,
            [100 * value for value in values],
            width * 0.92,
            color=COLOURS[number % len(COLOURS)],
            label=_row_name(data, row),
            yerr=[
                [100 * (value - low) for value, low in zip(values, lows, strict=True)],
                [100 * (high - value) for value, high in zip(values, highs, strict=True)],
            ],
            error_kw={"elinewidth": 1.0, "ecolor": matplotlib.rcParams["text.color"]},
        )
    is_narrow = len(columns) > 5
    axes.set_xticks(
        range(len(columns)),
        [name for name, _ in columns],
        rotation=30 if is_narrow else 0,
        ha="right" if is_narrow else "center",
    )
    axes.grid(visible=False, axis="x")
    axes.set_ylabel("accuracy (%)")
    axes.set_ylim(0, 100)


def _row_name(data: CurveData, row: Row) -> str:
    """Return the name of a row; its alpha alone if all rows with an alpha are on one curve."""
    line = row[data.reference]
    is_clear = line.alpha is not None and len(data.curves) == 1
    return f"alpha {line.alpha}" if is_clear else line.weights_name


def draw_over_alpha(axes: Axes, data: CurveData, lines: Sequence[ResultLine]) -> None:
    """Draw accuracy over alpha, one line per image set; the mean over the shifts is thick.

    The alpha that the validation set chooses is marked. Several curves differ in their line style.
    """
    import matplotlib  # lazy: as above

    columns = _columns(data)
    for number, curve in enumerate(data.curves):
        style = LINE_STYLES[number % len(LINE_STYLES)]
        alphas = [float(row[data.reference].alpha or "nan") for row in curve]
        for at, (name, names) in enumerate(columns):
            is_mean, is_reference = len(names) > 1, names == (data.reference,)
            label = name if len(data.curves) == 1 else f"{name}, {_curve_name(data, curve)}"
            axes.plot(
                alphas,
                [100 * _metric(row, names).value for row in curve],
                linestyle=style,
                marker="o",
                markersize=3 * line_scale(),
                linewidth=line_scale() * (2.6 if is_mean else 1.8 if is_reference else 1.1),
                color=matplotlib.rcParams["text.color"] if is_mean else COLOURS[at % len(COLOURS)],
                label=label,
            )
    chosen = selected_alpha(lines)
    if chosen is not None:
        validation = next(line.set_name for line in lines if line.selection)
        axes.axvline(
            float(chosen),
            color=matplotlib.rcParams["ytick.color"],
            linewidth=1.2,
            linestyle=(0, (4, 3)),
            label=f"best alpha on {validation}",
        )
    axes.set_xlabel("alpha, the weight of the fine-tuned model")
    axes.set_ylabel("accuracy (%)")


def _curve_name(data: CurveData, curve: Sequence[Row]) -> str:
    return curve[0][data.reference].checkpoints_name


def draw_effective_robustness(axes: Axes, panel: Panel) -> None:
    """Draw effective robustness in points over reference accuracy; baselines lie around 0.

    The panel must have a fit.
    """
    import matplotlib  # lazy: as above

    fit = panel.fit
    assert fit is not None
    axes.axhline(0.0, color=matplotlib.rcParams["ytick.color"], linewidth=1.0)
    axes.scatter(
        [100 * x for x, _ in panel.baselines],
        [100 * fit.effective_robustness(x, y) for x, y in panel.baselines],
        s=20,
        facecolors="none",
        edgecolors=matplotlib.rcParams["ytick.color"],
        label="baseline models",
    )

    def positions(points: Sequence[PanelPoint]) -> tuple[list[float], list[float]]:
        across = [100 * point.x.value for point in points]
        return across, [100 * fit.effective_robustness(at.x.value, at.y.value) for at in points]

    for number, curve in enumerate(panel.curves):
        colour, style = curve_style(number)
        axes.plot(
            *positions(curve),
            linestyle=style,
            color=colour,
            linewidth=1.8 * line_scale(),
            marker="o",
            markersize=3.6 * line_scale(),
            label=curve[0].of.checkpoints_name,
        )
        for alpha, (marker, size, _) in MARKED.items():
            marked = [point for point in curve if point.of.alpha == alpha]
            size *= line_scale()
            axes.plot(*positions(marked), marker=marker, markersize=size, color=colour, ls="none")
            for point, x, y in zip(marked, *positions(marked), strict=True):
                place = (7, 7)
                axes.annotate(f"{point.of.alpha}", (x, y), place, textcoords="offset points")
    for number, point in enumerate(panel.singles, start=len(panel.curves)):
        colour, _ = curve_style(number)
        axes.plot(
            *positions([point]), marker="D", ls="none", color=colour, label=single_name(point)
        )
    axes.margins(0.12)
