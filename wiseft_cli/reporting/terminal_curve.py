"""A small curve over alpha in characters, for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from statistics import fmean

from wiseft_cli.reporting.results import ResultLine, WeightsKey

MIN_ALPHAS = 3
HEIGHT = 14
MAX_WIDTH = 76
MARKERS = "*o+x#@"


def render_terminal_curve(lines: Sequence[ResultLine], *, width: int) -> str:
    """Draw the reference accuracy and the mean over the shifts over alpha.

    Args:
        lines: Of one evaluation.
        width: Columns of the terminal.
    Returns:
        The curve and a line that names its markers; empty if there are fewer than three alphas,
        or if the package plotext is not installed.
    """
    try:
        import plotext  # lazy: only a terminal needs it
    except ImportError:
        return ""
    series = _series(lines)[: len(MARKERS)]
    if not series:
        return ""
    figure = plotext.figure
    figure.clear()
    figure.theme("colorless")
    figure.plot_size(min(width, MAX_WIDTH), HEIGHT)
    for marker, (_, points) in zip(MARKERS, series, strict=False):
        alphas, values = zip(*points, strict=True)
        signal = figure.signal(list(alphas), list(values), marker=marker)
        signal.lines()
        figure.draw(signal)
    text = plotext.uncolorize(str(figure.build()))
    names = [f"{marker} {name}" for marker, (name, _) in zip(MARKERS, series, strict=False)]
    return f"{text.rstrip()}\n{', '.join(names)}, in % over alpha"


def _series(lines: Sequence[ResultLine]) -> list[tuple[str, list[tuple[float, float]]]]:
    """Return the name and the points of each line to draw."""
    curves: dict[WeightsKey, dict[Decimal, dict[str, ResultLine]]] = {}
    for line in lines:
        if line.alpha is not None:
            curve = curves.setdefault(line.weights_key._replace(alpha=None), {})
            curve.setdefault(Decimal(line.alpha), {})[line.set_name] = line
    series = []
    for curve in curves.values():
        first = next(iter(next(iter(curve.values())).values()))
        suffix = "" if len(curves) == 1 else f" of {first.checkpoints_name}"
        for name, sets in _wanted(lines):
            points = [
                (float(alpha), 100 * fmean(row[at].value for at in sets))
                for alpha, row in sorted(curve.items())
                if all(at in row for at in sets)
            ]
            if len(points) >= MIN_ALPHAS:
                series.append((f"{name}{suffix}", points))
    return series


def _wanted(lines: Sequence[ResultLine]) -> list[tuple[str, list[str]]]:
    """Return the sets behind each line of the curve: the reference, and the shifts together."""
    references = list(dict.fromkeys(line.set_name for line in lines if line.reference))
    shifts = list(dict.fromkeys(line.set_name for line in lines if line.role == "shift"))
    wanted = [(name, [name]) for name in references[:1]]
    if shifts:
        wanted.append((shifts[0] if len(shifts) == 1 else "mean shift", shifts))
    return wanted
