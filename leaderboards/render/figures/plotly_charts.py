"""Views as data for plotly.js, in colours that the page names and site.js fills in."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from itertools import product
from operator import itemgetter
from typing import Any, TypeAlias

from leaderboards.render.figures.views import MAX_LEGEND, Bars, Series, Span, View, bar_lengths

Json: TypeAlias = dict[str, Any]
SYMBOLS = ("circle", "diamond", "square", "triangle-up", "x", "cross", "star", "hexagon")
COLOURS = 8  # of a page: --c1 to --c8
# Pixels: height of one row in a chart of rows, and of what is above the rows.
ROW_HEIGHT, HEAD_HEIGHT = 23, 100
# Pixels: height within the axes, and their width on a phone.
AXES_HEIGHT, AXES_WIDTH = 320, 300
# Pixels: height of a name, its distance from the point, and width of a letter.
NAME_HEIGHT, NAME_DISTANCE, LETTER_WIDTH = 17, 24, 7
DIGITS = 4  # significant


def build_chart(view: View) -> Json:
    """Return data and layout as Plotly.react takes them, with title and caption of the view."""
    texts = {"name": view.name, "title": view.title, "caption": view.caption}
    data = [_trace(view, series) for series in view.series]
    return {**texts, "data": data, "layout": _layout(view)}


def escape(name: str) -> str:
    """Escape the few tags and entities that Plotly takes for markup."""
    return html.escape(name, quote=False)


def round_numbers(values: Sequence[float]) -> list[float | None]:
    """Round to DIGITS of the largest value, to keep pages small; None where not finite."""
    largest = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
    decimals = DIGITS - math.ceil(math.log10(largest)) if largest else 0
    # JSON has neither NaN nor infinity.
    return [round(float(value), decimals) if math.isfinite(value) else None for value in values]


def _trace(view: View, series: Series) -> Json:
    trace: Json = {"name": escape(series.name), "mode": "markers"}
    if not series.name:
        trace["showlegend"] = False
    trace |= _axis_values("x", series.x) | _axis_values("y", series.y)
    if view.rows or series.names:
        point = "%{y}: %{x:.1f}" if view.rows else "%{customdata}<br>%{x:.3~g}, %{y:.4~g}"
        trace["hovertemplate"] = f"{point}<extra>%{{fullData.name}}</extra>"
    _set_look(trace, view, series)
    for axis, values, bars in (("x", series.x, series.x_bars), ("y", series.y, series.y_bars)):
        if bars:
            trace |= _error_bars(axis, values, bars)
    if series.names:
        trace["customdata"] = [*map(escape, series.names)]
    if series.ids:
        trace["ids"] = [*series.ids]
    return trace


def _set_look(trace: Json, view: View, series: Series) -> None:
    """Give series of the foreground a colour each and, if there are several, a symbol each."""
    position = 0 if series.muted else view.foreground.index(series)
    colour = "--soft" if series.muted else f"--c{position % COLOURS + 1}"
    if series.look:
        number, symbol_number, hollow = series.look
        symbol = SYMBOLS[symbol_number % len(SYMBOLS)] + ("-open" if hollow else "")
        trace["marker"] = {"color": f"--c{number + 1}", "size": 9, "symbol": symbol}
        return
    if series.line:
        trace["mode"] = "lines" if len(series.x) > 1 else "markers"
        trace["line"] = {"color": colour}
        if series.muted:
            trace["line"] |= {"width": 1.5, "dash": "dot"}
            if series.names:
                # Many lines as one.
                trace["opacity"] = 0.5
        return
    symbol = SYMBOLS[position % len(SYMBOLS) if len(view.foreground) > 1 else 0]
    trace["marker"] = {"color": colour, "size": 6 if series.muted else 9, "symbol": symbol}


def _axis_values(axis: str, values: Sequence[float]) -> Json:
    """Store a range as its beginning, and its step unless that is 1."""
    if not isinstance(values, range):
        return {axis: round_numbers(values)}
    step = {f"d{axis}": values.step} if values.step != 1 else {}
    return {f"{axis}0": values.start} | step


def _error_bars(axis: str, values: Sequence[float], bars: Bars) -> Json:
    down, up = bar_lengths(values, bars)
    if not any(down) and not any(up):
        return {}
    look = {"type": "data", "symmetric": False, "color": "--error", "thickness": 1.5, "width": 0}
    lengths = {"array": round_numbers(up), "arrayminus": round_numbers(down)}
    return {f"error_{axis}": look | lengths}


def _layout(view: View) -> Json:
    x, y = map(_axis, (view.x_title, view.y_title), view.frame)
    named = [series for series in view.series if series.name]
    has_legend = len(view.series) > 1 and len(named) <= MAX_LEGEND
    layout: Json = {"xaxis": x, "yaxis": y, "showlegend": has_legend}
    if view.log_x:
        marks = _log_marks(view.x_values)
        x |= {"type": "log", "tickvals": marks, "ticktext": [*map("{:g}".format, marks)]}
    if annotations := _annotations(view):
        layout["annotations"] = annotations
    if view.rows:
        # The scale is on top, where reading begins.
        x["side"] = "top"
        count = len(view.rows)
        y |= {"tickvals": [*range(count)], "ticktext": [*map(escape, view.rows)]}
        y["range"] = [count - 0.4, -0.6]
        layout["legend"] = {"yref": "container", "yanchor": "top"}
        layout["height"] = HEAD_HEIGHT + ROW_HEIGHT * count
        layout["margin"] = {"t": HEAD_HEIGHT - 10, "b": 10}
    return layout


def _axis(title: str, frame: Span | None) -> Json:
    return {"title": {"text": title}} | ({"range": [*frame]} if frame else {})


def _log_marks(values: Sequence[float]) -> list[float]:
    """Return 1, 2 and 5 times the powers of ten that `values` span."""
    powers = range(math.floor(math.log10(min(values))), math.ceil(math.log10(max(values))) + 1)
    return [float(f"{step}e{power}") for power, step in product(powers, (1, 2, 5))]


def _annotations(view: View) -> list[Json]:
    """Write names above the shown points, with a line to each, as far as there is room."""
    points = []
    for series in view.series:
        for x, y, name, shown in zip(series.x, series.y, series.names, series.shown, strict=False):
            if shown:
                points.append((math.log10(x) if view.log_x else x, y, name))
    if not points:
        return []
    points.sort(key=itemgetter(1))
    xs = [*map(math.log10, view.x_values)] if view.log_x else view.x_values
    left, right = view.frame[0] or (min(xs), max(xs))
    bottom, top = view.frame[1] or (points[0][1], points[-1][1])
    annotations = []
    # From the lowest point up, a name lies above its point and above the name before.
    name_top = math.inf
    for x, y, name in points:
        point_top = AXES_HEIGHT * (top - y) / max(top - bottom, 1e-9)
        name_top = min(point_top, name_top) - NAME_HEIGHT
        if y < bottom or name_top < 0:
            continue
        room = AXES_WIDTH * (right - x) / max(right - left, 1e-9)
        has_room = room > NAME_DISTANCE + LETTER_WIDTH * len(name)
        side, anchor = (1, "left") if has_room else (-1, "right")
        annotations.append({
            "x": x, "y": y, "text": escape(name), "ax": NAME_DISTANCE * side,
            "ay": name_top - point_top, "xanchor": anchor, "arrowhead": 0,
            "arrowwidth": 1, "arrowcolor": "--soft", "standoff": 5,
        })  # fmt: skip
    return annotations
