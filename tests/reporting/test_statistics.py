from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, binomtest

from wiseft_cli.errors import ResultsError
from wiseft_cli.reporting.statistics import (
    clopper_pearson,
    fit_on_logits,
    from_logit,
    logit,
    read_baselines,
    stratified_interval,
)

SETS = ("val", "sketch", "r")


@given(st.integers(1, 60000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_clopper_pearson_equals_scipys_exact_interval(counts: tuple[int, int]) -> None:
    n_correct, n_images = counts
    expected = binomtest(n_correct, n_images).proportion_ci(0.95, method="exact")
    low, high = clopper_pearson(n_correct, n_images)
    assert low == pytest.approx(expected.low, abs=1e-9)
    assert high == pytest.approx(expected.high, abs=1e-9)
    assert 0 <= low <= n_correct / n_images <= high <= 1


def test_each_end_of_the_interval_leaves_half_of_the_error_in_its_tail() -> None:
    low, high = clopper_pearson(37, 120, confidence=0.9)
    assert binom.sf(36, 120, low) == pytest.approx(0.05)
    assert binom.cdf(37, 120, high) == pytest.approx(0.05)


def test_interval_of_none_or_all_reaches_0_or_1() -> None:
    assert clopper_pearson(0, 10)[0] == 0.0
    assert clopper_pearson(10, 10)[1] == 1.0


@pytest.mark.parametrize("counts", [(1, 0), (0, 0), (-1, 5), (6, 5)])
def test_counts_that_are_not_a_proportion_are_rejected(counts: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"is not a proportion$"):
        clopper_pearson(*counts)


def test_stratified_interval_of_balanced_equal_classes_is_the_plain_interval() -> None:
    assert stratified_interval([(75, 100)] * 4) == pytest.approx(clopper_pearson(300, 400))
    assert stratified_interval([(10, 10), (10, 10)]) == clopper_pearson(20, 20)
    assert stratified_interval([(0, 5)]) == clopper_pearson(0, 5)


def test_stratified_interval_is_as_wide_as_its_smallest_class_requires() -> None:
    low, high = stratified_interval([(9000, 10000), (5, 10)])
    # One class of ten images is half of the mean: about as wide as half of its own interval.
    own_low, own_high = clopper_pearson(5, 10)
    assert low < 0.7 < high
    assert (high - low) == pytest.approx((own_high - own_low) / 2, rel=0.2)


def test_stratified_interval_has_the_stated_coverage() -> None:
    random = np.random.default_rng(0)
    shares, sizes = np.array([0.9, 0.6, 0.3]), np.array([200, 40, 100])
    counts = random.binomial(sizes, shares, size=(2000, 3))
    covered = 0
    for row in counts:
        low, high = stratified_interval(list(zip(row.tolist(), sizes.tolist(), strict=True)))
        covered += low <= shares.mean() <= high
    assert 0.94 <= covered / len(counts) <= 0.99


@given(st.floats(0.001, 0.999))
def test_from_logit_inverts_logit(value: float) -> None:
    assert logit(value) == pytest.approx(math.log(value) - math.log1p(-value), abs=1e-9)
    assert from_logit(logit(value)) == pytest.approx(value)


def test_logits_of_0_and_1_are_half_an_image_inside() -> None:
    assert from_logit(logit(0.0, half_image=0.01)) == pytest.approx(0.01)
    assert from_logit(logit(1.0, half_image=0.01)) == pytest.approx(0.99)
    assert logit(0.0, half_image=0.5) == pytest.approx(logit(0.25))  # a set of one image


def test_fit_is_least_squares_on_logits_and_robustness_is_the_rest() -> None:
    models = [(0.5, 0.3), (0.6, 0.37), (0.72, 0.5), (0.8, 0.61), (0.9, 0.7)]
    x, y = np.log(np.array(models) / (1 - np.array(models))).T
    slope, intercept = np.polyfit(x, y, 1)
    fit = fit_on_logits(models)
    assert fit is not None
    assert (fit.slope, fit.intercept) == (pytest.approx(slope), pytest.approx(intercept))
    assert fit.n_models == 5
    expected = 1 / (1 + np.exp(-(slope * np.log(0.75 / 0.25) + intercept)))
    assert fit.predict(0.75) == pytest.approx(expected)
    assert fit.effective_robustness(0.75, 0.7) == pytest.approx(0.7 - expected)


def test_models_on_the_line_have_no_effective_robustness() -> None:
    fit = fit_on_logits([(0.2, 0.2), (0.5, 0.5), (0.9, 0.9)])
    assert fit is not None
    assert fit.effective_robustness(0.7, 0.7) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("models", [[], [(0.5, 0.4)], [(0.5, 0.4), (0.5, 0.6)]])
def test_fewer_than_two_different_models_have_no_fit(models: list[tuple[float, float]]) -> None:
    assert fit_on_logits(models) is None


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return tmp_path / "models.csv"


def test_baseline_columns_of_other_sets_empty_cells_and_lines_are_ignored(table: Path) -> None:
    table.write_text('\ufeffmodel,params, val,sketch\nA,3M,0.5,\n\n"B, large",,1,0.25\n')
    first, second = read_baselines(table, SETS)
    assert (first.name, first.accuracies) == ("A", {"val": 0.5})
    assert (second.name, second.accuracies) == ("B, large", {"val": 1.0, "sketch": 0.25})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "its header lacks model, val, sketch or r; it has none"),
        ("model,val\nA,0.5\n", "its header lacks sketch or r; it has model, val"),
        ("name,val,r\nA,0.5,0.2\n", "its header lacks model; it has name, val, r"),
        ("model,val,val,r\n", "columns with the same name: val"),
        ("model,val,r\n", "holds no model"),
        ("model,val,r\nA,77,nan\nB,0.5\n", "3 cells or lines are wrong:\n  line 2, column val"),
        ('model,val,r\n"A,1\n', "not valid CSV: unexpected end of data"),
    ],
)
def test_invalid_baseline_file_is_rejected(table: Path, text: str, message: str) -> None:
    table.write_text(text)
    with pytest.raises(ResultsError) as caught:
        read_baselines(table, SETS)
    assert str(table) in str(caught.value)
    assert message in str(caught.value)


def test_missing_or_binary_baseline_file_is_rejected(table: Path) -> None:
    with pytest.raises(ResultsError, match="cannot be read: No such file"):
        read_baselines(table, SETS)
    table.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ResultsError, match="is not text; expected a CSV file"):
        read_baselines(table, SETS)
