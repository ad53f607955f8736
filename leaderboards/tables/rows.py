"""The parts of a table: rows, each a method with one setting over its seeds, and their table."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeAlias

from leaderboards.schema.metrics import CLEAN, RANK_METRIC, describe_metric
from leaderboards.stats.ranks import Array
from leaderboards.tables.published import Published, cite_sources

LEAST_SHOWN = 0.0005  # accuracy that does not show as 0.0 %
# Columns of `collect`'s frame for the runs of one row, a value for each seed.
SeedColumns: TypeAlias = dict[Any, list[Any]]


@dataclass(frozen=True)
class Column:
    """A metric and its heading; accuracies are drawn in percent, cost in minutes."""

    metric: str
    label: str


@dataclass(frozen=True)
class SeedSummary:
    """A metric over the seeds of a row: mean, sample deviation (NaN for n < 2) and count."""

    mean: float = math.nan
    sd: float = math.nan
    n: int = 0

    @classmethod
    def from_values(cls, values: Array) -> SeedSummary:
        """Summarise the values of single seeds, none of them NaN."""
        if not len(values):
            return cls()
        sd = float(values.std(ddof=1)) if len(values) > 1 else math.nan
        return cls(float(values.mean()), sd, len(values))


@dataclass(frozen=True)
class Ranking:
    """Ranks and interval of a row. Without verdicts there is only the reason.

    ranks: the first and the last that it may have; None also for a row that does not compete. tier:
    from 1, None without ranks. gap_to_first: the row of highest accuracy less this one, with its
    interval.
    image_accuracy: (images,), how often each image survives over the seeds.
    """

    ranks: tuple[int, int] | None = None
    tier: int | None = None
    interval: tuple[float, float] | None = None
    gap_to_first: tuple[float, float, float] | None = None
    unranked_reason: str = ""
    image_accuracy: Array | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Row:
    """One method with one setting.

    changed: what differs from the protocol of the other rows. flags: name of a sanity flag, how
    often it was raised and on what evidence. marks: doubts by which a reader may hide rows.
    checkpoints: sha256 of the best ones. teacher_checkpoints: sha256 for each run, if recorded.
    drop: the accuracy lost from the best checkpoint to the last; NaN where not measured.
    """

    method: str
    variant: str
    changed: str
    dataset: str
    student: str
    teacher: str
    seeds: int
    summaries: dict[str, SeedSummary]
    commands: tuple[str, ...]
    notes: tuple[str, ...]
    missing: tuple[str, ...]
    flags: tuple[tuple[str, str], ...]
    published: Published | None
    marks: tuple[str, ...]
    run_ids: tuple[str, ...]
    checkpoints: frozenset[str]
    teacher_checkpoints: tuple[frozenset[str], ...]
    ranking: Ranking = field(default_factory=Ranking)
    drop: float = math.nan

    @property
    def remarks(self) -> list[str]:
        """Notes and flags as text."""
        return [*self.notes, *(f"flag {name} {text}" for name, text in self.flags)]

    @property
    def score(self) -> float:
        """The accuracy that rows are sorted by."""
        return self[RANK_METRIC].mean

    @property
    def is_scored(self) -> bool:
        return self[RANK_METRIC].n > 0

    @property
    def balance(self) -> float:
        """The harmonic mean of clean and AutoAttack accuracy; NaN unless both were measured."""
        clean, robust = self[CLEAN].mean, self.score
        return 2 * clean * robust / (clean + robust) if clean + robust else math.nan

    @property
    def setting(self) -> str:
        return "; ".join(filter(None, (self.variant, self.changed)))

    @property
    def label(self) -> str:
        return f"{self.method} ({self.setting})" if self.setting else self.method

    def __getitem__(self, metric: str) -> SeedSummary:
        return self.summaries.get(metric, SeedSummary())


@dataclass(frozen=True)
class Comparison:
    """Rows with ranks against each other.

    win_probabilities: [a, b], how likely row a is more accurate than row b. detectable: by how much
    two must differ to be told apart in four of five cases; NaN where no verdicts differ.
    """

    win_probabilities: Array
    detectable: float


@dataclass(frozen=True)
class TaskTable:
    """Rows of one dataset and one student: `ranked` by AutoAttack, rows with no rank last.

    `incomplete` rows have no AutoAttack. The teachers of a suite are one table for reference: all
    are in `ranked` and have no rank.
    evidence: how many images, and which differences they can tell. explanation: of ranks and
    brackets. comparison: of the contenders; None without ranks.
    """

    title: str
    columns: tuple[Column, ...]
    ranked: tuple[Row, ...]
    incomplete: tuple[Row, ...]
    evidence: str
    explanation: str
    of_teachers: bool = False
    comparison: Comparison | None = field(default=None, compare=False, repr=False)

    @property
    def caption(self) -> str:
        """What stands below the whole table."""
        return self.evidence + self.explanation

    @property
    def rows(self) -> tuple[Row, ...]:
        return (*self.ranked, *self.incomplete)

    @cached_property
    def contenders(self) -> tuple[Row, ...]:
        """The rows that can be best at something: those with a rank; if none has, all ranked."""
        return tuple(row for row in self.ranked if row.ranking.ranks) or self.ranked

    @cached_property
    def leaders(self) -> list[Row]:
        """The rows that none is significantly better than; without ranks, the most accurate one.

        A row whose accuracy shows as 0.0 % leads nothing.
        """
        able = [row for row in self.contenders if row.score >= LEAST_SHOWN]
        return [row for row in able if row.ranking.ranks and row.ranking.ranks[0] == 1] or able[:1]

    @property
    def tiers(self) -> int:
        """Number of tiers; 0 without ranks."""
        return max((row.ranking.tier or 0 for row in self.ranked), default=0)

    @property
    def heads(self) -> tuple[str, ...]:
        middle = ("Data", "Network") if self.of_teachers else ("Teacher",)
        return "Method", *middle, "Seeds"

    def lead(self, row: Row) -> tuple[str, ...]:
        """Return the texts under `heads`."""
        middle = (row.dataset, row.student) if self.of_teachers else (row.teacher,)
        return row.label, *middle, str(row.seeds)

    @property
    def footnote(self) -> str:
        """The explanation of published values; "" without any, and then they have no column."""
        return cite_sources(row.published for row in self.ranked)

    def best(self, column: Column) -> float:
        """Return the highest mean of an accuracy; NaN for cost and where none is the best.

        None is where under two rows have a mean, and where the highest shows as 0.0 %.
        """
        return self._best[column.metric]

    @cached_property
    def _best(self) -> dict[str, float]:
        best = dict.fromkeys((column.metric for column in self.columns), math.nan)
        for metric in best:
            means = [row[metric].mean for row in self.contenders if row[metric].n]
            ascends = describe_metric(metric).higher_is_better
            if ascends and len(means) > 1 and max(means) >= LEAST_SHOWN:
                best[metric] = max(means)
        return best
