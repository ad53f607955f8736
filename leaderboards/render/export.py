"""The tables as JSON for programs: numbers as they are, not rounded; what was not measured is null."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

from leaderboards.tables.rows import Row, TaskTable
from leaderboards.tables.suite_tables import Section

SCHEMA = {
    "name": "robust-distill-bench/leaderboard",
    "version": 1,
}  # the version changes with the meaning of a field


def render(found: list[Section]) -> str:
    """Accuracies in [0, 1], times in seconds."""
    content = {"schema": SCHEMA, "suites": [_section(section) for section in found]}
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _section(section: Section) -> dict[str, Any]:
    return {
        "suite": section.experiment,
        "outdated": section.outdated,
        "tasks": [_group(group) for group in section.tables],
        "teachers": _group(section.teachers) if section.teachers else None,
    }


def _group(group: TaskTable) -> dict[str, Any]:
    return {
        "title": group.title,
        "caption": group.caption,
        "columns": [dataclasses.asdict(column) for column in group.columns],
        "rows": [_row(row) for row in group.rows],
    }


def _row(row: Row) -> dict[str, Any]:
    return {
        **{
            name: getattr(row, name)
            for name in ("dataset", "student", "method", "variant", "changed", "teacher", "seeds")
        },
        "rank": row.ranking.rank,
        "interval": row.ranking.interval,
        "behind_first": row.ranking.gap_to_first,
        "cells": {
            metric: _finite(dataclasses.asdict(cell))
            for metric, cell in row.summaries.items()
            if cell.n
        },
        "missing": row.missing,
        "flags": dict(row.flags),
        "marks": row.marks,
        "notes": row.notes,
        "published": row.published.span if row.published else None,
        "commands": row.commands,
        "runs": row.run_ids,
    }


def _finite(cell: dict[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in cell.items()}
