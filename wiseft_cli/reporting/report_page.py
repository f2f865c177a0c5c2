"""The report as a page: one HTML file that needs no network.

Every text is escaped by the template engine, data are JSON in which `<` is escaped, and a content
security policy allows only the scripts whose digests it lists. A name with HTML in it is shown as
it is and never executed.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wiseft_cli import __version__
from wiseft_cli.errors import MissingDependencyError, ResultsError, escape_controls
from wiseft_cli.reporting.comparison import PredictionFolder, Row, compare_rows
from wiseft_cli.reporting.paired import PairedDifference, format_p_value, format_points
from wiseft_cli.reporting.predictions import Predictions
from wiseft_cli.reporting.report_analysis import (
    N_IMAGES_SHOWN,
    Sample,
    Thumbnails,
    calibrate,
    changed_images,
    class_changes,
    confusions,
    extreme_changes,
    label_names,
)
from wiseft_cli.reporting.report_chart import (
    curve_chart,
    curve_points,
    reliability_chart,
)
from wiseft_cli.reporting.report_data import (
    Column,
    Family,
    Report,
    row_label,
    thin_rows,
)
from wiseft_cli.reporting.report_history import (
    checkpoint_paths,
    eval_commands,
    merge_command,
    read_checkpoint_files,
)
from wiseft_cli.reporting.seeds import n_seeds, standard_deviation

if TYPE_CHECKING:
    from wiseft_cli.reporting.report import ReportRequest

MAX_CELLS = 8000
"""Cells of the table; rows of larger ones are thinned."""


def render_page(report: Report, request: ReportRequest, folder: PredictionFolder) -> str:
    """Return the page.

    Raises:
        MissingDependencyError: The packages of the extra `report` are not installed.
        ResultsError: Predictions cannot be used, or `images` names an unknown set.
        CheckpointError: A checkpoint cannot be read.
    """
    vega, versions = _charting_library()
    files = read_checkpoint_files(request.checkpoints)
    paths = checkpoint_paths(report, files)
    points, n_left_out = curve_points(report, paths)
    sets, calibrations = _analyse(report, request, folder)
    curve = curve_chart(report, points) if points else None
    data = {
        "points": points,
        "curve": curve,
        "reliability": reliability_chart(calibrations) or None,
    }
    known = {checkpoint.digest for line in report.lines for checkpoint in line.checkpoints}
    context = {
        "title": request.title,
        "report": report,
        "families": report.families,
        "table": _table(report, folder, paths),
        "has_curve": bool(points),
        "n_points_left_out": n_left_out,
        "series": [] if curve is None else _series_controls(curve),
        "sets": sets,
        "calibrations": calibrations,
        "calibrated": [
            role
            for role in ("zero-shot", "fine-tuned", "merge")
            if any(role in of_set for of_set in calibrations.values())
        ],
        "facts": [_facts(name, lines) for name, lines in report.sets.items()],
        "checkpoints": _checkpoints(report),
        "files": [(file, file.digest in known) for file in files],
        "commands": [*eval_commands(report, paths), *_report_commands(request)],
        "versions": sorted({line.version for line in report.lines}),
        "version": __version__,
        "charting": versions,
        "has_predictions": folder.path is not None,
        "has_seeds": any(n_seeds(line) > 1 for line in report.lines),
    }
    return _fill_template(context, data, vega)


@cache  # bundling the script takes a second
def _charting_library() -> tuple[str, str]:
    """Return the script of Vega, Vega-Lite and Vega-Embed, and their versions in words."""
    try:
        import jinja2  # noqa: F401  # lazy: only the page needs it
        import vl_convert  # lazy: only the page needs it, and loading it takes a second
    except ImportError as error:
        raise MissingDependencyError(
            f"a report in .html needs the package {error.name}, which is not installed",
            hint="pip install 'wiseft-cli[report]'",
        ) from None
    versions = (
        f"Vega {vl_convert.get_vega_version()}, Vega-Lite {vl_convert.get_vegalite_versions()[-1]}"
        f" and Vega-Embed {vl_convert.get_vega_embed_version()}"
    )
    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;"), versions


def _fill_template(context: Mapping[str, Any], data: Mapping[str, Any], vega: str) -> str:
    # lazy: as above
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("wiseft_cli.reporting", "assets"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        # Directional controls and halves of surrogate pairs would change the text around them.
        finalize=lambda value: escape_controls(value) if type(value) is str else value,
    )
    environment.filters["percent"] = lambda value: f"{100 * value:.2f}"
    environment.filters["points"] = format_points
    script = _asset("report.js")
    return environment.get_template("report.html.j2").render(
        **context,
        style=Markup(_asset("report.css")),
        script=Markup(script),
        vega=Markup(vega),
        licence=Markup(_asset("vega-license.txt")),
        hashes=" ".join(f"'sha256-{_script_hash(text)}'" for text in (vega, script)),
        data=Markup(_script_json(data)),
    )


def _asset(name: str) -> str:
    return (resources.files("wiseft_cli.reporting") / "assets" / name).read_text(encoding="utf-8")


def _script_hash(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")


def _script_json(data: Any) -> str:
    """Return JSON that is safe between script tags, whatever the names in it are."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"))  # ASCII: no U+2028
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


