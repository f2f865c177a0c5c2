"""Choose alpha on a validation set, and compare with the default and an oracle.

The default of the paper (0.5), the best alpha on a validation set, and the best alpha on each set
itself are shown together. The last is labelled an oracle, because it is chosen by the numbers
that it reports (arXiv:2109.01903, table 1, caption).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal

from wiseft_cli.reporting.results import ResultLine, selection_set
from wiseft_cli.reporting.table import mean_over

DEFAULT_ALPHA = "0.5"


def selected_alpha(lines: Sequence[ResultLine]) -> str | None:
    """Return the best alpha on the validation set; None without such a set or without alphas."""
    name = selection_set(line for line in lines if line.alpha is not None)
    return None if name is None else best_alpha(lines, name)


def best_alpha(lines: Sequence[ResultLine], set_name: str) -> str:
    """Return the best alpha on a set, the smallest of equal ones.

    The smallest alpha is nearest to the zero-shot model, and so keeps the most robustness.

    Args:
        lines: Lines of one pair of checkpoints; those without alpha are ignored.
    """
    candidates = [
        (line.value, -Decimal(line.alpha), line.alpha)
        for line in lines
        if line.alpha is not None and line.set_name == set_name
    ]
    return max(candidates)[2]


def alpha_choices(
    lines: Sequence[ResultLine], *, default: str | None = DEFAULT_ALPHA
) -> list[tuple[str, ...]]:
    """Return the choices that each line is: `default`, `selected`, `oracle`.

    Args:
        lines: Lines of one evaluation.
        default: The default alpha of the merge method.
    """
    selected = selected_alpha(lines)
    set_names = {line.set_name for line in lines if line.alpha is not None}
    oracle = {name: best_alpha(lines, name) for name in set_names}
    return [
        tuple(
            kind
            for kind, alpha in (
                ("default", default),
                ("selected", selected),
                ("oracle", oracle.get(line.set_name)),
            )
            if line.alpha is not None and line.alpha == alpha
        )
        for line in lines
    ]


def render_choices(
    lines: Sequence[ResultLine], *, default: str | None = DEFAULT_ALPHA
) -> list[str]:
    """Return one sentence per choice of alpha; empty for fewer than two alphas.

    The oracle is only shown below a choice that can be made without the test sets.

    Args:
        lines: Lines of one evaluation.
        default: The default alpha of the merge method.
    """
    rows: dict[str, dict[str, ResultLine]] = {}
    for line in lines:
        if line.alpha is not None:
            rows.setdefault(line.alpha, {})[line.set_name] = line
    if len(rows) < 2:
        return []
    texts: list[str] = []
    if default in rows:
        texts.append(f"alpha {default}, the default: {_describe(rows[default])}")
    alpha = selected_alpha(lines)
    if alpha is not None:
        name = selection_set(lines)
        texts.append(f"alpha {alpha}, best on {name!r}: {_describe(rows[alpha])}")
    if texts:
        names = next(iter(rows.values()))
        best = {name: best_alpha(lines, name) for name in names}
        oracle = ", ".join(
            f"{name} {100 * rows[alpha][name].value:.2f} at {alpha}" for name, alpha in best.items()
        )
        texts.append(f"oracle, each set's best alpha on that set itself: {oracle}")
    return texts


def _describe(row: Mapping[str, ResultLine]) -> str:
    parts = [f"{name} {100 * line.value:.2f}" for name, line in row.items()]
    shifts = [name for name, line in row.items() if line.role == "shift"]
    mean = mean_over(row, shifts)
    if mean is not None and len(shifts) > 1:
        parts.append(f"mean shift {100 * mean:.2f}")
    return ", ".join(parts)
