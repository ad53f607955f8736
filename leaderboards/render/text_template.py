"""Templates of the tables as text, filled with values that are escaped unless they are `safe`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

TEMPLATES = Path(__file__).parent / "templates"


def fill_template(name: str, escape: Callable[[str], str], **values: Any) -> str:
    """Fill the template `name`, whose format `escape` makes text of any value."""
    import jinja2
    from markupsafe import Markup

    def escape_value(value: object) -> str:
        if isinstance(value, Markup):
            return value
        return escape(str(value))

    engine = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        # Jinja's own escaping is for HTML alone.
        finalize=escape_value,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
        # The usual delimiters mean something in LaTeX.
        block_start_string="<%",
        block_end_string="%>",
        variable_start_string="<<",
        variable_end_string=">>",
        comment_start_string="<#",
        comment_end_string="#>",
    )
    return engine.get_template(name).render(values)
