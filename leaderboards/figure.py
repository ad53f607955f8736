"""Robust against clean accuracy as an inline SVG that takes its colours from the page around it."""

from __future__ import annotations

import hashlib
import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from typing import TYPE_CHECKING

from leaderboards.table import RANK, Group, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from leaderboards.across import Entry

Box = tuple[float, float, float, float]  # left, bottom, right, top
CLEAN = "test/clean"
COLOURS = {"#010203": "var(--text)", "#040506": "var(--accent)", "#070809": "var(--line)"}  # stand-ins -> the page's
TEXT, ACCENT, LINE = COLOURS
FONT = 9.0  # points
LONGEST = 30  # characters of a label
NEAR = 0.75  # of the best AutoAttack accuracy: rows below are left out
MOST = 40  # rows; more names could not be placed


def drawn(group: Group) -> tuple[list[Row], list[Row]]:
    """Ranked rows with a place in the figure; and those that are left out, so that the others can be told apart."""
    rows = [row for row in group.ranked if row[CLEAN].n and row[RANK].n]
    least = NEAR * max((row[RANK].mean for row in rows), default=0.0)
    count = min(MOST, sum(row[RANK].mean >= least for row in rows))
    return rows[:count], rows[count:]


def scatter(group: Group) -> str:
    """SVG text with a point, its spread over seeds and its name for every drawn row; "" where no row can be drawn."""
    rows, _ = drawn(group)
    if not rows:
        return ""
    with sheet(4.2) as figure:
        axes = figure.subplots()
        _points(axes, rows)
        figure.draw_without_rendering()  # fixes the layout, so that labels can be placed in pixels
        _names(axes, rows)
        return svg(figure)


@contextmanager
def sheet(height: float) -> Iterator[Figure]:
    """A figure of some inches to draw on, and to make text of before it is left."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.fonttype": "none", "font.size": FONT, "axes.linewidth": 0.6}):
        yield Figure(figsize=(7.2, height), dpi=72, layout="constrained")  # as the SVG writer: a pixel is a point


def svg(figure: Figure) -> str:
    """The figure as an <svg> element in the page's colours."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _inline(stream.getvalue())


def labels(rows: Sequence[Row | Entry]) -> list[str]:
    """A short name for each, with the teacher where two would have the same."""
    plain = Counter(row.label for row in rows)
    names = [row.label if plain[row.label] == 1 else f"{row.label}, {row.teacher}" for row in rows]
    return [name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…" for name in names]


def _points(axes: Axes, rows: Sequence[Row]) -> None:
    for row in rows:
        x, y = row[CLEAN], row[RANK]
        spread = [100 * cell.sd if cell.sd == cell.sd else 0 for cell in (x, y)]
        axes.errorbar(
            100 * x.mean, 100 * y.mean, xerr=spread[0], yerr=spread[1], fmt="o", ms=5, color=ACCENT, elinewidth=0.8
        )
    axes.set_xlim(*_limits(100 * row[CLEAN].mean for row in rows))
    axes.set_ylim(*_limits(100 * row[RANK].mean for row in rows))
    axes.set_xlabel("Clean accuracy, %", color=TEXT)
    axes.set_ylabel("AutoAttack accuracy, %", color=TEXT)
    axes.grid(color=LINE, linewidth=0.6)
    axes.tick_params(colors=TEXT, length=0)
    axes.spines[:].set_color(LINE)
    axes.spines[["top", "right"]].set_visible(False)


def _limits(values: Iterable[float]) -> tuple[float, float]:
    """Room for labels around the points, and at least six points wide: small differences should look small."""
    values = list(values)
    middle, half = (min(values) + max(values)) / 2, max(3.0, 0.62 * (max(values) - min(values)))
    return middle - half, middle + half


def _names(axes: Axes, rows: Sequence[Row]) -> None:
    points = [tuple(axes.transData.transform((100 * row[CLEAN].mean, 100 * row[RANK].mean))) for row in rows]
    names = labels(rows)
    sizes = [(0.62 * FONT * len(name), 1.3 * FONT) for name in names]
    bounds = axes.get_window_extent()
    boxes = place(points, sizes, (bounds.x0, bounds.y0, bounds.x1, bounds.y1))
    for row, (x, y), (left, bottom, right, top), label in zip(rows, points, boxes, names, strict=True):
        offset = ((left + right) / 2 - x, (bottom + top) / 2 - y)
        far = abs(offset[1]) > 2 * FONT
        axes.annotate(
            label,
            (100 * row[CLEAN].mean, 100 * row[RANK].mean),
            xytext=offset,
            textcoords="offset points",
            ha="center",
            va="center",
            color=TEXT,
            parse_math=False,
            arrowprops={"arrowstyle": "-", "color": LINE, "linewidth": 0.8} if far else None,
        )


def place(points: Sequence[tuple[float, ...]], sizes: Sequence[tuple[float, float]], bounds: Box) -> list[Box]:
    """A box of each size near its point, clear of points, other boxes and the edge as far as there is room (pixels)."""
    taken: list[Box] = [(x - 5, y - 5, x + 5, y + 5) for x, y in points]
    boxes = []
    for (x, y), (width, height) in zip(points, sizes, strict=True):
        near = [(side * (width / 2 + 9), 0.0) for side in (1, -1)]
        rings = [
            (s * width / 2 * (r > 1), u * r * 1.1 * height) for r, u, s in product(range(1, 7), (1, -1), (0, 1, -1))
        ]
        options = [
            (x + dx - width / 2, y + dy - height / 2, x + dx + width / 2, y + dy + height / 2)
            for dx, dy in near + rings
        ]
        best = min(options, key=lambda box: sum(_overlap(box, other) for other in taken) + 10 * _outside(box, bounds))
        taken.append(best)
        boxes.append(best)
    return boxes


def _overlap(a: Box, b: Box) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _outside(box: Box, bounds: Box) -> float:
    over = (bounds[0] - box[0], bounds[1] - box[1], box[2] - bounds[2], box[3] - bounds[3])
    return sum(max(0.0, excess) for excess in over)


def _inline(svg: str) -> str:
    """The <svg> element alone, in the page's colours, with ids that no other figure on the page has."""
    svg = svg[svg.index("<svg") :]
    for colour, variable in COLOURS.items():
        svg = svg.replace(colour, variable)
    prefix = hashlib.sha256(svg.encode()).hexdigest()[:8]
    svg = re.sub(r'((?:\sid=|xlink:href=)"#?|url\(#)', rf"\g<1>f{prefix}-", svg)
    return re.sub(r'<svg (.*?)width="[^"]*"', r'<svg role="img" \1', svg, count=1, flags=re.DOTALL).replace(
        'height="', 'data-height="', 1
    )
