"""From results lines to the points of the paper's figure: reference against shift accuracy.

Wortsman et al., arXiv:2109.01903, figure 1. It finds out which lines make a point and draws
nothing; `panels.py` arranges the points.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from statistics import fmean

from wiseft_cli.errors import ResultsError, list_some
from wiseft_cli.reporting.results import CheckpointName, Metric, ResultLine


@dataclass(frozen=True)
class CurvePoint:
    """One weight set in the figure.

    Attributes:
        checkpoints: One; or two with an alpha.
        alpha: Exact decimal; None for a checkpoint as it is, and for two whose outputs are
            averaged.
        reference: The reference set's primary metric with its interval.
        n_reference: Images, or anchor frames, that the reference's metric counts.
        shifts: The shifts' primary metrics, by name.
        n_images: Images, or anchor frames, that the shifts' metrics count, by name.
    """

    checkpoints: tuple[CheckpointName, ...]
    alpha: str | None
    reference: Metric
    n_reference: int
    shifts: Mapping[str, Metric]
    n_images: Mapping[str, int]

    @property
    def shift(self) -> float:
        """Mean of the shifts' primary metrics, a fraction."""
        return fmean(metric.value for metric in self.shifts.values())

    @property
    def name(self) -> str:
        """The checkpoint's name, or both of a pair."""
        names = [checkpoint.name for checkpoint in self.checkpoints]
        if self.alpha is None and len(names) > 1:
            return f"output ensemble of {' and '.join(names)}"
        return " to ".join(names)

    @property
    def label(self) -> str:
        """The name, with its alpha where it has one."""
        return self.name if self.alpha is None else f"{self.name} at alpha {self.alpha}"


@dataclass(frozen=True)
class CurveData:
    """Everything the figure shows.

    Attributes:
        reference: Name of the in-distribution set.
        shifts: Names of the others, over which the mean is taken.
        curves: The points of each pair of checkpoints, by rising alpha.
        singles: Checkpoints that were evaluated as they are, and output ensembles.
        metrics: Name of each set's primary metric, the reference's among them.
        notes: What was left out, a sentence each.
    """

    reference: str
    shifts: tuple[str, ...]
    curves: tuple[tuple[CurvePoint, ...], ...]
    singles: tuple[CurvePoint, ...]
    metrics: Mapping[str, str]
    notes: tuple[str, ...]


def collect_curves(
    lines: Sequence[ResultLine], *, reference: str | None = None, shifts: Sequence[str] = ()
) -> CurveData:
    """Arrange results lines into curves over alpha and single points.

    Of two lines of the same measurement the later one counts. Weights that were not evaluated
    on every set are left out, since means over different sets do not compare.

    Args:
        lines: In the order they were written.
        reference: Name of the in-distribution set; the one the lines mark where None.
        shifts: Names of the distribution shifts; all other sets where empty.
    Raises:
        ResultsError: No line, no or several reference sets, no or unknown shifts, no weights
            evaluated on every set, sets with several primary metrics, or two measurements of the
            same weights on sets of one name.
    """
    latest = {line.key: line for line in lines}
    names = tuple(dict.fromkeys(line.set_name for line in latest.values()))
    reference = _reference(list(latest.values()), names, reference)
    shifts = _shifts(names, reference, shifts)
    shown = [line for line in latest.values() if line.set_name in (reference, *shifts)]
    by_weights = _by_weights(shown)
    points, notes = _points(by_weights, reference, shifts)
    pairs: dict[tuple[str, ...], list[CurvePoint]] = {}
    for point in points:
        if point.alpha is not None:
            pairs.setdefault(_digests(point), []).append(point)
    return CurveData(
        reference=reference,
        shifts=shifts,
        curves=tuple(
            tuple(sorted(of_pair, key=lambda point: Decimal(point.alpha or "0")))
            for of_pair in pairs.values()
        ),
        singles=tuple(point for point in points if point.alpha is None),
        metrics=_primary_metrics(shown),
        notes=notes,
    )


