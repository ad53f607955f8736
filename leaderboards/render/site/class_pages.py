"""The page of a task's accuracies by class, and its files in tables/."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from leaderboards.render import csv_tables
from leaderboards.render.figures.class_views import class_views
from leaderboards.render.figures.plotly_charts import build_chart
from leaderboards.render.json_tables import SETTING
from leaderboards.render.site.site_map import Site, Task
from leaderboards.schema.metrics import (
    CLASS_METRICS,
    CLEAN,
    RANK_METRIC,
    WORST_CLASS,
    WORST_CLASS_CLEAN,
)
from leaderboards.tables.class_accuracy import ClassRow, ClassSummary, ClassTable

if TYPE_CHECKING:
    import jinja2

WORST_CLASS_PAGE = "worst-class"
# The version changes with the meaning of a field.
SCHEMA = {"name": "robust-distill-bench/classes", "version": 1}
# In columns and files: the worst class of each accuracy.
POOLED = {RANK_METRIC: WORST_CLASS, CLEAN: WORST_CLASS_CLEAN}


def render_class_pages(site: Site, engine: jinja2.Environment) -> Iterator[tuple[str, str]]:
    """Yield (path, HTML) of the page of each task with accuracies by class."""
    template = engine.get_template("worst_class.html.j2")
    for task in site.tasks:
        if table := site.class_tables.get(task.path):
            values = {"task": task, "table": table, "page": WORST_CLASS_PAGE}
            values |= {"charts": [*map(build_chart, class_views(table))]}
            values |= {"has_clean": bool(table.measured(CLEAN))}
            yield task.analysis_path(WORST_CLASS_PAGE), template.render(root="../", **values)


def render_class_files(site: Site) -> Iterator[tuple[str, str]]:
    """Yield (path, content): CSV and JSON of the same tables, accuracies as fractions."""
    import pandas as pd

    for task in site.tasks:
        if table := site.class_tables.get(task.path):
            stem = f"tables/{task.analysis_stem(WORST_CLASS_PAGE)}"
            frame = pd.DataFrame([*map(_csv_line, table.rows)])
            yield f"{stem}.csv", csv_tables.render(frame)
            yield f"{stem}.json", _json(task, table)


def _csv_line(row: ClassRow) -> dict[str, Any]:
    line: dict[str, Any] = {name: getattr(row.row, name) for name in SETTING}
    line[RANK_METRIC] = row.row[RANK_METRIC].mean
    for metric, name in POOLED.items():
        summary = row.get(metric)
        low, high = summary.interval if summary else (math.nan, math.nan)
        line |= {f"{name}_pooled": summary.lowest if summary else math.nan}
        line |= {f"{name}_low": low, f"{name}_high": high}
        line |= {f"{name}_class": summary.worst if summary else ""}
        line |= {f"{name}_images": summary.images[summary.worst] if summary else ""}
    for name in CLASS_METRICS:
        line |= {name: row.row[name].mean, f"{name}_sd": row.row[name].sd}
    return line | {"missing": "; ".join(dict.fromkeys(row.reasons.values()))}


def _json(task: Task, table: ClassTable) -> str:
    head = {"schema": SCHEMA, "suite": task.section.experiment, "dataset": task.dataset}
    content = head | {"student": task.student, "rows": [*map(_json_row, table.rows)]}
    return json.dumps(content, ensure_ascii=False, allow_nan=False) + "\n"


def _json_row(row: ClassRow) -> dict[str, Any]:
    content: dict[str, Any] = {name: getattr(row.row, name) for name in SETTING}
    content |= {name: vars(summary) for name, summary in row.summaries.items()}
    return content | {"missing": row.reasons}


def interval_half_width(images: int) -> float:
    """Return the half width of a 95 % interval of an accuracy of 50 % on so many images."""
    return 1.96 * math.sqrt(0.25 / images) if images else math.nan


def interval_text(summary: ClassSummary) -> str:
    """Format "[31.2, 48.0]", percent."""
    return "[{:.1f}, {:.1f}]".format(*(100 * end for end in summary.interval))


# For templates.
CLASS_FUNCTIONS = {
    "interval_half_width": interval_half_width, "interval_text": interval_text,
    "worst_class_page": WORST_CLASS_PAGE,
}  # fmt: skip
