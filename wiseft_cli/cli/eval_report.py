"""What `wiseft eval` makes of its numbers: the table, the chosen alpha, the gates."""

from __future__ import annotations

from collections.abc import Sequence

from wiseft_cli.cli.console import print_json, print_message, print_result, warn
from wiseft_cli.cli.eval_plan import EvalPlan
from wiseft_cli.errors import GateFailedError
from wiseft_cli.evaluation.weight_sets import WeightSet, doubts_about_pair
from wiseft_cli.merging.alpha import parse_alphas
from wiseft_cli.merging.merge import merge_checkpoints
from wiseft_cli.reporting.alpha_selection import alpha_choices, best_alpha, render_choices
from wiseft_cli.reporting.gates import judge_gate
from wiseft_cli.reporting.results import ResultLine, result_document
from wiseft_cli.reporting.table import implausible_results, render_table


def report(plan: EvalPlan, lines: Sequence[ResultLine], *, as_json: bool) -> None:
    """Print the results on stdout, and what is doubtful about them on stderr."""
    select_on = plan.request.select_on
    if as_json:
        marks = alpha_choices(lines, select_on=select_on)
        print_json(
            [
                {**result_document(line), **({"choice": list(mark)} if mark else {})}
                for line, mark in zip(lines, marks, strict=True)
            ]
        )
    else:
        print_result(render_table(lines, select_on=select_on))
        texts = render_choices(lines, select_on=select_on)
        if texts:
            print_result("\n".join(["", *texts]))
    for warning in implausible_results(lines):
        warn(warning)


def merge_best_alpha(plan: EvalPlan, lines: Sequence[ResultLine]) -> None:
    """Write the merge at the alpha that the validation set chose, where one is wanted.

    Raises:
        CheckpointError: The checkpoints changed since they were evaluated.
        OutputError: The file cannot be written.
    """
    out, select_on = plan.request.merge_best, plan.request.select_on
    if out is None or select_on is None:
        return
    (alpha,) = parse_alphas([best_alpha(lines, select_on)])
    theta_0, theta_1 = next(
        job.weights.checkpoints for job in plan.jobs if job.weights.alpha is not None
    )
    told = doubts_about_pair(theta_0, theta_1)
    done = merge_checkpoints(theta_0.path, theta_1.path, [(alpha, out)], force=plan.request.force)
    for warning in done.warnings:
        if warning not in told:
            warn(warning)
    print_message(f"wrote {out}: the merge at alpha {alpha.text}, the best on {select_on!r}")


def judge(plan: EvalPlan, lines: Sequence[ResultLine]) -> None:
    """Judge the gates, saying which of them hold.

    Raises:
        GateFailedError: Some do not; each is named with its numbers.
    """
    if plan.judged is None:
        return
    row = _lines_of(plan, lines, plan.judged)
    baseline = None if plan.baseline is None else _lines_of(plan, lines, plan.baseline)
    verdicts = [judge_gate(gate, row, baseline, plan.shifts) for gate in plan.gates]
    for verdict in verdicts:
        if verdict.passes:
            print_message(f"gate holds: {verdict}")
    broken = [f"  {verdict}" for verdict in verdicts if not verdict.passes]
    if broken:
        title = f"{len(broken)} of {len(verdicts)} gates failed for {plan.judged.name}:"
        raise GateFailedError("\n".join([title, *broken]))


def _lines_of(
    plan: EvalPlan, lines: Sequence[ResultLine], weights: WeightSet
) -> dict[str, ResultLine]:
    """Return one row's lines by set name."""
    return {
        line.set_name: line
        for job, line in zip(plan.jobs, lines, strict=True)
        if job.weights == weights
    }
