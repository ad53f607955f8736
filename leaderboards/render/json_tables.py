"""The tables as JSON for programs: numbers are not rounded; what was not measured is null."""

from __future__ import annotations

import dataclasses
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
    columns, rows = map(dataclasses.asdict, table.columns), map(_row_json, table.rows)
    title = {"title": table.title, "caption": table.caption}
    return {**title, "columns": [*columns], "rows": [*rows]}


def _row_json(row: Row) -> dict[str, Any]:
    ranking = row.ranking
    content = {name: getattr(row, name) for name in SETTING}
    content |= {"ranks": ranking.ranks, "tier": ranking.tier, "interval": ranking.interval}
    content |= {"behind_first": ranking.gap_to_first, "cells": {}}
    for metric, summary in row.summaries.items():
        if summary.n:
            content["cells"][metric] = _summary_json(summary)
    content |= {"missing": row.missing, "flags": dict(row.flags), "marks": row.marks}
    content |= {"notes": row.notes, "published": row.published and row.published.span}
    return content | {"commands": row.commands, "runs": row.run_ids}


def _summary_json(summary: SeedSummary) -> dict[str, float | None]:
    content: dict[str, float | None] = dataclasses.asdict(summary)
    for name, value in dataclasses.asdict(summary).items():
        if not math.isfinite(value):
            content[name] = None
    return content
