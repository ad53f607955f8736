"""Critical-difference diagram (Demšar 2006): rows on a line by mean rank, those that cannot be told apart under one bar.

Laid out here once, in pixels from the top left; a page draws it as SVG, `draw` for papers by matplotlib.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from leaderboards.render.figures import figure
from leaderboards.render.figures.figure import ACCENT, LINE, TEXT
from leaderboards.render.figures.views import MOST, labels
from leaderboards.stats.mean_ranks import inseparable_spans
from leaderboards.tables.across_tasks import AcrossTasks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH, LEFT, RIGHT = (
    720,
    250,
    470,
)  # the scale of mean ranks lies between the last two, names on both sides
AXIS, STEP, BAR = 66, 19, 8  # the scale from the top; between two names; between two bars
Kind = Literal["scale", "lead", "bar"]


@dataclass(frozen=True)
class Label:
    x: float
    y: float
    text: str
    anchor: Literal["start", "middle", "end"]


@dataclass(frozen=True)
class Diagram:
    """`lines` are polylines with what they are for; `dots` are the rows' mean ranks."""

    height: float
    lines: tuple[tuple[Kind, tuple[tuple[float, float], ...]], ...]
    dots: tuple[tuple[float, float], ...]
    labels: tuple[Label, ...]
    width: float = WIDTH


def layout(found: AcrossTasks) -> Diagram | None:
    """None for too few rows to compare or too many to read."""
    count, half = len(found.rows), (len(found.rows) + 1) // 2
    if not 3 <= count <= MOST:
        return None
    end = max(count, 1 + found.critical_difference)

    def at(rank: float) -> float:
        return round(LEFT + (RIGHT - LEFT) * (rank - 1) / (end - 1), 1)

    ticks = range(1, count + 1, max(1, round(count / 8)))
    lines: list[tuple[Kind, tuple[tuple[float, float], ...]]] = [
        ("scale", ((at(1), AXIS), (at(count), AXIS)))
    ]
    lines += [("scale", ((at(rank), AXIS - 5), (at(rank), AXIS))) for rank in ticks]
    lines += [("scale", ((at(1), 26), (at(1 + found.critical_difference), 26)))]
    said = [Label(at(rank), AXIS - 10, str(rank), "middle") for rank in ticks]
    said += [
        Label(
            at(1 + found.critical_difference / 2),
            18,
            f"critical difference {found.critical_difference:.1f}",
            "middle",
        )
    ]
    ranks = [row.mean_rank for row in found.rows]
    spans = inseparable_spans(ranks, found.critical_difference)
    lines += [
        ("bar", ((at(a), AXIS + BAR * n), (at(b), AXIS + BAR * n)))
        for n, (a, b) in enumerate(spans, 1)
    ]
    top = AXIS + BAR * len(spans)
    for place, (entry, name) in enumerate(zip(found.rows, labels(found.rows), strict=True)):
        left = place < half  # the better half from the best down, the other from the worst down
        y = top + STEP * (1 + (place if left else count - 1 - place))
        x, edge = at(entry.mean_rank), LEFT - 12 if left else RIGHT + 12
        lines.append(("lead", ((x, AXIS), (x, y), (edge, y))))
        said.append(Label(edge + (-6 if left else 6), y + 4, name, "end" if left else "start"))
    dots = tuple((at(entry.mean_rank), AXIS) for entry in found.rows)
    leads_first = sorted(lines, key=lambda line: line[0] != "lead")
    return Diagram(top + STEP * (half + 1), tuple(leads_first), dots, tuple(said))


def draw(found: Diagram) -> Figure:
    """The same by matplotlib, a pixel a point."""
    looks = {"scale": (TEXT, 0.8), "lead": (LINE, 0.8), "bar": (ACCENT, 3.0)}
    sides = {"start": "left", "middle": "center", "end": "right"}
    with figure.sheet(found.height / 72, found.width / 72) as page:
        axes = page.add_axes((0, 0, 1, 1))
        axes.set_xlim(0, found.width)
        axes.set_ylim(found.height, 0)
        axes.axis("off")
        for kind, points in found.lines:
            colour, width = looks[kind]
            axes.plot(
                *zip(*points, strict=True), color=colour, linewidth=width, solid_capstyle="round"
            )
        axes.plot(*zip(*found.dots, strict=True), "o", ms=4, color=ACCENT)
        for label in found.labels:
            axes.text(
                label.x, label.y, label.text, ha=sides[label.anchor], color=TEXT, parse_math=False
            )
        return page
