"""Which similarity goes with robustness: rank correlations over the runs of a task."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from leaderboards.schema import analysis
from leaderboards.schema.analysis import Group
from leaderboards.schema.metrics import RANK_METRIC, STUDENT_PASSES, describe_metric
from leaderboards.schema.record import Record
from leaderboards.stats.correlation import Correlation, correlation_within, rank_correlation
from leaderboards.tables.analysis_tables import Runs
from leaderboards.tables.rows import TaskTable


@dataclass(frozen=True)
class MeasureCorrelation:
    """How a measure goes with AutoAttack accuracy.

    distilled: over the runs with a teacher. attacked: over those of them that train on adversarial
    examples. within: over what the seeds of a method with a teacher differ by. None: too few
    methods.
    """

    metric: str
    group: Group
    distilled: Correlation | None
    attacked: Correlation | None
    within: Correlation | None

    @property
    def label(self) -> str:
        return analysis.measure_label(self.metric)

    @property
    def direction(self) -> str:
        """Which values are closer to the claim."""
        ascends = describe_metric(self.metric).higher_is_better
        return {True: "higher", False: "lower", None: "-"}[ascends]


def correlate_measures(table: TaskTable, runs: Runs) -> list[MeasureCorrelation]:
    """Return the measures that can be correlated, the strongest correlation first.

    Accuracies among the measures are left out: they are another attack's robust accuracy.
    """
    pairs = [(row, runs[run_id]) for row in table.rows for run_id in row.run_ids]
    present = {name for _, run in pairs for name in run["record"].metrics}
    methods = [row.method for row, _ in pairs]
    has_teacher = np.array([row.teacher != "none" for row, _ in pairs])
    attacked = np.array([trains_on_attacks(run["record"]) for _, run in pairs])
    robust = _values((run for _, run in pairs), RANK_METRIC)
    entries = []
    for group in analysis.GROUPS:
        for metric in analysis.metrics_of_group(sorted(present), group):
            if describe_metric(metric).unit == "%":
                continue
            values = _values((run for _, run in pairs), metric)
            distilled = np.where(has_teacher, values, np.nan)
            entries.append(
                MeasureCorrelation(
                    metric,
                    analysis.GROUPS[group],
                    rank_correlation(distilled, robust, methods),
                    rank_correlation(np.where(attacked, distilled, np.nan), robust, methods),
                    correlation_within(distilled, robust, methods),
                )
            )
    entries = [entry for entry in entries if entry.distilled]
    return sorted(entries, key=lambda entry: -abs(entry.distilled.value if entry.distilled else 0))


def trains_on_attacks(record: Record) -> bool:
    """Return whether a training step attacks: an image passes the student once an attack step."""
    passes: float = record.metrics.get(STUDENT_PASSES, math.nan)
    return passes > record.spec.inner_steps


def _values(runs: Iterable[Any], metric: str) -> Any:
    return np.array([run["record"].metrics.get(metric, np.nan) for run in runs])
