"""Print results: a JSON document for programs, a table for people."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

# Wider than any table: what does not fit a terminal is for the terminal to wrap.
TABLE_WIDTH = 1000


def print_json(document: Any) -> None:
    """Print a document on standard output. Numbers must be finite."""
    print(json.dumps(document, indent=2, allow_nan=False))


def print_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print aligned columns."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*headings, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        # As texts: square brackets are no markup.
        table.add_row(*map(Text, row))
    Console(highlight=False, width=TABLE_WIDTH).print(table)
