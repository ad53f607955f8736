"""Transfer across models: the same method from teachers to students of several families."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import fmean

from leaderboards.tables.across_tasks import robustness_kept, teacher_name
from leaderboards.tables.rows import Row, TaskTable
from leaderboards.tables.suite_tables import Section

# A version belongs to the name, a depth does not: mobilenetv2, resnetv2, but wrn of wrn28-10.
FAMILY = re.compile(r"[a-z]+v\d(?!\d)|[a-z]+")


@dataclass(frozen=True)
class ModelPair:
    """One row of a method: from a teacher's architecture to a student's."""

    section: Section
    row: Row
    teacher: str

    @property
    def teacher_family(self) -> str:
        return architecture_family(self.teacher)

    @property
    def student_family(self) -> str:
        return architecture_family(self.row.student)

    @property
    def kept(self) -> float:
        """The share of the teacher's AutoAttack accuracy; NaN where that cannot be said."""
        return robustness_kept(self.row, self.section.teachers)


@dataclass(frozen=True)
class ModelComparison:
    """The pairs of one data set under one version of a suite, by method and then by models."""

    section: Section
    dataset: str
    pairs: tuple[ModelPair, ...]

    @property
    def title(self) -> str:
        return f"{self.section.experiment}: {self.dataset}"

    @property
    def architectures(self) -> list[tuple[str, str]]:
        """Teacher and student of the pairs, by family."""
        names = {(pair.teacher_family, pair.teacher, pair.student_family, pair.row.student)
                 for pair in self.pairs}  # fmt: skip
        return [(teacher, student) for _, teacher, _, student in sorted(names)]

    @property
    def families(self) -> tuple[list[str], list[str]]:
        """Families of teachers and of students."""
        teachers = sorted({pair.teacher_family for pair in self.pairs})
        return teachers, sorted({pair.student_family for pair in self.pairs})

    def family_means(self, teacher: str, student: str) -> tuple[float, float, int]:
        """Return mean AutoAttack accuracy, mean share kept, and number of methods.

        Over the methods that have every pair of families, so that no pair is judged on others;
        if none has, over those that have this one.
        """
        methods = self._complete_methods or {pair.row.label for pair in self.pairs}
        families = teacher, student
        by_method: defaultdict[str, list[ModelPair]] = defaultdict(list)
        for pair in self.pairs:
            if (pair.teacher_family, pair.student_family) == families and pair.row.label in methods:
                by_method[pair.row.label].append(pair)
        scores = [fmean(pair.row.score for pair in pairs) for pairs in by_method.values()]
        shares = [_mean([pair.kept for pair in pairs]) for pairs in by_method.values()]
        return _mean(scores), _mean(shares), len(scores)

    @property
    def _complete_methods(self) -> set[str]:
        teachers, students = self.families
        wanted = len(teachers) * len(students)
        families = defaultdict(set)
        for pair in self.pairs:
            families[pair.row.label].add((pair.teacher_family, pair.student_family))
        return {label for label, pairs in families.items() if len(pairs) == wanted}


def architecture_family(name: str) -> str:
    """Return the family of an architecture: its letters before the depth.

    "resnet" of "resnet8-w4", "wrn" of "wrn28-10", "mobilenetv2", "vit" of "timm:vit_tiny".
    """
    match = FAMILY.search(name.rpartition(":")[2].lower())
    return match[0] if match else name


def compare_models(sections: Iterable[Section]) -> list[ModelComparison]:
    """Return, of each suite and data set, the methods with several teachers or student families.

    Several architectures of the robust teacher, or students of several families.
    """
    comparisons = []
    for section in sections:
        scored = [row for table in section.tables for row in table.ranked]
        scored = [row for row in scored if row.teacher != "none" and row.is_scored]
        scored.sort(key=lambda row: (row.dataset, row.label))
        for dataset, rows in groupby(scored, key=lambda row: row.dataset):
            pairs: list[ModelPair] = []
            for _, members in groupby(rows, key=lambda row: row.label):
                pairs += _pairs_of_method(section, [*members])
            if pairs:
                comparisons.append(ModelComparison(section, dataset, tuple(pairs)))
    return comparisons


def _pairs_of_method(section: Section, rows: Sequence[Row]) -> list[ModelPair]:
    pairs = [ModelPair(section, row, _teacher_architecture(row, section.teachers)) for row in rows]
    pairs.sort(key=lambda pair: (pair.teacher_family, pair.teacher, pair.row.student))
    several_teachers = len({pair.teacher for pair in pairs}) > 1
    return pairs if several_teachers or len({pair.student_family for pair in pairs}) > 1 else []


def _teacher_architecture(row: Row, teachers: TaskTable | None) -> str:
    """Return the architecture of a row's first teacher, the robust one where there are two."""
    name = row.teacher.split(" + ")[0]
    for teacher in teachers.rows if teachers else ():
        if name == teacher_name(teacher):
            return teacher.student
    # Methods have no hyphen in their names.
    return name.rpartition("-")[0] or name


def _mean(values: Sequence[float]) -> float:
    finite = [value for value in values if not math.isnan(value)]
    return fmean(finite) if finite else math.nan
