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
from typing import TYPE_CHECKING, Any, Literal, get_args

from wiseft_cli.checkpoint.atomic import check_output, write_bytes_atomically
from wiseft_cli.errors import ResultsError, UsageError
from wiseft_cli.reporting.curves import (
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
from wiseft_cli.reporting.plot_kinds import (
    bar_rows,
    draw_bars,
    draw_effective_robustness,
    draw_over_alpha,
)
from wiseft_cli.reporting.plot_style import COMMON, DPI, STYLES, PlotStyle, StyleName
from wiseft_cli.reporting.results import ResultLine, read_result_lines
from wiseft_cli.reporting.seeds import average_over_seeds
from wiseft_cli.reporting.statistics import read_baselines

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

FORMATS = ("png", "svg", "pdf")
"""File formats, which are also the suffixes of the file names."""

KindName = Literal["curve", "bars", "alpha", "effective-robustness"]

MIN_WIDTH_IN, MAX_WIDTH_IN = 1.5, 40.0

_MAX_COLUMNS = 4
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
    kind: KindName = "curve",
    panels: Sequence[str] = (),
    style: StyleName = "default",
    width_in: float | None = None,
    group_by: str | None = None,
    force: bool = False,
) -> Plot:
    """Draw results: by default accuracy under shift against in-distribution accuracy over alpha.

    There is a panel for the mean over the shifts and, if there are few, one per shift. The end
    points and alpha 0.5 are marked, with their 95 % intervals.

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
        kind: `curve`; `bars` for few checkpoints; `alpha`, accuracy over alpha; or
            `effective-robustness`, which needs baselines.
        panels: `mean`, `all` or names of shifts; by default `mean`, and all if they are few.
        style: `default`, `paper` (a column, 8-point text), `slide` or `dark`.
        width_in: Width of the figure in inches; by default that of the style.
        group_by: `recipe` to average runs over their seeds; intervals are standard deviations.
        force: Overwrite an existing file.
    Raises:
        UsageError: An option has an unknown value, or the kind lacks what it needs.
        ResultsError: A file cannot be read, or the results make no figure.
        OutputError: The output exists, is an input, or cannot be written.
    """
    items = [results] if isinstance(results, str | Path) else list(results)
    inputs = [Path(item) for item in items if not isinstance(item, ResultLine)]
    inputs += [] if baseline_csv is None else [Path(baseline_csv)]
    path = None if output is None else Path(output)
    file_format = _check_format(path, scale)
    _check_kind(kind, style, width_in, panels, has_baselines=baseline_csv is not None)
    if path is not None:
        check_output(path, force=force, inputs=inputs)
    lines: list[ResultLine] = []
    for item in items:
        lines += [item] if isinstance(item, ResultLine) else read_result_lines(Path(item))
    seed_notes: tuple[str, ...] = ()
    if group_by is not None:
        averaged, seed_notes = average_over_seeds(lines)
        lines = list(averaged)
    data = collect_curves(lines, reference=reference, shifts=shifts)
    set_names = (data.reference, *data.shifts)
    baselines = () if baseline_csv is None else read_baselines(Path(baseline_csv), set_names)
    shown = arrange_panels(data, baselines, names=panels)
    without_fit = [
        f"{panel.name}: fewer than two baseline models that differ, so no fit"
        for panel in shown
        if baselines and panel.fit is None
    ]
    if kind == "effective-robustness" and without_fit:
        raise ResultsError("effective robustness needs a fit to baselines", faults=without_fit)
    scale = scale or ("logit" if baselines else "linear")
    look = Look(kind, style, width_in, scale)
    picture = draw_figure(data, shown, file_format, look=look, lines=lines)
    if path is not None:
        write_bytes_atomically(path, picture, force=force, inputs=inputs)
    notes = (
        *seed_notes,
        *data.notes,
        *without_fit,
        *_kind_notes(kind, data),
        *missing_characters_note(_names(data, shown)),
    )
    return Plot(picture, path, data.reference, scale, shown, notes)


def _check_kind(
    kind: KindName,
    style: StyleName,
    width_in: float | None,
    panels: Sequence[str],
    *,
    has_baselines: bool,
) -> None:
    for value, name, known in (
        (kind, "kind", get_args(KindName)),
        (style, "style", get_args(StyleName)),
    ):
        if value not in known:
            raise UsageError(f"{name} {value!r}: expected one of {', '.join(known)}")
    if width_in is not None and not MIN_WIDTH_IN <= width_in <= MAX_WIDTH_IN:
        raise UsageError(
            f"width {width_in:g}: expected {MIN_WIDTH_IN:g} to {MAX_WIDTH_IN:g} inches"
        )
    if kind == "effective-robustness" and not has_baselines:
        raise UsageError(
            "effective robustness is measured against baseline models",
            hint="name a file of them with --baseline-csv",
        )
    if panels and kind in ("bars", "alpha"):
        raise UsageError(f"--panels: a figure of {kind} has one panel; --shifts selects its sets")


def _kind_notes(kind: KindName, data: CurveData) -> list[str]:
    if kind == "bars" and (n_left_out := bar_rows(data)[1]):
        return [f"{n_left_out} rows have no bars; the end points and alpha 0.5 do"]
    return []


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


@dataclass(frozen=True)
class Look:
    """How a figure is drawn: `kind`, `style`, `width_in` and `scale` of `plot_results`."""

    kind: KindName = "curve"
    style: StyleName = "default"
    width_in: float | None = None
    scale: ScaleName = "linear"


