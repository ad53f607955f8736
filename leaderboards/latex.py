"""Tables for papers: LaTeX with booktabs, the best of a column in bold, the second underlined."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

from leaderboards.markdown import bracket, number
from leaderboards.rows import RANK, SECONDS, Column, Group, Row
from leaderboards.table import Section

HEAD = r"""% Written by `python -m bench leaderboard`. Needs \usepackage[T1]{fontenc}, \usepackage{booktabs} and
% \usepackage{graphicx}. Accuracy in percent; best in bold, second underlined; in brackets the 95 % interval."""
SPECIAL = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    '"': r"\textquotedbl{}", "[": "{[}",
}  # fmt: skip


def render(found: list[Section]) -> str:
    """One table for each group of every section."""
    tables = [_table(section, group) for section in found for group in _groups(section)]
    return "\n\n".join([HEAD, *tables]) + "\n"


def escape(text: str) -> str:
    """`text` as LaTeX shows it, on one line."""
    return "".join(SPECIAL.get(letter, letter) for letter in re.sub(r"\s+", " ", text).strip())


def _groups(section: Section) -> list[Group]:
    return [group for group in (*section.groups, section.teachers) if group and group.ranked]


def _table(section: Section, group: Group) -> str:
    return "\n".join(_lines(section, group))


def _lines(section: Section, group: Group) -> Iterator[str]:
    place = not group.of_teachers
    texts = len(group.heads) - 1
    heads = [*["Rank"] * place, *map(escape, group.heads), *(escape(column.label) for column in group.columns)]
    yield r"\begin{table}"
    yield r"  \centering"
    yield rf"  \caption{{{escape(f'{section.experiment}: {group.title}. {group.caption}')}}}"
    yield r"  \resizebox{\linewidth}{!}{%"
    yield rf"  \begin{{tabular}}{{{'r' * place}{'l' * texts}{'r' * (1 + len(group.columns))}}}"
    yield r"    \toprule"
    yield rf"    {' & '.join(heads)} \\"
    yield r"    \midrule"
    second = {column.metric: _second(group, column) for column in group.columns}
    for row in group.ranked:
        cells = [_cell(group, row, column, second[column.metric]) for column in group.columns]
        rank = str(row.standing.rank or "--")
        yield rf"    {' & '.join([*[rank] * place, *map(escape, group.lead(row)), *cells])} \\"
    yield r"    \bottomrule"
    yield r"  \end{tabular}}"
    yield r"\end{table}"


def _second(group: Group, column: Column) -> float:
    """The highest mean below the best, of accuracies; NaN where there is none."""
    best = group.best(column)
    below = [row[column.metric].mean for row in group.ranked if row[column.metric].n and row[column.metric].mean < best]
    return max(below, default=math.nan) if column.metric != SECONDS else math.nan


def _cell(group: Group, row: Row, column: Column, second: float) -> str:
    cell = row[column.metric]
    text = number(cell, column).replace("±", r"$\pm$").replace("-", "--")
    if cell.n and cell.mean == group.best(column):
        text = rf"\textbf{{{text}}}"
    elif cell.n and cell.mean == second:
        text = rf"\underline{{{text}}}"
    return f"{text} {bracket(row)}".rstrip() if column.metric == RANK else text
