from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, bootstrap

from wiseft_cli.reporting.paired import PairedCounts, paired_difference


def test_p_value_is_the_exact_binomial_tail_of_mcnemars_test() -> None:
    # Published example of the exact test: 4 against 9 discordant pairs.
    done = paired_difference([PairedCounts(100, 4, 9)])
    assert done.p_value == pytest.approx(2 * binom.cdf(4, 13, 0.5), rel=1e-12)
    assert done.difference == pytest.approx(-0.05)


@pytest.mark.parametrize(("gained", "lost"), [(40, 10), (15, 15), (3, 60)])
def test_interval_is_that_of_scipys_bootstrap_over_the_images(gained: int, lost: int) -> None:
    n_images = 400
    changes = np.repeat([1, -1, 0], [gained, lost, n_images - gained - lost])
    expected = bootstrap(
        (changes,), np.mean, method="percentile", n_resamples=9999, rng=np.random.default_rng(3)
    ).confidence_interval
    done = paired_difference([PairedCounts(n_images, gained, lost)])
    assert done.low == pytest.approx(expected.low, abs=0.005)
    assert done.high == pytest.approx(expected.high, abs=0.005)


def test_mean_over_sets_weighs_sets_equally_and_is_narrower_than_its_parts() -> None:
    small, large = PairedCounts(100, 20, 0), PairedCounts(10_000, 0, 1000)
    done = paired_difference([small, large])
    assert done.difference == pytest.approx((0.2 - 0.1) / 2)
    assert done.p_value is None
    assert (done.n_images, done.n_gained, done.n_lost) == (10_100, 20, 1000)
    alone = paired_difference([small])
    assert done.high - done.low < alone.high - alone.low
    random = np.random.default_rng(5)
    draws = random.binomial(100, 0.2, 20_000) / 100 - random.binomial(10_000, 0.1, 20_000) / 10_000
    assert [done.low, done.high] == pytest.approx(np.percentile(draws / 2, [2.5, 97.5]), abs=0.005)


def test_no_change_in_few_images_is_not_certainty() -> None:
    done = paired_difference([PairedCounts(10, 0, 0)])
    assert (done.difference, done.p_value) == (0.0, 1.0)
    assert done.low == -done.high
    assert done.high == pytest.approx(0.3085, abs=1e-4)  # Clopper-Pearson, 0 of 10


def test_no_change_on_a_small_set_is_not_made_certain_by_a_large_one() -> None:
    small, large = PairedCounts(10, 0, 0), PairedCounts(100_000, 0, 0)
    bounds = [paired_difference([of]).high for of in (small, large)]
    done = paired_difference([small, large])
    assert (done.difference, done.low) == (0.0, -done.high)
    assert done.high == pytest.approx(sum(bounds) / 2)
    assert done.high > 0.15


@given(
    counts=st.tuples(st.integers(0, 50), st.integers(0, 50), st.integers(1, 50)),
)
def test_exchanging_the_rows_changes_the_sign(counts: tuple[int, int, int]) -> None:
    gained, lost, same = counts
    n_images = gained + lost + same
    one = paired_difference([PairedCounts(n_images, gained, lost)])
    other = paired_difference([PairedCounts(n_images, lost, gained)])
    assert one.difference == -other.difference
    assert one.p_value == other.p_value
    assert one.low <= one.difference <= one.high
    assert one == paired_difference([PairedCounts(n_images, gained, lost)])


def test_interval_covers_the_true_difference_about_95_times_in_100() -> None:
    random, shares, n_images = np.random.default_rng(8), (0.08, 0.03), 500
    drawn = random.multinomial(n_images, [*shares, 1 - sum(shares)], size=200)
    covered = 0
    for gained, lost, _ in drawn.tolist():
        done = paired_difference([PairedCounts(n_images, gained, lost)])
        covered += done.low <= shares[0] - shares[1] <= done.high
    assert 0.90 <= covered / 200 <= 0.99


@pytest.mark.parametrize("counts", [[], [PairedCounts(0, 0, 0)], [PairedCounts(5, 3, 3)]])
def test_counts_of_no_set_are_rejected(counts: list[PairedCounts]) -> None:
    with pytest.raises(ValueError, match="cannot be compared"):
        paired_difference(counts)


def test_text_is_in_points_with_the_sign() -> None:
    text = str(paired_difference([PairedCounts(1000, 147, 0)]))
    assert text.startswith("+14.70 [+12.")
    assert text.endswith("], p < 0.001")
    assert str(paired_difference([PairedCounts(1000, 1, 1)])).startswith("0.00 [")