def draw_figure(
    data: CurveData,
    panels: Sequence[Panel],
    file_format: str,
    *,
    look: Look | None = None,
    lines: Sequence[ResultLine] = (),
) -> bytes:
    """Draw the figure.

    Args:
        data: The points.
        panels: From `arrange_panels`.
        file_format: One of `FORMATS`.
        look: Kind, style, width and scale.
        lines: The results lines, for the alpha that a validation set chooses.
    Returns:
        The bytes of the image file, the same for the same data and matplotlib version.
    """
    import matplotlib  # lazy: matplotlib takes half a second
    from matplotlib.figure import Figure

    look = look or Look()
    style = STYLES[look.style]
    fonts, missing = find_fonts(_names(data, panels))
    with matplotlib.rc_context(), warnings.catch_warnings():
        if missing:  # reported once, by `plot_results`
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({**COMMON, **style.settings})
        if len(fonts) > 1:
            matplotlib.rcParams["font.family"] = fonts
        n_panels = 1 if look.kind in ("bars", "alpha") else len(panels)
        n_columns = _n_columns(n_panels, look, style)
        n_rows = math.ceil(n_panels / n_columns)
        size = style.size(n_panels, n_columns, n_rows, look.width_in)
        figure = Figure(size, dpi=DPI, layout="constrained")
        all_axes = [figure.add_subplot(n_rows, n_columns, at + 1) for at in range(n_panels)]
        _draw(figure, all_axes, data, panels, look, lines)
        file = io.BytesIO()
        figure.savefig(file, format=file_format, metadata=_NO_DATES[file_format])
    return file.getvalue()


def _draw(
    figure: Figure,
    all_axes: Sequence[Axes],
    data: CurveData,
    panels: Sequence[Panel],
    look: Look,
    lines: Sequence[ResultLine],
) -> None:
    """Draw the panels of a kind and what is around them."""
    if look.kind == "curve":
        for axes, panel in zip(all_axes, panels, strict=True):
            draw_panel(axes, panel, look.scale)
            _set_titles(axes, data, panel, is_alone=len(panels) == 1)
        _draw_legend(figure, panels)
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
        # In the first panel only: the markers are the same in all panels.
        draw_labels(figure, all_axes[0], panels[0], look.scale, name_singles=len(panels) == 1)
        return
    if look.kind == "effective-robustness":
        for axes, panel in zip(all_axes, panels, strict=True):
            draw_effective_robustness(axes, panel)
            _set_titles(axes, data, panel, is_alone=len(panels) == 1)
            of = f": {panel.name}" if len(panels) == 1 else ""
            axes.set_ylabel(f"effective robustness{of} (points)")
    elif look.kind == "bars":
        draw_bars(all_axes[0], data)
    else:
        draw_over_alpha(all_axes[0], data, lines)
    handles, labels = all_axes[0].get_legend_handles_labels()
    n_columns = _legend_columns(labels, figure.get_figwidth())
    figure.legend(handles, labels, loc="outside lower center", frameon=False, ncols=n_columns)


def _n_columns(n_panels: int, look: Look, style: PlotStyle) -> int:
    wanted = look.width_in or style.width_in
    most = _MAX_COLUMNS if wanted is None else max(1, int(wanted / (0.9 * style.panel_in[0])))
    if n_panels == 4:
        return min(2, most)
    return min(n_panels, 3 if n_panels <= 9 else _MAX_COLUMNS, most)


def _set_titles(axes: Axes, data: CurveData, panel: Panel, *, is_alone: bool) -> None:
    horizontal = _metric_title(data.metrics[data.reference])
    axes.set_xlabel(f"in-distribution {horizontal}: {data.reference} (%)")
    vertical = _metric_title(panel.metric)
    is_mean = len(panel.shifts) > 1
    if is_alone:
        of_shift = f"{vertical} under shift: {panel.shifts[0]} (%)"
        axes.set_ylabel(f"mean over {len(panel.shifts)} shifts (%)" if is_mean else of_shift)
        return
    axes.set_ylabel(f"{vertical} (%)")
    title = f"mean over {len(panel.shifts)} distribution shifts" if is_mean else panel.shifts[0]
    axes.set_title(title, fontweight="bold" if is_mean else "normal")


def _metric_title(metric: str) -> str:
    return "accuracy" if metric in ("", "top1") else metric.replace("_", " ")


def _draw_legend(figure: Figure, panels: Sequence[Panel]) -> None:
    """Name the colours and markers that the labels of the first panel do not."""
    import matplotlib  # lazy: as above

    first = panels[0]
    handles: list[Line2D] = []
    if len(panels) > 1:
        alphas = {point.of.alpha for curve in first.curves for point in curve}
        handles += [
            _handle(label, matplotlib.rcParams["xtick.color"], marker=marker, size=size)
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
        labels = [str(handle.get_label()) for handle in handles]
        n_columns = _legend_columns(labels, figure.get_figwidth())
        figure.legend(handles=handles, loc="outside lower center", frameon=False, ncols=n_columns)


def _legend_columns(labels: Sequence[str], width: float) -> int:
    """Return how many entries fit side by side into so many inches."""
    import matplotlib  # lazy: as above

    longest = max(len(label) for label in labels)
    scale = float(matplotlib.rcParams["font.size"]) / 9.5
    return max(1, min(len(labels), int(width / (scale * (0.55 + 0.075 * longest)))))


def _handle(
    label: str, colour: str, *, style: Any = "none", marker: str = "none", size: float = 6.0
) -> Line2D:
    from matplotlib.lines import Line2D  # lazy: as above

    return Line2D(
        [], [], color=colour, linestyle=style, marker=marker, markersize=size, label=label
    )
