"""The commands, one module each.

The first line of a module's docstring is its summary. `COMMAND` is what it runs: a `Command`, or a
dictionary of them by action.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any

from bench.cli.parsing import parse_options
from bench.system.errors import unknown_name

# Names that are no Python names, or would hide one, have a module of another name.
MODULES = {
    "run": "run",
    "tune": "tune",
    "evaluate": "evaluate",
    "teacher": "teacher",
    "leaderboard": "leaderboard",
    "export": "export",
    "import": "import_records",
    "ui": "ui",
    "list": "list_names",
    "data": "data",
    "doctor": "doctor",
    "new-method": "new_method",
}


@dataclass(frozen=True)
class Command:
    """A command or action: its options, the function that takes them, and how they are read."""

    options: type[Any]
    function: Callable[[Any], int]
    read: Callable[[type[Any], Sequence[str], str], Any] = parse_options

    def execute(self, argv: Sequence[str], name: str) -> int:
        """Run the command `name` with the words after it; return the exit code."""
        return self.function(self.read(self.options, argv, name))


def load_module(name: str) -> ModuleType:
    """Import the module of a command. Raises UsageError for an unknown name."""
    if name not in MODULES:
        raise unknown_name("command", name, MODULES)
    return import_module(f"{__name__}.{MODULES[name]}")


def first_line(documented: object) -> str:
    """Return the first line of a docstring."""
    return (documented.__doc__ or "").partition("\n")[0]
