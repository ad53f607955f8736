"""All tasks of a suite together: mean ranks, the share of the teacher's robustness that is kept, Friedman and Nemenyi.

As Demšar (Statistical Comparisons of Classifiers over Multiple Data Sets, JMLR 7, 2006) compares classifiers: within a
task the rows are ranked by accuracy, ties by their middle; the Friedman test asks whether mean ranks differ at all, and
two rows do where their mean ranks lie further apart than Nemenyi's critical difference. A task counts once, however
many images and seeds it has, so two tasks show next to nothing; the paired comparison inside a task is the sharper one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from leaderboards.stats.rank import LEVEL
from leaderboards.tables.rows import Group, Row

ROBUST = 0.1  # AutoAttack accuracy from which a teacher has robustness that could be kept


@dataclass(frozen=True)
class Entry:
    """One row over all tasks."""

    label: str
    teacher: str
    mean_rank: float
    scores: tuple[float, ...]  # AutoAttack accuracy, by task
    ranks: tuple[int | None, ...]  # shared ranks, by task
    kept: float  # AutoAttack accuracy as a share of the teacher's, averaged over tasks; NaN without such a teacher
    marks: tuple[str, ...]


@dataclass(frozen=True)
class Across:
    """Rows that have an AutoAttack accuracy in every task, by mean rank."""

    tasks: tuple[str, ...]
    entries: tuple[Entry, ...]
    left_out: int  # rows that are not in every task
    p: float  # of the Friedman test; NaN for fewer than three rows, or none that differ
    critical: float  # mean ranks

    @property
    def caption(self) -> str:
        """What the numbers mean and what they show."""
        rows = len(self.entries)
        said = f"Mean rank by AutoAttack accuracy over {len(self.tasks)} tasks: {'; '.join(self.tasks)}. "
        said += "Under each task is that accuracy in percent, its rank beside it. "
        said += "Kept is the AutoAttack accuracy as a share of the teacher's, on the images that both were judged on, "
        said += "averaged over tasks."
        if self.left_out:
            said += f" Left out are {self.left_out} rows that have no rank in some task."
        if math.isnan(self.p):
            return said
        verdict = "differ" if self.p < 1 - LEVEL else "cannot be shown to differ"
        said += f" Friedman test of {rows} rows over {len(self.tasks)} tasks: p = {self.p:.2g}, mean ranks {verdict}."
        return f"{said} Nemenyi's critical difference at 95 %: {self.critical:.1f} ranks."


def across(groups: Sequence[Group], teachers: Group | None) -> Across | None:
    """The tasks in `groups` together; None unless two rows or more are in two tasks or more."""
    tables = [
        {(row.label, row.teacher): row for row in group.contenders}
        for group in groups
        if group.ranked
    ]
    every = {key for table in tables for key in table}
    common = sorted(key for key in every if all(key in table for table in tables))
    if len(tables) < 2 or len(common) < 2:
        return None
    import numpy as np
    from scipy.stats import rankdata

    rows = [[table[key] for table in tables] for key in common]
    scores = np.array([[-row.score for row in line] for line in rows])
    means = rankdata(scores, axis=0).mean(axis=1)
    entries = [_entry(line, float(mean), teachers) for line, mean in zip(rows, means, strict=True)]
    return Across(
        tuple(group.title for group in groups if group.ranked),
        tuple(sorted(entries, key=lambda entry: entry.mean_rank)),
        len(every) - len(common),
        friedman(scores.tolist()),
        nemenyi(len(common), len(tables)),
    )


def friedman(scores: Sequence[Sequence[float]]) -> float:
    """p of the Friedman test; a line a row, a column a task. NaN for fewer than three rows or none that differ."""
    from scipy.stats import friedmanchisquare

    if len(scores) < 3 or all(len(set(task)) == 1 for task in zip(*scores, strict=True)):
        return math.nan
    return float(friedmanchisquare(*scores).pvalue)


@cache
def nemenyi(rows: int, tasks: int) -> float:
    """The difference of mean ranks from which two of `rows` rows differ at 95 %, all pairs together."""
    from scipy.stats import studentized_range

    q = float(studentized_range.ppf(LEVEL, rows, math.inf)) / math.sqrt(2)
    return q * math.sqrt(rows * (rows + 1) / (6 * tasks))


def together(entries: Sequence[Entry], critical: float) -> list[tuple[float, float]]:
    """The longest runs of mean ranks, ascending, whose ends are not further apart than `critical`."""
    ranks = [entry.mean_rank for entry in entries]
    spans: list[tuple[float, float]] = []
    for start in ranks:
        end = max(other for other in ranks if other - start <= critical)
        if end > start and (not spans or end > spans[-1][1]):
            spans.append((start, end))
    return spans


def _entry(rows: Sequence[Row], mean_rank: float, teachers: Group | None) -> Entry:
    shares = [share for row in rows if not math.isnan(share := kept(row, teachers))]
    return Entry(
        rows[0].label,
        rows[0].teacher,
        mean_rank,
        tuple(row.score for row in rows),
        tuple(row.standing.rank for row in rows),
        sum(shares) / len(shares) if shares else math.nan,
        tuple(dict.fromkeys(mark for row in rows for mark in row.marks)),
    )


def kept(row: Row, teachers: Group | None) -> float:
    """The share of its most robust recorded teacher's AutoAttack accuracy that a row has; NaN if that is under ROBUST.

    Verdicts are on the first test images, and the two may have been judged on different numbers of them: those that both
    were judged on count. A teacher that was made or judged under another protocol is none; NaN too if another
    checkpoint of it taught.
    """
    named = row.teacher.split(" + ")
    found = [
        teacher
        for teacher in (teachers.ranked if teachers else ())
        if teacher.dataset == row.dataset
        and f"{teacher.student}-{teacher.method}" in named
        and not teacher.changed
    ]
    teacher = max(
        (one for one in found if one.score >= ROBUST), key=lambda one: one.score, default=None
    )
    if teacher is None or (
        teacher.weights and any(some and some.isdisjoint(teacher.weights) for some in row.taught)
    ):
        return math.nan
    mine, others = row.standing.images, teacher.standing.images
    if mine is None or others is None:
        return row.score / teacher.score
    both = min(mine.size, others.size)
    whole = float(others[:both].mean())
    return float(mine[:both].mean()) / whole if whole else math.nan
