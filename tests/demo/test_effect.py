"""The effect is computed from results lines, and the sentences state its numbers."""

from __future__ import annotations

from decimal import Decimal

import pytest

from wiseft_cli.demo.effect import (
    DERIVED,
    IN_DISTRIBUTION,
    INDEPENDENT,
    SHIFTS,
    at_half,
    best_inside,
    curve_table,
    describe,
    read_curve,
)
from wiseft_cli.errors import ResultsError
from wiseft_cli.reporting.results import CheckpointName, Metric, ResultLine

PAIR = (CheckpointName("a", "zeroshot", "sha256:0"), CheckpointName("b", "finetuned", "sha256:1"))


def line(alpha: str | None, name: str, value: float) -> ResultLine:
    return ResultLine(
        checkpoints=PAIR if alpha is not None else PAIR[:1],
        alpha=alpha,
        set_name=name,
        reference=name == IN_DISTRIBUTION,
        data_fingerprint="sha256:2",
        n_images=100,
        n_unreadable=0,
        n_classes=10,
        join="id",
        primary="top1",
        metrics={"top1": Metric(value, value, value)},
        precision="fp32",
        version="0",
    )


def lines(by_alpha: dict[str, tuple[float, float, float]]) -> list[ResultLine]:
    """Make lines from accuracies (in distribution, independent sets, derived sets) by alpha."""
    return [
        line(alpha, name, value)
        for alpha, values in by_alpha.items()
        for names, value in zip(((IN_DISTRIBUTION,), INDEPENDENT, DERIVED), values, strict=True)
        for name in names
    ]


RISING = {
    "1": (0.98, 0.7, 0.8),
    "0": (0.8, 0.8, 0.7),
    "0.5": (0.97, 0.9, 0.9),
    "0.3": (0.9, 0.9, 0.95),
}


def test_curve_is_sorted_by_alpha_and_averages_each_kind_of_shift():
    curve = read_curve([*lines(RISING), line(None, IN_DISTRIBUTION, 0.1)])
    assert [str(point.alpha) for point in curve] == ["0", "0.3", "0.5", "1"]
    end = curve[-1]
    assert (end.in_distribution, end.independent, end.derived) == pytest.approx((0.98, 0.7, 0.8))
    assert end.shifts == pytest.approx((3 * 0.7 + 7 * 0.8) / 10)
    assert best_inside(curve).alpha == Decimal("0.3")
    assert at_half(curve).in_distribution == 0.97


def test_best_point_is_never_an_end_point():
    curve = read_curve(lines({"0": (0.9, 0.9, 0.9), "0.5": (0.5, 0.5, 0.5), "1": (0.8, 0.8, 0.8)}))
    assert best_inside(curve).alpha == Decimal("0.5")


def test_sentences_state_the_numbers_of_the_lines():
    first, second = describe(read_curve(lines(RISING)))
    assert first == (
        "Fine-tuning took accuracy on mnist from 80.00 % to 98.00 % and the mean over 10 "
        "distribution shifts from 73.00 % to 77.00 %."
    )
    assert second == (
        "The merged weights at alpha 0.5 reach 97.00 % on mnist and 90.00 % on the shifts, "
        "17.00 points above zero-shot and 13.00 points above fine-tuned; the highest mean over "
        "the shifts strictly in between, seen afterwards, is 93.50 % at alpha 0.3."
    )


def test_sentences_report_a_missing_effect():
    flat = {"0": (0.9, 0.9, 0.9), "0.5": (0.6, 0.5, 0.5), "1": (0.8, 0.8, 0.8)}
    _, second = describe(read_curve(lines(flat)))
    assert "40.00 points below zero-shot and 30.00 points below fine-tuned" in second


def test_sets_without_results_are_reported():
    incomplete = [entry for entry in lines(RISING) if entry.set_name not in ("thin", "fonts")]
    with pytest.raises(ResultsError, match=r"^no results at alpha 1 for fonts, thin$"):
        read_curve(incomplete)


def test_missing_alphas_are_reported():
    with pytest.raises(ResultsError, match=r"^no results at alpha 0\.5, 1$"):
        read_curve(lines({"0": (0.9, 0.9, 0.9)}))


def test_table_has_every_set_and_the_three_means():
    table = curve_table(read_curve(lines(RISING)))
    assert table[0] == ["alpha", IN_DISTRIBUTION, *SHIFTS, "independent", "derived", "all shifts"]
    assert table[1] == ["0", "80.0", *["80.0"] * 3, *["70.0"] * 7, "80.0", "70.0", "73.0"]
