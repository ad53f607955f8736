"""Whose adversarial examples fool whom: the students of a task and their teacher."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from leaderboards.schema.analysis import TEACHER_KEY_DIGITS, TRANSFERABILITY, measure_name
from leaderboards.schema.record import Record
from leaderboards.stats.ranks import Array
from leaderboards.tables.analysis_tables import Runs
from leaderboards.tables.rows import TaskTable

TEACHER = "teacher"
FOOLS_TEACHER = measure_name(TRANSFERABILITY, "fools_teacher")
# There is no room for more, and a page grows with their square.
MAX_STUDENTS = 40


@dataclass(frozen=True)
class TransferMatrix:
    """The teacher, if there was one, and students, the most robust first.

    rates: [a, b], the share of images that b gets wrong on the adversarial examples of a; where b
    is the teacher, of those that it classifies rightly without attack. A mean over seeds; NaN where
    none was measured.
    """

    names: tuple[str, ...]
    rates: Array


def build_matrix(table: TaskTable, labels: Iterable[str], runs: Runs) -> TransferMatrix | None:
    """Return the matrix of the rows of a task, None where no network met another's examples.

    labels: of the rows.
    """
    rows = table.rows[:MAX_STUDENTS]
    # The teacher is network 0.
    names = [TEACHER, *labels][: len(rows) + 1]
    members = [[runs[run_id]["record"] for run_id in row.run_ids] for row in rows]
    position = {
        record.spec_id: number
        for number, records in enumerate(members, start=1)
        for record in records
    }
    rates: defaultdict[tuple[int, int], list[float]] = defaultdict(list)
    for number, records in enumerate(members, start=1):
        for record in records:
            for pair, rate in _rates(record, number, position):
                rates[pair].append(rate)
    matrix = np.full((len(names), len(names)), math.nan)
    for pair, values in rates.items():
        matrix[pair] = np.mean(values)
    met = ~np.isnan(matrix)
    kept = met.any(axis=0) | met.any(axis=1)
    if kept.sum() < 2:
        return None
    shown = tuple(name for name, is_kept in zip(names, kept, strict=True) if is_kept)
    return TransferMatrix(shown, matrix[kept][:, kept])


def _rates(
    record: Record, number: int, position: Mapping[str, int]
) -> Iterator[tuple[tuple[int, int], float]]:
    """Yield (whose examples, whom they fool) and how often, of what a record holds."""
    if not record.analysis:
        return
    sources = {record.analysis.teacher_sha256[:TEACHER_KEY_DIGITS]: 0, **position}
    for key, accuracy in record.analysis.against.items():
        if key in sources:
            yield (sources[key], number), 1 - accuracy
    if FOOLS_TEACHER in record.metrics:
        yield (number, 0), record.metrics[FOOLS_TEACHER]
