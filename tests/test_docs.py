"""Pages that are made from the code say what the code says."""

from __future__ import annotations

from pathlib import Path

from bench import methods_page


def test_methods_page_is_current() -> None:
    page = Path(__file__).parents[1] / "docs" / "methods.md"
    assert page.read_text() == methods_page.render(), "python -m bench.methods_page > docs/methods.md"
