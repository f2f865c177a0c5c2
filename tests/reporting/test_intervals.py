from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, binomtest

from wiseft_cli.reporting.intervals import clopper_pearson, stratified_interval


@given(st.integers(1, 60000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_is_scipys_exact_binomial_interval(counts: tuple[int, int]) -> None:
    n_correct, n_images = counts
    expected = binomtest(n_correct, n_images).proportion_ci(0.95, method="exact")
    low, high = clopper_pearson(n_correct, n_images)
    assert low == pytest.approx(expected.low, abs=1e-9)
    assert high == pytest.approx(expected.high, abs=1e-9)
    assert 0 <= low <= n_correct / n_images <= high <= 1


def test_each_end_leaves_half_of_the_rest_in_its_tail() -> None:
    low, high = clopper_pearson(37, 120, confidence=0.9)
    assert binom.sf(36, 120, low) == pytest.approx(0.05)
    assert binom.cdf(37, 120, high) == pytest.approx(0.05)


def test_none_and_all_have_one_open_end() -> None:
    assert clopper_pearson(0, 10)[0] == 0.0
    assert clopper_pearson(10, 10)[1] == 1.0


@pytest.mark.parametrize("counts", [(1, 0), (0, 0), (-1, 5), (6, 5)])
def test_counts_of_no_proportion_are_refused(counts: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"is no proportion$"):
        clopper_pearson(*counts)


def test_a_mean_over_balanced_classes_of_one_accuracy_has_the_plain_interval() -> None:
    assert stratified_interval([(75, 100)] * 4) == pytest.approx(clopper_pearson(300, 400))
    assert stratified_interval([(10, 10), (10, 10)]) == clopper_pearson(20, 20)
    assert stratified_interval([(0, 5)]) == clopper_pearson(0, 5)


def test_a_mean_over_classes_is_as_wide_as_its_smallest_class_makes_it() -> None:
    low, high = stratified_interval([(9000, 10000), (5, 10)])
    # One class of ten images is half of the mean: about as wide as half of its own interval.
    own_low, own_high = clopper_pearson(5, 10)
    assert low < 0.7 < high
    assert (high - low) == pytest.approx((own_high - own_low) / 2, rel=0.2)


def test_a_stratified_interval_covers_the_mean_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    shares, sizes = np.array([0.9, 0.6, 0.3]), np.array([200, 40, 100])
    counts = random.binomial(sizes, shares, size=(2000, 3))
    covered = 0
    for row in counts:
        low, high = stratified_interval(list(zip(row.tolist(), sizes.tolist(), strict=True)))
        covered += low <= shares.mean() <= high
    assert 0.94 <= covered / len(counts) <= 0.99
