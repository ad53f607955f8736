"""The figures of every task and suite as files for papers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from leaderboards.render.figures.matplotlib_figures import (
    draw_diagram,
    draw_view,
    draw_win_matrix,
    save_figure,
)
from leaderboards.render.figures.rank_diagram import layout_diagram
from leaderboards.render.figures.task_views import task_views
from leaderboards.render.figures.win_matrix import win_matrix
from leaderboards.render.site.site_map import Site, file_names

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS: tuple[Literal["svg", "pdf"], ...] = ("svg", "pdf")


def paper_figures(site: Site) -> Iterator[tuple[str, bytes]]:
    """Yield (path, content): figures/<task>-<view>, <task>-wins and <suite>-ranks, SVG and PDF."""
    for task in site.tasks:
        stem = task.path.removeprefix("tasks/").removesuffix(".html")
        for view in task_views(task.table, site.runs):
            yield from _files(f"{stem}-{view.name}", draw_view(view))
        matrix = win_matrix(task.table)
        if matrix:
            yield from _files(f"{stem}-wins", draw_win_matrix(*matrix))
    stems = file_names([(section.experiment, "ranks") for section in site.sections])
    for section in site.sections:
        diagram = section.across_tasks and layout_diagram(section.across_tasks)
        if diagram:
            yield from _files(stems[section.experiment, "ranks"], draw_diagram(diagram))


def _files(stem: str, figure: Figure) -> Iterator[tuple[str, bytes]]:
    for kind in KINDS:
        yield f"figures/{stem}.{kind}", save_figure(figure, kind)
