"""The accuracy of the rows of a task on each class: the worst one, with its interval."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from leaderboards.schema.metrics import (
    CLEAN,
    RANK_METRIC,
    WORST,
    Metric,
    accuracy_name,
    describe_metric,
)
from leaderboards.schema.packing import Classes, Verdicts
from leaderboards.schema.record import Record
from leaderboards.stats.ranks import accuracy_interval
from leaderboards.tables.analysis_tables import Runs
from leaderboards.tables.rows import Row, TaskTable

# Methods whose papers claim a fairer student than that of RSLAD, whose loss both weigh by class.
CLAIM_FAIRNESS = ("absld", "fair_rslad")
FAIRNESS_BASE = "rslad"
NO_LABELS = "the classes of the test images were not kept"
NO_VERDICTS = "not judged under AutoAttack"
NO_PREDICTIONS = "the predictions on clean images were not kept"
OTHER_IMAGES = "its seeds were judged on different images"


@dataclass(frozen=True)
class ClassSummary:
    """The accuracy on each class that has images, the mean over seeds.

    images: how many a class has. worst: the class of the lowest accuracy, of several the first.
    interval: its 95 % interval over its images and, with several, over seeds; as if the class had
    been named before anything was measured.
    """

    accuracies: dict[int, float]
    images: dict[int, int]
    worst: int
    interval: tuple[float, float]

    @property
    def lowest(self) -> float:
        return self.accuracies[self.worst]


@dataclass(frozen=True)
class ClassRow:
    """A row of a task, under AutoAttack and clean. reasons: why it lacks either, by metric."""

    row: Row
    summaries: dict[str, ClassSummary]
    reasons: dict[str, str]

    @property
    def claims_fairness(self) -> bool:
        return self.row.method in CLAIM_FAIRNESS

    def get(self, metric: str) -> ClassSummary | None:
        return self.summaries.get(metric)


@dataclass(frozen=True)
class ClassTable:
    """The rows of a task by the worst class under AutoAttack, best first.

    Rows that are not compared with the others come last, and those without a number.
    """

    task: TaskTable
    rows: tuple[ClassRow, ...]

    def measured(self, metric: str) -> list[ClassRow]:
        """Return the rows with an accuracy by class: CLEAN, or RANK_METRIC for AutoAttack."""
        return [row for row in self.rows if row.get(metric)]

    @cached_property
    def compared(self) -> list[ClassRow]:
        """The rows that have ranks, or all measured ones where none has."""
        measured = self.measured(RANK_METRIC)
        return [row for row in measured if row.row.ranking.ranks] or measured

    def images(self, metric: str) -> tuple[int, int]:
        """Return how many images the smallest and the largest class of any row have."""
        counts = [n for row in self.measured(metric) for n in row.summaries[metric].images.values()]
        return min(counts, default=0), max(counts, default=0)

    @property
    def claimants(self) -> list[tuple[int, ClassRow]]:
        """The compared rows that claim fairness, and their base, with their position from 1.

        Of the base the row with the default setting.
        """
        entries = []
        for position, row in enumerate(self.compared, start=1):
            is_base = row.row.label == FAIRNESS_BASE
            if row.claims_fairness or is_base:
                entries.append((position, row))
        return entries if any(row.claims_fairness for _, row in entries) else []

    @property
    def usual_worst(self) -> tuple[int, int]:
        """The class that is the worst of most compared rows, and of how many."""
        counts = Counter(row.summaries[RANK_METRIC].worst for row in self.compared)
        return max(counts.items(), key=lambda item: (item[1], -item[0]), default=(0, 0))

    @property
    def gaps(self) -> dict[str, list[str]]:
        """The labels of the rows that lack something, by what it is and why."""
        labels: dict[str, list[str]] = {}
        for row in self.rows:
            for metric, reason in row.reasons.items():
                text = f"{describe_metric(metric).label}: {reason}"
                labels.setdefault(text, []).append(row.row.label)
        return labels

    @property
    def other_attacks(self) -> list[Metric]:
        """The attacks whose accuracies by class do not follow from what records hold."""
        derived = {CLEAN, RANK_METRIC, WORST}
        names = [column.metric for column in self.task.columns if column.metric not in derived]
        best = accuracy_name("")
        return [describe_metric(name) for name in names if name.startswith(best)]


def build_class_table(table: TaskTable, runs: Runs) -> ClassTable | None:
    """Return the rows of a task by their worst class; None where no run says anything of one."""
    rows = []
    for row in table.rows:
        rows.append(_build_row(row, [runs[run_id]["record"] for run_id in row.run_ids]))
    if not any(row.summaries for row in rows):
        return None
    return ClassTable(table, tuple(sorted(rows, key=_order)))


def _order(row: ClassRow) -> tuple[bool, bool, float]:
    robust = row.get(RANK_METRIC)
    return robust is None, row.row.ranking.ranks is None, -robust.lowest if robust else 0.0


def _build_row(row: Row, records: Sequence[Record]) -> ClassRow:
    summaries, reasons = {}, {}
    for metric in (RANK_METRIC, CLEAN):
        summary = _summarise(records, metric)
        if isinstance(summary, str):
            reasons[metric] = summary
        else:
            summaries[metric] = summary
    return ClassRow(row, summaries, reasons)


def _summarise(records: Iterable[Record], metric: str) -> ClassSummary | str:
    """Summarise the runs that have verdicts and labels; return the reason where that fails."""
    labelled = [record for record in records if record.classes]
    if not labelled:
        return NO_LABELS
    read_verdicts = _robust_verdicts if metric == RANK_METRIC else _clean_verdicts
    judged = [pair for pair in map(read_verdicts, labelled) if pair]
    if not judged:
        return NO_VERDICTS if metric == RANK_METRIC else NO_PREDICTIONS
    labels = judged[0][0]
    if any(not np.array_equal(labels, others) for others, _ in judged):
        return OTHER_IMAGES
    return summarise_classes(labels, np.stack([verdicts for _, verdicts in judged]))


def _robust_verdicts(record: Record) -> tuple[Classes, Verdicts] | None:
    if not record.classes or not record.verdicts:
        return None
    survived = record.survived
    return record.classes.unpack_labels()[: survived.size], survived


def _clean_verdicts(record: Record) -> tuple[Classes, Verdicts] | None:
    predictions = record.classes.unpack_predictions() if record.classes else None
    if not record.classes or predictions is None:
        return None
    labels = record.classes.unpack_labels()
    return labels, predictions == labels


def summarise_classes(labels: Classes, verdicts: Verdicts) -> ClassSummary:
    """Summarise verdicts, (seeds, images), by the (images,) classes."""
    by_class = {int(label): verdicts[:, labels == label] for label in np.unique(labels)}
    accuracies = {label: float(judged.mean()) for label, judged in by_class.items()}
    worst = min(accuracies, key=accuracies.__getitem__)
    images = {label: judged.shape[1] for label, judged in by_class.items()}
    return ClassSummary(accuracies, images, worst, accuracy_interval(by_class[worst]))
