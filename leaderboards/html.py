"""One self-contained page per suite: no network, no server, every name escaped by the template engine."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

from leaderboards import diagram, figure, protocol
from leaderboards.markdown import bracket, first_run, number, share
from leaderboards.published import HEAD
from leaderboards.table import RANK, SECONDS, Group, Section, sections

if TYPE_CHECKING:
    import pandas as pd


def pages(runs: pd.DataFrame, suite: str | None = None, found: list[Section] | None = None) -> dict[str, str]:
    """File name -> HTML for every suite in store.collect's frame; for none, the page of the suite to start with.

    `found` are its sections, where they are known already.
    """
    by_suite: defaultdict[str, list[Section]] = defaultdict(list)
    for section in sections(runs) if found is None else found:
        by_suite[section.suite].append(section)
    if not by_suite:
        by_suite[(suite or "digits").partition("@")[0]] = []
    return {_file(name): page(name, part) for name, part in by_suite.items()}


def page(suite: str, found: list[Section]) -> str:
    """The page of one suite, its newest version first."""
    import jinja2
    from markupsafe import Markup

    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    engine = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return engine.get_template("page.html.j2").render(
        suite=suite,
        sections=found,
        first_run=first_run(suite),
        number=number,
        bracket=bracket,
        share=share,
        marked=_marked,
        diagram=lambda across: Markup(diagram.draw(across)),
        sortable=_sortable,
        protocol=protocol.words,
        settings=protocol.settings,
        published=HEAD,
        scatter=lambda group: Markup(figure.scatter(group)),
        left_out=lambda group: [row.label for row in figure.drawn(group)[1]],
        newest=_newest,
        rank=RANK,
        seconds=SECONDS,
    )


def _sortable(group: Group, metric: str) -> str:
    """The direction in which the table arrives."""
    return "descending" if metric == RANK and group.ranked else "none"


def _marked(found: list[Section]) -> bool:
    """Whether the page has anything that its filter would hide."""
    groups = [group for section in found for group in (*section.groups, *filter(None, [section.teachers]))]
    rows = [row for group in groups for row in (*group.ranked, *group.incomplete)]
    return any(row.marks for row in rows) or any(section.outdated for section in found)


def _newest(section: Section) -> str:
    return f"{section.runs['start_time'].max():%Y-%m-%d %H:%M} UTC"


def _file(suite: str) -> str:
    return f"{re.sub(r'[^A-Za-z0-9._-]+', '_', suite)}.html"
