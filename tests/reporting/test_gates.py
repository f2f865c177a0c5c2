from __future__ import annotations

import re

import pytest

from tests.reporting.lines import line
from wiseft_cli.errors import UsageError
from wiseft_cli.reporting.gates import check_gates, judge_gate, parse_gate
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
