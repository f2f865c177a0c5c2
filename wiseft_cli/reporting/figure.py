"""The figure of the paper: accuracy under shift against reference accuracy.

Wortsman et al., arXiv:2109.01903, figure 1, with one panel per distribution shift. The same lines
give the same bytes. matplotlib's pyplot is not used, so that no display is needed and the user's
settings of matplotlib do not apply.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from wiseft_cli.checkpoint.atomic import check_output, write_bytes_atomically
from wiseft_cli.errors import UsageError
from wiseft_cli.reporting.curves import (
    MEAN,
    CurveData,
    Panel,
    arrange_panels,
    collect_curves,
    describe_robustness,
    panel_document,
)
from wiseft_cli.reporting.drawing import (
    BASELINE_COLOUR,
    MARKED,
    ScaleName,
    curve_style,
    draw_labels,
    draw_panel,
    single_name,
    single_style,
)
from wiseft_cli.reporting.fonts import find_fonts, missing_characters_note
from wiseft_cli.reporting.results import ResultLine, read_result_lines
from wiseft_cli.reporting.statistics import read_baselines

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

FORMATS = ("png", "svg", "pdf")
"""File formats, which are also the suffixes of the file names."""

_ONE_PANEL_INCHES = (5.6, 4.4)
_PANEL_INCHES = (3.5, 2.9)
_MAX_COLUMNS = 4
_DPI = 200

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


@dataclass(frozen=True)
class Plot:
    """A figure and its numbers.

    Attributes:
        picture: The bytes of the image file.
        output: The file that was written; None if only the bytes were wanted.
        reference: Name of the in-distribution set.
        scale: Scale of both axes, `linear` or `logit`.
        panels: The points of every panel; `panels[i].points`, `panels[i].fit`.
        warnings: Weights that are left out, and panels without a fit.
    """

    picture: bytes
    output: Path | None
    reference: str
    scale: ScaleName
    panels: tuple[Panel, ...]
    warnings: tuple[str, ...]

    def document(self) -> dict[str, Any]:
        """Return the numbers of every panel as a JSON object; accuracies are fractions."""
        return {
            "output": None if self.output is None else str(self.output),
            "scale": self.scale,
            "reference": self.reference,
            "panels": [panel_document(panel) for panel in self.panels],
        }

    def robustness(self) -> list[str]:
        """Return one sentence per panel on effective robustness; empty without baselines."""
        return list(describe_robustness(self.panels))


def plot_results(
    results: str | Path | Iterable[str | Path | ResultLine],
    output: str | Path | None = None,
    *,
    reference: str | None = None,
    shifts: Sequence[str] = (),
    baseline_csv: str | Path | None = None,
    scale: ScaleName | None = None,
    force: bool = False,
) -> Plot:
    """Draw accuracy under shift against in-distribution accuracy, a curve over alpha.

    There is one panel per shift, and one for their mean. The end points and alpha 0.5 are marked,
    with their 95 % intervals.

    Args:
        results: Files that `wiseft eval --results` wrote, or results lines.
        output: The image file; its suffix, .png, .svg or .pdf, chooses the format. By default
            nothing is written, and the picture is a PNG.
        reference: Name of the in-distribution set; by default the one marked in the results.
        shifts: Names of the distribution shifts; by default all sets but the reference and
            validation sets.
        baseline_csv: Models to compare with: a column `model` and one column per image set,
            accuracies as fractions.
        scale: Scale of both axes; by default `logit` with baselines, otherwise `linear`.
        force: Overwrite an existing file.
    Raises:
        UsageError: The format or the scale is unknown.
        ResultsError: A file cannot be read, or the results make no figure.
        OutputError: The output exists, is an input, or cannot be written.
    """
    items = [results] if isinstance(results, str | Path) else list(results)
    inputs = [Path(item) for item in items if not isinstance(item, ResultLine)]
    inputs += [] if baseline_csv is None else [Path(baseline_csv)]
    path = None if output is None else Path(output)
    file_format = _check_format(path, scale)
    if path is not None:
        check_output(path, force=force, inputs=inputs)
    lines: list[ResultLine] = []
    for item in items:
        lines += [item] if isinstance(item, ResultLine) else read_result_lines(Path(item))
    data = collect_curves(lines, reference=reference, shifts=shifts)
    set_names = (data.reference, *data.shifts)
    baselines = () if baseline_csv is None else read_baselines(Path(baseline_csv), set_names)
    panels = arrange_panels(data, baselines)
    without_fit = [
        f"{panel.name}: fewer than two baseline models that differ, so no fit"
        for panel in panels
        if baselines and panel.fit is None
    ]
    scale = scale or ("logit" if baselines else "linear")
    picture = draw_figure(data, panels, file_format, scale=scale)
    if path is not None:
        write_bytes_atomically(path, picture, force=force, inputs=inputs)
    notes = (*data.notes, *without_fit, *missing_characters_note(_names(data, panels)))
    return Plot(picture, path, data.reference, scale, panels, notes)


def _check_format(output: Path | None, scale: ScaleName | None) -> str:
    """Return the file format that the output's suffix names."""
    if scale not in (None, *get_args(ScaleName)):
        raise UsageError(f"scale {scale!r}: expected one of {', '.join(get_args(ScaleName))}")
    file_format = "png" if output is None else output.suffix.removeprefix(".").lower()
    if file_format not in FORMATS:
        raise UsageError(f"-o {output}: expected a name ending in .{', .'.join(FORMATS)}")
    return file_format


