"""The charts of the page, as specifications for Vega-Lite.

The page has the data and one specification per scale; its script only chooses among them, so that
everything drawn is decided here. Vega and Vega-Lite (BSD-3-Clause) come from the package
vl-convert-python, which ships them as one script.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from wiseft_cli.errors import escape_controls
from wiseft_cli.reporting.comparison import Row
from wiseft_cli.reporting.report_analysis import Calibration
from wiseft_cli.reporting.report_data import (
    Column,
    Report,
    describe_column,
    row_label,
    thin_rows,
)
from wiseft_cli.reporting.report_history import merge_command
from wiseft_cli.reporting.results import Metric
from wiseft_cli.reporting.statistics import logit

MAX_POINTS = 3000
"""Points of the curve; an SVG of more becomes slow."""

N_SHIFTS_SHOWN = 5
"""With more shifts, only their mean is shown at first."""

COLOURS = (
    "#2878b8",
    "#d1590a",
    "#3f8f3a",
    "#7a70c0",
    "#d63384",
    "#9a7500",
    "#1a8a8a",
    "#a0522d",
    "#b5488f",
    "#c23b3b",
    "#5b7fbf",
    "#7f7f7f",
)
"""At least 3:1 against the page's light and dark background (WCAG 2.2, 1.4.11)."""

_TICKS = (0.1, 0.5, 1, 2, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 98, 99, 99.5, 99.9)
_FONT = "system-ui, sans-serif"
_CONFIG: dict[str, Any] = {
    "background": "transparent",
    "font": _FONT,
    "view": {"stroke": None},
    "axis": {"labelFontSize": 12, "titleFontSize": 13, "titleFontWeight": "normal"},
}


