"""Critical-difference diagram (Demšar 2006): rows on a line by mean rank, those that cannot be told apart under one bar."""

from __future__ import annotations

from typing import TYPE_CHECKING

from leaderboards import figure
from leaderboards.across import Across, together
from leaderboards.figure import ACCENT, LINE, MOST, TEXT

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STEP = 1.0  # between two labels, in the height of one


def draw(found: Across) -> str:
    """SVG text; "" for too few rows to compare or too many to read."""
    count = len(found.entries)
    if not 3 <= count <= MOST:
        return ""
    bars = together(found.entries, found.critical)
    labels = (count + 1) // 2
    with figure.sheet(0.26 * (labels + 3) + 0.1 * len(bars)) as page:
        axes = page.subplots()
        low, high = 1, max(count, 1 + found.critical)
        axes.set_xlim(low - 0.6 * (high - low), high + 0.6 * (high - low))  # room for names on both sides
        axes.set_ylim(-labels - 0.6 - 0.35 * len(bars), 2.4)
        axes.axis("off")
        _scale(axes, count, found.critical)
        for place, span in enumerate(bars):
            axes.plot(span, [-0.3 - 0.35 * place] * 2, color=ACCENT, linewidth=3, solid_capstyle="round")
        _rows(axes, found, -0.3 - 0.35 * len(bars), (low, high))
        return figure.svg(page)


def _scale(axes: Axes, count: int, critical: float) -> None:
    """The line of mean ranks, and over it the critical difference as a length."""
    every = max(1, round(count / 12))
    axes.plot([1, count], [0, 0], color=TEXT, linewidth=0.8)
    for rank in range(1, count + 1, every):
        axes.plot([rank, rank], [0, 0.15], color=TEXT, linewidth=0.8)
        axes.text(rank, 0.3, str(rank), ha="center", va="bottom", color=TEXT)
    axes.plot([1, 1 + critical], [1.4, 1.4], color=TEXT, linewidth=1.6)
    axes.text(1 + critical / 2, 1.5, f"critical difference {critical:.1f}", ha="center", va="bottom", color=TEXT)


def _rows(axes: Axes, found: Across, top: float, ends: tuple[float, float]) -> None:
    """The better half is named on the left, from the best down, the other on the right, from the worst down."""
    count, half = len(found.entries), (len(found.entries) + 1) // 2
    gap = 0.03 * (ends[1] - ends[0])
    for place, (entry, name) in enumerate(zip(found.entries, figure.labels(found.entries), strict=True)):
        left = place < half
        height = top - STEP * (1 + (place if left else count - 1 - place))
        end = ends[0] - gap if left else ends[1] + gap
        axes.plot([entry.mean_rank, entry.mean_rank, end], [0, height, height], color=LINE, linewidth=0.8, zorder=0)
        axes.plot([entry.mean_rank], [0], "o", ms=4, color=ACCENT)
        side = "right" if left else "left"
        axes.text(end - gap if left else end + gap, height, name, ha=side, va="center", color=TEXT, parse_math=False)
