"""What each panel of the figure holds: one panel a shift, and one for their mean.

It arranges numbers, fits the baselines and draws nothing; `plot.py` does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from wiseft_cli.reporting.baselines import BaselineModel
from wiseft_cli.reporting.curves import CurveData, CurvePoint
from wiseft_cli.reporting.effective_robustness import LogitFit, fit_on_logits
from wiseft_cli.reporting.results import Metric

MEAN = "mean"


@dataclass(frozen=True)
class PanelPoint:
    """A weight set in one panel.

    Attributes:
        of: The weight set.
        x: On the reference set.
        y: On the panel's shift, or the mean over the shifts, which has no interval.
        half_images: Half of one image's share of the images across, and up.
    """

    of: CurvePoint
    x: Metric
    y: Metric
    half_images: tuple[float, float]


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Attributes:
        shifts: The shift it shows, or those over which its mean is taken.
        metric: Name of the metric up; empty for a mean over several.
        curves: The points of each pair of checkpoints, by rising alpha.
        singles: Checkpoints and ensembles as they are.
        baselines: Reference accuracy and that of the panel, of each baseline model that has both.
        fit: The line through the baselines; None where there is none.
    """

    shifts: tuple[str, ...]
    metric: str
    curves: tuple[tuple[PanelPoint, ...], ...]
    singles: tuple[PanelPoint, ...]
    baselines: tuple[tuple[float, float], ...]
    fit: LogitFit | None

    @property
    def name(self) -> str:
        """The shift's name, or `mean`."""
        return self.shifts[0] if len(self.shifts) == 1 else MEAN

    @property
    def points(self) -> tuple[PanelPoint, ...]:
        """All weight sets."""
        return (*(point for curve in self.curves for point in curve), *self.singles)


def arrange_panels(data: CurveData, baselines: Sequence[BaselineModel] = ()) -> tuple[Panel, ...]:
    """Return the panel of the mean, where there are several shifts, and one for each shift."""
    of_one = [(name,) for name in data.shifts]
    groups = of_one if len(of_one) == 1 else [data.shifts, *of_one]
    return tuple(_panel(data, shifts, baselines) for shifts in groups)


def _panel(data: CurveData, shifts: tuple[str, ...], baselines: Sequence[BaselineModel]) -> Panel:
    models = tuple(
        (model.accuracies[data.reference], fmean(model.accuracies[name] for name in shifts))
        for model in baselines
        if all(name in model.accuracies for name in (data.reference, *shifts))
    )
    return Panel(
        shifts=shifts,
        metric=data.metrics[shifts[0]] if len(shifts) == 1 else "",
        curves=tuple(tuple(_panel_point(of, shifts) for of in curve) for curve in data.curves),
        singles=tuple(_panel_point(of, shifts) for of in data.singles),
        baselines=models,
        fit=fit_on_logits(models),
    )


def _panel_point(of: CurvePoint, shifts: Sequence[str]) -> PanelPoint:
    metrics = [of.shifts[name] for name in shifts]
    mean = metrics[0] if len(metrics) == 1 else Metric(fmean(metric.value for metric in metrics))
    n_up = sum(of.n_images[name] for name in shifts)
    return PanelPoint(of, of.reference, mean, (0.5 / max(1, of.n_reference), 0.5 / max(1, n_up)))


def oracle_of(curve: Sequence[PanelPoint]) -> PanelPoint:
    """Return the point of a curve that is best in this panel, the smallest alpha of equal ones."""
    return max(curve, key=lambda point: point.y.value)


def panel_document(panel: Panel) -> dict[str, Any]:
    """Return a panel's numbers as a JSON object; accuracies are fractions."""
    oracles = [oracle_of(curve) for curve in panel.curves]
    fit = panel.fit
    return {
        "panel": panel.name,
        "shifts": list(panel.shifts),
        "baseline_fit": None if fit is None else vars(fit),
        "points": [
            {
                "checkpoints": [checkpoint.name for checkpoint in point.of.checkpoints],
                "alpha": point.of.alpha,
                "oracle": point in oracles,
                "reference": point.x.value,
                "shift": point.y.value,
                "effective_robustness": _robustness(panel, point),
            }
            for point in panel.points
        ],
    }


def _robustness(panel: Panel, point: PanelPoint) -> float | None:
    if panel.fit is None:
        return None
    return panel.fit.effective_robustness(point.x.value, point.y.value)


def robustness_lines(panels: Sequence[Panel]) -> Iterator[str]:
    """Yield sentences of the effective robustness of alpha 0, 0.5, 1 and the oracle, and others."""
    for panel in panels:
        oracles = [oracle_of(curve) for curve in panel.curves]
        told = [
            f"{point.of.label}{' (oracle)' if point in oracles else ''} {100 * robustness:+.2f}"
            for point in panel.points
            if (robustness := _robustness(panel, point)) is not None
            and (point.of.alpha in ("0", "0.5", "1", None) or point in oracles)
        ]
        if told:
            yield f"effective robustness on {panel.name}, in points: {', '.join(told)}"
