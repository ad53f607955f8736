"""Tables for people, as plain text."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

WIDTH = 1000  # more than any table has: the terminal wraps what it cannot show


def format_table(columns: Sequence[str], rows: Iterable[Sequence[str]], numbers: int = 0) -> str:
    """Return aligned lines under their headings; the last `numbers` columns are numbers."""
    table = Table(box=None, pad_edge=False)
    for position, name in enumerate(columns, 1):
        is_number = position > len(columns) - numbers
        table.add_column(name, justify="right" if is_number else "left")
    for row in rows:
        table.add_row(*map(Text, row))
    # In a notebook a console shows what it prints.
    console = Console(file=io.StringIO(), width=WIDTH, color_system=None, force_jupyter=False)
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def readable_number(value: float) -> str:
    """Return a number as it is written in a suite: a fraction of 255 for 0.03137254901960784."""
    if len(str(value)) < 10:
        return str(value)
    levels = 255 * value
    # Radii and steps in pixels are a few whole or half levels.
    if levels < 33 and abs(2 * levels - round(2 * levels)) < 1e-9:
        return f"{levels:g}/255"
    return f"{value:.4g}"
