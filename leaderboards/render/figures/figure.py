"""Views as figures for papers, by matplotlib: SVG and PDF, text as text, in fixed colours on nothing."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from typing import TYPE_CHECKING, Any, Literal

from leaderboards.render.figures.charts import MANY
from leaderboards.render.figures.views import Series, View

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Box = tuple[float, float, float, float]  # left, bottom, right, top
TEXT, SOFT, ACCENT, LINE, BARS = "#1f2328", "#656c76", "#0b6e75", "#d9d6d0", "#9cc5c6"
COLOURS = (ACCENT, "#b35c00", "#6a4fb3", "#b3365b", "#2f6db3", "#5f6f10", "#8a4b2a", "#50565e")
MARKERS = ("o", "D", "s", "^", "X", "P", "*", "h")
FONT = 9.0  # points
LOOK: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "robust-distill-bench",  # the same ids each time
    "pdf.fonttype": 42,  # journals refuse Type 3
    "font.size": FONT,
    "axes.linewidth": 0.6,
}
WITHOUT_DATE: dict[str, dict[str, Any]] = {
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None},
}


@contextmanager
def sheet(height: float, width: float = 7.2) -> Iterator[Figure]:
    """A figure of some inches to draw on."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(LOOK):
        yield Figure(figsize=(width, height), dpi=72)  # as the SVG writer: a pixel is a point


def save(figure: Figure, kind: Literal["svg", "pdf"]) -> bytes:
    """The file, the same for the same figure."""
    import matplotlib

    stream = io.BytesIO()
    with matplotlib.rc_context(LOOK):
        figure.savefig(
            stream, format=kind, transparent=True, bbox_inches="tight", metadata=WITHOUT_DATE[kind]
        )
    return stream.getvalue()


def draw(view: View) -> Figure:
    """The view, with the name of every point that lies in its frame."""
    with sheet(0.5 + 0.22 * len(view.rows) + 0.3 if view.rows else 4.2) as page:
        page.set_layout_engine("constrained")
        axes = page.subplots()
        loud = [series for series in view.series if not series.quiet]
        for series in view.series:
            _series(axes, series, 0 if series.quiet else loud.index(series), len(loud))
        _axes(axes, view)
        if any(series.name for series in view.series) and len(view.series) in range(2, MANY + 1):
            axes.legend(
                frameon=False,
                labelcolor=TEXT,
                ncols=4,
                loc="lower left",
                bbox_to_anchor=(0, 1),
                handletextpad=0.3,
            )
        page.draw_without_rendering()  # fixes the layout, so that labels can be placed in pixels
        for series in view.series:
            if series.names:
                _names(axes, series)
        return page


def _series(axes: Axes, series: Series, place: int, count: int) -> None:
    colour = SOFT if series.quiet else COLOURS[place % len(COLOURS)]
    marker = MARKERS[place % len(MARKERS)] if count > 1 else "o"
    label = (
        f"\u200b{series.name}" if series.name.startswith("_") else series.name
    )  # else matplotlib would hide it
    if series.line:
        axes.plot(
            series.x,
            series.y,
            ":" if series.quiet else "-o",
            ms=3,
            color=colour,
            linewidth=1,
            label=label,
            zorder=1,
        )
        return
    spread: dict[str, Any] = {"elinewidth": 1.0, "ecolor": BARS}
    if series.low and series.high:
        for axis, middle, low, high in zip(
            "xy", (series.x, series.y), series.low, series.high, strict=True
        ):
            ends = [[_length(v - a) for v, a in zip(middle, low, strict=True)]]
            ends.append([_length(b - v) for v, b in zip(middle, high, strict=True)])
            spread[f"{axis}err"] = ends
    size, alpha = (3, 0.55) if series.quiet else (5, 1)
    axes.errorbar(
        series.x, series.y, fmt=marker, ms=size, alpha=alpha, color=colour, label=label, **spread
    )


def _length(value: float) -> float:
    return 0.0 if math.isnan(value) else max(0.0, value)


def _axes(axes: Axes, view: View) -> None:
    if view.log_x:
        axes.set_xscale("log")
    for name, frame in zip("xy", view.frame, strict=True):
        if frame:
            axes.set(**{f"{name}lim": frame})
    if view.rows:
        axes.set_ylim(len(view.rows) - 0.4, -0.6)
        axes.set_yticks(range(len(view.rows)), view.rows, parse_math=False)
    axes.set_xlabel(view.x_title, color=TEXT)
    axes.set_ylabel(view.y_title, color=TEXT)
    axes.grid(color=LINE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(colors=TEXT, length=0)
    axes.spines[:].set_color(LINE)
    axes.spines[["top", "right"]].set_visible(False)


def _names(axes: Axes, series: Series) -> None:
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    inside = [
        (x, y, name)
        for x, y, name in zip(series.x, series.y, series.names, strict=True)
        if left <= x <= right and low <= y <= high
    ]
    points = [tuple(axes.transData.transform((x, y))) for x, y, _ in inside]
    sizes = [(0.62 * FONT * len(name), 1.3 * FONT) for *_, name in inside]
    bounds = axes.get_window_extent()
    boxes = place(points, sizes, (bounds.x0, bounds.y0, bounds.x1, bounds.y1))
    for (x, y, name), (across, up), box in zip(inside, points, boxes, strict=True):
        offset = ((box[0] + box[2]) / 2 - across, (box[1] + box[3]) / 2 - up)
        far = abs(offset[1]) > FONT
        axes.annotate(
            name,
            (x, y),
            xytext=offset,
            textcoords="offset points",
            ha="center",
            va="center",
            color=TEXT,
            parse_math=False,
            arrowprops={"arrowstyle": "-", "color": TEXT, "linewidth": 0.5, "alpha": 0.6}
            if far
            else None,
        )


def place(
    points: Sequence[tuple[float, ...]], sizes: Sequence[tuple[float, float]], bounds: Box
) -> list[Box]:
    """A box of each size near its point, clear of points, other boxes and the edge as far as there is room (pixels)."""
    taken: list[Box] = [(x - 5, y - 5, x + 5, y + 5) for x, y in points]
    boxes = []
    for (x, y), (width, height) in zip(points, sizes, strict=True):
        near = [(side * (width / 2 + 9), 0.0) for side in (1, -1)]
        rings = [
            (s * width / 2 * (r > 1), u * r * 1.1 * height)
            for r, u, s in product(range(1, 7), (1, -1), (0, 1, -1))
        ]
        options = [
            (x + dx - width / 2, y + dy - height / 2, x + dx + width / 2, y + dy + height / 2)
            for dx, dy in near + rings
        ]
        best = min(
            options,
            key=lambda box: (
                sum(_overlap(box, other) for other in taken) + 10 * _outside(box, bounds)
            ),
        )
        taken.append(best)
        boxes.append(best)
    return boxes


def _overlap(a: Box, b: Box) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _outside(box: Box, bounds: Box) -> float:
    over = (bounds[0] - box[0], bounds[1] - box[1], box[2] - bounds[2], box[3] - bounds[3])
    return sum(max(0.0, excess) for excess in over)
