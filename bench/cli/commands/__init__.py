"""The commands, one module each.

Its docstring's first line is the summary, its `COMMAND` a `Command` or a dictionary by action.
"""

from importlib import import_module
from typing import Any

from bench.system.errors import unknown_name

COMMANDS = ("run", "tune", "status", "evaluate", "analyze", "teacher", "leaderboard", "show",
            "model", "export", "import", "ui", "list", "data", "doctor", "slices", "new-method",
            "completion")  # fmt: skip
# Modules that cannot have the name of their command, a keyword or a builtin, or lie elsewhere.
MODULES = {
    "import": ".import_records",
    "list": ".list_names",
    "new-method": ".new_method",
    "completion": "..completion",
}


def load_module(name: str) -> Any:
    """Import the module of a command. Raises UsageError for an unknown name."""
    if name not in COMMANDS:
        raise unknown_name("command", name, COMMANDS)
    return import_module(MODULES.get(name, f".{name}"), __name__)
