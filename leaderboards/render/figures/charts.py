"""Views as figures for plotly.js: plain data, in colours that the page names and site.js fills in."""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Sequence
from typing import Any

from leaderboards.render.figures.views import Series, View

SYMBOLS = ("circle", "diamond", "square", "triangle-up", "x", "cross", "star", "hexagon")
COLOURS = 8  # that the page has, as --c1 to --c8
MANY = 12  # lines; a legend would be taller than the figure
ROW = 23  # pixels
HEAD = 100
TALL = 420
INSIDE, NARROW = 320, 300  # height within the axes, their width on a phone
LINE, ASIDE, LETTER = (
    17,
    24,
    7,
)  # of a name: its height, how far it stands beside its point, the width of a letter
DIGITS = 4  # significant
DECIMALS = 300  # that numpy can round to


def chart(view: View) -> dict[str, Any]:
    """Data and layout as Plotly.react takes them, with the title and caption of the view."""
    loud = [series for series in view.series if not series.quiet]
    traces = [
        _trace(view, series, 0 if series.quiet else loud.index(series), len(loud))
        for series in view.series
    ]
    return {
        "name": view.name,
        "title": view.title,
        "caption": view.caption,
        "data": traces,
        "layout": _layout(view),
    }


def _trace(view: View, series: Series, place: int, count: int) -> dict[str, Any]:
    """Loud series have a colour each and, where a row has several, a symbol each."""
    colour = "--soft" if series.quiet else f"--c{place % COLOURS + 1}"
    trace: dict[str, Any] = {
        "type": "scatter",
        "name": plain(series.name),
        "showlegend": bool(series.name),
        "mode": "markers",
        **_values("x", series.x),
        **_values("y", series.y),
        "hovertemplate": _hover(view, series),
    }
    if series.line:
        dash = "dot" if series.quiet else "solid"
        trace["mode"] = "lines" if len(series.x) > 1 else "markers"
        trace["line"] = {"color": colour, "width": 1.5 if series.quiet else 2, "dash": dash}
    else:
        symbol = SYMBOLS[place % len(SYMBOLS)] if count > 1 else "circle"
        trace["marker"] = {"color": colour, "size": 6 if series.quiet else 9, "symbol": symbol}
    if series.low and series.high:
        for axis, middle, low, high in zip(
            "xy", (series.x, series.y), series.low, series.high, strict=True
        ):
            trace |= _bars(axis, middle, low, high)
    if series.names:
        trace["customdata"] = [plain(name) for name in series.names]
    return trace


def _bars(
    axis: str, middle: Sequence[float], low: Sequence[float], high: Sequence[float]
) -> dict[str, Any]:
    up = [end - value if end == end else 0 for value, end in zip(middle, high, strict=True)]
    down = [value - end if end == end else 0 for value, end in zip(middle, low, strict=True)]
    if not any((*up, *down)):
        return {}
    shape = {"type": "data", "symmetric": False, "color": "--error", "thickness": 1.5, "width": 0}
    return {f"error_{axis}": shape | {"array": numbers(up), "arrayminus": numbers(down)}}


def _hover(view: View, series: Series) -> str:
    who = "%{customdata}<br>" if series.names else ""
    if view.rows:
        return "%{y}: %{x:.1f}<extra>%{fullData.name}</extra>"
    epochs = view.x_title == "Epoch"
    return f"{who}%{{x{'' if epochs else ':.3~g'}}}, %{{y:.4~g}}<extra>{'%{fullData.name}' if series.name else ''}</extra>"


def _layout(view: View) -> dict[str, Any]:
    x: dict[str, Any] = {"title": {"text": view.x_title}, "automargin": True}
    y: dict[str, Any] = {"title": {"text": view.y_title}, "automargin": True}
    for axis, frame in zip((x, y), view.frame, strict=True):
        axis |= {"range": list(frame)} if frame else {}
    if view.log_x:
        marks = _marks([value for series in view.series for value in series.x])
        x |= {"type": "log", "tickvals": marks, "ticktext": [f"{mark:g}" for mark in marks]}
    named = [series.name for series in view.series if series.name]
    layout: dict[str, Any] = {
        "xaxis": x,
        "yaxis": y,
        "showlegend": len(view.series) > 1 and len(named) <= MANY,
        "legend": {"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom"},
        "height": TALL,
        "hovermode": "closest",
    }
    if names := [*_names(view)]:
        layout["annotations"] = names
    if view.rows:  # the scale on top, where reading begins
        count = len(view.rows)
        x["side"] = "top"
        y |= {
            "tickvals": [*range(count)],
            "ticktext": [plain(name) for name in view.rows],
            "range": [count - 0.4, -0.6],
        }
        layout["legend"] |= {"yref": "container", "yanchor": "top"}
        layout |= {"height": HEAD + ROW * count, "margin": {"t": HEAD - 10, "b": 10}}
    return layout


def _names(view: View) -> Iterator[dict[str, Any]]:
    """A name above each point that is shown, none on another, with a line to its point; those without room are left out."""
    points = [
        (math.log10(x) if view.log_x else x, y, name)
        for series in view.series
        for x, y, name, shown in zip(series.x, series.y, series.names, series.shown, strict=False)
        if shown
    ]
    if not points:
        return
    across = [math.log10(x) if view.log_x else x for series in view.series for x in series.x]
    left, right = view.frame[0] or (min(across), max(across))
    bottom, top = view.frame[1] or (min(y for _, y, _ in points), max(y for _, y, _ in points))
    above = math.inf  # pixels from the top, of the name before
    for x, y, name in sorted(points, key=lambda point: point[1]):
        place = INSIDE * (top - y) / max(top - bottom, 1e-9)
        above = min(place, above) - LINE
        if bottom <= y and above >= 0:
            room = NARROW * (right - x) / max(right - left, 1e-9)
            side = 1 if room > ASIDE + LETTER * len(name) else -1
            yield {
                "x": x, "y": y, "text": plain(name), "ax": ASIDE * side, "ay": above - place,
                "xanchor": "left" if side > 0 else "right", "arrowhead": 0, "arrowwidth": 1, "arrowcolor": "--soft",
                "standoff": 5,
            }  # fmt: skip


def _marks(values: Sequence[float]) -> list[float]:
    """1, 2 and 5 times the powers of ten that `values` span."""
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return [float(f"{step}e{power}") for power in range(low, high + 1) for step in (1, 2, 5)]


def plain(name: str) -> str:
    """Plotly takes a few tags and entities in its texts for markup; this is shown as it was."""
    return html.escape(name, quote=False)


def _values(axis: str, values: Sequence[float]) -> dict[str, Any]:
    """A range is named by its beginning, and its step unless that is 1."""
    if not isinstance(values, range):
        return {axis: numbers(values)}
    return {f"{axis}0": values.start} | ({f"d{axis}": values.step} if values.step != 1 else {})


def numbers(values: Sequence[float]) -> list[float | None]:
    """Short enough to send, as JSON can say it."""
    import numpy as np

    array = np.asarray(values, dtype=float)
    finite = np.isfinite(array)
    top = float(np.abs(array).max(initial=0.0, where=finite))
    decimals = min(DIGITS - math.ceil(math.log10(top)), DECIMALS) if top else 0
    short: list[float] = array.round(decimals).tolist()
    return (
        [*short]
        if finite.all()
        else [value if ok else None for value, ok in zip(short, finite, strict=True)]
    )
