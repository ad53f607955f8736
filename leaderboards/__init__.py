"""MLflow record -> DataFrame -> tables -> a site, Markdown, LaTeX, JSON, CSV. No torch here, and nothing heavy at import."""

from __future__ import annotations

import gc
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from leaderboards.schema.method_card import MethodCard

__all__ = ["write"]

FORMULA = re.compile(r"[=+@]|-(?![\d.])")
STATIC = Path(__file__).parent / "render" / "site" / "static"
OURS = b'<meta name="generator" content="robust-distill-bench">'


@contextmanager
def _uncollected() -> Iterator[None]:
    """Nothing here is garbage before the end, and to look for it takes a sixth of the time of 10,000 runs."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@_uncollected()
def write(
    source: str | Path,
    out: Path,
    suite: str | None = None,
    about: Callable[[str], MethodCard | None] = lambda name: None,
    figures: bool = False,
    protocol: Callable[[str], Mapping[str, str]] = lambda experiment: {},
) -> list[Path]:
    """Write leaderboard.md, .tex, .json, .csv (one line per finished run) and a site into `out`; returns where to begin.

    `source` is what store.collect takes. The site is index.html with a page for each task, method and run in folders
    beside it. `suite` restricts everything to one suite ("digits" or "digits@1"); `about` tells what a method is; `protocol`
    what runs of an experiment ("digits@1") record as parameters unless they were told otherwise, as far as it is known;
    `figures` adds each task's figures and the critical-difference diagrams for papers, SVG and PDF, in figures/: seconds
    a task. A store with nothing in it still gives every file, and they say how to make a first run. Pages that an earlier
    call left and that are no more are removed.
    Raises store.StoreError when the store cannot be read (nothing is written then) and OSError when `out` cannot be.
    """
    from leaderboards.read import artifacts, store
    from leaderboards.render import export, latex, markdown
    from leaderboards.render.figures import papers
    from leaderboards.render.site import pages
    from leaderboards.render.site.site import Site
    from leaderboards.tables.published import add_published_columns
    from leaderboards.tables.ranking import add_ranking_columns
    from leaderboards.tables.suite_tables import build_sections

    runs = store.collect(source, suite)
    found = build_sections(runs, protocol)
    rows = (row for section in found for row in section.rows)
    every = add_ranking_columns(add_published_columns(runs.drop(columns="artifact_uri")), rows)
    tables = {
        "leaderboard.md": markdown.render(runs, suite, found),
        "leaderboard.tex": latex.render(found),
        "leaderboard.json": export.render(found),
        "leaderboard.csv": _inert(every).to_csv(index=False),
    }
    curves = store.read_curves(source, runs[~runs["superseded"].astype(bool)])
    site = Site(runs, found, curves, artifacts.read_environment, about, suite)
    for folder in ("assets", "tasks", "methods", "runs", *["figures"] * figures):
        (out / folder).mkdir(parents=True, exist_ok=True)
    for name, text in tables.items():
        _replace(out / name, text.encode(errors="backslashreplace"))
    written = set[Path]()
    for name, text in pages.pages(site):
        _replace(out / name, text.encode(errors="backslashreplace"))
        written.add(out / name)
    _sweep(out, written)
    for name, content in papers.figures(site) if figures else ():
        _replace(out / name, content)
    for file in STATIC.iterdir():
        _replace(out / "assets" / file.name, file.read_bytes())
    return [out / name for name in ("index.html", *tables)]


def _inert(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with an apostrophe before texts that a spreadsheet would take for a formula."""

    def text(value: Any) -> Any:
        return f"'{value}" if isinstance(value, str) and FORMULA.match(value) else value

    texts = frame.select_dtypes(exclude=["number", "bool", "datetimetz"])
    return frame.assign(**{str(name): column.map(text) for name, column in texts.items()})


def _sweep(out: Path, written: set[Path]) -> None:
    """Remove the pages of an earlier site that this one does not have; files that no leaderboard wrote stay."""
    for path in {
        path for folder in ("tasks", "methods", "runs") for path in (out / folder).glob("*.html")
    } - written:
        with path.open("rb") as file:
            ours = OURS in file.read(500)
        if ours:
            path.unlink()


def _replace(path: Path, content: bytes) -> None:
    """Write `content` to `path` so that a reader sees the old file or the new one, never half of it.

    Most pages are as they were, and replacing a file waits for the disk on some file systems.
    """
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
