"""Choosing alpha: on a validation set, never on the set that is reported.

The paper's default 0.5, the best on a validation set, and the best on each set itself stand side
by side, the last labelled as what it is: an oracle, chosen by the very numbers that it reports
(arXiv:2109.01903, table 1, caption). It evaluates nothing and merges nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal

from wiseft_cli.reporting.results import ResultLine
from wiseft_cli.reporting.table import mean_over

DEFAULT_ALPHA = "0.5"


def best_alpha(lines: Sequence[ResultLine], set_name: str) -> str:
    """Return the alpha with the highest primary metric on one set, the smallest of equal ones.

    Of alphas that a validation set cannot tell apart, the smallest stays nearest to the zero-shot
    model, which is what robustness is lost from.

    Args:
        lines: Of one pair; lines without alpha take no part.
    """
    candidates = [
        (line.value, -Decimal(line.alpha), line.alpha)
        for line in lines
        if line.alpha is not None and line.set_name == set_name
    ]
    return max(candidates)[2]


def choices(lines: Sequence[ResultLine], *, select_on: str | None) -> list[tuple[str, ...]]:
    """Return for each line what it is a choice of: `default`, `selected`, `oracle`.

    Args:
        lines: Of one evaluation.
        select_on: Name of the validation set, where there is one.
    """
    selected = best_alpha(lines, select_on) if select_on is not None else None
    sets = {line.set_name for line in lines if line.alpha is not None}
    oracle = {name: best_alpha(lines, name) for name in sets}
    return [
        tuple(
            kind
            for kind, alpha in (
                ("default", DEFAULT_ALPHA),
                ("selected", selected),
                ("oracle", oracle.get(line.set_name)),
            )
            if line.alpha is not None and line.alpha == alpha
        )
        for line in lines
    ]


def render_choices(lines: Sequence[ResultLine], *, select_on: str | None) -> list[str]:
    """Return what can be said of the choice of alpha, a line each; nothing for a single alpha.

    The oracle stands below a choice that could really be made, or not at all.
    """
    rows: dict[str, dict[str, ResultLine]] = {}
    for line in lines:
        if line.alpha is not None:
            rows.setdefault(line.alpha, {})[line.set_name] = line
    if len(rows) < 2:
        return []
    texts: list[str] = []
    if DEFAULT_ALPHA in rows:
        row = rows[DEFAULT_ALPHA]
        texts.append(f"alpha {DEFAULT_ALPHA}, the default: {_describe(row, select_on)}")
    if select_on is not None:
        alpha = best_alpha(lines, select_on)
        texts.append(f"alpha {alpha}, best on {select_on!r}: {_describe(rows[alpha], select_on)}")
    if texts:
        names = next(iter(rows.values()))
        best = {name: best_alpha(lines, name) for name in names}
        oracle = ", ".join(
            f"{name} {100 * rows[alpha][name].value:.2f} at {alpha}" for name, alpha in best.items()
        )
        texts.append(f"oracle, each set's best alpha on that set itself: {oracle}")
    return texts


def _describe(row: Mapping[str, ResultLine], select_on: str | None) -> str:
    """Say a row's numbers, set by set, and the mean over the shifts."""
    parts = [f"{name} {100 * line.value:.2f}" for name, line in row.items()]
    shifts = [name for name, line in row.items() if not line.reference and name != select_on]
    mean = mean_over(row, shifts)
    if mean is not None and len(shifts) > 1:
        parts.append(f"mean shift {100 * mean:.2f}")
    return ", ".join(parts)
