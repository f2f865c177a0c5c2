"""Arrange results lines into the curves and panels of the paper's figure.

A curve shows accuracy under shift against in-distribution accuracy over alpha (Wortsman et al.,
arXiv:2109.01903, figure 1). There is one panel per distribution shift and one for their mean.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from statistics import fmean
from typing import Any

from wiseft_cli.errors import ResultsError, UsageError
from wiseft_cli.reporting.results import Metric, ResultLine, WeightsKey
from wiseft_cli.reporting.statistics import BaselineModel, LogitFit, fit_on_logits

MEAN = "mean"
"""Name of the panel of the mean over all shifts."""

ALL = "all"
"""Stands for all panels."""

MAX_DEFAULT_PANELS = 3

Row = Mapping[str, ResultLine]
"""The lines of one weight set by set name."""


@dataclass(frozen=True)
class CurveData:
    """Everything that the figure shows.

    Attributes:
        reference: Name of the in-distribution set.
        shifts: Names of the distribution shifts.
        curves: The rows of each pair of checkpoints, or of each merge of several by a method, by
            rising alpha.
        singles: The rows without alpha: single checkpoints, output ensembles, and merges by a
            method without alpha.
        metrics: Name of the primary metric of each set.
        notes: One sentence per weight set or validation set that is left out, and on sets that
            are doubtful.
    """

    reference: str
    shifts: tuple[str, ...]
    curves: tuple[tuple[Row, ...], ...]
    singles: tuple[Row, ...]
    metrics: Mapping[str, str]
    notes: tuple[str, ...]


def collect_curves(
    lines: Sequence[ResultLine], *, reference: str | None = None, shifts: Sequence[str] = ()
) -> CurveData:
    """Arrange results lines into curves over alpha and single points.

    Of two lines of the same measurement the later one is used. Weights that were not evaluated on
    every set are left out, because means over different sets cannot be compared.

    Args:
        lines: In the order in which they were written.
        reference: Name of the in-distribution set; by default the one marked in the lines.
        shifts: Names of the distribution shifts; by default all other sets but validation sets.
    Raises:
        ResultsError: There are no lines, no or several reference sets, no or unknown shifts, no
            weights that were evaluated on every set, several primary metrics of a set, or two
            measurements of the same weights on sets with the same name.
    """
    latest = list({line.key: line for line in lines}.values())
    names = tuple(dict.fromkeys(line.set_name for line in latest))
    reference = find_reference(latest, names, reference)
    selection = {line.set_name for line in latest if line.selection}
    named = (reference, *shifts)
    shifts = find_shifts(names, reference, shifts, selection)
    shown = [line for line in latest if line.set_name in (reference, *shifts)]
    rows, notes = _complete_rows(group_by_weights(shown), (reference, *shifts))
    pairs: dict[WeightsKey, list[Row]] = {}
    singles = []
    for row in rows:
        key = row[reference].weights_key
        if key.alpha is None:
            singles.append(row)
        else:
            pairs.setdefault(key._replace(alpha=None), []).append(row)
    return CurveData(
        reference=reference,
        shifts=shifts,
        curves=tuple(
            tuple(sorted(of_pair, key=lambda row: Decimal(row[reference].alpha or "0")))
            for of_pair in pairs.values()
        ),
        singles=tuple(singles),
        metrics=primary_metrics(shown),
        notes=(*notes, *_selection_notes(selection, named, shifts), *repeated_sets(shown)),
    )


def _selection_notes(
    selection: Collection[str], named: Sequence[str], shifts: Sequence[str]
) -> list[str]:
    return [
        f"{name} chose alpha, so its accuracy at that alpha is optimistic"
        if name in named
        else f"{name} is left out: it is a validation set; --shifts draws it"
        for name in sorted(selection)
        if name in named or name not in shifts
    ]


def repeated_sets(lines: Sequence[ResultLine]) -> list[str]:
    """Report sets with different names and the same images."""
    names: dict[str, dict[str, None]] = {}
    for line in lines:
        names.setdefault(line.data_fingerprint, {})[line.set_name] = None
    return [
        f"{' and '.join(same)} have the same data fingerprint; if they are the same images, they"
        " are counted more than once"
        for same in names.values()
        if len(same) > 1
    ]


def find_reference(lines: Sequence[ResultLine], names: Sequence[str], wanted: str | None) -> str:
    """Return the name of the in-distribution set.

    Raises:
        ResultsError: The lines mark none or several, or do not have the wanted one.
    """
    if not lines:
        raise ResultsError("the results hold no line", hint="run wiseft eval --results FILE first")
    if wanted is not None:
        if wanted not in names:
            raise ResultsError(f"--reference {wanted!r} is not in the results: {', '.join(names)}")
        return wanted
    marked = tuple(dict.fromkeys(line.set_name for line in lines if line.reference))
    if len(marked) != 1:
        found = f"{len(marked)} reference sets ({', '.join(marked)})" if marked else "no reference"
        raise ResultsError(
            f"the results mark {found}, expected one",
            hint=f"choose the in-distribution set with --reference: {', '.join(names)}",
        )
    return marked[0]


def find_shifts(
    names: Sequence[str], reference: str, wanted: Sequence[str], selection: Collection[str]
) -> tuple[str, ...]:
    """Return the names of the distribution shifts.

    Raises:
        ResultsError: There is none, or a wanted one is unknown or the reference.
    """
    unknown = [name for name in wanted if name not in names]
    if unknown:
        raise ResultsError(f"--shifts {', '.join(unknown)}: not in the results: {', '.join(names)}")
    if reference in wanted:
        raise ResultsError(f"--shifts {reference}: is the reference, not a shift")
    others = tuple(name for name in names if name != reference and name not in selection)
    shifts = tuple(dict.fromkeys(wanted)) or others
    if not shifts:
        left_out = [name for name in sorted(selection) if name != reference]
        found = "".join(f", the validation set {name!r}" for name in left_out)
        raise ResultsError(
            f"the results hold one set, {reference!r}{found}, and no distribution shift",
            hint="evaluate on a shift too: wiseft eval ... --data REFERENCE --data SHIFT",
        )
    return shifts


def group_by_weights(lines: Sequence[ResultLine]) -> list[Row]:
    """Return the rows, in the order of their first lines.

    Raises:
        ResultsError: The same weights have two measurements on a set.
    """
    by_weights: dict[object, dict[str, ResultLine]] = {}
    repeated = []
    for line in lines:
        row = by_weights.setdefault(line.weights_key, {})
        if line.set_name in row:
            repeated.append(f"{line.weights_name} on {line.set_name!r}")
        row[line.set_name] = line
    if repeated:
        raise ResultsError(
            "the results hold several measurements of the same weights",
            faults=repeated,
            hint="data, join or precision changed between the runs; plot the files of one of them",
        )
    return list(by_weights.values())


def _complete_rows(rows: Sequence[Row], names: Sequence[str]) -> tuple[list[Row], tuple[str, ...]]:
    """Return the rows with lines for all sets, and a note on each of the others."""
    complete, notes = [], []
    for row in rows:
        missing = [name for name in names if name not in row]
        if not missing:
            complete.append(row)
        else:
            name = next(iter(row.values())).weights_name
            notes.append(f"{name} is left out: no results on {', '.join(missing)}")
    if not complete:
        raise ResultsError(
            "no weights were evaluated on every set",
            faults=notes,
            hint="evaluate the same checkpoints on all sets, into one file",
        )
    return complete, tuple(notes)


def primary_metrics(lines: Sequence[ResultLine]) -> dict[str, str]:
    """Return the primary metric of each set; a table or an axis shows a single one.

    Raises:
        ResultsError: A set has several.
    """
    of_set: dict[str, set[str]] = {}
    for line in lines:
        of_set.setdefault(line.set_name, set()).add(line.primary)
    several = [
        f"{name}: {', '.join(sorted(metrics))}"
        for name, metrics in of_set.items()
        if len(metrics) > 1
    ]
    if several:
        raise ResultsError(
            "sets have several primary metrics in the results",
            faults=several,
            hint="evaluate again with one primary metric, into a new file",
        )
    return {name: next(iter(metrics)) for name, metrics in of_set.items()}


@dataclass(frozen=True)
class PanelPoint:
    """A weight set in one panel.

    Attributes:
        of: The line of the weight set on the reference set.
        x: Metric on the reference set.
        y: Metric on the shift of the panel; or the mean over the shifts, without an interval.
        half_images: Half of the share of one image, horizontally and vertically.
    """

    of: ResultLine
    x: Metric
    y: Metric
    half_images: tuple[float, float]


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Attributes:
        shifts: The shift that it shows, or the shifts over which its mean is taken.
        metric: Name of the vertical metric; empty for a mean over several shifts.
        curves: The points of each pair of checkpoints, by rising alpha.
        singles: Single checkpoints and output ensembles.
        baselines: Reference accuracy and accuracy in this panel of each baseline model that has
            both.
        fit: The line through the baselines, if there is one.
    """

    shifts: tuple[str, ...]
    metric: str
    curves: tuple[tuple[PanelPoint, ...], ...]
    singles: tuple[PanelPoint, ...]
    baselines: tuple[tuple[float, float], ...]
    fit: LogitFit | None

    @property
    def name(self) -> str:
        """The name of the shift, or `mean`."""
        return self.shifts[0] if len(self.shifts) == 1 else MEAN

    @property
    def points(self) -> tuple[PanelPoint, ...]:
        """All weight sets."""
        return (*(point for curve in self.curves for point in curve), *self.singles)

    @property
    def oracles(self) -> list[PanelPoint]:
        """The best point of each curve, of equal ones that of the smallest alpha."""
        return [max(curve, key=lambda point: point.y.value) for curve in self.curves]

    def effective_robustness(self, point: PanelPoint) -> float | None:
        """Return the effective robustness of a point, a fraction; None without baselines."""
        if self.fit is None:
            return None
        return self.fit.effective_robustness(point.x.value, point.y.value)


