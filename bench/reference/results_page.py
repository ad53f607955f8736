"""What the repository's own records say: docs/lab/results.md, the README's rows and its chart.

`python -m bench.cli.generated_files` writes them.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from bench.protocol import suites
from leaderboards.read.records import collect
from leaderboards.render import markdown
from leaderboards.render.figures.matplotlib_figures import draw_view, save_figure
from leaderboards.render.figures.task_views import seeds_view
from leaderboards.render.numbers import format_cell, format_interval
from leaderboards.schema.metrics import CLEAN, RANK_METRIC
from leaderboards.tables.rows import Column, TaskTable
from leaderboards.tables.suite_tables import Section, build_sections

RECORDS = Path("leaderboards", "results")
# The table of the README.
SUITE, TASK = suites.DIGITS.id, "digits, resnet8-w8"
NUM_ROWS = 5
COLUMNS = (Column(CLEAN, "Clean"), Column(RANK_METRIC, "AutoAttack"))


@cache
def read_sections() -> list[Section]:
    """Return the tables of the repository's records."""
    return build_sections(collect(RECORDS), suites.protocols())


def render_page() -> str:
    """Return the page with every table."""
    return markdown.render(read_sections())


def readme_table() -> TaskTable:
    """Return the table whose best rows the README shows."""
    section = next(section for section in read_sections() if section.experiment == SUITE)
    return next(table for table in section.tables if table.title == TASK)


def render_readme_table() -> str:
    """Return the best rows of that table as Markdown."""
    lines = ["|Method|Teacher|Clean|AutoAttack|", "|---|---|--:|--:|"]
    for row in readme_table().ranked[:NUM_ROWS]:
        cells = [row.label, row.teacher, *(format_cell(row[c.metric], c) for c in COLUMNS)]
        lines.append(f"|{'|'.join(cells)} {format_interval(row)}|")
    return "\n".join(lines) + "\n"


def render_chart() -> str:
    """Return the chart of that table: every row with its interval and seeds, as SVG."""
    runs = collect(RECORDS, SUITE)
    by_id = {str(run["run_id"]): run for run in runs.to_dict("records")}
    view = seeds_view(readme_table(), by_id)
    assert view is not None
    return save_figure(draw_view(view), "svg", transparent=False, facecolor="white").decode()
