"""The figures of every task and suite as files for papers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from leaderboards.render.figures import matplotlib_figures
from leaderboards.render.figures.class_views import class_views
from leaderboards.render.figures.rank_diagram import layout_diagram
from leaderboards.render.figures.task_views import task_views, win_matrix
from leaderboards.render.site.site_map import Site, file_names

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def paper_figures(site: Site) -> Iterator[tuple[str, bytes]]:
    """Yield (path, content): figures/<task>-<view>, <task>-wins and <suite>-ranks, SVG and PDF."""
    for task in site.tasks:
        stem = task.path.removeprefix("tasks/").removesuffix(".html")
        classes = site.class_tables.get(task.path)
        views = [*task_views(task.table, site.runs), *(class_views(classes) if classes else ())]
        for view in views:
            yield from _files(f"{stem}-{view.name}", matplotlib_figures.draw_view(view))
        if matrix := win_matrix(task.table):
            yield from _files(f"{stem}-wins", matplotlib_figures.draw_win_matrix(*matrix))
    stems = file_names([(section.experiment, "ranks") for section in site.sections])
    for section in site.sections:
        if diagram := section.across_tasks and layout_diagram(section.across_tasks):
            figure = matplotlib_figures.draw_diagram(diagram)
            yield from _files(stems[section.experiment, "ranks"], figure)


def _files(stem: str, figure: Figure) -> Iterator[tuple[str, bytes]]:
    yield f"figures/{stem}.svg", matplotlib_figures.save_figure(figure, "svg")
    yield f"figures/{stem}.pdf", matplotlib_figures.save_figure(figure, "pdf")
