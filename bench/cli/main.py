"""The entry point: find the command, run it, and turn every expected error into one line."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from bench.cli import commands
from bench.cli.commands import Command, first_line
from bench.system import errors, signals
from bench.system.errors import BenchError, UsageError, continue_hint, unknown_name
from methods import PluginError

HELP = ("-h", "--help", "help")
EXAMPLE = "python -m bench run --method gacd --suite digits"


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command line, `sys.argv` by default, and exit.

    The exit code is 0 (done), 1 (something failed), 2 (wrong usage) or 130 (interrupted).
    """
    signals.catch()
    errors.open_output()
    argv = sys.argv[1:] if argv is None else argv
    code: str | int | None
    try:
        code = dispatch(argv)
    except SystemExit as stop:
        # Raised by `--help`, and by processes that must end together.
        code = stop.code
    except BenchError as error:
        print(f"error: {error}", file=sys.stderr)
        code = error.exit_code
    except PluginError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        # An interruption may come before the options are read, so the words are asked.
        print(f"interrupted; {continue_hint('--force' in argv)} continues", file=sys.stderr)
        code = 130
    except OSError as error:
        code = errors.of_system(error)
    sys.exit(errors.of_output() or code)


def dispatch(argv: Sequence[str]) -> int:
    """Run the command of `argv` and return its exit code. Raises BenchError."""
    if not argv or argv[0] in HELP:
        print(program_help())
        return 0
    name, rest = argv[0], argv[1:]
    if name == "--version":
        from bench import __version__

        print(__version__)
        return 0
    command = commands.load_module(name).COMMAND
    if isinstance(command, Command):
        return command.execute(rest, name)
    return dispatch_action(name, command, rest)


def dispatch_action(name: str, actions: dict[str, Command], argv: Sequence[str]) -> int:
    """Run the action of a command that has several."""
    if not argv:
        raise UsageError(f"`{name}` needs an action: {', '.join(actions)}")
    action = argv[0]
    if action in HELP:
        print(actions_help(name, actions))
        return 0
    if action not in actions:
        raise unknown_name(f"{name} action", action, actions)
    return actions[action].execute(argv[1:], f"{name} {action}")


def program_help() -> str:
    """Return the help text of the whole program."""
    lines = ["usage: python -m bench COMMAND [options]", ""]
    lines += ["A benchmark of adversarial-robustness distillation.", ""]
    for name in commands.MODULES:
        lines.append(f"  {name:14}{first_line(commands.load_module(name))}")
    lines += ["", "`python -m bench COMMAND --help` lists a command's options. To begin:"]
    return "\n".join([*lines, f"  {EXAMPLE}"])


def actions_help(name: str, actions: dict[str, Command]) -> str:
    """Return the help text of a command that has actions."""
    lines = [f"usage: python -m bench {name} ACTION [options]", ""]
    for action, command in actions.items():
        words = f"{name} {action}"
        lines.append(f"  {words:16}{first_line(command.options)}")
    return "\n".join(lines)
