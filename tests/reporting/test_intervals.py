from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, binomtest

from wiseft_cli.reporting.intervals import clopper_pearson


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
