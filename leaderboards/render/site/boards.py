"""The boards: columns of a table with what they mean, its cells, its files and its citation."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from leaderboards.render import csv_tables, json_tables, latex, markdown
from leaderboards.render.protocol_text import Run
from leaderboards.render.site.site_map import Site, file_names
from leaderboards.schema import metrics
from leaderboards.schema.fields import Tag
from leaderboards.schema.metrics import BALANCE, CLASS_SPREAD, DROP, KEPT, RANK_METRIC
from leaderboards.tables.across_tasks import robustness_kept
from leaderboards.tables.rows import Column, Row, SeedSummary, TaskTable
from leaderboards.tables.suite_tables import Section

if TYPE_CHECKING:
    import pandas as pd

SHORT = {CLASS_SPREAD: "Spread", metrics.CLASS_SPREAD_CLEAN: "Spread, clean"}
MEANINGS = {
    metrics.CLEAN: "Accuracy on the test images as they are.",
    metrics.WORST_CLASS: "AutoAttack accuracy on the class where it is lowest.",
    CLASS_SPREAD: "Standard deviation of the AutoAttack accuracies of the classes.",
    KEPT: "AutoAttack accuracy as a share of the teacher's, on images that both were judged on.",
    BALANCE: "Clean-robust balance: the harmonic mean of clean and AutoAttack accuracy.",
    DROP: "Points lost from the best checkpoint to that of the last epoch, on the same images.",
    metrics.TRAIN_SECONDS: "Minutes of training. They compare only on one idle machine.",
    metrics.WORST: "Share of images that no attack of the suite fools.",
    metrics.WORST_CLASS_CLEAN: "Clean accuracy on the class where it is lowest.",
    metrics.CLASS_SPREAD_CLEAN: "Standard deviation of the clean accuracies of the classes.",
}
HIDDEN = (metrics.WORST, metrics.WORST_CLASS_CLEAN, metrics.CLASS_SPREAD_CLEAN)
# The columns that a board shows at first, in their order, behind AutoAttack.
SHOWN = tuple(name for name in MEANINGS if name not in HIDDEN)


def board_columns(section: Section, table: TaskTable) -> list[Column]:
    """Return the columns beside AutoAttack with a value in some row, those of SHOWN first."""
    derived = [Column(name, metrics.METRICS[name].label) for name in (KEPT, BALANCE, DROP)]
    columns = []
    for column in (*table.columns, *derived):
        measured = any(board_summary(section, row, column.metric).n for row in table.ranked)
        if measured and column.metric != RANK_METRIC:
            columns.append(Column(column.metric, SHORT.get(column.metric, column.label)))
    order = {name: position for position, name in enumerate(SHOWN)}
    return sorted(columns, key=lambda column: order.get(column.metric, len(order)))


def board_summary(section: Section, row: Row, metric: str) -> SeedSummary:
    """Return a metric of a row; derived ones have no deviation."""
    if metric == KEPT:
        value = robustness_kept(row, section.teachers)
    elif metric in (BALANCE, DROP):
        value = {BALANCE: row.balance, DROP: row.drop}[metric]
    else:
        return row[metric]
    return SeedSummary(value, n=int(not math.isnan(value)))


def explain_column(column: Column) -> str:
    """Return what a column means in a sentence."""
    attack, _, checkpoint = column.label.partition(", ")
    of = f" of the {checkpoint} checkpoint" if checkpoint else ""
    return MEANINGS.get(column.metric, f"Accuracy{of} under {attack}.")


def board_stems(site: Site) -> dict[int, str]:
    """Return the stem of the files of each table, by the table's identity."""
    keys = {}
    for section in site.sections:
        for table in section.all_tables:
            keys[id(table)] = section.experiment, *table.title.split(", ")
    names = file_names(keys.values())
    return {table: names[key] for table, key in keys.items()}


def render_files(site: Site) -> Iterator[tuple[str, str]]:
    """Yield (path, content) of each table alone: CSV, Markdown, LaTeX and JSON in tables/."""
    stems = board_stems(site)
    for section in site.sections:
        for table in section.all_tables:
            stem = f"tables/{stems[id(table)]}"
            tables, teachers = ((), table) if table.of_teachers else ((table,), None)
            alone = [replace(section, tables=tables, teachers=teachers, across_tasks=None)]
            yield f"{stem}.csv", csv_tables.render(_build_frame(table_lines(section, table)))
            yield f"{stem}.md", markdown.render(alone)
            yield f"{stem}.tex", latex.render(alone)
            yield f"{stem}.json", json_tables.render(alone)