def _names(data: CurveData, panels: Sequence[Panel]) -> str:
    """Return all names in the figure as one text."""
    points = (point.of.checkpoints_name for panel in panels for point in panel.points)
    return " ".join([data.reference, *data.shifts, *dict.fromkeys(points)])


def draw_figure(
    data: CurveData, panels: Sequence[Panel], file_format: str, *, scale: ScaleName = "linear"
) -> bytes:
    """Draw the figure.

    Args:
        data: The points.
        panels: From `arrange_panels`.
        file_format: One of `FORMATS`.
        scale: Scale of both axes of every panel.
    Returns:
        The bytes of the image file, the same for the same data and matplotlib version.
    """
    import matplotlib  # lazy: matplotlib takes half a second
    from matplotlib.figure import Figure

    fonts, missing = find_fonts(_names(data, panels))
    with matplotlib.rc_context(), warnings.catch_warnings():
        if missing:  # reported once, by `plot_results`
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        if len(fonts) > 1:
            matplotlib.rcParams["font.family"] = fonts
        n_columns = _n_columns(len(panels))
        n_rows = math.ceil(len(panels) / n_columns)
        width, height = _ONE_PANEL_INCHES if len(panels) == 1 else _PANEL_INCHES
        figure = Figure((width * n_columns, height * n_rows), dpi=_DPI, layout="constrained")
        all_axes = [figure.add_subplot(n_rows, n_columns, at + 1) for at in range(len(panels))]
        for axes, panel in zip(all_axes, panels, strict=True):
            draw_panel(axes, panel, scale)
            _set_titles(axes, data, panel, is_alone=len(panels) == 1)
        _draw_legend(figure, panels)
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
        # In the first panel only: the markers are the same in all panels.
        draw_labels(figure, all_axes[0], panels[0], scale, name_singles=len(panels) == 1)
        file = io.BytesIO()
        figure.savefig(file, format=file_format, metadata=_NO_DATES[file_format])
    return file.getvalue()


def _n_columns(n_panels: int) -> int:
    if n_panels == 4:
        return 2
    return min(n_panels, 3 if n_panels <= 9 else _MAX_COLUMNS)


def _set_titles(axes: Axes, data: CurveData, panel: Panel, *, is_alone: bool) -> None:
    horizontal = _metric_title(data.metrics[data.reference])
    axes.set_xlabel(f"in-distribution {horizontal}: {data.reference} (%)")
    vertical = _metric_title(panel.metric)
    if is_alone:
        axes.set_ylabel(f"{vertical} under shift: {panel.shifts[0]} (%)")
        return
    axes.set_ylabel(f"{vertical} (%)")
    is_mean = panel.name == MEAN and len(panel.shifts) > 1
    title = f"mean over {len(panel.shifts)} distribution shifts" if is_mean else panel.shifts[0]
    axes.set_title(title, fontweight="bold" if is_mean else "normal")


def _metric_title(metric: str) -> str:
    return "accuracy" if metric in ("", "top1") else metric.replace("_", " ")


def _draw_legend(figure: Figure, panels: Sequence[Panel]) -> None:
    """Name the colours and markers that the labels of the first panel do not."""
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
            handles.append(
                _handle(curve[0].of.checkpoints_name, colour, style=style, marker="o", size=3.6)
            )
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
    """Return how many entries fit side by side into so many inches."""
    longest = max(len(str(handle.get_label())) for handle in handles)
    return max(1, min(len(handles), int(width / (0.55 + 0.075 * longest))))


def _handle(
    label: str, colour: str, *, style: Any = "none", marker: str = "none", size: float = 6.0
) -> Line2D:
    from matplotlib.lines import Line2D  # lazy: as above

    return Line2D(
        [], [], color=colour, linestyle=style, marker=marker, markersize=size, label=label
    )
