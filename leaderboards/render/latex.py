"""Tables for papers: LaTeX with booktabs, the best of a column in bold, the second underlined."""

from __future__ import annotations

import math
import re

from leaderboards.render.numbers import format_cell, format_interval
from leaderboards.render.text_template import fill_template
from leaderboards.tables.rows import RANK, Column, Group, Row
from leaderboards.tables.table import Section

T1_END = 0x180  # letters below this code point are in every font of the encoding T1
T1_SIGNS = "\u2013\u2014\u2018\u2019\u201c\u201d\u2026"  # signs beyond it that are too
SPECIAL = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#",
    "%": r"\%", "_": r"\_", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}",
    "[": "{[}", "`": r"\textasciigrave{}", "'": r"\textquotesingle{}",
}  # fmt: skip


def render(sections: list[Section]) -> str:
    """Render a table for each group with ranked rows."""
    return fill_template(
        "leaderboard.tex.j2",
        escape,
        sections=sections,
        columns_of=_columns,
        teacher_symbols=_teacher_symbols,
        second_best=_second_best,
        metric_cell=_metric_cell,
    )


def escape(text: str) -> str:
    """Escape `text` and put it on one line."""
    escaped = "".join(map(_escape_letter, re.sub(r"\s+", " ", text).strip()))
    # LaTeX would set two hyphens as a dash.
    escaped = re.sub("-(?=-)", "-{}", escaped)
    # A number and its unit stay on one line.
    return re.sub(r"(?<=\d) \\%", r"~\\%", escaped)


def _escape_letter(letter: str) -> str:
    # The usual fonts lack other letters: LaTeX would stop, or leave them out without a warning.
    if ord(letter) >= T1_END and letter not in T1_SIGNS:
        return f"U+{ord(letter):04X}"
    return SPECIAL.get(letter, letter)


def _columns(group: Group) -> list[Column]:
    columns = []
    for column in group.columns:
        if column.metric.startswith("test/") and column.metric != "test/worst":
            columns.append(column)
    return columns


def _teacher_symbols(group: Group) -> dict[str, str]:
    """Give each teacher a symbol: the column is too narrow for names."""
    symbols: dict[str, str] = {}
    if group.of_teachers:
        return symbols
    for row in group.ranked:
        if row.teacher != "none":
            symbols.setdefault(row.teacher, f"T{1 + len(symbols)}")
    return symbols


def _second_best(group: Group, columns: list[Column]) -> dict[str, float]:
    """Return the highest mean below the best by metric; NaN where there is none."""
    seconds = {}
    for column in columns:
        best = group.best(column)
        means = [row[column.metric].mean for row in group.contenders]
        seconds[column.metric] = max((mean for mean in means if mean < best), default=math.nan)
    return seconds


def _metric_cell(group: Group, row: Row, column: Column, second: float) -> str:
    cell = row[column.metric]
    text = format_cell(cell, column).replace("±", r"$\pm$").replace("-", "--")
    if cell.mean == group.best(column):
        text = rf"\textbf{{{text}}}"
    elif cell.mean == second:
        text = rf"\underline{{{text}}}"
    if column.metric == RANK:
        text = f"{text} {format_interval(row)}".rstrip()
    return text
