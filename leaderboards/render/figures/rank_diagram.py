"""The critical-difference diagram (Demšar 2006), laid out in pixels from the top left."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from leaderboards.render.figures.views import MAX_ROWS, row_labels
from leaderboards.stats.mean_positions import inseparable_spans
from leaderboards.tables.across_tasks import AcrossTasks

SCALE_LEFT, SCALE_RIGHT = 250, 470  # ends of the scale; the names lie on both sides of it
SCALE_TOP = 66
NAME_STEP, BAR_STEP = 19, 8  # between two names, between two bars
Kind: TypeAlias = Literal["scale", "lead", "bar"]
Point: TypeAlias = tuple[float, float]
Scale: TypeAlias = Callable[[float], float]  # from a position to its x


@dataclass(frozen=True)
class Label:
    """A text and the pixel where its anchor lies."""

    x: float
    y: float
    text: str
    anchor: Literal["start", "middle", "end"]


@dataclass
class Diagram:
    """Polylines (a bar joins rows that cannot be told apart), a dot a mean position, and texts."""

    height: float
    lines: list[tuple[Kind, list[Point]]] = field(default_factory=list)
    dots: list[Point] = field(default_factory=list)
    labels: list[Label] = field(default_factory=list)
    width: float = 720


def layout_diagram(across: AcrossTasks) -> Diagram | None:
    """Lay out the diagram; None where no two rows can be told apart, or for too many to read."""
    count = len(across.rows)
    if count > MAX_ROWS or not across.separates:
        return None
    last_position = max(count, 1 + across.critical_difference)

    def to_x(position: float) -> float:
        share = (SCALE_RIGHT - SCALE_LEFT) * (position - 1) / (last_position - 1)
        return round(SCALE_LEFT + share, 1)

    positions = [row.mean_position for row in across.rows]
    spans = inseparable_spans(positions, across.critical_difference)
    names_top = SCALE_TOP + BAR_STEP * len(spans)
    diagram = Diagram(names_top + NAME_STEP * ((count + 1) // 2 + 1))
    _add_scale(diagram, across, to_x)
    for number, (low, high) in enumerate(spans, start=1):
        y = SCALE_TOP + BAR_STEP * number
        diagram.lines.append(("bar", [(to_x(low), y), (to_x(high), y)]))
    _add_names(diagram, across, to_x, names_top)
    # The lines to the names lie behind all others.
    diagram.lines.sort(key=lambda line: line[0] != "lead")
    return diagram


def _add_scale(diagram: Diagram, across: AcrossTasks, to_x: Scale) -> None:
    """Add the scale of positions with its ticks, and the critical difference as a line above it."""
    count = len(across.rows)
    diagram.lines.append(("scale", [(to_x(1), SCALE_TOP), (to_x(count), SCALE_TOP)]))
    for position in range(1, count + 1, max(1, round(count / 8))):
        x = to_x(position)
        diagram.lines.append(("scale", [(x, SCALE_TOP - 5), (x, SCALE_TOP)]))
        diagram.labels.append(Label(x, SCALE_TOP - 10, str(position), "middle"))
    diagram.lines.append(("scale", [(to_x(1), 26), (to_x(1 + across.critical_difference), 26)]))
    text = f"critical difference {across.critical_difference:.1f}"
    diagram.labels.append(Label(to_x(1 + across.critical_difference / 2), 18, text, "middle"))


def _add_names(diagram: Diagram, across: AcrossTasks, to_x: Scale, top: float) -> None:
    """Name the better half on the left from the best down, the rest on the right from the worst."""
    count = len(across.rows)
    for position, name in enumerate(row_labels(across.rows)):
        x = to_x(across.rows[position].mean_position)
        diagram.dots.append((x, SCALE_TOP))
        is_left = position < (count + 1) // 2
        y = top + NAME_STEP * (1 + position if is_left else count - position)
        edge, gap = (SCALE_LEFT - 12, -6) if is_left else (SCALE_RIGHT + 12, 6)
        diagram.labels.append(Label(edge + gap, y + 4, name, "end" if is_left else "start"))
        diagram.lines.append(("lead", [(x, SCALE_TOP), (x, y), (edge, y)]))
