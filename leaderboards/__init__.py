"""Records of runs as tables and a site. No torch here, and nothing heavy at import."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import chain
from operator import attrgetter
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from leaderboards.render.site.site_map import Site
    from leaderboards.schema.method_card import MethodCard

__all__ = ["write"]

STATIC = Path(__file__).parent / "render" / "site" / "static"
GENERATOR = b'<meta name="generator" content="robust-distill-bench">'
PAGE_FOLDERS = ("tasks", "methods", "runs", "analysis")


@contextmanager
def _paused_gc() -> Iterator[None]:
    # Nothing is garbage before the end; to look for it takes a sixth of the time of 10,000 runs.
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def write(
    folder: Path | None,
    out: Path,
    suite: str | None = None,
    about: Callable[[str], MethodCard | None] = lambda method: None,
    figures: bool = False,
    protocols: Mapping[str, Mapping[str, str]] = MappingProxyType({}),
    problems: Sequence[str] = (),
) -> list[Path]:
    """Write leaderboard.md, .tex, .json, .csv (a line per finished run) and a site into `out`.

    The site is index.html with a page for each task, method and run in folders beside it, and each
    table alone in tables/. Pages of an earlier call that are no longer current are removed.
    Without records every file is written too, and says how to make a first run.

    Args:
        folder: of records; None for no records.
        suite: the suite to restrict everything to, "digits" or "digits@1".
        about: describes a method by its name.
        figures: add figures for papers, SVG and PDF, in figures/: seconds a task.
        protocols: what runs of the current suites ("digits@1") record by default.
        problems: lines on what is left out, for the front page.
    Returns: index.html and the tables.
    Raises: StoreError, before anything is written; OSError if `out` cannot be written.
    """
    return write_site(build_site(folder, suite, about, protocols, problems), out, figures)


@_paused_gc()
def build_site(
    folder: Path | None,
    suite: str | None = None,
    about: Callable[[str], MethodCard | None] = lambda method: None,
    protocols: Mapping[str, Mapping[str, str]] = MappingProxyType({}),
    problems: Sequence[str] = (),
) -> Site:
    """Rank what a folder records, with the arguments of `write`. Raises: StoreError."""
    from leaderboards.read.records import collect
    from leaderboards.render.site.site_map import Site
    from leaderboards.tables import suite_tables

    runs = collect(folder, suite)
    runs.attrs["problems"] = [*problems, *runs.attrs["problems"]]
    return Site(runs, suite_tables.build_sections(runs, protocols), about, suite)


@_paused_gc()
def write_site(site: Site, out: Path, figures: bool = False) -> list[Path]:
    """Write the files of `write`."""
    from leaderboards.render.site.paper_figures import paper_figures

    tables = _render_tables(site)
    _write_site(site, tables, out)
    if figures:
        (out / "figures").mkdir(exist_ok=True)
        for name, content in paper_figures(site):
            _replace_file(out / name, content)
    return [out / name for name in ("index.html", *tables)]


def _render_tables(site: Site) -> dict[str, str]:
    from leaderboards.render import csv_tables, json_tables, latex, markdown
    from leaderboards.tables import published, ranking

    rows = chain.from_iterable(map(attrgetter("rows"), site.sections))
    runs = published.add_published_columns(site.collected.drop(columns="record"))
    return {
        "leaderboard.md": markdown.render(site.sections, site.suite),
        "leaderboard.tex": latex.render(site.sections),
        "leaderboard.json": json_tables.render(site.sections),
        "leaderboard.csv": csv_tables.render(ranking.add_ranking_columns(runs, rows)),
    }


def _write_site(site: Site, tables: Mapping[str, str], out: Path) -> None:
    from leaderboards.render.site.analysis_files import render_analysis_files
    from leaderboards.render.site.boards import render_files
    from leaderboards.render.site.class_pages import render_class_files
    from leaderboards.render.site.pages import render_pages

    for folder in ("assets", "tables", *PAGE_FOLDERS):
        (out / folder).mkdir(parents=True, exist_ok=True)
    current = set()
    files = render_files(site), render_analysis_files(site), render_class_files(site)
    for name, text in chain(tables.items(), render_pages(site), *files):
        _replace_file(out / name, text.encode(errors="backslashreplace"))
        current.add(out / name)
    _remove_old_pages(out, current)
    for file in STATIC.iterdir():
        _replace_file(out / "assets" / file.name, file.read_bytes())


def _remove_old_pages(out: Path, current: set[Path]) -> None:
    """Remove the pages of an earlier site that are not current; other files stay."""
    for folder in PAGE_FOLDERS:
        for path in set((out / folder).glob("*.html")) - current:
            if GENERATOR in path.read_bytes()[:500]:
                path.unlink()


def _replace_file(path: Path, content: bytes) -> None:
    """Write a file so that readers see the old content or the new, never half of it."""
    # Most pages stay the same, and replacing a file waits for the disk on some file systems.
    with suppress(FileNotFoundError):
        if path.read_bytes() == content:
            return
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(content)
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise
