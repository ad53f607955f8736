"""Rank correlation of two numbers over runs, with an interval over methods.

Runs of one method share what the method does, so they are no independent witnesses. The bootstrap
resamples methods with replacement, each with all its runs (a cluster bootstrap: Davison & Hinkley,
Bootstrap Methods and their Application, 1997, 3.8). Its standard error is taken on Fisher's scale,
where that of a correlation hardly depends on its size, with the quantile of Student's t.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from leaderboards.stats.ranks import LEVEL

# With fewer methods an interval says nothing: it would be about as wide as -1 to 1.
MIN_METHODS = 10
DRAWS = 1000
# Of a difference from a mean. Measures have six digits, and are about 1.
DECIMALS = 12
# Fisher's scale is infinite at 1.
LARGEST = 1 - 1e-9

Array: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True)
class Correlation:
    """Spearman's correlation with its 95 % interval, from so many methods and runs."""

    value: float
    low: float
    high: float
    methods: int
    runs: int

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


def rank_correlation(x: Array, y: Array, methods: Sequence[str]) -> Correlation | None:
    """Correlate the ranks of two numbers over runs.

    Args:
        x, y: (runs,); a run with NaN in either does not count.
        methods: (runs,), whose runs they are.
    Returns: None for fewer than MIN_METHODS methods, or where x or y has one value alone.
    """
    from scipy.stats import spearmanr

    measured = np.isfinite(x) & np.isfinite(y)
    names, clusters = np.unique(np.asarray(methods, dtype=str)[measured], return_inverse=True)
    x, y = x[measured], y[measured]
    if len(names) < MIN_METHODS or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    value = float(spearmanr(x, y).statistic)
    low, high = _interval(value, _resampled_correlations(x, y, clusters), len(names))
    return Correlation(value, low, high, len(names), x.size)


def correlation_within(x: Array, y: Array, methods: Sequence[str]) -> Correlation | None:
    """Correlate the ranks of what each run differs by from the mean of its method.

    The seeds of one method alone differ in it: what methods do differently plays no part. Only
    methods with several measured runs count; arguments and None as for `rank_correlation`.
    """
    measured = np.isfinite(x) & np.isfinite(y)
    x_rest, y_rest = np.full(x.size, math.nan), np.full(y.size, math.nan)
    names = np.asarray(methods, dtype=str)
    for name in np.unique(names[measured]):
        runs = measured & (names == name)
        if runs.sum() > 1:
            x_rest[runs] = _differences(x[runs])
            y_rest[runs] = _differences(y[runs])
    return rank_correlation(x_rest, y_rest, methods)


def _differences(values: Array) -> Array:
    """Return what values differ by from their mean, without its rounding: equal ones are ties."""
    rest: Array = np.round(values - values.mean(), DECIMALS)
    return rest


def _resampled_correlations(x: Array, y: Array, clusters: NDArray[np.intp]) -> Array:
    """Return (draws,) correlations over methods drawn with replacement; NaN where undefined."""
    count = int(clusters.max()) + 1
    drawn = np.random.default_rng(0).multinomial(count, [1 / count] * count, size=DRAWS)
    weights = drawn[:, clusters].astype(float)
    total = weights.sum(axis=1, keepdims=True)
    x_ranks, y_ranks = weighted_ranks(x, weights), weighted_ranks(y, weights)
    x_ranks -= (weights * x_ranks).sum(axis=1, keepdims=True) / total
    y_ranks -= (weights * y_ranks).sum(axis=1, keepdims=True) / total
    product = (weights * x_ranks * y_ranks).sum(axis=1)
    squares = (weights * x_ranks**2).sum(axis=1) * (weights * y_ranks**2).sum(axis=1)
    correlations = np.full(DRAWS, math.nan)
    np.divide(product, np.sqrt(squares), out=correlations, where=squares > 0)
    return correlations


def weighted_ranks(values: Array, weights: Array) -> Array:
    """Return the ranks that values have where each occurs so often; ties share their mean rank.

    Args:
        values: (n,).
        weights: (draws, n), how often each value occurs in a draw.
    Returns: (draws, n).
    """
    order = np.argsort(values, kind="stable")
    _, starts, groups = np.unique(values[order], return_index=True, return_inverse=True)
    ties = np.add.reduceat(weights[:, order], starts, axis=1)
    ranks = np.empty_like(weights)
    ranks[:, order] = (np.cumsum(ties, axis=1) - ties / 2 + 0.5)[:, groups]
    return ranks


def _interval(value: float, draws: Array, methods: int) -> tuple[float, float]:
    from scipy.stats import t

    scaled = np.arctanh(np.clip(draws[np.isfinite(draws)], -LARGEST, LARGEST))
    half = float(t.ppf((1 + LEVEL) / 2, methods - 2)) * float(scaled.std(ddof=1))
    middle = math.atanh(min(max(value, -LARGEST), LARGEST))
    return math.tanh(middle - half), math.tanh(middle + half)