def _shifts(names: Sequence[str], reference: str, wanted: Sequence[str]) -> tuple[str, ...]:
    unknown = [name for name in wanted if name not in names]
    if unknown:
        raise ResultsError(f"--shifts {', '.join(unknown)}: not in the results: {', '.join(names)}")
    if reference in wanted:
        raise ResultsError(f"--shifts {reference}: is the reference, not a shift")
    shifts = tuple(dict.fromkeys(wanted)) or tuple(name for name in names if name != reference)
    if not shifts:
        raise ResultsError(
            f"the results hold one set, {reference!r}, and no distribution shift",
            hint="evaluate on a shift too: wiseft eval ... --data REFERENCE --data SHIFT",
        )
    return shifts


def _primary_metrics(lines: Sequence[ResultLine]) -> dict[str, str]:
    """Return the primary metric of each set; an axis shows one."""
    of_set: dict[str, list[str]] = {}
    for line in lines:
        of_set.setdefault(line.set_name, []).append(line.primary)
    several = [
        f"  {name}: {', '.join(sorted(set(metrics)))}"
        for name, metrics in of_set.items()
        if len(set(metrics)) > 1
    ]
    if several:
        raise ResultsError(
            "\n".join(["sets have several primary metrics in the results:", *list_some(several)]),
            hint="evaluate again with one primary metric, into a file of its own",
        )
    return {name: metrics[0] for name, metrics in of_set.items()}


def _digests(point: CurvePoint) -> tuple[str, ...]:
    return tuple(checkpoint.digest for checkpoint in point.checkpoints)


def _by_weights(lines: Sequence[ResultLine]) -> list[dict[str, ResultLine]]:
    """Return for each weight set its lines by set name."""
    by_weights: dict[object, dict[str, ResultLine]] = {}
    doubtful = []
    for line in lines:
        row = by_weights.setdefault(line.weights_key, {})
        if line.set_name in row:
            doubtful.append(f"  {_describe(line)} on {line.set_name!r}")
        row[line.set_name] = line
    if doubtful:
        raise ResultsError(
            "\n".join(
                ["the results hold several measurements of the same weights:", *list_some(doubtful)]
            ),
            hint="data, join or precision changed between runs; plot files of one state of them",
        )
    return list(by_weights.values())


def _describe(line: ResultLine) -> str:
    names = [checkpoint.name for checkpoint in line.checkpoints]
    if line.ensemble:
        return f"output ensemble of {' and '.join(names)}"
    return (
        " to ".join(names) if line.alpha is None else f"{' to '.join(names)} at alpha {line.alpha}"
    )


def _reference(lines: Sequence[ResultLine], names: Sequence[str], wanted: str | None) -> str:
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


def _points(
    by_weights: Sequence[Mapping[str, ResultLine]], reference: str, shifts: Sequence[str]
) -> tuple[list[CurvePoint], tuple[str, ...]]:
    points, notes = [], []
    for row in by_weights:
        line = next(iter(row.values()))
        missing = [name for name in (reference, *shifts) if name not in row]
        if missing:
            notes.append(f"{_describe(line)} is left out: no results on {', '.join(missing)}")
        else:
            points.append(_point(row, reference, shifts))
    if not points:
        raise ResultsError(
            "\n".join(["no weights were evaluated on every set:", *list_some(notes)]),
            hint="evaluate the same checkpoints on all sets, into one file",
        )
    return points, tuple(notes)


def _point(row: Mapping[str, ResultLine], reference: str, shifts: Sequence[str]) -> CurvePoint:
    of_reference = row[reference]
    return CurvePoint(
        of_reference.checkpoints,
        of_reference.alpha,
        of_reference.metrics[of_reference.primary],
        of_reference.n_counted,
        {name: row[name].metrics[row[name].primary] for name in shifts},
        {name: row[name].n_counted for name in shifts},
    )
