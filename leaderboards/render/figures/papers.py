"""The figures of every task and suite as files for papers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from leaderboards.render.figures import diagram, figure, views
from leaderboards.render.site.site import Site, files

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS: tuple[Literal["svg", "pdf"], ...] = ("svg", "pdf")


def figures(site: Site) -> Iterator[tuple[str, bytes]]:
    """(path, content): figures/<task>-<view> for each view of each task, <suite>-ranks for the diagram; SVG and PDF."""
    for task in site.tasks:
        stem = task.path.removeprefix("tasks/").removesuffix(".html")
        for view in views.of_task(task.group, site.records):
            yield from _both(f"{stem}-{view.name}", figure.draw(view))
    names = files((section.experiment, "ranks") for section in site.sections)
    for section in site.sections:
        found = diagram.layout(section.across_tasks) if section.across_tasks else None
        if found:
            yield from _both(names[section.experiment, "ranks"], diagram.draw(found))


def _both(stem: str, drawn: Figure) -> Iterator[tuple[str, bytes]]:
    for kind in KINDS:
        yield f"figures/{stem}.{kind}", figure.save(drawn, kind)
