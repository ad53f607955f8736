"""What the repository's own records say: pages of docs/lab, charts, the README's rows.

`python -m bench.cli.generated_files` writes them.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from bench.protocol import suites
from bench.protocol.suites import Suite
from leaderboards.read.records import collect
from leaderboards.render import markdown
from leaderboards.render.figures.matplotlib_figures import draw_view, save_figure
from leaderboards.render.figures.task_views import seeds_view
from leaderboards.render.numbers import format_cell, format_interval, format_percent, format_ranks
from leaderboards.schema.metrics import CLEAN, RANK_METRIC, TRAIN_SECONDS, WORST_CLASS
from leaderboards.tables.across_tasks import robustness_kept
from leaderboards.tables.rows import Column, TaskTable
from leaderboards.tables.suite_tables import Section, build_sections

RECORDS = Path("leaderboards", "results")
CHARTS = Path("docs", "images", "results")
INTRO = Path(__file__).with_name("results_intro.md")
# The table of the README.
SUITE, TASK = suites.DIGITS.id, "digits, resnet8-w8"
NUM_ROWS = 5
MOST_NAMED = 5  # methods in a command
COLUMNS = (Column(CLEAN, "Clean"), Column(RANK_METRIC, "AutoAttack"))
NO_BREAK = "&nbsp;"
HEAD = ("Rank", "Method", "Seeds", "AutoAttack", "Clean", "Worst class", "Kept", "Train min")


@cache
def read_sections() -> list[Section]:
    """Return the tables of the repository's records."""
    return build_sections(collect(RECORDS), suites.protocols())


def shown_sections() -> list[Section]:
    """Return the newest version of each suite, in the order of `list suites`.

    An older one follows it while it has a method that no newer one has.
    """
    shown, methods_of = list[Section](), defaultdict[str, set[str]](set)
    for section in read_sections():
        newer = methods_of[suite_name(section)]
        methods = set(section.runs["method"][section.runs["role"] == "student"])
        if methods - newer:
            shown.append(section)
            newer |= methods
    return sorted(shown, key=lambda section: [*suites.SUITES].index(suite_name(section)))


def suite_name(section: Section) -> str:
    """Return the name of a section's suite without its version."""
    return section.experiment.partition("@")[0]


def render_all_tables() -> str:
    """Return the page with every table and column."""
    return markdown.render(read_sections())


def render_page() -> str:
    """Return the page with what is best to know of each table."""
    parts = [INTRO.read_text(encoding="utf-8")]
    for section in shown_sections():
        suite = suites.SUITES[suite_name(section)]
        about = "An older version" if section.outdated else suite.about
        parts.append(f"## {section.experiment}\n\n{about[0].upper()}{about[1:]}.")
        # A command makes rows of the newest version.
        if not section.outdated:
            parts.append("\n".join(f"    {line}" for line in commands(suite, section)))
        parts += [render_task(section, table) for table in section.tables]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def commands(suite: Suite, section: Section) -> list[str]:
    """Return the commands that make the rows of a section, but for those with other values."""
    students = section.runs[section.runs["role"] == "student"]
    command = f"python -m bench run --suite {suite.name}"
    names = sorted(students["method"].unique())
    if not suite.rows:
        command += f" --method {','.join(names) if len(names) <= MOST_NAMED else 'all'}"
    seeds = sorted(map(int, students["seed"].unique()))
    if seeds != sorted(suite.seeds):
        command += f" --seeds {','.join(map(str, seeds))}"
    own = {teacher.arch for teacher in suite.teachers.values()}
    trained = {row.student for row in section.teachers.rows} if section.teachers else set()
    return [command, *(f"{command} --teacher {arch}" for arch in sorted(trained - own))]


def render_task(section: Section, table: TaskTable) -> str:
    """Return the chart of a table, its best columns, and what it can tell."""
    lines = [f"### {table.title}", ""]
    lines += [f"![{table.title}](../images/results/{chart_name(section, table)})", ""]
    lines += [f"| {' | '.join(HEAD)} |", "| ---: | --- |" + " ---: |" * (len(HEAD) - 2)]
    labels = Counter(row.label for row in table.ranked)
    for row in table.ranked:
        label = row.label if labels[row.label] == 1 else f"{row.label}, {row.teacher}"
        ranks = format_ranks(row.ranking.ranks).replace(" ", NO_BREAK)
        cells = [ranks, markdown.escape(label), str(row.seeds)]
        interval = format_interval(row).replace(" ", NO_BREAK)
        cells.append(f"{format_percent(row.score)}{NO_BREAK}{interval}")
        cells += [format_percent(row[metric].mean) for metric in (CLEAN, WORST_CLASS)]
        cells.append(format_percent(robustness_kept(row, section.teachers)))
        cells.append(f"{row[TRAIN_SECONDS].mean / 60:.1f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", table.evidence])


def render_charts() -> Iterator[tuple[Path, str]]:
    """Yield path and content of the chart of each table of the page, as SVG.

    Every row with its interval and its seeds.
    """
    runs = {str(run["run_id"]): run for run in collect(RECORDS).to_dict("records")}
    for section in shown_sections():
        for table in section.tables:
            view = seeds_view(table, runs)
            assert view is not None
            look = {"transparent": False, "facecolor": "white"}
            chart = save_figure(draw_view(view), "svg", **look).decode()
            yield CHARTS / chart_name(section, table), chart


def chart_name(section: Section, table: TaskTable) -> str:
    """Return the file name of a table's chart."""
    name = section.experiment if section.outdated else suite_name(section)
    return re.sub(r"[^\w.]+", "-", f"{name} {table.title}") + ".svg"


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
