"""Views, diagrams and heat maps for papers, by matplotlib: SVG and PDF, text as text."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from leaderboards.render.figures.rank_diagram import Diagram
from leaderboards.render.figures.views import MAX_LEGEND, Series, View, bar_lengths
from leaderboards.stats.ranks import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Box: TypeAlias = tuple[float, float, float, float]  # left, bottom, right, top
TEXT, SOFT, ACCENT, LINE, BARS = "#1f2328", "#656c76", "#0b6e75", "#d9d6d0", "#9cc5c6"
COLOURS = (ACCENT, "#b35c00", "#6a4fb3", "#b3365b", "#2f6db3", "#5f6f10", "#8a4b2a", "#50565e")
MARKERS = ("o", "D", "s", "^", "X", "P", "*", "h")
FONT = 9.0  # points, as in STYLE
CELL, SMALLEST_MAP = 0.2, 2.0  # inches of a heat map without its names
STYLE = Path(__file__).with_name("paper.mplstyle")
WITHOUT_DATE: Any = {"svg": {"Date": None, "Creator": None}, "pdf": {"CreationDate": None}}
# From a point to a name that lies apart.
LEAD = {"arrowstyle": "-", "color": TEXT, "linewidth": 0.5, "alpha": 0.6}
# Of a diagram: colour and width of each kind of line, alignment of each anchor.
DIAGRAM_LINES = {"scale": (TEXT, 0.8), "lead": (LINE, 0.8), "bar": (ACCENT, 3.0)}
ALIGNMENTS = {"start": "left", "middle": "center", "end": "right"}


def draw_view(view: View) -> Figure:
    """Draw the view, with the name of every point that lies in its frame."""
    height = 0.5 + 0.22 * len(view.rows) + 0.3 if view.rows else 4.2
    with _blank_figure(7.2, height) as figure:
        figure.set_layout_engine("constrained")
        axes = figure.subplots()
        for series in view.series:
            _draw_series(axes, view, series)
        _set_axes(axes, view)
        if any(map(attrgetter("name"), view.series)) and 1 < len(view.series) <= MAX_LEGEND:
            axes.legend(ncols=4, loc="lower left", bbox_to_anchor=(0, 1))
        # Fixes the layout, so that names can be placed in pixels.
        figure.draw_without_rendering()
        for series in view.series:
            if series.names:
                _draw_names(axes, series)
        return figure


def draw_diagram(diagram: Diagram) -> Figure:
    """Draw a critical-difference diagram, a pixel a point."""
    with _blank_figure(diagram.width / 72, diagram.height / 72) as figure:
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, diagram.width), ylim=(diagram.height, 0))
        axes.axis("off")
        for kind, points in diagram.lines:
            colour, width = DIAGRAM_LINES[kind]
            x, y = zip(*points, strict=True)
            axes.plot(x, y, color=colour, linewidth=width, solid_capstyle="round")
        x, y = zip(*diagram.dots, strict=True)
        axes.plot(x, y, "o", ms=4, color=ACCENT)
        for label in diagram.labels:
            side = ALIGNMENTS[label.anchor]
            axes.text(label.x, label.y, label.text, ha=side, parse_math=False)
        return figure


def draw_win_matrix(names: Sequence[str], probabilities: Array) -> Figure:
    """Draw a heat map of P(row beats column) in percent, (rows, rows); darker is more likely."""
    from matplotlib.colors import LinearSegmentedColormap

    # From light to dark without a turn: it reads the same in grey.
    colours = LinearSegmentedColormap.from_list("wins", ("white", BARS, ACCENT, "#05363a"))
    count = len(names)
    side = max(CELL * count, SMALLEST_MAP)
    with _blank_figure(side, side) as figure:
        # The file is cut to what is drawn: names take what room they need around the map.
        axes = figure.add_axes((0, 0, 1, 1))
        axes.pcolormesh(probabilities, cmap=colours, vmin=0, vmax=1, linewidth=0)
        axes.set(ylim=(count, 0), xlabel="P(row beats column), %")
        middles = [position + 0.5 for position in range(count)]
        axes.set_xticks(middles, names, rotation=90, parse_math=False)
        axes.set_yticks(middles, names, parse_math=False)
        axes.tick_params(colors=TEXT, length=0, labeltop=True, labelbottom=False)
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        size = min(FONT, 30 * side / count)
        for (row, column), share in np.ndenumerate(probabilities):
            look: Any = {"ha": "center", "va": "center", "fontsize": size}
            look["color"] = "white" if share > 0.5 else TEXT
            axes.text(column + 0.5, row + 0.5, f"{100 * share:.0f}", **look)
        return figure


def save_figure(figure: Figure, kind: Literal["svg", "pdf"], **look: Any) -> bytes:
    """Return the file, the same bytes for the same figure; `look`: as `savefig` takes it."""
    import matplotlib

    stream = io.BytesIO()
    with matplotlib.rc_context(fname=STYLE):
        figure.savefig(stream, format=kind, metadata=WITHOUT_DATE[kind], **look)
    return stream.getvalue()


@contextmanager
def _blank_figure(width: float, height: float) -> Iterator[Figure]:
    """Yield a figure of some inches to draw on; a pixel is a point, as for the SVG writer."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(fname=STYLE):
        yield Figure(figsize=(width, height))