def arrange_panels(
    data: CurveData, baselines: Sequence[BaselineModel] = (), *, names: Sequence[str] = ()
) -> tuple[Panel, ...]:
    """Return the panels of a figure.

    Args:
        names: `mean`, `all`, or names of shifts. By default that of the mean over the shifts and,
            if that makes at most `MAX_DEFAULT_PANELS`, one per shift.
    Raises:
        UsageError: A name is not that of a shift.
    """
    singles = [(name,) for name in data.shifts]
    every = singles if len(singles) == 1 else [data.shifts, *singles]
    groups = every if len(every) <= MAX_DEFAULT_PANELS else every[:1]
    if names:
        by_name = {ALL: every, MEAN: every[:1]} | {name: [(name,)] for name in data.shifts}
        unknown = [name for name in names if name not in by_name]
        if unknown:
            raise UsageError(
                f"--panels {', '.join(unknown)}: not a shift; there are {', '.join(data.shifts)}"
            )
        groups = list(dict.fromkeys(group for name in names for group in by_name[name]))
    return tuple(_arrange_panel(data, shifts, baselines) for shifts in groups)


def _arrange_panel(
    data: CurveData, shifts: tuple[str, ...], baselines: Sequence[BaselineModel]
) -> Panel:
    models = tuple(
        (model.accuracies[data.reference], fmean(model.accuracies[name] for name in shifts))
        for model in baselines
        if all(name in model.accuracies for name in (data.reference, *shifts))
    )
    return Panel(
        shifts=shifts,
        metric=data.metrics[shifts[0]] if len(shifts) == 1 else "",
        curves=tuple(
            tuple(_panel_point(row, data.reference, shifts) for row in curve)
            for curve in data.curves
        ),
        singles=tuple(_panel_point(row, data.reference, shifts) for row in data.singles),
        baselines=models,
        fit=fit_on_logits(models),
    )


