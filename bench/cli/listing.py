"""Print what has a name: an overview, a table for each section, one entry in full."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench.reference.sections import Facts
from bench.system.tables import readable_number
from leaderboards.schema.fields import NORM_LABELS

PIPED_WIDTH = 120  # without a terminal, for a file or another program
OVERVIEW_WIDTH = 100
INDENT = 22
# The columns of each section's table: heading -> key, or a function of the facts.
COLUMNS: dict[str, dict[str, Any]] = {
    "methods": {
        "method": "name",
        "full name": lambda facts: facts["full_name"] or facts["fault"],
        "paper": lambda facts: paper_title(facts["paper"]),
        "published": lambda facts: published(facts["paper"]),
        "family": "family",
        "teachers": "teachers",
    },
    "suites": {
        "suite": "id",
        "datasets": "datasets",
        "students": "students",
        "norm": lambda facts: NORM_LABELS[facts["norm"]],
        "eps": "eps",
        "epochs": lambda facts: facts["training"]["epochs"],
        "about": "about",
    },
    "datasets": {
        "dataset": "name",
        "classes": "num_classes",
        "shape": lambda facts: "x".join(map(str, facts["shape"])),
        "train": "num_train",
        "validation": "num_val",
        "test": "num_test",
        "source": "source",
    },
    "models": {"model": "name", "family": "family", "about": "about"},
    "attacks": {"attack": "name", "norms": "norms", "about": "about"},
    "controls": {"control": "name", "about": "about"},
    "teachers": {
        "release": "name",
        "dataset": "dataset",
        "model": "arch",
        "clean %": "clean",
        "AutoAttack %": "autoattack",
        "paper": "paper",
    },
}


def make_console(most: int | None = None) -> Console:
    """Return a console of the terminal's width; plain text in lines of a fixed one without."""
    console = Console(highlight=False, markup=False, emoji=False)
    width = console.width if sys.stdout.isatty() else PIPED_WIDTH
    console.width = min(width, most or width)
    return console


def print_overview(sections: dict[str, list[Facts]]) -> None:
    """Print every name with a few words on it, in lines of at most 100 characters."""
    console = make_console(OVERVIEW_WIDTH)
    for title, entries in sections.items():
        console.print(Text(f"{title} ({len(entries)})", "bold"))
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column(no_wrap=True)
        table.add_column()
        for facts in entries:
            table.add_row(f"  {facts['name']}", short_description(facts))
        console.print(table)
    console.print("\n`list SECTION` shows a table, `list NAME` everything about a name.")


def short_description(facts: Facts) -> str:
    """Return a method's full name or its plugin's fault, of anything else what it is."""
    fault = facts.get("fault")
    if not facts.get("full_name"):
        return str(fault or facts["about"])
    return f"{facts['full_name']}; {fault}" if fault else str(facts["full_name"])


def print_section(title: str, entries: Sequence[Facts]) -> None:
    """Print a section as a table; names are whole, other columns are broken into lines."""
    columns = COLUMNS[title]
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for position, heading in enumerate(columns):
        table.add_column(heading, no_wrap=position == 0, overflow="fold")
    for facts in entries:
        table.add_row(*[column_text(facts, column) for column in columns.values()])
    make_console().print(table)


def column_text(facts: Facts, column: Any) -> Text:
    """Return the text of one column of an entry."""
    value = column(facts) if callable(column) else facts[column]
    return value if isinstance(value, Text) else Text(readable_value(value))


def paper_title(paper: Facts | None) -> Text:
    """Return the title of a paper, a link where the terminal can show one."""
    if not paper:
        return Text("-")
    return Text(paper["title"], f"link {paper['url']}" if paper["url"] else "")


def published(paper: Facts | None) -> str:
    """Return venue and year of a paper."""
    return f"{paper['venue']} {paper['year']}" if paper else "-"


def print_entries(sections: dict[str, list[Facts]]) -> None:
    """Print everything about the entries of some sections."""
    for title, entries in sections.items():
        for facts in entries:
            print_entry(title, facts)


def print_entry(title: str, facts: Facts) -> None:
    """Print all facts of one name; several entries with the same keys as a table below."""
    console = make_console()
    console.print(Text(f"{facts['name']} ({title})", "bold"))
    tables = {}
    for key, value in facts.items():
        if isinstance(value, list | tuple) and value and isinstance(value[0], dict):
            tables[key] = value
        elif key != "name" and value != "":
            print_fact(console, key, value)
    for key, rows in tables.items():
        console.print(Text(f"\n{key}", "bold"))
        table = Table(*rows[0], box=SIMPLE_HEAD, pad_edge=False)
        for row in rows:
            table.add_row(*[Text(readable_value(value)) for value in row.values()])
        console.print(table)
    console.print()


def print_fact(console: Console, key: str, value: Any, level: int = 1) -> None:
    """Print one fact: text behind its key, facts of a fact below it and indented."""
    label = f"{'  ' * level}{key.replace('_', ' ')}".ljust(INDENT)
    if isinstance(value, dict):
        console.print(label.rstrip(), soft_wrap=True)
        for inner_key, inner_value in value.items():
            print_fact(console, inner_key, inner_value, level + 1)
        return
    # A line of text that is broken here already, as a formula is, stays one.
    for line in readable_value(value).splitlines():
        wrapped = textwrap.wrap(
            line,
            max(console.width - INDENT, INDENT),
            break_long_words=False,
            break_on_hyphens=False,
        )
        for part in wrapped or [""]:
            # A link that is too long for the terminal stays whole.
            console.print(f"{label}{part}".rstrip(), soft_wrap=True)
            label = " " * INDENT


def readable_value(value: Any) -> str:
    """Return a value as text: "none", "45,000", "8/255", "a, b"."""
    if value is None or value in ((), []):
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        # A year has no comma.
        return f"{value:,}" if value >= 10_000 else str(value)
    if isinstance(value, float):
        return readable_number(value)
    if isinstance(value, Iterable) and not isinstance(value, str):
        return ", ".join(map(readable_value, value))
    return str(value)