@dataclass(frozen=True)
class Delta:
    """A difference of a cell from another row, as text.

    Attributes:
        against: The other row: `zero-shot`, `fine-tuned` or `baseline`.
        text: The difference in points.
        details: Its interval and p-value; empty texts without predictions.
        sign: 1, 0 or -1.
        is_certain: Whether the interval excludes 0.
    """

    against: str
    text: str
    details: tuple[str, ...]
    sign: int
    is_certain: bool


@dataclass(frozen=True)
class Cell:
    """A cell of the table."""

    value: float | None
    text: str
    detail: str
    is_best: bool
    deltas: tuple[Delta, ...]


def _table(report: Report, folder: PredictionFolder, paths: Mapping[str, str]) -> dict[str, Any]:
    rows, n_left_out = thin_rows(report, max(30, MAX_CELLS // max(1, len(report.columns))))
    return {
        "columns": report.columns,
        "rows": [
            {
                "name": row_label(row)[0],
                "alpha": row_label(row)[1],
                "role": _role(report, row),
                "cells": _cells(report, row, folder),
                "command": merge_command(row, paths),
            }
            for row in rows
        ],
        "has_alphas": any(row_label(row)[1] for row in rows),
        "n_left_out": n_left_out,
        "against": [
            name
            for name in ("zero-shot", "fine-tuned", "baseline")
            if any(name in _others(report, row) for row in rows)
        ],
    }


def _role(report: Report, row: Row) -> str:
    family = report.family_of(row)
    names = (
        ("zero-shot", family.zeroshot),
        ("fine-tuned", family.finetuned),
        (f"merge, {family.reason}" if family.reason else "merge", family.merge),
        ("baseline", report.baseline),
    )
    return "; ".join(name for name, end in names if end is row)


def _others(report: Report, row: Row) -> dict[str, Row]:
    """Return the rows that a row is compared with, by name."""
    family = report.family_of(row)
    others = {
        "zero-shot": family.zeroshot,
        "fine-tuned": family.finetuned,
        "baseline": report.baseline,
    }
    return {name: other for name, other in others.items() if other is not None and other is not row}


def _cells(report: Report, row: Row, folder: PredictionFolder) -> list[Cell]:
    others = _others(report, row)
    compared = {
        name: compare_rows(row, other, folder) if folder.path is not None else None
        for name, other in others.items()
    }
    cells = []
    for column in report.columns:
        value, metric = column.value(row), column.metric(row)
        deltas = []
        for name, other in others.items():
            comparison = compared[name]
            paired = None if comparison is None else comparison.differences.get(column.title)
            if paired is not None and any(row[at].primary != "top1" for at in column.sets):
                paired = None  # predictions tell whether the top class is right, nothing else
            if (delta := _delta(column, name, (row, other), paired)) is not None:
                deltas.append(delta)
        best = value is not None and value == report.best(column)
        text = "-" if value is None else f"{100 * value:.2f}"
        detail = "" if metric is None else _spread(row, column)
        cells.append(Cell(value, text, detail, best, tuple(deltas)))
    return cells


def _spread(row: Row, column: Column) -> str:
    """Return the interval of a cell, or its standard deviation over seeds."""
    deviation = standard_deviation([row[name] for name in column.sets])
    if deviation is not None:
        return f"± {100 * deviation:.2f}"
    metric = column.metric(row)
    if metric is None or metric.low is None or metric.high is None:
        return ""
    return f"{100 * metric.low:.2f} to {100 * metric.high:.2f}"


def _delta(
    column: Column, name: str, rows: tuple[Row, Row], paired: PairedDifference | None
) -> Delta | None:
    new, old = (column.value(row) for row in rows)
    if new is None or old is None:
        return None
    difference = round(new - old, 12)
    detail, p_value, is_certain = "", "", False
    if paired is not None:
        detail = f"{format_points(paired.low)} to {format_points(paired.high)}"
        p_value = "" if paired.p_value is None else format_p_value(paired.p_value)
        is_certain = paired.low > 0 or paired.high < 0
    sign = (difference > 0) - (difference < 0)
    return Delta(name, format_points(difference), (detail, p_value), sign, is_certain)


def _series_controls(curve: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {"name": name, "colour": curve["colours"][name], "is_shown": name in curve["shown"]}
        for name in curve["series"]
    ]


def _analyse(
    report: Report, request: ReportRequest, folder: PredictionFolder
) -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]]]:
    """Return what predictions tell about each set, and the calibration by set and row."""
    unknown = [name for name in request.images if name not in report.sets]
    if unknown:
        raise ResultsError(
            f"--images {unknown[0]!r}: is not a set of the report: {', '.join(report.sets)}"
        )
    family = report.families[0] if report.families else Family()
    subject = family.merge if family.merge is not None else family.finetuned
    thumbnails = Thumbnails()
    sets, calibrations = [], {}
    for name in report.sets:
        found = {
            role: predictions
            for role, row in (
                ("zero-shot", family.zeroshot),
                ("fine-tuned", family.finetuned),
                ("merge", family.merge),
            )
            if row is not None and name in row and (predictions := folder.of(row[name])) is not None
        }
        if found:
            calibrations[name] = {role: calibrate(of_row) for role, of_row in found.items()}
        before = found.get("zero-shot")
        after = found.get("merge", found.get("fine-tuned"))
        if before is None or after is None or subject is None or before is after:
            continue
        images = request.images.get(name)
        show = None if images is None else _thumbnailer(thumbnails, images)
        sets.append(_analyse_set(name, (before, after, found.get("fine-tuned")), show))
    if thumbnails.n_missing and sets:
        sets[0]["n_missing_images"] = thumbnails.n_missing
    return sets, calibrations


