"""Tables in GitHub's Markdown; every name in them is text, whatever characters it holds."""

from __future__ import annotations

import html
import re

from leaderboards.render.text_template import fill_template
from leaderboards.tables.published import HEADING
from leaderboards.tables.suite_tables import Section


def render(sections: list[Section], suite: str | None = None) -> str:
    """Render every table; without any, the command for a first run of `suite`."""
    values = {"sections": sections, "suite": suite, "published": HEADING}
    return fill_template("leaderboard.md.j2", escape, **values)


def escape(text: str) -> str:
    """Escape HTML and Markdown for a table cell or a list item, and join lines."""
    text = html.escape(re.sub(r"\s+", " ", text).strip(), quote=False)
    return re.sub(r"([\\|*`\[\]~$]|(?<!\w)_|_(?!\w))", r"\\\1", text)