def _panel_point(row: Row, reference: str, shifts: Sequence[str]) -> PanelPoint:
    of, lines = row[reference], [row[name] for name in shifts]
    mean = lines[0].metric if len(lines) == 1 else Metric(fmean(line.value for line in lines))
    n_shift = sum(line.n_counted for line in lines)
    return PanelPoint(of, of.metric, mean, (0.5 / max(1, of.n_counted), 0.5 / max(1, n_shift)))


def panel_document(panel: Panel) -> dict[str, Any]:
    """Return the numbers of a panel as a JSON object; accuracies are fractions."""
    return {
        "panel": panel.name,
        "shifts": list(panel.shifts),
        "baseline_fit": None if panel.fit is None else vars(panel.fit),
        "points": [
            {
                "checkpoints": [checkpoint.name for checkpoint in point.of.checkpoints],
                **({"method": str(point.of.merged_by)} if point.of.merged_by else {}),
                "alpha": point.of.alpha,
                "oracle": point in panel.oracles,
                "reference": point.x.value,
                "shift": point.y.value,
                "effective_robustness": panel.effective_robustness(point),
            }
            for point in panel.points
        ],
    }


def describe_robustness(panels: Sequence[Panel]) -> Iterator[str]:
    """Yield one sentence per panel on the effective robustness of its marked points.

    These are alpha 0, 0.5 and 1, the oracle, single checkpoints and output ensembles.
    """
    for panel in panels:
        parts = [
            f"{point.of.weights_name}{' (oracle)' * (point in panel.oracles)} {100 * value:+.2f}"
            for point in panel.points
            if (value := panel.effective_robustness(point)) is not None
            and (point.of.alpha in ("0", "0.5", "1", None) or point in panel.oracles)
        ]
        if parts:
            yield f"effective robustness on {panel.name}, in points: {', '.join(parts)}"
