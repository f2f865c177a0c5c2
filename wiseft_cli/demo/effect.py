"""Summarise the demo's results: accuracy over alpha, in distribution and under shift.

Everything is computed from the results lines that `wiseft eval` wrote.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from statistics import fmean

from wiseft_cli.errors import ResultsError
from wiseft_cli.reporting.results import ResultLine

INDEPENDENT = ("optdigits", "fonts", "fonts-colored")
DERIVED = ("inverted", "colored", "rotated", "noisy", "outlined", "thin", "small")
SHIFTS = (*INDEPENDENT, *DERIVED)
IN_DISTRIBUTION = "mnist"
HALF = Decimal("0.5")


@dataclass(frozen=True)
class CurvePoint:
    """Accuracies of the interpolated weights at one alpha, as fractions.

    Attributes:
        alpha: Weight of the fine-tuned model.
        by_set: Accuracy by set, including the in-distribution set.
    """

    alpha: Decimal
    by_set: dict[str, float]

    @property
    def in_distribution(self) -> float:
        """Accuracy on the in-distribution test set."""
        return self.by_set[IN_DISTRIBUTION]

    @property
    def independent(self) -> float:
        """Mean over the sets that are not made from in-distribution images."""
        return fmean(self.by_set[name] for name in INDEPENDENT)

    @property
    def derived(self) -> float:
        """Mean over the sets that are made from in-distribution test images."""
        return fmean(self.by_set[name] for name in DERIVED)

    @property
    def shifts(self) -> float:
        """Mean over all shifts, with equal weight for each set."""
        return fmean(self.by_set[name] for name in SHIFTS)


def read_curve(lines: Sequence[ResultLine]) -> tuple[CurvePoint, ...]:
    """Collect the results of interpolated weights, sorted by alpha.

    Raises:
        ResultsError: An alpha lacks a set, or there are no results at alpha 0, 0.5 or 1.
    """
    by_alpha: dict[Decimal, dict[str, float]] = {}
    for line in lines:
        if line.alpha is not None:
            by_alpha.setdefault(Decimal(line.alpha), {})[line.set_name] = line.value
    for alpha, by_set in by_alpha.items():
        missing = [name for name in (IN_DISTRIBUTION, *SHIFTS) if name not in by_set]
        if missing:
            raise ResultsError(f"no results at alpha {alpha} for {', '.join(missing)}")
    absent = [str(alpha) for alpha in (Decimal(0), HALF, Decimal(1)) if alpha not in by_alpha]
    if absent:
        raise ResultsError(f"no results at alpha {', '.join(absent)}")
    return tuple(CurvePoint(alpha, by_alpha[alpha]) for alpha in sorted(by_alpha))


def best_inside(curve: Sequence[CurvePoint]) -> CurvePoint:
    """Return the point with the highest mean over the shifts, end points excluded."""
    return max(curve[1:-1], key=lambda point: point.shifts)


def at_half(curve: Sequence[CurvePoint]) -> CurvePoint:
    """Return the point at alpha 0.5, the paper's default."""
    return next(point for point in curve if point.alpha == HALF)


def describe(curve: Sequence[CurvePoint]) -> tuple[str, str]:
    """Describe the effect of fine-tuning and of interpolation in two sentences."""
    zero_shot, half, fine_tuned, best = curve[0], at_half(curve), curve[-1], best_inside(curve)
    first = (
        f"Fine-tuning took accuracy on {IN_DISTRIBUTION} from "
        f"{_percent(zero_shot.in_distribution)} to {_percent(fine_tuned.in_distribution)} and the "
        f"mean over {len(SHIFTS)} distribution shifts from {_percent(zero_shot.shifts)} to "
        f"{_percent(fine_tuned.shifts)}."
    )
    second = (
        f"The merged weights at alpha 0.5 reach {_percent(half.in_distribution)} on "
        f"{IN_DISTRIBUTION} and {_percent(half.shifts)} on the shifts, "
        f"{_points(half.shifts - zero_shot.shifts)} zero-shot and "
        f"{_points(half.shifts - fine_tuned.shifts)} fine-tuned; the highest mean over the shifts "
        f"strictly in between, seen afterwards, is {_percent(best.shifts)} at alpha {best.alpha}."
    )
    return first, second


def curve_table(curve: Sequence[CurvePoint]) -> list[list[str]]:
    """Return a header and one row per alpha: every set and the three means, in per cent."""
    names = (IN_DISTRIBUTION, *SHIFTS)
    header = ["alpha", *names, "independent", "derived", "all shifts"]
    rows = [
        [str(point.alpha)]
        + [f"{100 * point.by_set[name]:.1f}" for name in names]
        + [f"{100 * mean:.1f}" for mean in (point.independent, point.derived, point.shifts)]
        for point in curve
    ]
    return [header, *rows]


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2f} %"


def _points(difference: float) -> str:
    side = "above" if difference >= 0 else "below"
    return f"{abs(100 * difference):.2f} points {side}"
