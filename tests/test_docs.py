"""Pages that are made from code and records say what these say."""

from __future__ import annotations

from pathlib import Path

from bench.reference import methods_page
from leaderboards.read import store
from leaderboards.render import markdown

ROOT = Path(__file__).parents[1]


def test_methods_page_is_current() -> None:
    page = ROOT / "docs" / "methods.md"
    assert page.read_text() == methods_page.render(), (
        "python -m bench.reference.methods_page > docs/methods.md"
    )


def test_results_are_those_of_the_records() -> None:
    """The page whole, and what the README shows of it: the tasks of a suite side by side."""
    rendered = markdown.render(store.collect(ROOT / "leaderboards" / "results"))
    again = "python -m bench leaderboard --records leaderboards/results --out OUT; OUT/leaderboard.md is docs/results.md"
    assert (ROOT / "docs" / "results.md").read_text() == rendered, again
    across = rendered.partition("### Across tasks\n\n")[2].partition("\n\n")[0]
    assert across
    assert across in (ROOT / "README.md").read_text()
