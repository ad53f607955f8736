"""What a table is made of: rows, each one method with one setting over its seeds, and the groups in which they compete."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

from leaderboards.tables import published
from leaderboards.tables.published import Published

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

RANK = "test/aa"  # the ranking number: AutoAttack on the checkpoint that validation chose
LABELS = {
    "clean": "Clean",
    "aa": "AutoAttack",
    "worst": "Worst",
    "fgsm": "FGSM",
    "pgd20": "PGD-20",
    "pgd20_trades": "PGD-20 (0.003)",
    "cw_inf": "CW-inf",
}
CHECKPOINTS = {"test_last": "last", "test_ema": "EMA", "test_swa": "SWA"}
SECONDS = "cost/train_seconds"

Run: TypeAlias = dict[Any, Any]  # one line of store.collect's frame, as far as its row needs it


@dataclass(frozen=True)
class Column:
    """A metric and its heading; accuracies are drawn in percent, cost in minutes."""

    metric: str
    label: str


@dataclass(frozen=True)
class Cell:
    """A metric over the seeds of a row: mean and sample standard deviation (NaN for fewer than two values)."""

    mean: float
    sd: float
    n: int


@dataclass(frozen=True)
class Standing:
    """Accuracies in [0, 1]. Nothing but `why` where verdicts are missing; no rank for rows that do not compete."""

    rank: int | None = None
    interval: tuple[float, float] | None = None
    behind: tuple[float, float, float] | None = (
        None  # the row of highest accuracy less this one, with its interval
    )
    why: str = ""  # there is no rank
    images: NDArray[np.float64] | None = field(
        default=None, compare=False, repr=False
    )  # how often each survives


@dataclass(frozen=True)
class Row:
    """One method with one setting; `changed` names what differs from the protocol of the rows around it."""

    method: str
    variant: str
    changed: str
    dataset: str
    student: str
    teacher: str
    seeds: int
    cells: dict[str, Cell]
    commands: tuple[str, ...]
    notes: tuple[str, ...]
    missing: tuple[str, ...] = ()
    flags: tuple[
        tuple[str, str], ...
    ] = ()  # name of a sanity flag, how often it was raised and on what evidence
    published: Published | None = None  # never among the cells: nothing here measured it
    standing: Standing = field(default_factory=Standing)
    marks: tuple[str, ...] = ()  # why a reader may want to look at the others alone
    run_ids: tuple[str, ...] = ()
    weights: frozenset[str] = frozenset()  # sha256 of its best checkpoints
    taught: tuple[
        frozenset[str], ...
    ] = ()  # of the teachers' of each run; none where they were not recorded

    @property
    def remarks(self) -> list[str]:
        """Notes and flags as text."""
        return [*self.notes, *(f"flag {name} {text}" for name, text in self.flags)]

    @property
    def score(self) -> float:
        """What rows are sorted by."""
        return self[RANK].mean

    @property
    def label(self) -> str:
        setting = "; ".join(filter(None, (self.variant, self.changed)))
        return f"{self.method} ({setting})" if setting else self.method

    def __getitem__(self, metric: str) -> Cell:
        return self.cells.get(metric, Cell(math.nan, math.nan, 0))


@dataclass(frozen=True)
class Group:
    """Rows of one dataset and one student: `ranked` by AutoAttack, those without a rank last, `incomplete` without it.

    The teachers of a suite are one group, for reference: all of them are listed in `ranked`, and have no rank.
    """

    title: str
    columns: tuple[Column, ...]
    ranked: tuple[Row, ...]
    incomplete: tuple[Row, ...]
    caption: str
    of_teachers: bool = False

    @property
    def rows(self) -> tuple[Row, ...]:
        return (*self.ranked, *self.incomplete)

    @cached_property
    def contenders(self) -> tuple[Row, ...]:
        """Rows that have a rank; where none has, all with an AutoAttack accuracy. No other row is best at anything."""
        scored = [row for row in self.ranked if row[RANK].n or self.of_teachers]
        return tuple(row for row in scored if row.standing.rank) or tuple(scored)

    @property
    def heads(self) -> tuple[str, ...]:
        return (
            ("Method", "Data", "Network", "Seeds")
            if self.of_teachers
            else ("Method", "Teacher", "Seeds")
        )

    def lead(self, row: Row) -> tuple[str, ...]:
        """What stands under `heads`."""
        middle = (row.dataset, row.student) if self.of_teachers else (row.teacher,)
        return (row.label, *middle, str(row.seeds))

    @property
    def footnote(self) -> str:
        """What the published values of the ranked rows are; "" where there are none, and then no column for them."""
        return published.footnote(row.published for row in self.ranked)

    def best(self, column: Column) -> float:
        """The highest mean of an accuracy among contenders; NaN for cost and for a lone row."""
        return self._best[column.metric]

    @cached_property
    def _best(self) -> dict[str, float]:
        found = {}
        for metric in (column.metric for column in self.columns):
            means = [row[metric].mean for row in self.contenders if row[metric].n]
            found[metric] = max(means) if len(means) > 1 and metric != SECONDS else math.nan
        return found
