"""Tables in GitHub's Markdown; every name in them is text, whatever characters it holds."""

from __future__ import annotations

import html
import re
from typing import TYPE_CHECKING

from leaderboards.render.text_template import fill_template
from leaderboards.tables import suite_tables
from leaderboards.tables.published import HEADING
from leaderboards.tables.suite_tables import Section

if TYPE_CHECKING:
    import pandas as pd


def render(
    runs: pd.DataFrame, suite: str | None = None, sections: list[Section] | None = None
) -> str:
    """Render the frame of store.collect, or its `sections` if they were already computed.

    Without runs it is the command for a first run of `suite`.
    """
    if sections is None:
        sections = suite_tables.build_sections(runs)
    values = {"sections": sections, "suite": suite, "published": HEADING}
    return fill_template("leaderboard.md.j2", escape, **values)


def escape(text: str) -> str:
    """Escape HTML and Markdown for a table cell or a list item, and join lines."""
    text = html.escape(re.sub(r"\s+", " ", text).strip(), quote=False)
    return re.sub(r"([\\|*`\[\]~$]|(?<!\w)_|_(?!\w))", r"\\\1", text)
