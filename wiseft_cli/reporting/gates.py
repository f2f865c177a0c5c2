"""Gates on results: `SET:METRIC>=NUMBER` or `SET:METRIC>=baseline-NUMBER`.

SET is an image set, or `shifts` for the mean over the distribution shifts; METRIC is a metric of
the set, or `primary`. Numbers are fractions. Names are checked before the evaluation, so that a
misspelt gate never passes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from wiseft_cli.errors import UsageError
from wiseft_cli.reporting.results import ResultLine

SHIFTS = "shifts"
"""Stands for the mean over the distribution shifts."""

PRIMARY = "primary"
"""Stands for the primary metric of each set."""

TOLERANCE = 1e-12
"""Slack for the rounding of decimals: 0.8 - 0.1 is slightly more than 0.7."""

_FORM = "SET:METRIC>=NUMBER or SET:METRIC>=baseline-NUMBER, such as val:top1>=0.77"
_BOUND = re.compile(r"(?P<baseline>baseline)?\s*(?P<number>[+-]?\s*\d*\.?\d+)?")


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
    """

    text: str
    set_name: str
    metric: str
    number: float
    is_relative: bool

    def value(self, row: Mapping[str, ResultLine], shifts: Sequence[str]) -> float:
        """Return the judged number of a weight set, a fraction.

        Args:
            row: The lines of the weight set by set name.
            shifts: Names of the distribution shifts.
        """
        lines = [row[name] for name in (shifts if self.set_name == SHIFTS else [self.set_name])]
        names = [line.primary if self.metric == PRIMARY else self.metric for line in lines]
        return fmean(line.metrics[name].value for line, name in zip(lines, names, strict=True))


@dataclass(frozen=True)
class Verdict:
    """The result of a gate.

    Attributes:
        gate: The gate.
        value: The judged number.
        bound: Smallest accepted value.
        baseline: The number of the baseline, for a relative gate.
    """

    gate: Gate
    value: float
    bound: float
    baseline: float | None

    @property
    def passes(self) -> bool:
        """Whether the gate holds."""
        return self.value >= self.bound - TOLERANCE

    def __str__(self) -> str:
        baseline = "" if self.baseline is None else f" (baseline {self.baseline:.6g})"
        bound = f"{self.bound:.6g}{baseline}"
        return f"{self.gate.text}: {self.value:.6g}, expected at least {bound}"


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
    if not (operator and colon and set_name and metric and right and bound) or (
        is_relative and not has_sign
    ):
        raise UsageError(f"--fail-under {text!r} cannot be parsed; expected {_FORM}")
    number = float(number_text.replace(" ", "") or "0")
    if not (-1 if is_relative else 0) <= number <= 1:
        raise UsageError(
            f"--fail-under {text!r}: {number_text} is not a fraction in [0, 1]",
            hint=None if is_relative else _fraction_hint(left, number_text),
        )
    return Gate(text, set_name, metric, number, is_relative)


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
) -> None:
    """Reject gates on sets or metrics that the evaluation will not have, all at once.

    Args:
        metrics: The metrics that each image set will have in every row, by set name.
        shifts: Names of the distribution shifts.
        has_baseline: Whether a baseline is evaluated too.
    Raises:
        UsageError: A set, a metric or the baseline is missing.
    """
    faults = []
    for gate in gates:
        names = shifts if gate.set_name == SHIFTS else [gate.set_name]
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
    if faults:
        sets = "; ".join(f"{name}: {', '.join(of_set)}" for name, of_set in metrics.items())
        raise UsageError(
            "--fail-under cannot be judged", faults=faults, hint=f"the metrics are {sets}"
        )


def judge_gate(
    gate: Gate,
    row: Mapping[str, ResultLine],
    baseline: Mapping[str, ResultLine] | None,
    shifts: Sequence[str],
) -> Verdict:
    """Judge one gate that `check_gates` accepted.

    Args:
        row: The lines of the judged weight set by set name.
        baseline: Those of the baseline, if there is one.
        shifts: Names of the distribution shifts.
    """
    value = gate.value(row, shifts)
    if not gate.is_relative:
        return Verdict(gate, value, gate.number, None)
    if baseline is None:
        raise ValueError(f"{gate.text} needs a baseline")
    of_baseline = gate.value(baseline, shifts)
    return Verdict(gate, value, of_baseline + gate.number, of_baseline)
