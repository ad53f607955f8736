"""Tables as CSV that a spreadsheet opens without running anything."""

from __future__ import annotations

import re
from typing import Any

import pandas as pd

FORMULA = re.compile(r"[=+@]|-(?![\d.])")


def render(frame: pd.DataFrame) -> str:
    """Render a frame without its index."""
    texts = frame.select_dtypes(exclude=["number", "bool", "datetimetz"])
    quoted = {str(name): column.map(_quote_formula) for name, column in texts.items()}
    return str(frame.assign(**quoted).to_csv(index=False))


def _quote_formula(value: Any) -> Any:
    # A spreadsheet would run such a text, unless an apostrophe is before it.
    return f"'{value}" if isinstance(value, str) and FORMULA.match(value) else value
