from __future__ import annotations

import re

import pytest

from tests.reporting.lines import line
from wiseft_cli.errors import UsageError
from wiseft_cli.reporting.gates import check_gates, judge_gate, parse_gate
from wiseft_cli.reporting.paired import PairedCounts
from wiseft_cli.reporting.results import Metric, ResultLine

METRICS = {"val": ("top1", "top5"), "a": ("top1",), "b": ("top1",)}


def row(val: int, a: int, b: int) -> dict[str, ResultLine]:
    lines = [line("val", val, reference=True), line("a", a), line("b", b)]
    return {item.set_name: item for item in lines}


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("val:top1>=0.77", True),
        ("val:top1 >= .770", True),
        ("val:top1>=0.7701", False),
        ("a:primary>=0.5", True),
        ("shifts:top1>=0.45", True),
        ("shifts:top1>=0.451", False),
        ("val:top1>=baseline", False),
        ("val:top1>=baseline-0.03", True),
        ("val:top1>=baseline - 0.029", False),
        ("shifts:primary>=baseline+0.1", True),
        ("shifts:primary>=baseline+0.101", False),
    ],
)
def test_gate_holds_at_its_bound_and_above(text: str, holds: bool) -> None:
    verdict = judge_gate(parse_gate(text), row(770, 500, 400), row(800, 400, 300), ("a", "b"))
    assert verdict.passes == holds


def test_verdict_shows_value_and_bound() -> None:
    rows = row(770, 500, 400), row(800, 400, 300)
    verdict = judge_gate(parse_gate("val:top1>=baseline-0.01"), *rows, ("a", "b"))
    assert str(verdict) == ("val:top1>=baseline-0.01: 0.77, expected at least 0.79 (baseline 0.8)")
    verdict = judge_gate(parse_gate("a:top1>=0.6"), *rows, ("a", "b"))
    assert str(verdict) == "a:top1>=0.6: 0.5, expected at least 0.6"


def test_set_name_may_contain_a_colon_and_shifts_use_each_primary_metric() -> None:
    gate = parse_gate("imagenet:v2:top1>=0.5")
    assert (gate.set_name, gate.metric) == ("imagenet:v2", "top1")
    other = line("b", 400, primary="top5", metrics={"top1": Metric(0.1), "top5": Metric(0.9)})
    lines = {"a": line("a", 500), "b": other}
    assert parse_gate("shifts:primary>=0").value(lines, ("a", "b")) == pytest.approx(0.7)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "val",
        "val>=0.5",
        "top1>=0.5",
        ":top1>=0.5",
        "val:>=0.5",
        "val:top1>0.5",
        "val:top1>=",
        "val:top1<=0.5",
        "val:top1=0.5",
        "val:top1>=high",
        "val:top1>=nan",
        "val:top1>=1e-1",
        "val:top1>=baseline0.1",
        "val:top1>=0.1-baseline",
        "val:top1>=baseline--1",
    ],
)
def test_other_forms_are_rejected(text: str) -> None:
    with pytest.raises(
        UsageError, match=r"^--fail-under .* cannot be parsed; expected SET:METRIC>="
    ):
        parse_gate(text)


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("val:top1>=77%", "77% is per cent, expected a fraction", "'val:top1>=0.77'"),
        ("val:top1>=77", "77 is not a fraction in [0, 1]", "'val:top1>=0.77'"),
        ("val:top1>=-0.5", "-0.5 is not a fraction in [0, 1]", None),
        ("val:top1>=baseline-2", "-2 is not a fraction in [0, 1]", None),
    ],
)
def test_numbers_are_fractions(text: str, message: str, hint: str | None) -> None:
    with pytest.raises(UsageError, match=re.escape(message)) as caught:
        parse_gate(text)
    assert caught.value.hint == (hint and f"numbers are fractions: {hint}")


