"""P(row beats column) of a task: how likely one row is more accurate than another."""

from __future__ import annotations

from leaderboards.render.figures.views import MAX_ROWS, row_labels
from leaderboards.stats.ranks import Array
from leaderboards.tables.rows import TaskTable


def win_matrix(table: TaskTable) -> tuple[list[str], Array] | None:
    """Return names of the compared rows, best first, and the probabilities (rows, rows) in [0, 1].

    None unless 2 to MAX_ROWS rows are compared.
    """
    if table.win_probabilities is None or not 2 <= len(table.contenders) <= MAX_ROWS:
        return None
    return row_labels(table.contenders), table.win_probabilities
