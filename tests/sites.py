"""The site of a frame of runs without files, and a reader of its pages."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from typing import Any

import pandas as pd

from leaderboards.render.site import pages
from leaderboards.render.site.site import Site
from leaderboards.tables.suite_tables import build_sections


def render(runs: pd.DataFrame) -> dict[str, str]:
    """HTML by path."""
    return dict(pages.pages(Site(runs, build_sections(runs))))


def task(runs: pd.DataFrame, name: str) -> str:
    """The page of the one task whose path begins so, as in "cifar@1-cifar10"."""
    (found,) = (text for path, text in render(runs).items() if path.startswith(f"tasks/{name}"))
    return found


class Reader(HTMLParser):
    """What a page holds: elements, text that is seen, tables by caption as lines of cells, and the data of its charts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, list[tuple[str, str | None]]]] = []
        self.text = ""
        self.tables: dict[str, list[list[str]]] = {}
        self.data: list[Any] = []
        self._inside: list[str] = []
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
        self._inside.append(tag)
        if tag == "table":
            self._lines = []
        elif tag == "tr":
            self._lines.append([])
        elif tag in ("td", "th"):
            self._lines[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in self._inside:
            while self._inside.pop() != tag:
                pass
        if tag in ("td", "th"):
            self._lines[-1][-1] = " ".join(self._lines[-1][-1].split())

    def handle_data(self, data: str) -> None:
        if "script" in self._inside[-1:]:
            self.data += [json.loads(data)] if data.strip() else []
            return
        self.text += data
        if "caption" in self._inside[-1:]:
            self.tables[data.partition(":")[0] if data.startswith(("Tasks", "Older")) else data] = (
                self._lines
            )
        elif {"td", "th"} & set(self._inside) and self._lines and self._lines[-1]:
            self._lines[-1][-1] += data
