"""The tables of the analysis as files: CSV and JSON in tables/."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from leaderboards.render import csv_tables
from leaderboards.render.json_tables import SETTING
from leaderboards.render.site.analysis_pages import WHAT_TEACHES, transfer_matrix
from leaderboards.render.site.site_map import Site, Task
from leaderboards.schema import analysis
from leaderboards.schema.metrics import RANK_METRIC
from leaderboards.tables.analysis_tables import AnalysisTable
from leaderboards.tables.model_pairs import ModelComparison
from leaderboards.tables.rows import Row
from leaderboards.tables.transfer_matrix import TransferMatrix
from leaderboards.tables.what_teaches import MeasureCorrelation

# The version changes with the meaning of a field.
SCHEMA = {"name": "robust-distill-bench/analysis", "version": 1}


def render_analysis_files(site: Site) -> Iterator[tuple[str, str]]:
    """Yield (path, content): each group of measures, what teaches, and the pairs of models."""
    for task in site.analysed_tasks:
        for name, table in site.analyses[task.path].items():
            stem = f"tables/{task.analysis_stem(name)}"
            lines = [*map(_row_line(table), table.table.rows)]
            yield f"{stem}.csv", _csv(lines)
            about = {"group": name, "claim": table.group.claim, "metrics": _explain(table)}
            yield f"{stem}.json", _json(task, about, lines)
        if matrix := transfer_matrix(site, task):
            yield f"tables/{task.analysis_stem('transfer-matrix')}.csv", _matrix_csv(matrix)
        lines = [*map(_correlation_line, site.correlations[task.path])]
        stem = f"tables/{task.analysis_stem(WHAT_TEACHES)}"
        yield f"{stem}.csv", _csv(lines)
        yield f"{stem}.json", _json(task, {"correlated_with": RANK_METRIC}, lines)
    if site.model_comparisons:
        yield "tables/models.csv", _csv(models_lines(site.model_comparisons))


def _row_line(table: AnalysisTable) -> Any:
    columns = [RANK_METRIC, *(column.metric for column in table.table.columns)]

    def line(row: Row) -> dict[str, Any]:
        content = {name: getattr(row, name) for name in SETTING}
        for metric in columns:
            summary = row[metric]
            content |= {metric: summary.mean, f"{metric}_sd": summary.sd}
        reasons = table.reasons.get(row.run_ids, {})
        return content | {"missing": "; ".join(dict.fromkeys(reasons.values()))}

    return line


def _explain(table: AnalysisTable) -> dict[str, str]:
    labels = {}
    for column in table.table.columns:
        parts = analysis.split_name(column.metric)
        labels[column.metric] = f"{column.label}: {parts[1].about}" if parts else column.label
    return labels


def _correlation_line(entry: MeasureCorrelation) -> dict[str, Any]:
    line: dict[str, Any] = {"metric": entry.metric, "group": entry.group.name}
    for name in ("distilled", "attacked", "within"):
        correlation = getattr(entry, name)
        values = asdict(correlation) if correlation else dict.fromkeys(CORRELATION_FIELDS)
        line |= {f"{name}_{field}": value for field, value in values.items()}
    return line


CORRELATION_FIELDS = ("value", "low", "high", "methods", "runs")


def models_lines(comparisons: list[ModelComparison]) -> list[dict[str, Any]]:
    """Return each pair of models, accuracies as fractions."""
    lines = []
    for comparison in comparisons:
        for pair in comparison.pairs:
            score = pair.row[RANK_METRIC]
            line: dict[str, Any] = {"suite": comparison.section.experiment}
            line |= {"dataset": comparison.dataset, "method": pair.row.label}
            line |= {"teacher_family": pair.teacher_family, "teacher": pair.teacher}
            line |= {"student_family": pair.student_family, "student": pair.row.student}
            line |= {"seeds": pair.row.seeds, RANK_METRIC: score.mean}
            lines.append(line | {f"{RANK_METRIC}_sd": score.sd, "kept": pair.kept})
    return lines


def _matrix_csv(matrix: TransferMatrix) -> str:
    import pandas as pd

    frame = pd.DataFrame(matrix.rates, columns=list(matrix.names))
    frame.insert(0, "examples_of", matrix.names)
    return csv_tables.render(frame)


def _csv(lines: list[dict[str, Any]]) -> str:
    import pandas as pd

    return csv_tables.render(pd.DataFrame(lines))


def _json(task: Task, about: Mapping[str, Any], lines: list[dict[str, Any]]) -> str:
    head = {"schema": SCHEMA, "suite": task.section.experiment, "dataset": task.dataset}
    content = head | {"student": task.student, **about, "rows": [*map(_without_nan, lines)]}
    return json.dumps(content, ensure_ascii=False, allow_nan=False) + "\n"


def _without_nan(line: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in line.items()
    }
