"""The site and the Markdown of a frame of runs, and a reader of pages."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from typing import Any

import pandas as pd

from leaderboards.render import markdown
from leaderboards.render.site.pages import render_pages
from leaderboards.render.site.site_map import Site
from leaderboards.tables import suite_tables


def render(runs: pd.DataFrame) -> dict[str, str]:
    """Return HTML by path."""
    return dict(render_pages(Site(runs, suite_tables.build_sections(runs))))


def render_markdown(runs: pd.DataFrame) -> str:
    return markdown.render(suite_tables.build_sections(runs))


def task(runs: pd.DataFrame, name: str) -> str:
    """Return the page of the one task whose path begins so, as in "cifar@1-cifar10"."""
    (page,) = (text for path, text in render(runs).items() if path.startswith(f"tasks/{name}"))
    return page


class Reader(HTMLParser):
    """Parse a page: elements, visible text, tables by caption as lines of cells, data of charts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, list[tuple[str, str | None]]]] = []
        self.text = ""
        self.tables: dict[str, list[list[str]]] = {}
        self.data: list[Any] = []
        self._open_tags: list[str] = []
        self._lines: list[list[str]] = []
        self.feed(text)

    @property
    def tags(self) -> list[str]:
        return [tag for tag, _ in self.elements]

    @property
    def attributes(self) -> list[tuple[str, str | None]]:
        return [pair for _, attributes in self.elements for pair in attributes]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, attrs))
        self._open_tags.append(tag)
        if tag == "table":
            self._lines = []
        elif tag == "tr":
            self._lines.append([])
        elif tag in ("td", "th"):
            self._lines[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in self._open_tags:
            while self._open_tags.pop() != tag:
                pass
        if tag in ("td", "th"):
            self._lines[-1][-1] = " ".join(self._lines[-1][-1].split())

    def handle_data(self, data: str) -> None:
        if "script" in self._open_tags[-1:]:
            self.data += [json.loads(data)] if data.strip() else []
            return
        self.text += data
        if "caption" in self._open_tags[-1:]:
            self.tables[data.partition(":")[0] if data.startswith(("Tasks", "Older")) else data] = (
                self._lines
            )
        elif {"td", "th"} & set(self._open_tags) and self._lines and self._lines[-1]:
            self._lines[-1][-1] += data