def _draw_series(axes: Axes, view: View, series: Series) -> None:
    position = 0 if series.muted else view.foreground.index(series)
    colour = SOFT if series.muted else COLOURS[position % len(COLOURS)]
    marker = MARKERS[position % len(MARKERS) if len(view.foreground) > 1 else 0]
    # matplotlib hides names that begin with "_".
    label = f"\u200b{series.name}" if series.name.startswith("_") else series.name
    look: dict[str, Any] = {"color": colour, "label": label}
    if series.line:
        style = ":" if series.muted else "-o"
        axes.plot(series.x, series.y, style, ms=3, linewidth=1, zorder=1, **look)
        return
    if series.x_bars:
        look["xerr"] = bar_lengths(series.x, series.x_bars).clip(min=0)
    if series.y_bars:
        look["yerr"] = bar_lengths(series.y, series.y_bars).clip(min=0)
    size, alpha = (3, 0.55) if series.muted else (5, 1)
    look |= {"ms": size, "alpha": alpha, "elinewidth": 1.0, "ecolor": BARS}
    axes.errorbar(series.x, series.y, fmt=marker, **look)


def _set_axes(axes: Axes, view: View) -> None:
    if view.log_x:
        axes.set_xscale("log")
    if view.frame[0]:
        axes.set_xlim(view.frame[0])
    if view.frame[1]:
        axes.set_ylim(view.frame[1])
    if view.rows:
        axes.set_ylim(len(view.rows) - 0.4, -0.6)
        axes.set_yticks(range(len(view.rows)), view.rows, parse_math=False)
    axes.set(xlabel=view.x_title, ylabel=view.y_title)
    axes.tick_params(colors=TEXT, length=0)


def _draw_names(axes: Axes, series: Series) -> None:
    """Write the names of the points within the frame, with a line to those that lie apart."""
    left, right = axes.get_xlim()
    bottom, top = axes.get_ylim()
    points = zip(series.x, series.y, series.names, strict=True)
    visible = [item for item in points if left <= item[0] <= right and bottom <= item[1] <= top]
    pixels = [tuple(axes.transData.transform((x, y))) for x, y, _ in visible]
    sizes = [(0.62 * FONT * len(name), 1.3 * FONT) for _, _, name in visible]
    bounds = axes.get_window_extent()
    boxes = place_boxes(pixels, sizes, (bounds.x0, bounds.y0, bounds.x1, bounds.y1))
    look: Any = {"ha": "center", "va": "center", "parse_math": False}
    for (x, y, name), pixel, box in zip(visible, pixels, boxes, strict=True):
        offset = ((box[0] + box[2]) / 2 - pixel[0], (box[1] + box[3]) / 2 - pixel[1])
        arrow = LEAD if abs(offset[1]) > FONT else None
        axes.annotate(name, (x, y), offset, textcoords="offset points", arrowprops=arrow, **look)


def place_boxes(
    points: Sequence[tuple[float, ...]], sizes: Sequence[tuple[float, float]], bounds: Box
) -> list[Box]:
    """Place boxes near their points, clear of points, boxes and the edge if possible (pixels)."""
    occupied = [_box_around(x, y, 10, 10) for x, y in points]
    for (x, y), (width, height) in zip(points, sizes, strict=True):
        offsets = _offsets(width, height)
        options = [_box_around(x + dx, y + dy, width, height) for dx, dy in offsets]
        occupied.append(min(options, key=lambda box: _crowding(box, occupied, bounds)))
    return occupied[len(points) :]


def _offsets(width: float, height: float) -> list[tuple[float, float]]:
    """List the offsets to try: on the right, on the left, then six rows above and below."""
    offsets = [(width / 2 + 9, 0.0), (-width / 2 - 9, 0.0)]
    for row, direction, side in product(range(1, 7), (1, -1), (0, 1, -1)):
        # In the first row a name is centred over its point alone.
        dx = side * (row > 1) * width / 2
        offsets.append((dx, direction * row * 1.1 * height))
    return offsets


def _box_around(x: float, y: float, width: float, height: float) -> Box:
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def _crowding(box: Box, occupied: Sequence[Box], bounds: Box) -> float:
    """Sum the overlaps with other boxes and, at ten times, the lengths beyond the bounds."""
    left, bottom, right, top = bounds
    excess = (left - box[0], bottom - box[1], box[2] - right, box[3] - top)
    outside = sum(max(0.0, length) for length in excess)
    return sum(_overlap(box, neighbour) for neighbour in occupied) + 10 * outside


def _overlap(a: Box, b: Box) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return max(0.0, width) * max(0.0, height)
