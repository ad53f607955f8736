"""The entry point: find the command, run it, and turn every expected error into one line."""

import sys
from collections.abc import Mapping, Sequence

from bench.cli import commands
from bench.cli.parsing import Command
from bench.system import errors, signals
from bench.system.errors import BenchError, UsageError, continue_hint, unknown_name
from bench.version import __version__
from methods import PluginError

HELP = ("-h", "--help", "help")
BEGIN = """
A benchmark of adversarial-robustness distillation.
`python -m bench COMMAND --help` lists a command's options. To begin:
  python -m bench run --method gacd --suite digits"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command line; exit with 0 (done), 1 (failed), 2 (wrong usage) or 130 (interrupted)."""
    signals.interrupt_on_stop_signals()
    errors.replace_closed_stdout()
    argv = sys.argv[1:] if argv is None else argv
    code: str | int | None
    try:
        code = dispatch(argv)
    except SystemExit as stop:
        # Raised by `--help`, and by processes that must end together.
        code = stop.code
    except (KeyboardInterrupt, Exception) as error:
        code = report(error, argv)
    sys.exit(errors.flush_stdout() or code)


def report(error: BaseException, argv: Sequence[str]) -> int:
    """Print the line of an expected error and return its exit code; raise any other."""
    if signals.is_interruption(error):
        # Options may not be parsed yet, so look for --force in argv.
        print(f"interrupted; {continue_hint('--force' in argv)} continues", file=sys.stderr)
        return 130
    if isinstance(error, OSError):
        return errors.report_os_error(error)
    if package := errors.damaged_package():
        print(f"error: {package}: repair or uninstall it", file=sys.stderr)
        return 1
    if not isinstance(error, (BenchError, PluginError)):
        raise error
    print(f"error: {error}", file=sys.stderr)
    return getattr(error, "exit_code", 1)


def dispatch(argv: Sequence[str]) -> int:
    """Run the command of `argv` and return its exit code. Raises BenchError."""
    name = argv[0] if argv else "help"
    if name in HELP:
        print_help("COMMAND", {name: commands.load_module(name) for name in commands.COMMANDS})
        print(BEGIN)
        return 0
    if "--version" in argv:
        print(__version__)
        return 0
    command: Command | dict[str, Command] = commands.load_module(name).COMMAND
    if isinstance(command, Command):
        return command.run(argv[1:], name)
    if len(argv) < 2:
        raise UsageError(f"`{name}` needs an action: {', '.join(command)}")
    action = argv[1]
    if action in HELP:
        print_help(f"{name} ACTION", {key: entry.options for key, entry in command.items()})
        return 0
    if action not in command:
        raise unknown_name(f"{name} action", action, command)
    return command[action].run(argv[2:], f"{name} {action}")


def print_help(usage: str, entries: Mapping[str, object]) -> None:
    """Print commands or actions, and the first line of their docstrings."""
    print(f"usage: python -m bench {usage} [options]\n")
    for name, entry in entries.items():
        summary = (entry.__doc__ or "").partition("\n")[0]
        print(f"  {name:14}{summary}")
