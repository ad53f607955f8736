"""Which rows of one task can be told apart: an interval for each, paired differences, ranks that are shared.

A row is an array of flags, one line a seed and one column a test image: whether the image survived AutoAttack. What is
estimated is the accuracy over all images that could have been drawn and all seeds that could have been used, so both
are sampled. Images are many, and are resampled with replacement, the same draw for every row: a paired bootstrap
(Efron & Tibshirani, An Introduction to the Bootstrap, 1993). Seeds are one to five, and resampling so few would show
(S - 1) / S of their variance at most: theirs is estimated as in a two-way analysis of variance, drawn from a normal,
and widened to the quantile of Student's t (Cochran & Cox, Experimental Designs, 1950). Of the noise of single images, which
two seeds show as well, the fewer seeds there are the less is taken off: where the difference falls below zero by chance, as
it often would, seeds would seem to do nothing.

A row's interval uses the row alone. With one seed it is about that one network. Where rows are compared, a seed variance is
the row's own or the average of the task, whichever is larger: of many rows, some have seeds that agree by chance, and
exactly those would be declared different. A row of one seed takes the average spread of the others, without the share
of single images taken off; where no row has several, networks are compared, not methods.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

CAUTION = 1.8
LEVEL = 0.95  # of an interval, and of all comparisons in a task together
DRAWS, FEWEST, WORK = (
    1000,
    200,
    40_000_000,
)  # resamples; of many rows fewer, so that pairs x resamples stay near WORK

Flags: TypeAlias = NDArray[np.bool_]
Array: TypeAlias = NDArray[np.float64]


def interval(flags: Flags) -> tuple[float, float]:
    """95 % interval of the accuracy of one row over images and, where it has several, over seeds.

    Wilson's over images, with as many independent ones as would vary as much, so that none of 100 is not certainty;
    Student's over seeds; the distances to their ends are added in squares (Zou & Donner, Stat. in Medicine 27, 2008).
    """
    images = flags.mean(axis=0)
    mean, n, z = float(images.mean()), images.size, _quantile()
    variance, seeds = float(images.var()) / max(n - 1, 1), 0.0
    if len(flags) > 1:
        count, share = len(flags), _taken_off(len(flags) - 1)
        whole, noise = _between_seeds(flags)
        seeds = _student(z, count - 1) * math.sqrt(max(0.0, whole - share * noise) / count)
        variance = max(
            0.0, variance - (1 - share) * noise / count
        )  # it is among the seeds' already
    size = mean * (1 - mean) / variance if variance > 0 else n
    middle, half = (
        mean + z * z / (2 * size),
        z * math.sqrt(mean * (1 - mean) / size + (z / (2 * size)) ** 2),
    )
    low, high = ((middle + side * half) / (1 + z * z / size) for side in (-1, 1))
    return max(0.0, mean - math.hypot(mean - low, seeds)), min(
        1.0, mean + math.hypot(high - mean, seeds)
    )


def seed_variance(flags: Flags, share: float = 1.0) -> float:
    """Variance of the accuracy between seeds, less a share of what single images explain; NaN for one seed.

    Nothing but that of seeds, on average, for the whole share; then it may be negative.
    """
    if len(flags) == 1:
        return math.nan
    whole, noise = _between_seeds(flags)
    return whole - share * noise


def _between_seeds(flags: Flags) -> tuple[float, float]:
    """Variance of the accuracy between two seeds or more, and how much of it is the noise of single images."""
    seeds, n = flags.shape
    by_seed, by_image = flags.mean(axis=1), flags.mean(axis=0)
    residual = flags - by_image - by_seed[:, None] + by_image.mean()
    noise = (residual**2).sum() / ((seeds - 1) * max(n - 1, 1))
    return float(by_seed.var(ddof=1)), float(noise / n)


def _taken_off(freedom: int) -> float:
    """The share of the noise of single images that may be taken off a variance with so many degrees of freedom.

    CAUTION is from simulations (tests/test_rank.py): with 1.5 the interval of two seeds that differ much covers the
    truth in 91 %, with 2 that of two that do not in 99 %.
    """
    return 1 - CAUTION / (freedom + 1)


@dataclass(frozen=True)
class Task:
    """Rows that were judged on the same images: the mean over seeds of each flag, and what seeds add to each mean."""

    images: Array  # row x image
    seeds: Array  # variance of each row's mean from its seeds
    freedom: int  # degrees of freedom behind `seeds`; 0 where no row has several
    order: NDArray[
        np.intp
    ]  # place of each row in an order that does not depend on how they were given

    @classmethod
    def of(cls, rows: Sequence[Flags]) -> Task:
        """Raises ValueError for rows with different numbers of images."""
        counts = np.array([len(flags) for flags in rows])
        freedom = int((counts - 1).sum())
        own = np.array([seed_variance(flags, _taken_off(freedom)) for flags in rows])
        whole = np.array(
            [flags.mean(axis=1).var(ddof=1) if len(flags) > 1 else 0.0 for flags in rows]
        )
        shares = (counts - 1) / max(freedom, 1)
        average, one = (
            max(0.0, float((shares * np.nan_to_num(own)).sum())),
            float((shares * whole).sum()),
        )
        variance = np.where(counts > 1, np.fmax(own, average), one) / counts
        order = np.argsort(sorted(range(len(rows)), key=lambda row: rows[row].tobytes()))
        return cls(np.stack([flags.mean(axis=0) for flags in rows]), variance, freedom, order)

    @property
    def means(self) -> Array:
        return np.asarray(self.images.mean(axis=1))

    @cached_property
    def draws(self) -> NDArray[np.float32]:
        """Row x draw: how far the means move when images are resampled, alike for all rows, and seeds are drawn anew."""
        rows, n = self.images.shape
        count = int(np.clip(WORK // rows**2, FEWEST, DRAWS))
        centred = (self.images - self.means[:, None]).astype(np.float32)
        moved = centred @ _resamples(n)[:count].T.astype(np.float32) / n
        noise = np.random.default_rng(0).standard_normal((rows, count), dtype=np.float32)[
            self.order
        ]
        return np.asarray(moved + noise * np.sqrt(self.seeds)[:, None].astype(np.float32))

    def better(self) -> NDArray[np.bool_]:
        """[a, b]: row a is significantly better than row b, with 5 % for a single wrong claim in the whole task.

        The largest studentised difference of all pairs in each draw gives the critical value, and once pairs are
        separated the others are held to a lower one (Romano & Wolf, Econometrica 73, 2005). The squared error of a
        difference is a squared distance between rows, and one critical value holds for all: so what is better than a
        better row is better, and rows that share a rank are never separated.
        """
        gap = self.means[:, None] - self.means
        square = (self.images**2).sum(axis=1)
        images = (
            square[:, None] + square - 2 * self.images @ self.images.T
        )  # second moment: the variance if equal
        images = np.where(images > 1e-9, images, 0) / self.images.shape[1] ** 2
        seeds = self.seeds[:, None] + self.seeds
        error = np.sqrt(images + seeds)
        open_ = np.triu(error > 0, 1)
        apart = np.zeros_like(open_)
        while open_.any():
            z = self._critical(error, open_)
            found = open_ & (gap**2 > z**2 * images + _student(z, self.freedom) ** 2 * seeds)
            if not found.any():
                break
            apart, open_ = apart | found, open_ & ~found
        apart |= apart.T
        return np.asarray(apart & (gap > 0))

    def _critical(self, error: Array, pairs: NDArray[np.bool_]) -> float:
        """What the largest studentised move among `pairs` stays below in 95 % of the draws."""
        top = np.zeros(self.draws.shape[1], dtype=np.float32)
        for row in np.flatnonzero(pairs.any(axis=1)):
            others = np.flatnonzero(pairs[row])
            moves = np.abs(self.draws[others] - self.draws[row]) / error[row, others, None].astype(
                np.float32
            )
            np.maximum(top, moves.max(axis=0), out=top)
        return float(np.quantile(top, LEVEL, method="higher"))

    def difference(self, a: int, b: int) -> tuple[float, float, float]:
        """Row a less row b with its 95 % interval, for this pair alone."""
        moved = self.images[a] - self.images[b]
        images, seeds = moved.var() / max(moved.size - 1, 1), self.seeds[a] + self.seeds[b]
        gap = float(moved.mean())
        if a == b or images + seeds == 0:
            return gap, gap, gap
        moves = np.abs(self.draws[a] - self.draws[b]) / math.sqrt(images + seeds)
        z = float(np.quantile(moves, LEVEL, method="higher"))
        half = math.sqrt(z**2 * images + _student(z, self.freedom) ** 2 * seeds)
        return gap, gap - half, gap + half


def ranks(better: NDArray[np.bool_]) -> list[int]:
    """One more than the number of rows that are significantly better."""
    return [1 + int(count) for count in better.sum(axis=0)]


@lru_cache(maxsize=2)
def _resamples(n: int) -> NDArray[np.uint8]:
    """Draw x image: how often each of n images is in a resample of n."""
    rng = np.random.default_rng(0)
    counts = [
        np.bincount(rng.integers(n, size=n), minlength=n).astype(np.uint8) for _ in range(DRAWS)
    ]
    return np.stack(counts)


@cache
def _quantile() -> float:
    from scipy.special import ndtri

    return float(ndtri((1 + LEVEL) / 2))


def _student(z: float, freedom: int) -> float:
    """Student's quantile at the level at which the normal's is z; z itself where there is nothing to widen."""
    from scipy.special import ndtr, stdtrit

    return float(-stdtrit(freedom, ndtr(-z))) if freedom else z
