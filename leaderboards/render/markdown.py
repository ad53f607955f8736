"""Tables in GitHub's Markdown; every name in them is text, whatever characters it holds."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from leaderboards.schema.metrics import RANK_METRIC, TRAIN_SECONDS
from leaderboards.tables.published import HEADING
from leaderboards.tables.rows import Column, Row, SeedSummary, TaskTable
from leaderboards.tables.suite_tables import Section, build_sections

if TYPE_CHECKING:
    import pandas as pd

    from leaderboards.tables.across_tasks import AcrossTasks, AcrossTasksRow

ABOUT = (
    "Accuracy in percent on the test set, for the checkpoint that validation chose; mean ± sample standard deviation "
    "where there are several seeds. Sorted by AutoAttack, best in bold. Columns marked *last*, *EMA* and *SWA* are the "
    "other checkpoints of the same runs: of the last epoch and of two averages of the weights."
)


def first_run(suite: str | None) -> str:
    """The command that puts a first row into a suite."""
    name = suite or "digits"
    return f"python -m bench run --method gacd --suite {name.partition('@')[0]}"


def render(runs: pd.DataFrame, suite: str | None = None, found: list[Section] | None = None) -> str:
    """One section per suite version, one table per dataset and student, from store.collect's frame.

    `found` are its sections, where they are known already.
    """
    parts = [
        part
        for section in (build_sections(runs) if found is None else found)
        for part in _section(section)
    ]
    if not parts:
        parts = ["There are no finished runs yet. Make the first:", _fenced(first_run(suite))]
    return "\n\n".join(["# Leaderboard", *([ABOUT] if len(runs) else []), *parts]) + "\n"


def escape(text: str) -> str:
    """`text` as it is, in a table cell or a list: no HTML, no Markdown, one line."""
    text = html.escape(re.sub(r"\s+", " ", text).strip(), quote=False)
    return re.sub(r"([\\|*`\[\]~$]|(?<!\w)_|_(?!\w))", r"\\\1", text)


def number(cell: SeedSummary, column: Column) -> str:
    """ "45.3", "45.3 ± 1.2" with several seeds, "-" where nothing was measured."""
    if not cell.n:
        return "-"
    scale = 1 / 60 if column.metric == TRAIN_SECONDS else 100
    spread = "" if math.isnan(cell.sd) else f" ± {cell.sd * scale:.1f}"
    return f"{cell.mean * scale:.1f}{spread}"


def bracket(row: Row) -> str:
    """ "[77.9, 86.0]", the interval of the ranking number; "" where there is none."""
    return (
        "[{:.1f}, {:.1f}]".format(*(100 * end for end in row.ranking.interval))
        if row.ranking.interval
        else ""
    )


def share(entry: AcrossTasksRow) -> str:
    """ "91.2 %" of the teacher's robustness; "-" where there is no teacher to compare with."""
    return "-" if math.isnan(entry.robustness_kept) else f"{100 * entry.robustness_kept:.1f} %"


def _section(section: Section) -> Iterator[str]:
    yield f"## {escape(section.experiment)}"
    for group in section.tables:
        yield from _group(group)
    if section.across_tasks:
        yield "### Across tasks"
        yield "\n".join(_across(section.across_tasks))
        yield escape(section.across_tasks.caption)
    if section.teachers:
        yield from _group(section.teachers)


def _across(found: AcrossTasks) -> Iterator[str]:
    heads = (head for task in found.tasks for head in (escape(task), "Rank"))
    yield _line("Mean rank", "Method", "Teacher", "Kept", *heads)
    yield _line("---:", "---", "---", "---:", *["---:"] * 2 * len(found.tasks))
    for entry in found.rows:
        placed = zip(entry.scores, entry.ranks, strict=True)
        cells = (
            text for score, rank in placed for text in (f"{100 * score:.1f}", str(rank or "-"))
        )
        yield _line(
            f"{entry.mean_rank:.1f}",
            escape(entry.label),
            escape(entry.teacher),
            share(entry),
            *cells,
        )


def _group(group: TaskTable) -> Iterator[str]:
    yield f"### {escape(group.title)}"
    if group.ranked:
        yield "\n".join(_table(group))
    yield group.caption
    if group.footnote:
        yield escape(group.footnote)
    if group.incomplete:
        yield "Incomplete, not ranked:"
        yield "\n".join(
            f"- {_who(row)}: no {', '.join(map(escape, row.missing))}" for row in group.incomplete
        )
    noted = [row for row in group.rows if row.remarks]
    if noted:
        yield "Notes:"
        yield "\n".join(f"- {_who(row)}: {escape('; '.join(row.remarks))}" for row in noted)


def _table(group: TaskTable) -> Iterator[str]:
    apart = bool(group.footnote)  # a last column for what was published
    place = not group.of_teachers  # a first column for the rank
    heads = (
        *["Rank"] * place,
        *group.heads,
        *(escape(column.label) for column in group.columns),
        *[f"*{HEADING}*"] * apart,
    )
    yield _line(*heads)
    texts = len(group.heads) - 1
    yield _line(
        *["---:"] * place, *["---"] * texts, *["---:"] * (1 + len(group.columns)), *["---"] * apart
    )
    for row in group.ranked:
        cells = (_cell(group, row, column) for column in group.columns)
        rank = str(row.ranking.rank or "-")
        yield _line(
            *[rank] * place, *map(escape, group.lead(row)), *cells, *[_published(row)] * apart
        )


def _cell(group: TaskTable, row: Row, column: Column) -> str:
    text = number(row[column.metric], column)
    text = f"**{text}**" if row[column.metric].mean == group.best(column) else text
    return f"{text} {bracket(row)}".rstrip() if column.metric == RANK_METRIC else text


def _published(row: Row) -> str:
    found = row.published
    return escape(f"{found.span} ({found.remark(row[RANK_METRIC].mean)})") if found else ""


def _who(row: Row) -> str:
    seeds = "1 seed" if row.seeds == 1 else f"{row.seeds} seeds"
    return f"{escape(row.label)}, teacher {escape(row.teacher)}, {seeds}"


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _fenced(text: str) -> str:
    return f"```sh\n{text}\n```"
