"""Tables for papers: LaTeX with booktabs, the best of a column in bold, the second underlined."""

from __future__ import annotations

import math
import re

from leaderboards.render.text_template import fill_template
from leaderboards.schema.metrics import TEST_PREFIXES, WORST
from leaderboards.tables.rows import LEAST_SHOWN, Column, TaskTable
from leaderboards.tables.suite_tables import Section

T1_END = 0x180  # letters below this code point are in every font of the encoding T1
T1_SIGNS = "\u2013\u2014\u2018\u2019\u201c\u201d\u2026"  # signs beyond it that are too
SPECIAL = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#",
    "%": r"\%", "_": r"\_", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}",
    "[": "{[}", "`": r"\textasciigrave{}", "'": r"\textquotesingle{}",
}  # fmt: skip


def render(sections: list[Section]) -> str:
    """Render every table that has ranked rows."""
    values = {"accuracy_columns": accuracy_columns, "teacher_symbols": teacher_symbols}
    return fill_template("leaderboard.tex.j2", escape, sections=sections, **values)


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


def accuracy_columns(table: TaskTable) -> list[tuple[Column, float]]:
    """Return the accuracies of the chosen checkpoint but the worst, with the second best mean.

    That is NaN where none above 0.0 % lies below the best.
    """
    columns = []
    for column in table.columns:
        if column.metric.startswith(TEST_PREFIXES[0]) and column.metric != WORST:
            best = table.best(column)
            means = [row[column.metric].mean for row in table.contenders]
            below = [mean for mean in means if LEAST_SHOWN <= mean < best]
            columns.append((column, max(below, default=math.nan)))
    return columns


def teacher_symbols(table: TaskTable) -> dict[str, str]:
    """Return a short symbol for each teacher of a table."""
    # The column is too narrow for the names of teachers.
    teachers = dict.fromkeys(row.teacher for row in table.ranked if row.teacher != "none")
    return {teacher: f"T{number}" for number, teacher in enumerate(teachers, start=1)}
