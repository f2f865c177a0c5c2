"""Gates on results: `SET:METRIC>=NUMBER` or `SET:METRIC>=baseline-NUMBER`, with or without `@95`.

SET is an image set, or `shifts` for the mean over the distribution shifts; METRIC is a metric of
the set, or `primary`. Numbers are fractions. With `@95` the lower end of the 95 % interval must
reach the bound: of the metric itself, or of the paired difference from the baseline. Names are
checked before the evaluation, so that a misspelt gate never passes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from wiseft_cli.errors import UsageError
from wiseft_cli.reporting.paired import PairedCounts, paired_difference
from wiseft_cli.reporting.results import Metric, ResultLine

SHIFTS = "shifts"
"""Stands for the mean over the distribution shifts."""

PRIMARY = "primary"
"""Stands for the primary metric of each set."""

TOLERANCE = 1e-12
"""Slack for the rounding of decimals: 0.8 - 0.1 is slightly more than 0.7."""

PAIRED_METRIC = "top1"
"""The metric that paired differences compare: predictions say whether the top class is right."""

WITHOUT_INTERVAL = ("macro_f1",)
"""Metrics without a confidence interval."""

CONFIDENCE = "95"
"""The only confidence level of gates, because results lines hold 95 % intervals."""

_FORM = "SET:METRIC>=NUMBER or SET:METRIC>=baseline-NUMBER, such as val:top1>=0.77"
_BOUND = re.compile(
    r"(?P<baseline>baseline)?\s*(?P<number>[+-]?\s*\d*\.?\d+)?\s*(?:@\s*(?P<confidence>\S+))?"
)


@dataclass(frozen=True)
class Gate:
    """One condition.

    Attributes:
        text: As it was given.
        set_name: An image set, or `SHIFTS`.
        metric: The name of a metric, or `PRIMARY`.
        number: Smallest accepted value, a fraction; for a relative gate, the number that is added
            to the value of the baseline.
        is_relative: Whether the gate compares with a baseline.
        is_lower_bound: Whether the lower end of the 95 % interval is judged (`@95`).
    """

    text: str
    set_name: str
    metric: str
    number: float
    is_relative: bool
    is_lower_bound: bool = False

    @property
    def needs_predictions(self) -> bool:
        """Whether the gate judges a paired difference."""
        return self.is_relative and self.is_lower_bound

    def sets(self, shifts: Sequence[str]) -> Sequence[str]:
        """Return the names of the sets that the gate is about."""
        return shifts if self.set_name == SHIFTS else [self.set_name]

    def value(self, row: Mapping[str, ResultLine], shifts: Sequence[str]) -> float:
        """Return the judged number of a weight set, a fraction.

        Args:
            row: The lines of the weight set by set name.
            shifts: Names of the distribution shifts.
        """
        return fmean(metric.value for metric in self._metrics(row, shifts))

    def lower_end(self, row: Mapping[str, ResultLine], shifts: Sequence[str]) -> float:
        """Return the lower end of the 95 % interval of the judged number."""
        (metric,) = self._metrics(row, shifts)
        return metric.interval[0]

    def _metrics(self, row: Mapping[str, ResultLine], shifts: Sequence[str]) -> list[Metric]:
        lines = [row[name] for name in self.sets(shifts)]
        return [
            line.metric if self.metric == PRIMARY else line.metrics[self.metric] for line in lines
        ]


@dataclass(frozen=True)
class Verdict:
    """The result of a gate.

    Attributes:
        gate: The gate.
        value: The number itself.
        bound: Smallest accepted value.
        baseline: The number of the baseline, for a relative gate.
        low: The lower end of the interval, if the gate judges it.
        row: Display name of the judged weight set.
    """

    gate: Gate
    value: float
    bound: float
    baseline: float | None
    low: float | None = None
    row: str = ""

    @property
    def passes(self) -> bool:
        """Whether the gate holds."""
        judged = self.value if self.low is None else self.low
        return judged >= self.bound - TOLERANCE

    def __str__(self) -> str:
        baseline = "" if self.baseline is None else f" (baseline {self.baseline:.6g})"
        bound = f"{self.bound:.6g}{baseline}"
        low = "" if self.low is None else f" with lower end {self.low:.6g}"
        of_row = f" ({self.row})" if self.row else ""
        return f"{self.gate.text}: {self.value:.6g}{low}, expected at least {bound}{of_row}"


def parse_gate(text: str) -> Gate:
    """Parse a gate.

    Raises:
        UsageError: It has another form, or its number is not a fraction.
    """
    left, operator, right = (part.strip() for part in text.partition(">="))
    set_name, colon, metric = (part.strip() for part in left.rpartition(":"))
    if right.endswith("%"):
        raise UsageError(
            f"--fail-under {text!r}: {right} is per cent, expected a fraction",
            hint=_fraction_hint(left, right.rstrip("% ")),
        )
    bound = _BOUND.fullmatch(right)
    number_text = bound["number"] or "" if bound else ""
    is_relative = bool(bound and bound["baseline"])
    has_sign = number_text[:1] in ("", "+", "-")
    if (
        bound is None
        or not (operator and colon and set_name and metric and (number_text or is_relative))
        or (is_relative and not has_sign)
    ):
        raise UsageError(f"--fail-under {text!r} cannot be parsed; expected {_FORM}")
    number = float(number_text.replace(" ", "") or "0")
    if bound["confidence"] not in (None, CONFIDENCE):
        raise UsageError(
            f"--fail-under {text!r}: @{bound['confidence']}, expected @{CONFIDENCE}",
            hint=f"the intervals of results are {CONFIDENCE} % intervals",
        )
    if not (-1 if is_relative else 0) <= number <= 1:
        raise UsageError(
            f"--fail-under {text!r}: {number_text} is not a fraction in [0, 1]",
            hint=None if is_relative else _fraction_hint(left, number_text),
        )
    return Gate(text, set_name, metric, number, is_relative, bool(bound["confidence"]))


def _fraction_hint(left: str, per_cent: str) -> str | None:
    try:
        fraction = float(per_cent) / 100
    except ValueError:
        return None
    return f"numbers are fractions: '{left}>={fraction:g}'" if 0 <= fraction <= 1 else None


def check_gates(
    gates: Sequence[Gate],
    metrics: Mapping[str, Sequence[str]],
    shifts: Sequence[str],
    *,
    has_baseline: bool,
    has_predictions: bool = False,
    primaries: Mapping[str, str] | None = None,
) -> None:
    """Reject gates on sets or metrics that the evaluation will not have, all at once.

    Args:
        metrics: The metrics that each image set will have in every row, by set name.
        shifts: Names of the distribution shifts.
        has_baseline: Whether a baseline is evaluated too.
        has_predictions: Whether the predictions per image are saved.
        primaries: Name of the primary metric of each image set; by default top1.
    Raises:
        UsageError: A set, a metric, the baseline or the predictions are missing.
    """
    faults = []
    for gate in gates:
        names = gate.sets(shifts)
        if gate.set_name == SHIFTS and SHIFTS in metrics:
            faults.append(f"{gate.text}: a set is called {SHIFTS!r}, give it another name")
        elif not names:
            faults.append(f"{gate.text}: there is no set besides the reference")
        for name in names:
            if name not in metrics:
                faults.append(f"{gate.text}: no --data is named {name!r}")
            elif gate.metric not in (PRIMARY, *metrics[name]):
                faults.append(f"{gate.text}: {name!r} has no metric {gate.metric!r}")
        if gate.is_relative and not has_baseline:
            faults.append(f"{gate.text}: compares with a baseline, and no --baseline is given")
        primary = [(primaries or {}).get(name, PAIRED_METRIC) for name in names]
        judged = primary if gate.metric == PRIMARY else [gate.metric]
        faults += _faults_of_interval(gate, names, judged, has_predictions=has_predictions)
    if faults:
        sets = "; ".join(f"{name}: {', '.join(of_set)}" for name, of_set in metrics.items())
        raise UsageError(
            "--fail-under cannot be judged", faults=faults, hint=f"the metrics are {sets}"
        )


def _faults_of_interval(
    gate: Gate, names: Sequence[str], metrics: Sequence[str], *, has_predictions: bool
) -> list[str]:
    """Return why the lower end of an interval cannot be judged."""
    if not gate.is_lower_bound:
        return []
    faults = []
    if gate.is_relative:
        faults += [
            f"{gate.text}: paired differences compare {PAIRED_METRIC}, not {metric}"
            for metric in dict.fromkeys(metrics)
            if metric != PAIRED_METRIC
        ]
        if not has_predictions:
            faults.append(f"{gate.text}: a paired difference needs --save-predictions DIR")
        return faults
    if len(names) > 1:
        faults.append(
            f"{gate.text}: a mean over several shifts has no interval; judge each shift, or compare"
            " with a baseline"
        )
    faults += [
        f"{gate.text}: {metric} has no interval" for metric in metrics if metric in WITHOUT_INTERVAL
    ]
    return faults


def judge_gate(
    gate: Gate,
    row: Mapping[str, ResultLine],
    baseline: Mapping[str, ResultLine] | None,
    shifts: Sequence[str],
    paired: Mapping[str, PairedCounts] | None = None,
) -> Verdict:
    """Judge one gate that `check_gates` accepted.

    Args:
        row: The lines of the judged weight set by set name.
        baseline: Those of the baseline, if there is one.
        shifts: Names of the distribution shifts.
        paired: Images that changed from the baseline to the judged weight set, by set name.
    """
    value = gate.value(row, shifts)
    if not gate.is_relative:
        low = gate.lower_end(row, shifts) if gate.is_lower_bound else None
        return Verdict(gate, value, gate.number, None, low)
    if baseline is None or (gate.needs_predictions and paired is None):
        raise ValueError(f"{gate.text} needs a baseline and its predictions")
    of_baseline = gate.value(baseline, shifts)
    low = None
    if gate.needs_predictions and paired is not None:
        counts = [paired[name] for name in gate.sets(shifts)]
        low = of_baseline + paired_difference(counts).low
    return Verdict(gate, value, of_baseline + gate.number, of_baseline, low)