def curve_points(report: Report, paths: Mapping[str, str]) -> tuple[list[dict[str, Any]], int]:
    """Return the points of the curve, and how many rows are left out.

    Each point is a row on one shift, or on their mean, in per cent and as a logit.
    """
    reference, shifts = report.column("reference"), _series(report)
    if reference is None or not shifts:
        return [], 0
    rows, n_left_out = thin_rows(report, max(20, MAX_POINTS // len(shifts)))
    points = []
    for order, row in enumerate(rows):
        x = reference.metric(row)
        for column in shifts:
            y = column.metric(row)
            if x is not None and y is not None:
                point = _point(report, row, column, (reference, x, y))
                command = merge_command(row, paths)
                points.append(point | {"order": order} | ({"command": command} if command else {}))
    return points, n_left_out


def _series(report: Report) -> list[Column]:
    """Return the mean over the shifts, if there are several, and each shift."""
    return [column for column in report.columns if column.kind == "mean"] + [
        column for column in report.columns if column.kind == "shift"
    ]


def _point(
    report: Report, row: Row, column: Column, values: tuple[Column, Metric, Metric]
) -> dict[str, Any]:
    reference, x, y = values
    name, alpha = row_label(row)
    family = report.family_of(row)
    is_marked = any(row is end for end in (family.zeroshot, family.finetuned, family.merge))
    n_x, n_y = (sum(row[at].n_counted for at in of.sets) for of in (reference, column))
    half_x, half_y = (0.5 / max(1, n) for n in (n_x, n_y))
    point = {
        "series": escape_controls(column.title),
        "curve": escape_controls(name),
        "alpha": alpha or "-",
        "x": round(100 * x.value, 4),
        "y": round(100 * y.value, 4),
        "lx": round(logit(x.value, half_image=half_x), 6),
        "ly": round(logit(y.value, half_image=half_y), 6),
        "of reference": describe_metric(x, n_x),
        "of shift": describe_metric(y, n_y),
        "label": escape_controls(
            f"{name}{f' at alpha {alpha}' if alpha else ''}: {reference.title}"
            f" {100 * x.value:.2f} %, {describe_column(column)} {100 * y.value:.2f} %"
        ),
    }
    if is_marked and y.low is not None and y.high is not None:
        point["text"] = alpha or escape_controls(name)
        ends = (y.low, y.high)
        point |= {"low": round(100 * ends[0], 4), "high": round(100 * ends[1], 4)}
        point["llow"], point["lhigh"] = (round(logit(end, half_image=half_y), 6) for end in ends)
    elif is_marked:
        point["text"] = alpha or escape_controls(name)
    return point


def describe_metric(metric: Metric, n_images: int) -> str:
    """Write a metric in per cent with its interval and the number of images."""
    interval = (
        ""
        if metric.low is None or metric.high is None
        else f" [{100 * metric.low:.2f}, {100 * metric.high:.2f}]"
    )
    return f"{100 * metric.value:.2f} %{interval}, {n_images:,} images"


def curve_chart(report: Report, points: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the specifications of the curve by scale, and which series are shown at first."""
    series = list(dict.fromkeys(str(point["series"]) for point in points))
    n_single = sum(column.kind == "shift" for column in report.columns)
    shown = series if n_single <= N_SHIFTS_SHOWN else series[:1]
    reference = report.column("reference")
    name = "" if reference is None else escape_controls(reference.title)
    return {
        "series": series,
        "colours": dict(zip(series, _repeat(COLOURS, len(series)), strict=True)),
        "shown": shown,
        "specs": {
            scale: _curve_spec(points, series, name, is_logit=scale == "logit")
            for scale in ("linear", "logit")
        },
    }


def _repeat(values: Sequence[str], count: int) -> list[str]:
    return [values[at % len(values)] for at in range(count)]


def _curve_spec(
    points: Sequence[Mapping[str, Any]], series: Sequence[str], reference: str, *, is_logit: bool
) -> dict[str, Any]:
    prefix = "l" if is_logit else ""
    x_title, y_title = f"{reference}, in distribution (%)", "under shift (%)"
    position = {
        "x": _axis(prefix + "x", x_title, [point["x"] for point in points], is_logit=is_logit),
        "y": _axis(prefix + "y", y_title, [point["y"] for point in points], is_logit=is_logit),
        "color": {
            "field": "series",
            "scale": {"domain": list(series), "range": _repeat(COLOURS, len(series))},
            "legend": None,
        },
    }
    has_several = len({point["curve"] for point in points}) > 1
    dash = {"field": "curve", "legend": {"title": "weights"}} if has_several else {"value": [1, 0]}
    details = [("curve", "weights"), ("alpha", "alpha"), ("of reference", reference)]
    details += [("series", "shift"), ("of shift", "under shift")]
    line = {
        "mark": {"type": "line", "strokeWidth": 1.6, "aria": False},
        "encoding": position | {"order": {"field": "order"}, "strokeDash": dash},
    }
    intervals = {
        "mark": {"type": "rule", "strokeWidth": 1.4, "opacity": 0.8, "aria": False},
        "transform": [{"filter": "isValid(datum.low)"}],
        "encoding": position
        | {"y": position["y"] | {"field": prefix + "low"}, "y2": {"field": prefix + "high"}},
    }
    marks = {
        "mark": {"type": "point", "filled": True, "size": 70, "opacity": 1, "cursor": "pointer"},
        "encoding": position
        | {
            "tooltip": [{"field": field, "title": title or "set"} for field, title in details],
            "description": {"field": "label"},
        },
    }
    labels = {
        "mark": {"type": "text", "align": "left", "dx": 7, "dy": -7, "fontSize": 11, "aria": False},
        "transform": [{"filter": "isValid(datum.text)"}],
        "encoding": {"x": position["x"], "y": position["y"], "text": {"field": "text"}},
    }
    return {
        "description": "Accuracy under shift against accuracy in distribution, over alpha",
        "width": "container",
        "height": 400,
        "config": _CONFIG,
        "layer": [line, intervals, marks, labels],
    }


def _axis(field: str, title: str, values: Sequence[float], *, is_logit: bool) -> dict[str, Any]:
    axis: dict[str, Any] = {"grid": True, "gridOpacity": 0.35, "tickCount": 8}
    if is_logit:
        low, high = min(values, default=0.0), max(values, default=100.0)
        inside = [at for at in _TICKS if low / 1.2 - 1 <= at <= min(high + 5, 99.95)]
        axis["values"] = [round(math.log(at / (100 - at)), 6) for at in inside]
        axis["labelExpr"] = "format(100 / (1 + exp(-datum.value)), '.3~r')"
        axis["labelOverlap"] = "parity"
    return {
        "field": field,
        "type": "quantitative",
        "title": title,
        "scale": {"zero": False, "nice": not is_logit, "padding": 12},
        "axis": axis,
    }


def reliability_chart(calibrations: Mapping[str, Mapping[str, Calibration]]) -> dict[str, Any]:
    """Return the reliability diagram and its data, by image set.

    Args:
        calibrations: By set name, then by the name of the row.
    """
    rows = list(dict.fromkeys(name for of_set in calibrations.values() for name in of_set))
    data = {
        escape_controls(set_name): [
            {
                "row": name,
                "probability": round(at.probability, 5),
                "accuracy": round(at.accuracy, 5),
                "images": at.n_images,
            }
            for name, calibration in of_set.items()
            for at in calibration.bins
        ]
        for set_name, of_set in calibrations.items()
    }
    unit = {"type": "quantitative", "scale": {"domain": [0, 1]}, "axis": {"gridOpacity": 0.35}}
    encoding = {
        "x": unit | {"field": "probability", "title": "mean probability of the predicted class"},
        "y": unit | {"field": "accuracy", "title": "share of right predictions"},
        "color": {
            "field": "row",
            "scale": {"domain": rows, "range": _repeat(COLOURS, len(rows))},
            "legend": {"title": None, "orient": "top", "labelFontSize": 12, "labelLimit": 400},
        },
        "tooltip": [{"field": name} for name in ("row", "probability", "accuracy", "images")],
    }
    ideal = {
        "data": {"values": [{"at": 0}, {"at": 1}]},
        "mark": {"type": "line", "strokeDash": [4, 4], "color": "#7f7f7f", "aria": False},
        "encoding": {"x": unit | {"field": "at"}, "y": unit | {"field": "at"}},
    }
    spec = {
        "description": "Reliability diagram: share of right predictions against probability",
        "width": "container",
        "height": 320,
        "config": _CONFIG,
        "layer": [ideal, {"mark": {"type": "line", "point": True}, "encoding": encoding}],
    }
    return {"spec": spec, "data": data, "sets": list(data)} if rows else {}
