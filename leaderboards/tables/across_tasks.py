"""All tasks of a suite together: mean positions, and the teacher's robustness that a row keeps."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import repeat

import numpy as np

from leaderboards.schema.fields import file_name
from leaderboards.stats import mean_positions
from leaderboards.stats.ranks import LEVEL
from leaderboards.tables.rows import Row, TaskTable

# AutoAttack accuracy from which a teacher has robustness that can be kept.
MIN_TEACHER_ACCURACY = 0.1


@dataclass(frozen=True)
class AcrossTasksRow:
    """One row over all tasks: AutoAttack accuracy and range of ranks by task.

    robustness_kept: mean over tasks; NaN where no task has a robust teacher to compare with.
    """

    label: str
    teacher: str
    mean_position: float
    scores: tuple[float, ...]
    ranks: tuple[tuple[int, int] | None, ...]
    robustness_kept: float
    marks: tuple[str, ...]


@dataclass(frozen=True)
class AcrossTasks:
    """Rows that have an AutoAttack accuracy in every task, by mean position.

    left_out: number of rows that are not in every task. p: of the Friedman test, or NaN.
    critical_difference: in mean positions.
    """

    tasks: tuple[str, ...]
    rows: tuple[AcrossTasksRow, ...]
    left_out: int
    p: float
    critical_difference: float

    @property
    def separates(self) -> bool:
        """Whether any two rows can be told apart."""
        span = self.rows[-1].mean_position - self.rows[0].mean_position
        return self.p < 1 - LEVEL and span > self.critical_difference

    @property
    def caption(self) -> str:
        """Meaning of the numbers, and the finding."""
        tasks = len(self.tasks)
        text = (
            f"Mean position by AutoAttack accuracy in {tasks} tasks: {'; '.join(self.tasks)}. "
            "Under each task is that accuracy in percent, beside it the range of ranks. "
            "Kept is the AutoAttack accuracy as a share of the teacher's, on the images that both "
            "were judged on, averaged over tasks."
        )
        if self.left_out:
            text += f" Left out are {self.left_out} rows that have no rank in some task."
        if math.isnan(self.p):
            return text
        finding = "" if self.separates else f" No two rows can be told apart over {tasks} tasks."
        return (
            f"{text}{finding} Friedman test: p = {self.p:.2g}; Nemenyi's critical difference at "
            f"95 %: {self.critical_difference:.1f} positions."
        )


def compare_across_tasks(
    tables: Sequence[TaskTable], teachers: TaskTable | None
) -> AcrossTasks | None:
    """Compare rows over the tasks in `tables`; None unless two rows or more are in two or more."""
    ranked = [table for table in tables if table.ranked]
    by_label: defaultdict[tuple[str, str], dict[int, Row]] = defaultdict(dict)
    for task, table in enumerate(ranked):
        for row in table.contenders:
            by_label[row.label, row.teacher][task] = row
    common = [[*rows.values()] for _, rows in sorted(by_label.items()) if len(rows) == len(ranked)]
    if len(ranked) < 2 or len(common) < 2:
        return None
    accuracies = np.array([[row.score for row in rows] for rows in common])
    positions = mean_positions.mean_positions(accuracies).tolist()
    entries = map(_make_row, common, positions, repeat(teachers))
    return AcrossTasks(
        tuple(table.title for table in ranked),
        tuple(sorted(entries, key=lambda entry: entry.mean_position)),
        len(by_label) - len(common),
        mean_positions.friedman_p(accuracies),
        mean_positions.critical_difference(len(common), len(ranked)),
    )


def _make_row(
    rows: Sequence[Row], mean_position: float, teachers: TaskTable | None
) -> AcrossTasksRow:
    shares = [robustness_kept(row, teachers) for row in rows]
    shares = [share for share in shares if not math.isnan(share)]
    return AcrossTasksRow(
        rows[0].label,
        rows[0].teacher,
        mean_position,
        tuple(row.score for row in rows),
        tuple(row.ranking.ranks for row in rows),
        sum(shares) / len(shares) if shares else math.nan,
        tuple(dict.fromkeys(mark for row in rows for mark in row.marks)),
    )


def robustness_kept(row: Row, teachers: TaskTable | None) -> float:
    """Return a row's share of the AutoAttack accuracy of its most robust recorded teacher.

    Verdicts are on the first test images, and both may have been judged on different numbers of
    them: those that both were judged on count. NaN if the teacher is under MIN_TEACHER_ACCURACY, or
    if another checkpoint of it taught.
    """
    teacher = _most_robust_teacher(row, teachers)
    if teacher is None:
        return math.nan
    for checkpoints in row.teacher_checkpoints:
        if teacher.checkpoints and checkpoints and checkpoints.isdisjoint(teacher.checkpoints):
            return math.nan
    student_images, teacher_images = row.ranking.image_accuracy, teacher.ranking.image_accuracy
    if student_images is None or teacher_images is None:
        return row.score / teacher.score
    count = min(student_images.size, teacher_images.size)
    teacher_accuracy = float(teacher_images[:count].mean())
    if not teacher_accuracy:
        return math.nan
    return float(student_images[:count].mean()) / teacher_accuracy


def _most_robust_teacher(row: Row, teachers: TaskTable | None) -> Row | None:
    """Return the most robust teacher of `row` that was made and judged under its protocol."""
    candidates = []
    for teacher in teachers.ranked if teachers else ():
        is_named = teacher_name(teacher) in row.teacher.split(" + ")
        same_protocol = teacher.dataset == row.dataset and not teacher.changed
        if is_named and same_protocol and teacher.score >= MIN_TEACHER_ACCURACY:
            candidates.append(teacher)
    return max(candidates, key=lambda teacher: teacher.score, default=None)


def teacher_name(teacher: Row) -> str:
    """Return how the rows of its students call a teacher."""
    return f"{file_name(teacher.student)}-{teacher.method}"


def usual_teacher(rows: Sequence[Row], teachers: TaskTable | None) -> Row | None:
    """Return the teacher that most rows distilled from, of two the robust one, if it is here."""
    names = [row.teacher.split(" + ")[0] for row in rows if row.teacher != "none"]
    usual = max(names, key=names.count, default="")
    for teacher in teachers.rows if teachers else ():
        same_protocol = teacher.dataset == rows[0].dataset and not teacher.changed
        if usual == teacher_name(teacher) and same_protocol:
            return teacher
    return None