def test_missing_sets_metrics_and_baselines_are_reported_together() -> None:
    texts = ["vall:top1>=0", "val:accuracy>=0", "a:top5>=0", "shifts:top5>=0", "a:top1>=baseline"]
    with pytest.raises(UsageError) as caught:
        check_gates([*map(parse_gate, texts)], METRICS, ("a", "b"), has_baseline=False)
    assert caught.value.message.split("\n  ") == [
        "--fail-under cannot be judged:",
        "vall:top1>=0: no --data is named 'vall'",
        "val:accuracy>=0: 'val' has no metric 'accuracy'",
        "a:top5>=0: 'a' has no metric 'top5'",
        "shifts:top5>=0: 'a' has no metric 'top5'",
        "shifts:top5>=0: 'b' has no metric 'top5'",
        "a:top1>=baseline: compares with a baseline, and no --baseline is given",
    ]
    assert caught.value.hint == "the metrics are val: top1, top5; a: top1; b: top1"


def test_gate_on_the_mean_over_no_shift_is_rejected() -> None:
    with pytest.raises(UsageError, match="there is no set besides the reference"):
        check_gates([parse_gate("shifts:top1>=0")], {"val": ("top1",)}, (), has_baseline=False)
    with pytest.raises(UsageError, match="a set is called 'shifts'"):
        metrics = {"val": ("top1",), "shifts": ("top1",)}
        check_gates([parse_gate("shifts:top1>=0")], metrics, ("shifts",), has_baseline=False)


def paired(gained: int, lost: int) -> dict[str, PairedCounts]:
    return dict.fromkeys(("val", "a", "b"), PairedCounts(1000, gained, lost))


@pytest.mark.parametrize(
    ("text", "counts", "holds"),
    [
        # Both differ by +0.01; only few changed images make that certain.
        ("shifts:top1>=baseline@95", (15, 5), True),
        ("shifts:top1>=baseline@95", (210, 200), False),
        ("shifts:top1>=baseline-0.03@95", (210, 200), True),
        ("a:top1>=baseline@95", (10, 0), True),
        ("a:primary>=baseline @ 95", (110, 100), False),
        ("a:top1>=baseline", (110, 100), True),
    ],
)
def test_gate_on_the_lower_end_needs_a_difference_that_is_certain(
    text: str, counts: tuple[int, int], holds: bool
) -> None:
    rows = row(780, 510, 410), row(770, 500, 400)
    verdict = judge_gate(parse_gate(text), *rows, ("a", "b"), paired(*counts))
    assert verdict.passes == holds


def test_gate_on_the_lower_end_of_one_metric_uses_its_interval() -> None:
    rows = row(770, 500, 400)
    low = rows["val"].metric.interval[0]
    below, above = (
        judge_gate(parse_gate(f"val:top1>={bound:.6f}@95"), rows, None, ("a", "b"))
        for bound in (low - 1e-5, low + 1e-5)
    )
    assert (below.passes, above.passes) == (True, False)
    assert f": 0.77 with lower end {low:.6g}, expected at least" in str(below)


def test_levels_other_than_95_are_rejected() -> None:
    with pytest.raises(UsageError, match=r"@99, expected @95"):
        parse_gate("val:top1>=0.5@99")


def test_gates_on_intervals_that_will_not_exist_are_rejected_before_the_evaluation() -> None:
    texts = ("val:top5>=baseline@95", "shifts:top1>=0.5@95", "val:macro_f1>=0.5@95", "a:top1>=0@95")
    metrics = dict.fromkeys(METRICS, ("top1", "top5", "macro_f1"))
    with pytest.raises(UsageError) as caught:
        check_gates([*map(parse_gate, texts)], metrics, ("a", "b"), has_baseline=True)
    faults = str(caught.value).splitlines()[1:]
    assert [fault.split(":", 2)[-1].split(" ", 1)[1] for fault in faults] == [
        "paired differences compare top1, not top5",
        "a paired difference needs --save-predictions DIR",
        "a mean over several shifts has no interval; judge each shift, or compare with a baseline",
        "macro_f1 has no interval",
    ]
    gate = parse_gate("val:primary>=baseline@95")
    given = {"has_baseline": True, "has_predictions": True}
    with pytest.raises(UsageError, match="compare top1, not pm10"):
        check_gates([gate], metrics, ("a",), primaries={"val": "pm10"}, **given)
    check_gates([gate], metrics, ("a",), primaries={"val": "top1"}, **given)
