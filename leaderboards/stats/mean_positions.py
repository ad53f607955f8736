"""Mean positions over several tasks: the Friedman test and Nemenyi's critical difference.

As Demšar (Statistical Comparisons of Classifiers over Multiple Data Sets, JMLR 7, 2006) compares
classifiers by their average ranks: a position is a row's place within a task by accuracy, ties by
their middle. The Friedman test asks whether mean positions differ at all. Two rows differ where
their mean positions lie further apart than Nemenyi's critical difference. A task counts once,
however many images and seeds it has, so two tasks show next to nothing; the paired comparison
inside a task is the sharper one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import numpy as np

from leaderboards.stats.ranks import LEVEL, Array


def mean_positions(accuracies: Array) -> Array:
    """Return the mean position of each row of (rows, tasks); the highest accuracy is at 1."""
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
    """Return the difference of mean positions from which rows differ at 95 %, for all pairs."""
    from scipy.stats import studentized_range

    q = float(studentized_range.ppf(LEVEL, rows, math.inf)) / math.sqrt(2)
    return q * math.sqrt(rows * (rows + 1) / (6 * tasks))


def inseparable_spans(positions: Sequence[float], critical: float) -> list[tuple[float, float]]:
    """Return the longest spans of ascending positions whose ends are at most `critical` apart."""
    spans: list[tuple[float, float]] = []
    for start in positions:
        end = max(position for position in positions if position - start <= critical)
        if end > start and (not spans or end > spans[-1][1]):
            spans.append((start, end))
    return spans
