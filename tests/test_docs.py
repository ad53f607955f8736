"""Pages and files that are made from code and records are up to date."""

from __future__ import annotations

from pathlib import Path

import pytest
from sites import render_markdown

from bench.reference import about, methods_page
from leaderboards.read import store

ROOT = Path(__file__).parents[1]
MAKE_METHODS = "python -m bench.reference.methods_page"


def test_methods_page_is_current() -> None:
    page = (ROOT / methods_page.PAGE).read_text(encoding="utf-8")
    assert page == methods_page.render_page(), MAKE_METHODS


def test_readme_names_the_methods() -> None:
    text = (ROOT / methods_page.README).read_text(encoding="utf-8")
    assert text == methods_page.render_readme(text), MAKE_METHODS
    table = text.partition(methods_page.BEGIN)[2].partition(methods_page.END)[0]
    assert len(table.split()) < 420, "a table that people read to its end"


def test_a_readme_without_the_markers_is_refused() -> None:
    with pytest.raises(ValueError, match=r"README\.md lacks the lines <!-- methods"):
        methods_page.render_readme("# A title\n<!-- methods: end -->\n")


def test_methods_file_is_current() -> None:
    assert about.FILE.read_text() == methods_page.render_json(), MAKE_METHODS


def test_results_are_those_of_the_records() -> None:
    """The whole page, and the part that the README shows: the tasks of a suite side by side."""
    rendered = render_markdown(store.collect(ROOT / "leaderboards" / "results"))
    command = "python -m bench leaderboard --records leaderboards/results --out OUT"
    message = f"{command}; OUT/leaderboard.md is docs/results.md"
    assert (ROOT / "docs" / "results.md").read_text() == rendered, message
    across_tasks = rendered.partition("### Across tasks\n\n")[2].partition("\n\n")[0]
    assert across_tasks
    assert across_tasks in (ROOT / "README.md").read_text()
