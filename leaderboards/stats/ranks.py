"""Ranks of rows in one task: an interval for each, paired differences, ranges of ranks and tiers.

A row is an array of verdicts, (seeds, images): whether the image survived AutoAttack. The estimate
is the accuracy over all images that could have been drawn and all seeds that could have been used,
so both are sampled.

Images are many. They are resampled with replacement, the same draw for every row: a paired
bootstrap (Efron & Tibshirani, An Introduction to the Bootstrap, 1993). Seeds are one to five, and
resampling so few would show (S - 1) / S of their variance at most. Theirs is estimated as in a
two-way analysis of variance, drawn from a normal, and widened to the quantile of Student's t
(Cochran & Cox, Experimental Designs, 1950). Two seeds show the noise of single images as well. The
fewer seeds there are, the less of it is taken off: where the difference falls below zero by chance,
as it often would, seeds would seem to do nothing.

A row's interval uses the row alone. With one seed it is about that one network. Where rows are
compared, a seed variance is the row's own or the average of the task, whichever is larger: of many
rows some have seeds that agree by chance, and exactly those would be declared different. A row of
one seed takes the average spread of the others, without the share of single images taken off. Where
no row has several, networks are compared, not methods.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from leaderboards.schema.packing import Verdicts

CAUTION = 1.8
# Of an interval, and of all comparisons in a task together.
LEVEL = 0.95
# The share of cases in which a true difference is to be found.
POWER = 0.8
# Many rows get fewer resamples, so that pairs x resamples stay near MAX_WORK.
MAX_DRAWS, MIN_DRAWS, MAX_WORK = 1000, 200, 40_000_000
# Between two accuracies that are equal but for rounding; one image of 10,000 by one of 10 seeds is
# ten times as much.
TIE = 1e-6

Array: TypeAlias = NDArray[np.float64]


def accuracy_interval(verdicts: Verdicts) -> tuple[float, float]:
    """Return the 95 % interval of a row's accuracy over images and, with several, over seeds.

    Wilson's over images, with as many independent ones as would vary as much, so that none of 100
    is not certainty. Student's over seeds. The distances to their ends are added in squares
    (Zou & Donner, Stat. in Medicine 27, 2008).
    """
    from scipy.special import ndtri

    by_image = verdicts.mean(axis=0)
    mean, n, z = float(by_image.mean()), by_image.size, float(ndtri((1 + LEVEL) / 2))
    variance = float(by_image.var()) / max(n - 1, 1)
    seed_error, seeds = 0.0, len(verdicts)
    if seeds > 1:
        share = _noise_share(seeds - 1)
        between, noise = _between_seeds(verdicts)
        spread = math.sqrt(max(0.0, between - share * noise) / seeds)
        seed_error = _student_quantile(z, seeds - 1) * spread
        # The rest of the noise is in the variance between seeds already.
        variance = max(0.0, variance - (1 - share) * noise / seeds)
    size = mean * (1 - mean) / variance if variance > 0 else n
    middle = mean + z * z / (2 * size)
    half = z * math.sqrt(mean * (1 - mean) / size + (z / (2 * size)) ** 2)
    low = (middle - half) / (1 + z * z / size)
    high = (middle + half) / (1 + z * z / size)
    low_end = mean - math.hypot(mean - low, seed_error)
    high_end = mean + math.hypot(high - mean, seed_error)
    return max(0.0, low_end), min(1.0, high_end)


def seed_variance(verdicts: Verdicts, share: float = 1.0) -> float:
    """Return the variance of accuracy between seeds, less a share of what single images explain.

    NaN for one seed. With the full share it is that of seeds alone on average, and may be negative.
    """
    if len(verdicts) == 1:
        return math.nan
    between, noise = _between_seeds(verdicts)
    return between - share * noise


def _between_seeds(verdicts: Verdicts) -> tuple[float, float]:
    """Return the variance of accuracy between seeds, and how much of it is noise of images."""
    seeds, n = verdicts.shape
    by_seed, by_image = verdicts.mean(axis=1), verdicts.mean(axis=0)
    residual = verdicts - by_image - by_seed[:, None] + by_image.mean()
    noise = (residual**2).sum() / ((seeds - 1) * max(n - 1, 1))
    return float(by_seed.var(ddof=1)), float(noise / n)


def _noise_share(freedom: int) -> float:
    """Return the share of image noise to take off a variance with these degrees of freedom.

    CAUTION is from simulations (tests/test_rank.py): with 1.5 the interval of two seeds that differ
    much covers the truth in 91 %, with 2 that of two that do not in 99 %.
    """
    return 1 - CAUTION / (freedom + 1)


@dataclass(frozen=True)
class PairedRows:
    """Rows judged on the same images: the mean verdicts over seeds and the variance from seeds."""

    images: Array  # (rows, images)
    seeds: Array  # (rows,): variance of each row's mean from its seeds
    freedom: int  # degrees of freedom behind `seeds`; 0 where no row has several
    order: NDArray[np.intp]  # (rows,): position in an order that does not depend on the arguments'

    @classmethod
    def from_verdicts(cls, rows: Sequence[Verdicts]) -> PairedRows:
        """Pair rows over images. Raise ValueError for rows with other numbers of images."""
        counts = np.array([len(verdicts) for verdicts in rows])
        freedom = int((counts - 1).sum())
        share = _noise_share(freedom)
        reduced = np.array([seed_variance(verdicts, share) for verdicts in rows])
        by_seed = [verdicts.mean(axis=1) for verdicts in rows]
        full = [means.var(ddof=1) if means.size > 1 else 0.0 for means in by_seed]
        weights = (counts - 1) / max(freedom, 1)
        average = max(0.0, float((weights * np.nan_to_num(reduced)).sum()))
        single = float((weights * full).sum())
        variance = np.where(counts > 1, np.fmax(reduced, average), single) / counts
        by_content = sorted(range(len(rows)), key=lambda row: rows[row].tobytes())
        means = np.stack([verdicts.mean(axis=0) for verdicts in rows])
        return cls(means, variance, freedom, np.argsort(by_content))

    @property
    def means(self) -> Array:
        return np.asarray(self.images.mean(axis=1))

    @cached_property
    def shifts(self) -> NDArray[np.float32]:
        """(rows, draws): how far the means move in each draw.

        Images are resampled, alike for all rows, and seeds are drawn from a normal.
        """
        rows, n = self.images.shape
        count = int(np.clip(MAX_WORK // rows**2, MIN_DRAWS, MAX_DRAWS))
        centred = (self.images - self.means[:, None]).astype(np.float32)
        moved = centred @ _resample_counts(n)[:count].T.astype(np.float32) / n
        rng = np.random.default_rng(0)
        noise = rng.standard_normal((rows, count), dtype=np.float32)[self.order]
        return np.asarray(moved + noise * np.sqrt(self.seeds)[:, None].astype(np.float32))

    def better(self) -> NDArray[np.bool_]:
        """Return [a, b]: row a is significantly better than row b.

        One wrong claim in the whole task has a probability of 5 %. The largest studentised
        difference of all pairs in each draw gives the critical value, and once pairs are separated
        the others are held to a lower one (Romano & Wolf, Econometrica 73, 2005). The squared error
        of a difference is a squared distance between rows, and one critical value holds for all: so
        what is better than a better row is better.
        """
        gap = self.means[:, None] - self.means
        undecided = np.triu(self._error > 0, 1)
        separated = np.zeros_like(undecided)
        while undecided.any():
            new = undecided & (np.abs(gap) > self._significant(undecided))
            if not new.any():
                break
            separated |= new
            undecided &= ~new
        separated |= separated.T
        return np.asarray(separated & (gap > 0))

    def detectable_difference(self) -> float:
        """Return by how much two rows must differ to be told apart in POWER of cases.

        For half of the pairs it is less. NaN where no rows differ in any image.
        """
        from scipy.special import ndtri

        pairs = np.triu(self._error > 0, 1)
        if not pairs.any():
            return math.nan
        needed = self._significant(pairs) + float(ndtri(POWER)) * self._error
        return float(np.median(needed[pairs]))

    @cached_property
    def _squared_errors(self) -> tuple[Array, Array]:
        """(rows, rows) each: the squared error of a difference, from images and from seeds."""
        square = (self.images**2).sum(axis=1)
        # The second moment of the difference, which is the variance if the means are equal.
        images = square[:, None] + square - 2 * self.images @ self.images.T
        images = np.where(images > 1e-9, images, 0) / self.images.shape[1] ** 2
        return images, self.seeds[:, None] + self.seeds

    @cached_property
    def _error(self) -> Array:
        images, seeds = self._squared_errors
        return np.asarray(np.sqrt(images + seeds))

    def _significant(self, pairs: NDArray[np.bool_]) -> Array:
        """Return [a, b]: beyond which difference these pairs are told apart, all together."""
        images, seeds = self._squared_errors
        z = self._critical_value(pairs)
        return np.asarray(np.sqrt(z**2 * images + _student_quantile(z, self.freedom) ** 2 * seeds))

    def _critical_value(self, pairs: NDArray[np.bool_]) -> float:
        """Return what the largest studentised shift among `pairs` stays below in 95 % of draws."""
        top = np.zeros(self.shifts.shape[1], dtype=np.float32)
        for row in np.flatnonzero(pairs.any(axis=1)):
            partners = np.flatnonzero(pairs[row])
            scale = self._error[row, partners, None].astype(np.float32)
            moves = np.abs(self.shifts[partners] - self.shifts[row]) / scale
            np.maximum(top, moves.max(axis=0), out=top)
        return float(np.quantile(top, LEVEL, method="higher"))

    def win_probabilities(self) -> Array:
        """Return [a, b]: the share of draws in which row a is above row b; a tie counts half."""
        drawn = self.means[:, None].astype(np.float32) + self.shifts
        shares = np.empty((len(drawn), len(drawn)))
        for row, accuracies in enumerate(drawn):
            ahead = accuracies - drawn[row:]
            # Wins and wins or ties: the middle counts a tie half.
            wins = np.count_nonzero(ahead > TIE, axis=1) + np.count_nonzero(ahead >= -TIE, axis=1)
            shares[row, row:] = wins / (2 * drawn.shape[1])
            shares[row:, row] = 1 - shares[row, row:]
        return shares

    def difference(self, a: int, b: int) -> tuple[float, float, float]:
        """Return row a less row b with its 95 % interval, for this pair alone."""
        by_image = self.images[a] - self.images[b]
        images = by_image.var() / max(by_image.size - 1, 1)
        seeds = self.seeds[a] + self.seeds[b]
        gap = float(by_image.mean())
        if a == b or images + seeds == 0:
            return gap, gap, gap
        moves = np.abs(self.shifts[a] - self.shifts[b]) / math.sqrt(images + seeds)
        z = float(np.quantile(moves, LEVEL, method="higher"))
        half = math.sqrt(z**2 * images + _student_quantile(z, self.freedom) ** 2 * seeds)
        return gap, gap - half, gap + half


def difference_intervals(rows: Sequence[Verdicts]) -> list[tuple[float, float, float]]:
    """Return each further row less the first with its interval; all hold together in 95 %.

    The rows against one control of Dunnett (JASA 50, 1955), with the largest studentised shift of
    the paired bootstrap for his normal (single-step max-T; Romano & Wolf 2005). Where all rows have
    as many seeds, several, the seeds are blocks: rows[i][s] and rows[j][s] are of the same seed,
    and what a seed does to all rows alike is taken off.

    Args:
        rows: (seeds, images) each, the control first. Raise ValueError for other images.
    """
    paired = _pair_blocks(rows) if len({len(row) for row in rows}) == 1 else None
    paired = paired or PairedRows.from_verdicts(rows)
    gaps = paired.images[1:] - paired.images[0]
    n = gaps.shape[1]
    # Equal verdicts on n images do not make equal methods: one image may differ at least.
    images = np.maximum(gaps.var(axis=1) / max(n - 1, 1), 1 / n**2)
    seeds = paired.seeds[1:] + paired.seeds[0]
    moves = np.abs(paired.shifts[1:] - paired.shifts[0]) / np.sqrt(images + seeds)[:, None]
    z = float(np.quantile(moves.max(axis=0), LEVEL, method="higher"))
    half = np.sqrt(z**2 * images + _student_quantile(z, paired.freedom) ** 2 * seeds)
    means = gaps.mean(axis=1)
    return [*zip(means.tolist(), (means - half).tolist(), (means + half).tolist(), strict=True)]


def _pair_blocks(rows: Sequence[Verdicts]) -> PairedRows | None:
    """Pair rows over images and seeds; None for one row or one seed."""
    count, seeds = len(rows), len(rows[0])
    if count == 1 or seeds == 1:
        return None
    by_seed = np.array([row.mean(axis=1) for row in rows])
    common = by_seed.mean(axis=0) - by_seed.mean()
    own = by_seed - by_seed.mean(axis=1, keepdims=True) - common
    # The common part takes a share of each row's own deviations with it.
    scaled = own * math.sqrt(count / (count - 1))
    blocks = [
        row - mean[:, None] + mean.mean() + deviation[:, None]
        for row, mean, deviation in zip(rows, by_seed, scaled, strict=True)
    ]
    paired = PairedRows.from_verdicts(blocks)
    return replace(paired, freedom=(count - 1) * (seeds - 1))


def rank_ranges(better: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Return the first and the last rank that each row may have.

    The first is one more than the number of rows that are significantly better, the last the number
    of rows less those that are significantly worse.
    """
    firsts, lasts = 1 + better.sum(axis=0), len(better) - better.sum(axis=1)
    return [*zip(firsts.tolist(), lasts.tolist(), strict=True)]


def split_tiers(better: NDArray[np.bool_]) -> list[int]:
    """Return the tier of each row, from 1; rows are sorted by accuracy, best first.

    A tier ends before the first row from which on all are significantly worse than its own first.
    """
    tiers, first = [1], 0
    for row in range(1, len(better)):
        begins = bool(better[first, row:].all())
        first = row if begins else first
        tiers.append(tiers[-1] + begins)
    return tiers


@lru_cache(maxsize=2)
def _resample_counts(n: int) -> NDArray[np.uint8]:
    """Return (draws, images): how often each of n images is in a resample of n."""
    rng = np.random.default_rng(0)
    counts = np.empty((MAX_DRAWS, n), dtype=np.uint8)
    for draw in range(MAX_DRAWS):
        counts[draw] = np.bincount(rng.integers(n, size=n), minlength=n)
    return counts


def _student_quantile(z: float, freedom: int) -> float:
    """Return Student's quantile at the level at which the normal's is z; z without freedom."""
    from scipy.special import ndtr, stdtrit

    if not freedom:
        return z
    return float(-stdtrit(freedom, ndtr(-z)))
