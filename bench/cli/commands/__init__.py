"""The commands, one module each.

The first line of a module's docstring is its summary. `COMMAND` is what it runs: a `Command`, or a
dictionary of them by action.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from bench.cli.parsing import parse_options
from bench.system.errors import unknown_name

COMMANDS = ("run", "tune", "evaluate", "teacher", "leaderboard", "export", "import", "ui", "list",
            "data", "doctor", "new-method")  # fmt: skip
# Modules that cannot have the name of their command: a keyword, a builtin.
MODULES = {"import": "import_records", "list": "list_names", "new-method": "new_method"}


@dataclass(frozen=True)
class Command:
    """A command or an action: its options and the function that takes them."""

    options: type[Any]
    function: Callable[[Any], int]
    # Another way to the argument of the function than to parse the options.
    read: Callable[[Sequence[str]], Any] | None = None

    def execute(self, argv: Sequence[str], name: str) -> int:
        """Run the command `name` with the words after it; return the exit code."""
        options = self.read(argv) if self.read else parse_options(self.options, argv, name)
        return self.function(options)


def load_module(name: str) -> Any:
    """Import the module of a command. Raises UsageError for an unknown name."""
    if name not in COMMANDS:
        raise unknown_name("command", name, COMMANDS)
    return import_module(f"{__name__}.{MODULES.get(name, name)}")
