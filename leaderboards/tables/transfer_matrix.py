"""Whose adversarial examples fool whom: the students of a task and their teacher."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

import numpy as np

from leaderboards.schema.analysis import TRANSFERABILITY, measure_name
from leaderboards.schema.record import Record
from leaderboards.stats.ranks import Array
from leaderboards.tables.across_tasks import teacher_name
from leaderboards.tables.analysis_tables import Runs
from leaderboards.tables.rows import Row, TaskTable

TEACHER = "teacher"
# There is no room for more, and a page grows with their square.
MAX_NETWORKS = 41


@dataclass(frozen=True)
class TransferMatrix:
    """rates: [a, b], the share of images that b gets wrong on the adversarial examples of a.

    A mean over pairs of seeds; NaN where none was measured.
    """

    names: tuple[str, ...]
    rates: Array


def build_matrix(
    table: TaskTable, labels: Iterable[str], teachers: TaskTable | None, runs: Runs
) -> TransferMatrix | None:
    """Return the matrix of the rows of a task, most robust first, with their teacher before them.

    None unless two networks met. labels: of the rows.
    """
    rows = table.rows[: MAX_NETWORKS - 1]
    records = [[runs[run_id]["record"] for run_id in row.run_ids] for row in rows]
    teacher_ids = chain.from_iterable(row.run_ids for row in teachers_of(rows, teachers))
    networks = [[runs[run_id]["record"] for run_id in teacher_ids], *records]
    names = [TEACHER, *labels][: len(networks)]
    position = {record.spec_id: i for i, members in enumerate(networks) for record in members}
    rates: defaultdict[tuple[int, int], list[float]] = defaultdict(list)
    for victim, members in enumerate(networks):
        for record in members:
            for source, accuracy in _accuracies(record, position):
                rates[source, victim].append(1 - accuracy)
    matrix = np.full((len(networks), len(networks)), math.nan)
    for pair, values in rates.items():
        matrix[pair] = np.mean(values)
    met = ~np.isnan(matrix)
    kept = met.any(axis=0) | met.any(axis=1)
    if kept.sum() < 2:
        return None
    shown = tuple(name for name, is_kept in zip(names, kept, strict=True) if is_kept)
    return TransferMatrix(shown, matrix[kept][:, kept])


def _accuracies(record: Record, position: dict[str, int]) -> Iterator[tuple[int, float]]:
    """Yield (network, accuracy on its adversarial examples); the teacher is network 0."""
    if not record.analysis:
        return
    for spec_id, accuracy in record.analysis.against.items():
        if position.get(spec_id):
            yield position[spec_id], accuracy
    resists = record.metrics.get(measure_name(TRANSFERABILITY, "resists_teacher"))
    if resists is not None:
        yield 0, resists


def teachers_of(rows: Iterable[Row], teachers: TaskTable | None) -> Iterator[Row]:
    """Yield the teachers that most rows distilled from: the first of each row's, the robust one."""
    names = [row.teacher.split(" + ")[0] for row in rows if row.teacher != "none"]
    usual = max(names, key=names.count, default="")
    for teacher in teachers.rows if teachers else ():
        if usual == teacher_name(teacher) and not teacher.changed:
            yield teacher
