"""MLflow record -> DataFrame -> tables -> Markdown, HTML, LaTeX, JSON, CSV. No torch here, and nothing heavy at import."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["write"]


def write(source: str | Path, out: Path, suite: str | None = None) -> list[Path]:
    """Write leaderboard.md, .tex, .json, .csv (one line per finished run) and one HTML page per suite into `out`.

    `suite` restricts all of them to one suite ("digits" or "digits@1"). A store with nothing in it still gives every
    file, and they say how to make a first run. Returns the paths written.
    Raises store.StoreError when the store cannot be read (nothing is written then) and OSError when `out` cannot be.
    """
    from leaderboards import export, html, latex, markdown, published, standing, store, table

    runs = store.collect(source, suite)
    found = table.sections(runs)
    every = standing.beside(published.beside(runs.drop(columns="artifact_uri")), found)
    files = {
        "leaderboard.md": markdown.render(runs, suite, found),
        "leaderboard.tex": latex.render(found),
        "leaderboard.json": export.render(found),
        "leaderboard.csv": every.to_csv(index=False),
    }
    files |= html.pages(runs, suite, found)
    out.mkdir(parents=True, exist_ok=True)
    return [_replace(out / name, text) for name, text in files.items()]


def _replace(path: Path, text: str) -> Path:
    """Write `text` to `path` so that a reader sees the old file or the new one, never half of it."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path
