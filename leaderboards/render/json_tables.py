"""The tables as JSON for programs: numbers are not rounded; what was not measured is null."""

from __future__ import annotations

import json
import math
from typing import Any

from leaderboards.tables.rows import Row, SeedSummary, TaskTable
from leaderboards.tables.suite_tables import Section

# The version changes with the meaning of a field.
SCHEMA = {"name": "robust-distill-bench/leaderboard", "version": 2}
SETTING = ("dataset", "student", "method", "variant", "changed", "teacher", "seeds")


def render(sections: list[Section]) -> str:
    """Render accuracies in [0, 1] and times in seconds."""
    content = {"schema": SCHEMA, "suites": [*map(_section_json, sections)]}
    return json.dumps(content, ensure_ascii=False, allow_nan=False) + "\n"


def _section_json(section: Section) -> dict[str, Any]:
    suite = {"suite": section.experiment, "outdated": section.outdated}
    teachers = section.teachers and _table_json(section.teachers)
    return {**suite, "tasks": [*map(_table_json, section.tables)], "teachers": teachers}


def _table_json(table: TaskTable) -> dict[str, Any]:
    columns, rows = [*map(vars, table.columns)], [*map(_row_json, table.rows)]
    return {"title": table.title, "caption": table.caption, "columns": columns, "rows": rows}


def _row_json(row: Row) -> dict[str, Any]:
    ranking = row.ranking
    content = {name: getattr(row, name) for name in SETTING}
    content |= {"ranks": ranking.ranks, "tier": ranking.tier, "interval": ranking.interval}
    measured = [(metric, summary) for metric, summary in row.summaries.items() if summary.n]
    cells = {metric: _summary_json(summary) for metric, summary in measured}
    content |= {"behind_first": ranking.gap_to_first, "cells": cells}
    content |= {"missing": row.missing, "flags": dict(row.flags), "marks": row.marks}
    content |= {"notes": row.notes, "published": row.published and row.published.span}
    return content | {"commands": row.commands, "runs": row.run_ids}


def _summary_json(summary: SeedSummary) -> dict[str, float | None]:
    values = vars(summary).items()
    return {name: value if math.isfinite(value) else None for name, value in values}