def _thumbnailer(thumbnails: Thumbnails, folder: Path) -> Callable[[str], str | None]:
    return lambda path: thumbnails.of(folder, path)


def _analyse_set(
    name: str,
    rows: tuple[Predictions, Predictions, Predictions | None],
    show: Callable[[str], str | None] | None,
) -> dict[str, Any]:
    before, after, finetuned = rows
    names = label_names([before, after])
    changes = class_changes(before, after, finetuned if finetuned is not after else None, names)
    improved, harmed = extreme_changes(changes)
    gained, lost = changed_images(before, after, names)
    return {
        "name": name,
        "n_classes": len(changes),
        "n_improved": sum(at.change > 0 for at in changes),
        "n_harmed": sum(at.change < 0 for at in changes),
        "has_finetuned": finetuned is not None and finetuned is not after,
        "changes": [("Most improved", improved), ("Most harmed", harmed)],
        "confusions": confusions(before, after, names),
        "samples": [
            ("Wrong before, right now", len(gained), _shown(gained, show)),
            ("Right before, wrong now", len(lost), _shown(lost, show)),
        ],
        "n_missing_images": 0,
    }


def _shown(samples: Sequence[Sample], show: Callable[[str], str | None] | None) -> list[Sample]:
    shown = samples[:N_IMAGES_SHOWN]
    return [at if show is None else replace(at, thumbnail=show(at.path)) for at in shown]


def _facts(name: str, lines: Sequence[Any]) -> dict[str, Any]:
    line = lines[0]
    return {
        "name": name,
        "role": "in-distribution" if line.reference else line.role,
        "metric": line.primary,
        "n_images": line.n_images,
        "n_counted": line.n_counted,
        "n_unreadable": line.n_unreadable,
        "n_classes": line.n_classes,
        "join": line.join,
        "precision": ", ".join(sorted({at.precision for at in lines})),
        "fingerprints": sorted({at.data_fingerprint for at in lines}),
    }


def _checkpoints(report: Report) -> list[tuple[str, str, str]]:
    found = {
        (at.name, at.role, at.digest): None for line in report.lines for at in line.checkpoints
    }
    return list(found)


def _report_commands(request: ReportRequest) -> list[str]:
    """Return the commands that draw the figure and write this page again."""
    results = [str(path) for path in request.results]
    words = ["wiseft", "report", *results, "-o", str(request.output)]
    for option, value in (
        ("--title", None if request.title == "Evaluation" else request.title),
        ("--reference", request.reference),
        ("--shifts", ",".join(request.shifts) or None),
        ("--alpha", request.alpha),
        ("--baseline", request.baseline),
        ("--group-by", request.group_by),
        ("--predictions", request.predictions),
    ):
        words += [] if value is None else [option, str(value)]
    for name, folder in request.images.items():
        words += ["--images", f"{name}={folder}"]
    for path in request.checkpoints:
        words += ["--checkpoint", str(path)]
    for gate in request.fail_under:
        words += ["--fail-under", gate]
    return [shlex.join(["wiseft", "plot", *results, "-o", "curve.png"]), shlex.join(words)]
