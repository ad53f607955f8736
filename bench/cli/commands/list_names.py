"""List methods, suites, data sets, models, attacks and teachers, or show one of them in full."""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional

from bench.cli.parsing import Command
from bench.protocol.options import DataFolder, Json, option
from bench.system.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class ListOptions:
    """List methods, suites, datasets, models, attacks, controls and teachers."""

    name: Positional[
        Annotated[str, option("NAME", "a section such as methods, or a name", "an overview")]
    ] = ""
    json: Json = False
    data_root: DataFolder = Path("data")


def list_names(options: ListOptions) -> None:
    """Print an overview, a section or everything about a name, which several sections may share."""
    from bench.cli import listing
    from bench.cli.output import print_json
    from bench.reference.sections import SECTIONS, TITLES, find_entries

    # What a name stands for is shown in full, a section as a table.
    in_full = bool(options.name) and options.name not in TITLES
    if in_full:
        entries = find_entries(options.name, options.data_root)
        if not entries:
            names = [facts["name"] for section in SECTIONS for facts in section.summaries()]
            raise unknown_entry(options.name, [*TITLES, *names])
    else:
        chosen = [section for section in SECTIONS if options.name in ("", section.title)]
        entries = {section.title: section.summaries() for section in chosen}
    if options.json:
        print_json(entries)
    elif not options.name:
        listing.print_overview(entries)
    elif in_full:
        listing.print_entries(entries)
    else:
        listing.print_section(options.name, entries[options.name])


def unknown_entry(name: str, names: Iterable[str]) -> UsageError:
    """Build the error for a name that no section has. It offers the nearest ones."""
    by_lower = {choice.lower(): choice for choice in names}
    nearest = difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=0.5)
    hint = "`python -m bench list` shows all names"
    if nearest:
        hint = f"did you mean {' or '.join(by_lower[match] for match in nearest)}?"
    return UsageError(f"nothing is called {name!r}: {hint}")


COMMAND = Command(ListOptions, list_names)
