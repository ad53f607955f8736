"""Read options with tyro; every mistake becomes a UsageError of one line."""

from __future__ import annotations

import dataclasses
import difflib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from bench.system.errors import UsageError

if TYPE_CHECKING:
    from tyro._errors import ParseErrorEvent

Options = TypeVar("Options")


class UnknownFlagError(UsageError):
    """A flag that the command does not have."""

    def __init__(self, flag: str, hint: str) -> None:
        super().__init__(f"unknown flag {flag}: {hint}")
        self.flag = flag


def parse_options(
    options: type[Options], argv: Sequence[str], command: str, default: Options | None = None
) -> Options:
    """Return the options in the words after a command.

    Args:
        options: A dataclass with a field for each option.
        argv: The words after the command.
        command: The command, with its action, as the help text shows it.
        default: Values for what the words leave out, instead of those of the class.

    Raises:
        UsageError: The words are wrong.
        SystemExit: The words ask for help, which is printed.
    """
    import tyro

    check_repeated_flags(argv)
    values = tyro.MISSING_NONPROP if default is None else default
    with one_line_errors(options, command):
        return tyro.cli(options, args=argv, prog=f"python -m bench {command}", default=values)


def parse_known_options(options: type[Options], argv: Sequence[str], command: str) -> Options:
    """Return the options in words that may hold other flags too, `--help` among them."""
    import tyro

    with one_line_errors(options, command):
        return tyro.cli(options, args=argv, add_help=False, return_unknown_args=True)[0]


def check_repeated_flags(argv: Sequence[str]) -> None:
    """Raise UsageError for a flag that is given twice: tyro takes the last one silently."""
    flags = Counter(flag_name(word) for word in argv if word.startswith("--"))
    for flag, count in flags.items():
        if count > 1:
            raise UsageError(f"{flag} is given twice")


@contextmanager
def one_line_errors(options: type[Any], command: str) -> Iterator[None]:
    """Turn what tyro refuses into a UsageError, instead of a frame on standard error."""
    from tyro._errors import on_parse_error

    def refuse(event: ParseErrorEvent) -> None:
        raise usage_error(event, options, f"python -m bench {command} --help")

    with on_parse_error(refuse):
        yield


def usage_error(event: ParseErrorEvent, options: type[Any], help_command: str) -> UsageError:
    """Return the error that says what tyro refused."""
    from tyro import _errors

    match event:
        case _errors.UnrecognizedArgs(tokens=tokens):
            return unknown_word(tokens[0], options, help_command)
        case _errors.MissingArgs(unrecognized_tokens=[first, *_]):
            # A flag that is misspelt is missing too: its spelling is the cause.
            return unknown_word(first, options, help_command)
        case _errors.MissingArgs(missing_arguments=arguments):
            names = ", ".join(argument_name(missing.arg) for missing in arguments)
            message = f"missing: {names}"
        case _errors.InvalidChoice(argument=argument, value=value, choices=choices):
            message = f"{argument_name(argument)}: invalid choice {value!r}: "
            message += f"choose from {', '.join(choices)}"
        case _errors.BadValue(argument=argument):
            message = f"{argument_name(argument)} needs a value"
        case _errors.InstantiationFailure(argument=argument, message=reason) if argument:
            # The last line is the reason, behind the type that refuses the value if there is one.
            reason = reason.rpartition("\n")[2].rpartition(">: ")[2]
            message = f"{argument_name(argument)}: {reason}"
        case _:
            message = f"wrong options ({type(event).__name__})"
    return UsageError(f"{message} (`{help_command}`)")


def argument_name(argument: Any) -> str:
    """Return a flag, or the name that the help text shows for a positional argument."""
    name = argument.lowered.metavar if argument.is_positional() else argument.display_name()
    return str(name)


def unknown_word(word: str, options: type[Any], help_command: str) -> UsageError:
    """Return the error for a word that is no option, with the nearest right spelling."""
    if not word.startswith("-"):
        return UsageError(f"unexpected argument {word!r} (`{help_command}`)")
    flag = flag_name(word)
    nearest = difflib.get_close_matches(flag, flags_of(options), n=1, cutoff=0.6)
    hint = f"did you mean {nearest[0]}?" if nearest else f"`{help_command}` lists them"
    return UnknownFlagError(flag, hint)


def flags_of(options: type[Any]) -> list[str]:
    """Return the flags of a dataclass."""
    flags = ["--help"]
    for field in dataclasses.fields(options):
        name = field.name.replace("_", "-")
        flags.append(f"--{name}")
        if isinstance(field.default, bool):
            flags.append(f"--no-{name}")
    return flags


def flag_name(word: str) -> str:
    """Return the flag in a word such as `--limit_train=8`, as the help text spells it."""
    return word.partition("=")[0].replace("_", "-")
