"""From results lines to the points of the paper's figure: reference against mean shift accuracy.

Wortsman et al., arXiv:2109.01903, figure 1. It computes coordinates and draws nothing;
`plot.py` does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

from wiseft_cli.errors import ResultsError, list_some
from wiseft_cli.reporting.results import CheckpointName, Metric, ResultLine
from wiseft_cli.reporting.table import mean_over


@dataclass(frozen=True)
class CurvePoint:
    """One weight set in the figure.

    Attributes:
        checkpoints: One; or two with an alpha.
        alpha: Exact decimal; None for a checkpoint as it is.
        reference: The reference set's primary metric with its interval.
        shift: Mean of the shifts' primary metrics, a fraction.
    """

    checkpoints: tuple[CheckpointName, ...]
    alpha: str | None
    reference: Metric
    shift: float

    @property
    def name(self) -> str:
        """The checkpoint's name, or both of a pair."""
        return " to ".join(checkpoint.name for checkpoint in self.checkpoints)


@dataclass(frozen=True)
class CurveData:
    """Everything the figure shows.

    Attributes:
        reference: Name of the in-distribution set.
        shifts: Names of the others, over which the mean is taken.
        curves: The points of each pair of checkpoints, by rising alpha.
        singles: Checkpoints that were evaluated as they are.
        notes: What was left out, a sentence each.
    """

    reference: str
    shifts: tuple[str, ...]
    curves: tuple[tuple[CurvePoint, ...], ...]
    singles: tuple[CurvePoint, ...]
    notes: tuple[str, ...]


def collect_curves(lines: Sequence[ResultLine], *, reference: str | None = None) -> CurveData:
    """Arrange results lines into curves over alpha and single points.

    Of two lines of the same measurement the later one counts. Weights that were not evaluated
    on every set are left out, since means over different sets do not compare.

    Args:
        lines: In the order they were written.
        reference: Name of the in-distribution set; the one the lines mark where None.
    Raises:
        ResultsError: No line, no or several reference sets, no shift, no weights evaluated on
            every set, or two measurements of the same weights on sets of one name.
    """
    latest = {line.key: line for line in lines}
    by_weights = _by_weights(list(latest.values()))
    names = tuple(dict.fromkeys(line.set_name for line in latest.values()))
    reference = _reference(list(latest.values()), names, reference)
    shifts = tuple(name for name in names if name != reference)
    if not shifts:
        raise ResultsError(
            f"the results hold one set, {reference!r}, and no distribution shift",
            hint="evaluate on a shift too: wiseft eval ... --data REFERENCE --data SHIFT",
        )
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
        notes=notes,
    )


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
            hint="the data or its join changed between runs; plot files of one state of the data",
        )
    return list(by_weights.values())


def _describe(line: ResultLine) -> str:
    names = " to ".join(checkpoint.name for checkpoint in line.checkpoints)
    return names if line.alpha is None else f"{names} at alpha {line.alpha}"


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
        shift = mean_over(row, shifts)
        if reference not in row or shift is None:
            missing = [name for name in (reference, *shifts) if name not in row]
            notes.append(f"{_describe(line)} is left out: no results on {', '.join(missing)}")
        else:
            of_reference = row[reference]
            metric = of_reference.metrics[of_reference.primary]
            points.append(CurvePoint(line.checkpoints, line.alpha, metric, shift))
    if not points:
        raise ResultsError(
            "\n".join(["no weights were evaluated on every set:", *list_some(notes)]),
            hint="evaluate the same checkpoints on all sets, into one file",
        )
    return points, tuple(notes)
