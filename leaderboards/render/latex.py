"""Tables for papers: LaTeX with booktabs, the best of a column in bold, the second underlined."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

from leaderboards.render.markdown import bracket, number
from leaderboards.schema.metrics import RANK_METRIC
from leaderboards.tables.rows import Column, Row, TaskTable
from leaderboards.tables.suite_tables import Section

HEAD = r"""% Written by `python -m bench leaderboard`. Needs \usepackage[T1]{fontenc}, \usepackage{booktabs} and
% \usepackage{graphicx}. Accuracy in percent; best in bold, second underlined; in brackets the 95 % interval.
% Other checkpoints, the worst case over all attacks, and times are in leaderboard.csv."""
NONE = "--"
LATIN = 0x180  # letters below are in every font of the encoding T1
SIGNS = "\u2013\u2014\u2018\u2019\u201c\u201d\u2026"  # these, too
SPECIAL = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    '"': r"\textquotedbl{}", "[": "{[}", "`": r"\textasciigrave{}", "'": r"\textquotesingle{}",
}  # fmt: skip


def render(found: list[Section]) -> str:
    """One table for each group of every section."""
    tables = [_table(section, group) for section in found for group in _groups(section)]
    return "\n\n".join([HEAD, *tables]) + "\n"


def escape(text: str) -> str:
    """`text` as LaTeX shows it, on one line."""
    shown = "".join(map(_letter, re.sub(r"\s+", " ", text).strip()))
    shown = re.sub("-(?=-)", "-{}", shown)  # two hyphens, no dash
    return re.sub(r"(?<=\d) \\%", r"~\\%", shown)  # no line ends between a number and its unit


def _letter(letter: str) -> str:
    """A letter that the usual fonts lack, by its number: it would be an error, or left out in silence."""
    known = ord(letter) < LATIN or letter in SIGNS
    return SPECIAL.get(letter, letter) if known else f"U+{ord(letter):04X}"


def _groups(section: Section) -> list[TaskTable]:
    return [group for group in (*section.tables, section.teachers) if group and group.ranked]


def _table(section: Section, group: TaskTable) -> str:
    return "\n".join(_lines(section, group))


def _lines(section: Section, group: TaskTable) -> Iterator[str]:
    place = not group.of_teachers
    columns = [
        column
        for column in group.columns
        if column.metric.startswith("test/") and column.metric != "test/worst"
    ]
    heads = [
        *["Rank"] * place,
        *map(escape, group.heads),
        *(escape(column.label) for column in columns),
    ]
    teachers = _teachers(group) if place else {}
    told = ", ".join(
        f"{short} is {teacher}" for teacher, short in teachers.items() if short != NONE
    )
    caption = (
        f"{section.experiment}: {group.title}. {group.caption}{f' Teacher {told}.' if told else ''}"
    )
    yield r"\begin{table}"
    yield r"  \centering\small\setlength{\tabcolsep}{4pt}"
    yield rf"  \caption{{{escape(caption)}}}\smallskip"
    yield r"  \resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"
    yield rf"  \begin{{tabular}}{{{'r' * place}{'l' * (len(group.heads) - 1)}{'r' * (1 + len(columns))}}}"
    yield r"    \toprule"
    yield rf"    {' & '.join(heads)} \\"
    yield r"    \midrule"
    second = {column.metric: _second(group, column) for column in columns}
    for row in group.ranked:
        lead = [escape(text) for text in group.lead(row)]
        if place:
            lead[group.heads.index("Teacher")] = teachers[row.teacher]
        cells = [_cell(group, row, column, second[column.metric]) for column in columns]
        yield rf"    {' & '.join([*[str(row.ranking.rank or NONE)] * place, *lead, *cells])} \\"
    yield r"    \bottomrule"
    yield r"  \end{tabular}}"
    yield r"\end{table}"


def _teachers(group: TaskTable) -> dict[str, str]:
    """What stands for each teacher in a column too narrow for names."""
    names = dict.fromkeys(row.teacher for row in group.ranked)
    return {"none": NONE} | {
        name: f"T{n}" for n, name in enumerate((n for n in names if n != "none"), start=1)
    }


def _second(group: TaskTable, column: Column) -> float:
    """The highest mean below the best; NaN where there is none."""
    best = group.best(column)
    below = [
        row[column.metric].mean
        for row in group.contenders
        if row[column.metric].n and row[column.metric].mean < best
    ]
    return max(below, default=math.nan)


def _cell(group: TaskTable, row: Row, column: Column, second: float) -> str:
    cell = row[column.metric]
    text = number(cell, column).replace("±", r"$\pm$").replace("-", "--")
    if cell.n and cell.mean == group.best(column):
        text = rf"\textbf{{{text}}}"
    elif cell.n and cell.mean == second:
        text = rf"\underline{{{text}}}"
    return f"{text} {bracket(row)}".rstrip() if column.metric == RANK_METRIC else text
