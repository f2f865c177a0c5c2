"""Gates on an evaluation's numbers: `SET:METRIC>=NUMBER` or `SET:METRIC>=baseline-NUMBER`.

SET is an image set, or `shifts` for the mean over all but the reference; METRIC one of the set's
metrics, or `primary`. Numbers are fractions. A gate judges finished results lines; what it names
is checked before any work, so that a misspelt one never passes. It evaluates nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from wiseft_cli.errors import UsageError, list_some
from wiseft_cli.reporting.results import ResultLine

SHIFTS = "shifts"
"""Names the mean over the distribution shifts."""

PRIMARY = "primary"
"""Names each set's primary metric."""

TOLERANCE = 1e-12
"""Slack for the rounding of decimals: 0.8 - 0.1 is no more than 0.7."""

_FORM = "SET:METRIC>=NUMBER or SET:METRIC>=baseline-NUMBER, such as val:top1>=0.77"
_BOUND = re.compile(r"(?P<baseline>baseline)?\s*(?P<number>[+-]?\s*\d*\.?\d+)?")


@dataclass(frozen=True)
class Gate:
    """One condition.

    Attributes:
        text: As it was given.
        set_name: An image set, or `SHIFTS`.
        metric: A metric's name, or `PRIMARY`.
        number: The least value, a fraction; beside the baseline, what is added to its value.
        is_relative: Whether the number counts from the baseline.
    """

    text: str
    set_name: str
    metric: str
    number: float
    is_relative: bool

    def value(self, row: Mapping[str, ResultLine], shifts: Sequence[str]) -> float:
        """Return the number that is judged, of one weight set's lines by set name."""
        lines = [row[name] for name in (shifts if self.set_name == SHIFTS else [self.set_name])]
        names = [line.primary if self.metric == PRIMARY else self.metric for line in lines]
        return fmean(line.metrics[name].value for line, name in zip(lines, names, strict=True))


@dataclass(frozen=True)
class Verdict:
    """What became of a gate.

    Attributes:
        value: The number that was judged.
        bound: The least it had to be.
        baseline: The baseline's value, for a gate beside it.
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
        least = f"{self.bound:.6g}"
        if self.baseline is not None:
            least += f" (baseline {self.baseline:.6g})"
        return f"{self.gate.text}: {self.value:.6g}, expected at least {least}"


def parse_gate(text: str) -> Gate:
    """Read one gate.

    Raises:
        UsageError: It is of another form, or its number is no fraction.
    """
    left, operator, right = (part.strip() for part in text.partition(">="))
    set_name, colon, metric = (part.strip() for part in left.rpartition(":"))
    if right.endswith("%"):
        raise UsageError(
            f"--fail-under {text!r}: {right} is per cent, expected a fraction",
            hint=_in_fractions(left, right.rstrip("% ")),
        )
    bound = _BOUND.fullmatch(right)
    if not (operator and colon and set_name and metric and right and bound):
        raise UsageError(f"--fail-under {text!r} cannot be read; expected {_FORM}")
    number = float((bound["number"] or "0").replace(" ", ""))
    is_relative = bound["baseline"] is not None
    if is_relative and bound["number"] and bound["number"][0] not in "+-":
        raise UsageError(f"--fail-under {text!r} cannot be read; expected {_FORM}")
    if not (-1 if is_relative else 0) <= number <= 1:
        raise UsageError(
            f"--fail-under {text!r}: {bound['number']} is no fraction in [0, 1]",
            hint=None if is_relative else _in_fractions(left, bound["number"] or ""),
        )
    return Gate(text, set_name, metric, number, is_relative)


def _in_fractions(left: str, per_cent: str) -> str | None:
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
    """Refuse gates that name what the evaluation will not have, all of them at once.

    Args:
        metrics: By name of each image set, the metrics it will have in every row.
        shifts: The sets beside the reference.
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
            faults.append(f"{gate.text}: there is no set beside the reference")
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
            "\n  ".join(["--fail-under cannot be judged:", *list_some(faults)]),
            hint=f"there are {sets}",
        )


def judge_gate(
    gate: Gate,
    row: Mapping[str, ResultLine],
    baseline: Mapping[str, ResultLine] | None,
    shifts: Sequence[str],
) -> Verdict:
    """Judge one gate.

    Args:
        row: The judged weight set's lines by set name.
        baseline: The baseline's, where there is one.
        shifts: The sets beside the reference.
    """
    value = gate.value(row, shifts)
    if not gate.is_relative:
        return Verdict(gate, value, gate.number, None)
    if baseline is None:
        raise ValueError(f"{gate.text} needs a baseline; check_gates comes first")
    of_baseline = gate.value(baseline, shifts)
    return Verdict(gate, value, of_baseline + gate.number, of_baseline)
