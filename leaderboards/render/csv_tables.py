"""Tables as CSV that a spreadsheet opens without running anything."""

from __future__ import annotations

import re
from typing import Any

import pandas as pd

FORMULA = re.compile(r"[=+@]|-(?![\d.])")


def render(frame: pd.DataFrame) -> str:
    """Render a frame without its index."""
    return str(_quote_formulas(frame).to_csv(index=False))


def _quote_formulas(frame: pd.DataFrame) -> pd.DataFrame:
    # A spreadsheet would run such a text as a formula, unless an apostrophe is before it.
    def quote(value: Any) -> Any:
        if isinstance(value, str) and FORMULA.match(value):
            return f"'{value}"
        return value

    texts = frame.select_dtypes(exclude=["number", "bool", "datetimetz"])
    return frame.assign(**{str(name): column.map(quote) for name, column in texts.items()})
