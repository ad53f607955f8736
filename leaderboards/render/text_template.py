"""Templates of the tables as text, filled with values that are escaped unless they are `safe`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from leaderboards.render.numbers import FORMATS
from leaderboards.schema.metrics import RANK_METRIC

# The usual delimiters mean something in LaTeX.
OPTIONS: Any = {
    "block_start_string": "<%", "block_end_string": "%>", "variable_start_string": "<<",
    "variable_end_string": ">>", "comment_start_string": "<#", "comment_end_string": "#>",
    "trim_blocks": True, "lstrip_blocks": True, "keep_trailing_newline": True,
}  # fmt: skip


def fill_template(name: str, escape: Callable[[str], str], **values: Any) -> str:
    """Fill the template `name`; `escape` turns any value into text of its format."""
    import jinja2
    from markupsafe import Markup

    # Jinja's own escaping is for HTML alone.
    def escape_value(value: object) -> str:
        return value if isinstance(value, Markup) else escape(str(value))

    options = {"finalize": escape_value, "undefined": jinja2.StrictUndefined, **OPTIONS}
    loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    engine = jinja2.Environment(loader=loader, **options)
    return engine.get_template(name).render(rank=RANK_METRIC, **FORMATS, **values)
