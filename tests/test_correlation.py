"""Rank correlations over methods: known answers, ties, clusters, coverage in simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import kendalltau, spearmanr

from leaderboards.stats.correlation import (
    MIN_METHODS,
    correlation_within,
    rank_correlation,
    weighted_ranks,
)

METHODS, SEEDS = 20, 3
NAMES = np.repeat([f"m{number}" for number in range(METHODS)], SEEDS)


@pytest.fixture
def x() -> np.ndarray:
    return np.random.default_rng(0).normal(size=METHODS * SEEDS)


@pytest.mark.parametrize(("sign", "value"), [(1, 1), (-1, -1)])
def test_any_increasing_function_correlates_perfectly(
    x: np.ndarray, sign: int, value: float
) -> None:
    correlation = rank_correlation(x, sign * np.exp(x), NAMES)
    assert correlation
    assert correlation.value == pytest.approx(value)
    assert (correlation.low, correlation.high) == pytest.approx((value, value), abs=1e-3)
    assert correlation.excludes_zero
    assert (correlation.methods, correlation.runs) == (METHODS, METHODS * SEEDS)


def test_ties_share_their_mean_rank_as_in_scipy() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(4, size=(2, METHODS * SEEDS)).astype(float)
    correlation = rank_correlation(x, y, NAMES)
    assert correlation
    assert correlation.value == pytest.approx(spearmanr(x, y).statistic)
    assert correlation.value != pytest.approx(kendalltau(x, y).statistic)


def test_weighted_ranks_are_those_of_repeated_values() -> None:
    values, weights = np.array([3.0, 1.0, 3.0, 2.0]), np.array([[2.0, 1, 1, 3], [0, 1, 2, 1]])
    # 1, 2, 2, 2, 3, 3, 3 and 1, 2, 3, 3
    expected = [[6, 1, 6, 3], [3.5, 1, 3.5, 2]]
    ranks = weighted_ranks(values, weights)
    assert ranks[weights > 0].tolist() == [6, 1, 6, 3, 1, 3.5, 2]
    assert ranks[0].tolist() == expected[0]


def test_a_method_repeated_over_seeds_is_no_more_evidence() -> None:
    """With equal seeds the interval is that of one seed; runs taken for methods narrow it."""
    x, y = np.random.default_rng(1).normal(size=(2, METHODS))
    one = rank_correlation(x, y, [f"m{number}" for number in range(METHODS)])
    repeated = np.repeat(x, SEEDS), np.repeat(y, SEEDS)
    three = rank_correlation(*repeated, NAMES)
    naive = rank_correlation(*repeated, [f"run{number}" for number in range(x.size * SEEDS)])
    assert one
    assert three
    assert naive
    assert (three.low, three.high) == pytest.approx((one.low, one.high), abs=0.02)
    assert naive.high - naive.low < 0.75 * (three.high - three.low)


def test_the_interval_of_independent_numbers_covers_zero() -> None:
    rng = np.random.default_rng(2)
    covered = 0
    for _ in range(200):
        means = np.repeat(rng.normal(size=(2, METHODS)), SEEDS, axis=1)
        x, y = means + 0.2 * rng.normal(size=means.shape)
        correlation = rank_correlation(x, y, NAMES)
        assert correlation
        covered += not correlation.excludes_zero
    assert 183 <= covered <= 198


def test_within_methods_what_methods_do_differently_plays_no_part() -> None:
    """Over methods both numbers rise together, within each method one falls with the other."""
    rng = np.random.default_rng(3)
    method, seed = np.repeat(np.arange(METHODS), SEEDS), rng.normal(size=METHODS * SEEDS)
    x, y = 10 * method + seed, 10 * method - seed
    over, within = rank_correlation(x, y, NAMES), correlation_within(x, y, NAMES)
    assert over
    assert within
    assert over.low > 0.9
    assert within.high < -0.9


def test_what_seeds_do_not_differ_in_has_no_correlation_within() -> None:
    """A mean of equal numbers may be off by rounding, which is no difference."""
    rng = np.random.default_rng(4)
    x = np.repeat(rng.normal(size=METHODS).round(6), SEEDS)
    assert any(x[i : i + SEEDS].mean() != x[i] for i in range(0, x.size, SEEDS))
    assert correlation_within(x, rng.normal(size=x.size), NAMES) is None


def test_too_few_methods_or_one_value_alone_give_none(x: np.ndarray) -> None:
    few = (MIN_METHODS - 1) * SEEDS
    assert rank_correlation(x[:few], x[:few], NAMES[:few]) is None
    assert rank_correlation(x[: few + 1], x[: few + 1], NAMES[: few + 1])
    assert rank_correlation(x, np.ones_like(x), NAMES) is None
    singles = slice(None, None, SEEDS)
    assert correlation_within(x[singles], x[singles], NAMES[singles]) is None


def test_runs_without_a_number_do_not_count(x: np.ndarray) -> None:
    y = x.copy()
    y[:SEEDS] = np.nan
    correlation = rank_correlation(x, y, NAMES)
    assert correlation
    assert (correlation.methods, correlation.runs) == (METHODS - 1, (METHODS - 1) * SEEDS)