def site_frame(site: Site) -> pd.DataFrame:
    """Return the rows of all tables, under readable names, with suite and role."""
    lines = []
    for section in site.sections:
        for table in section.all_tables:
            role = "teacher" if table.of_teachers else "student"
            head = {"suite": section.experiment, str(Tag.ROLE): role}
            lines += [head | line for line in table_lines(section, table)]
    return _build_frame(lines).rename(columns=_readable_name)


def _readable_name(column: str) -> str:
    metric = column.removesuffix("_sd")
    if "/" not in metric:
        return column
    return metrics.column_name(metric) + " sd" * (metric != column)


def _build_frame(lines: list[dict[str, Any]]) -> pd.DataFrame:
    import pandas as pd

    ranks = dict.fromkeys(("rank_first", "rank_last"), "Int64")
    columns = None if lines else ["suite", str(Tag.ROLE), *ranks, *json_tables.SETTING]
    return pd.DataFrame(lines, columns=columns).astype(ranks)


def table_lines(section: Section, table: TaskTable) -> list[dict[str, Any]]:
    """Return each row: fractions and seconds, not rounded; NaN where not measured."""
    columns = [RANK_METRIC, *(column.metric for column in board_columns(section, table))]
    lines = []
    for row in table.rows:
        first, last = row.ranking.ranks or (None, None)
        line: dict[str, Any] = {"rank_first": first, "rank_last": last}
        line |= {name: getattr(row, name) for name in json_tables.SETTING}
        for metric in columns:
            summary = board_summary(section, row, metric)
            line |= {metric: summary.mean, f"{metric}_sd": summary.sd}
        lines.append(line)
    return lines


def cite_table(site: Site, section: Section, title: str, run_ids: list[str]) -> str:
    """Return BibTeX for a table: suite version, date of its newest run, hash of its records."""
    runs = sorted(site.runs_of(run_ids), key=lambda run: str(run["spec_id"]))
    sha256 = hashlib.sha256(b"".join(site.digests[run["run_id"]] for run in runs)).hexdigest()
    newest = max(run["start_time"] for run in runs)
    key = "".join(filter(str.isalnum, section.experiment))
    suite = latex.escape(section.experiment)
    return (
        f"@misc{{robust-distill-bench-{key}-{sha256[:8]},\n"
        "  author = {{robust-distill-bench contributors}},\n"
        f"  title = {{robust-distill-bench: {latex.escape(title)}}},\n"
        f"  year = {{{newest:%Y}}},\n"
        f"  note = {{Suite {suite}; {len(runs)} runs, the newest of {newest:%Y-%m-%d};\n"
        f"    sha256 of their records {sha256}}},\n}}"
    )


def network_sizes(runs: Iterable[Run]) -> list[tuple[str, str]]:
    """Return (number, text) of parameters and multiply-adds, with the teacher's if recorded."""
    sizes = []
    pairs = (
        (metrics.PARAMETERS, metrics.TEACHER_PARAMETERS),
        (metrics.MULTIPLY_ADDS, metrics.TEACHER_MULTIPLY_ADDS),
    )
    for name, teacher_name in pairs:
        measured = [(run.get(name, math.nan), run.get(teacher_name, math.nan)) for run in runs]
        measured = [values for values in measured if values[0] > 0]
        measured.sort(key=lambda values: math.isnan(values[1]))
        for student, teacher in measured[:1]:
            text = metrics.METRICS[name].label.lower()
            if teacher > 0:
                text += f"; the teacher has {teacher:,.0f}, {teacher / student:.1f} times as many"
            sizes.append((f"{student:,.0f}", text))
    return sizes


def run_ids_of(rows: Iterable[Row]) -> list[str]:
    """Return the ids of the runs of rows."""
    return [*chain.from_iterable(map(attrgetter("run_ids"), rows))]


def values_of(rows: Iterable[Row], name: str) -> list[Any]:
    """Return a field of each row. Jinja's `map` would look for a metric of this name."""
    return [getattr(row, name) for row in rows]


# For templates.
FUNCTIONS = {
    "board_columns": board_columns, "board_summary": board_summary, "cite_table": cite_table,
    "explain_column": explain_column, "network_sizes": network_sizes, "run_ids_of": run_ids_of,
    "shown_columns": SHOWN, "id_of": id, "values_of": values_of,
}  # fmt: skip
