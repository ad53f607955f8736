"""What was measured of each row beside accuracy: a table for each group of measures of a task."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from typing import Any, TypeAlias

import numpy as np

from leaderboards.schema import analysis
from leaderboards.schema.analysis import GROUPS, Group
from leaderboards.schema.metrics import describe_metric
from leaderboards.schema.record import Record
from leaderboards.tables.rows import Column, Row, SeedSummary, TaskTable

Runs: TypeAlias = Mapping[str, Mapping[str, Any]]  # rows of `collect`'s frame by run id
NOT_ANALYSED = "not analysed"
NOT_MEASURED = "not measured"
MAX_NAMED = 3  # metrics of a gap that are named, not counted


@dataclass(frozen=True)
class AnalysisTable:
    """The measures of a group over the rows of a task.

    table: the task's, with the measures as its columns and among the summaries of its rows.
    main: the metrics that are shown at first. reasons: why a row lacks a metric, by the ids of its
    runs and the metric.
    """

    group: Group
    table: TaskTable
    main: tuple[str, ...]
    reasons: Mapping[tuple[str, ...], Mapping[str, str]]

    @cached_property
    def gaps(self) -> dict[str, list[str]]:
        """The labels of the rows that lack something, by what they lack and the reason."""
        labels: dict[str, list[str]] = {}
        for row in self.table.rows:
            lacking: dict[str, list[str]] = {}
            for metric, reason in self.reasons[row.run_ids].items():
                lacking.setdefault(reason, []).append(metric)
            for reason, metrics in lacking.items():
                text = f"{self._name_metrics(metrics)}{reason}"
                labels.setdefault(text, []).append(row.label)
        return labels

    def _name_metrics(self, metrics: Sequence[str]) -> str:
        """Return "CKA, stage 1, clean: ", or the number of many; "" for all of the group."""
        if len(metrics) >= len(self.table.columns):
            return ""
        if len(metrics) > MAX_NAMED:
            return f"{len(metrics)} measures: "
        return f"{'; '.join(map(analysis.measure_label, metrics))}: "

    @property
    def measured(self) -> list[Row]:
        """The rows with any measure of the group."""
        columns = [column.metric for column in self.table.columns]
        return [row for row in self.table.rows if any(row[metric].n for metric in columns)]

    @cached_property
    def spans(self) -> dict[str, tuple[float, float]]:
        """The lowest and the highest mean of each metric."""
        means = {
            column.metric: [row[column.metric].mean for row in self.table.rows]
            for column in self.table.columns
        }
        return {
            name: (_finite(min, values), _finite(max, values)) for name, values in means.items()
        }

    def share(self, row: Row, metric: str) -> float:
        """Return how close to the claim a row is, from 0 to 1 over the rows; NaN for neither."""
        low, high = self.spans[metric]
        ascends = describe_metric(metric).higher_is_better
        if ascends is None or not row[metric].n or low == high:
            return math.nan
        share = (row[metric].mean - low) / (high - low)
        return share if ascends else 1 - share

    @cached_property
    def shares(self) -> dict[str, list[float]]:
        """The shares of all rows that have one, by metric."""
        columns = [column.metric for column in self.table.columns]
        shares = {name: [self.share(row, name) for row in self.table.rows] for name in columns}
        return {name: [x for x in values if x == x] for name, values in shares.items()}

    def position(self, row: Row, metric: str) -> tuple[int, int] | None:
        """Return the position of a row by a metric, closest to the claim first, and of how many."""
        share = self.share(row, metric)
        if math.isnan(share):
            return None
        better = sum(other > share for other in self.shares[metric])
        return 1 + better, len(self.shares[metric])


def is_analysed(rows: Iterable[Row], runs: Runs) -> bool:
    """Return whether any run of the rows was analysed."""
    return any(runs[run_id]["record"].analysis for row in rows for run_id in row.run_ids)


def build_analysis(table: TaskTable, runs: Runs) -> dict[str, AnalysisTable]:
    """Return a table for each group of which a run has a measure or says why it has none."""
    records = {
        row.run_ids: [runs[run_id]["record"] for run_id in row.run_ids] for row in table.rows
    }
    present, gaps = set[str](), set[str]()
    for record in chain.from_iterable(records.values()):
        present |= {name for name in record.metrics if name.startswith(analysis.ANALYSIS)}
        if record.analysis:
            gaps |= {name.partition("/")[0] for name in record.analysis.gaps}
    tables = {}
    for name in GROUPS:
        metrics = analysis.metrics_of_group(sorted(present), name)
        if metrics or name in gaps:
            tables[name] = _build_table(table, name, metrics, records)
    return tables


def _build_table(
    table: TaskTable,
    group: str,
    metrics: Sequence[str],
    records: Mapping[tuple[str, ...], Sequence[Record]],
) -> AnalysisTable:
    def measure(row: Row) -> Row:
        return replace(row, summaries=row.summaries | _summarise(records[row.run_ids], metrics))

    ranked, incomplete = tuple(map(measure, table.ranked)), tuple(map(measure, table.incomplete))
    columns = tuple(Column(metric, analysis.measure_label(metric)) for metric in metrics)
    measured = replace(table, columns=columns, ranked=ranked, incomplete=incomplete)
    reasons: defaultdict[tuple[str, ...], dict[str, str]] = defaultdict(dict)
    # Without any metric the reasons are those of the group.
    wanted = metrics or [analysis.ANALYSIS + group]
    for row in measured.rows:
        for metric in [name for name in wanted if not row[name].n]:
            reasons[row.run_ids][metric] = _reason(records[row.run_ids], metric)
    main = tuple(analysis.main_metrics(metrics, group))
    return AnalysisTable(GROUPS[group], measured, main, reasons)


def _summarise(records: Sequence[Record], metrics: Iterable[str]) -> dict[str, SeedSummary]:
    summaries = {}
    for metric in metrics:
        values = [record.metrics[metric] for record in records if metric in record.metrics]
        summaries[metric] = SeedSummary.from_values(np.array(values))
    return summaries


def _reason(records: Iterable[Record], metric: str) -> str:
    analyses = [record.analysis for record in records if record.analysis]
    if not analyses:
        return NOT_ANALYSED
    reasons = [analysis.gap_reason(kept.gaps, metric) for kept in analyses]
    return next(filter(None, reasons), NOT_MEASURED)


def _finite(choose: Any, values: Iterable[float]) -> float:
    return float(choose((value for value in values if math.isfinite(value)), default=math.nan))
