"""Mean ranks over several tasks: the Friedman test and Nemenyi's critical difference.

As Demšar (Statistical Comparisons of Classifiers over Multiple Data Sets, JMLR 7, 2006) compares
classifiers: rows are ranked within a task by accuracy, ties by their middle. The Friedman test asks
whether mean ranks differ at all. Two rows differ where their mean ranks lie further apart than
Nemenyi's critical difference. A task counts once, however many images and seeds it has, so two
tasks show next to nothing; the paired comparison inside a task is the sharper one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import numpy as np

from leaderboards.stats.ranks import LEVEL, Array


def mean_ranks(accuracies: Array) -> Array:
    """Return the mean rank of each row of (rows, tasks); the highest accuracy has rank 1."""
    from scipy.stats import rankdata

    return np.asarray(rankdata(-accuracies, axis=0).mean(axis=1))


def friedman_p(accuracies: Array) -> float:
    """Return p of the Friedman test of (rows, tasks).

    NaN for fewer than three rows, or where no task has rows that differ.
    """
    from scipy.stats import friedmanchisquare

    if len(accuracies) < 3 or (accuracies == accuracies[0]).all():
        return math.nan
    return float(friedmanchisquare(*(-accuracies)).pvalue)


@cache
def critical_difference(rows: int, tasks: int) -> float:
    """Return the difference of mean ranks from which two rows differ at 95 %, for all pairs."""
    from scipy.stats import studentized_range

    q = float(studentized_range.ppf(LEVEL, rows, math.inf)) / math.sqrt(2)
    return q * math.sqrt(rows * (rows + 1) / (6 * tasks))


def inseparable_spans(ranks: Sequence[float], critical: float) -> list[tuple[float, float]]:
    """Return the longest spans of ascending mean ranks whose ends are at most `critical` apart."""
    spans: list[tuple[float, float]] = []
    for start in ranks:
        end = max(rank for rank in ranks if rank - start <= critical)
        if end > start and (not spans or end > spans[-1][1]):
            spans.append((start, end))
    return spans
