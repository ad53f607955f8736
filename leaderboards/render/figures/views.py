"""A chart as plain numbers: plotly_charts draws it for screens, matplotlib_figures for papers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from leaderboards.tables.rows import Row

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from leaderboards.tables.across_tasks import AcrossTasksRow

MAX_ROWS = 40  # in a chart: there is no room for more names
MAX_LEGEND = 12  # lines of a legend: a longer one would be taller than the chart
MAX_LABEL = 34  # characters
Span: TypeAlias = tuple[float, float]
Bars: TypeAlias = tuple[Sequence[float], Sequence[float]]  # lower and upper ends, NaN for none


@dataclass(frozen=True)
class Series:
    """Points that share a colour, or a line."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    x_bars: Bars | None = None
    y_bars: Bars | None = None
    names: Sequence[str] = ()  # of the points
    shown: Sequence[bool] = ()  # whether a screen writes the name beside the point
    line: bool = False
    muted: bool = False  # drawn as background
    ids: Sequence[str] = ()  # of the points' rows in the table
    look: tuple[int, int, bool] | None = None  # colour, symbol and whether hollow; None by position


@dataclass(frozen=True)
class View:
    """One chart. With `rows`, y counts these names from 0 down; without, it is a number."""

    name: str
    title: str
    caption: str
    x_title: str
    y_title: str
    series: tuple[Series, ...]
    rows: tuple[str, ...] = ()
    frame: tuple[Span | None, Span | None] = (None, None)  # of x and y; None fits the points
    log_x: bool = False

    @property
    def x_values(self) -> list[float]:
        return [x for series in self.series for x in series.x]

    @property
    def foreground(self) -> list[Series]:
        """The series with a colour of their own."""
        return [series for series in self.series if not series.muted]


def bar_lengths(values: Sequence[float], bars: Bars) -> NDArray[np.float64]:
    """Return two rows: the lengths of error bars below and above the values, 0 for none."""
    import numpy as np

    lows, highs = bars
    return np.nan_to_num([np.subtract(values, lows), np.subtract(highs, values)])


def row_labels(rows: Sequence[Row | AcrossTasksRow]) -> list[str]:
    """Return a short name for each row, with the teacher where two rows would share it."""
    counts = Counter(row.label for row in rows)
    labels = [f"{row.label}, {row.teacher}" if counts[row.label] > 1 else row.label for row in rows]
    return [*map(shorten_name, labels)]


def shorten_name(name: str) -> str:
    """Cut a name to MAX_LABEL characters."""
    return name if len(name) <= MAX_LABEL else f"{name[: MAX_LABEL - 1]}…"
