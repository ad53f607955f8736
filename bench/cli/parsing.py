"""Read options with tyro; every mistake becomes a UsageError of one line."""

from __future__ import annotations

import dataclasses
import difflib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_type_hints

from tyro.conf import FlagCreatePairsOff, Positional

from bench.system.errors import UsageError
from bench.system.log import command_log

if TYPE_CHECKING:
    from tyro._errors import ParseErrorEvent

Options = TypeVar("Options")


@dataclass(frozen=True)
class Command:
    """A command or an action: its options and the function that takes them.

    The function returns the exit code; None is 0.
    """

    options: type[Any]
    function: Callable[[Any], int | None]
    # Parses argv where the flags depend on it, as for run; None: parse_options.
    read: Callable[[Sequence[str]], Any] | None = None

    def run(self, argv: Sequence[str], name: str) -> int:
        """Run the command `name` with the words after it; return the exit code."""
        options = self.read(argv) if self.read else parse_options(self.options, argv, name)
        with command_log(name):
            return self.function(options) or 0


class UnknownFlag(UsageError):
    """A flag that the command does not have."""

    def __init__(self, flag: str, hint: str) -> None:
        super().__init__(f"unknown flag {flag}: {hint}")
        self.flag = flag


def parse_options(
    options: type[Options], argv: Sequence[str], command: str, default: Options | None = None
) -> Options:
    """Return the options in the words after a command; `default` has what they leave out."""
    import tyro

    # Of a flag that is given twice tyro takes the last value silently.
    if "--" in argv:
        raise UsageError("unknown flag --: every option is a flag or a plain word")
    for flag, count in Counter(map(flag_name, argv)).items():
        if flag.startswith("--") and count > 1:
            raise UsageError(f"{flag} is given twice")
    values = tyro.MISSING_NONPROP if default is None else default
    with one_line_errors(options, command):
        return tyro.cli(options, args=argv, prog=f"python -m bench {command}", default=values)


def parse_known(options: type[Options], argv: Sequence[str], command: str) -> Options:
    """Parse the flags of `options` and ignore all others, `--help` too."""
    import tyro

    with one_line_errors(options, command):
        return tyro.cli(options, args=argv, add_help=False, return_unknown_args=True)[0]


@contextmanager
def one_line_errors(options: type[Any], command: str) -> Iterator[None]:
    """Turn what tyro refuses into a UsageError, instead of a frame on standard error."""
    from tyro._errors import on_parse_error

    def refuse(event: ParseErrorEvent) -> None:
        raise usage_error(event, options, f"`python -m bench {command} --help`")

    with on_parse_error(refuse):
        yield


def usage_error(event: ParseErrorEvent, options: type[Any], help_command: str) -> UsageError:
    """Return the error that says what tyro refused."""
    from tyro import _errors

    message = f"wrong options, {type(event).__name__}"
    match event:
        # A flag that is misspelt may be missing too: its spelling is the cause.
        case (
            _errors.UnrecognizedArgs(tokens=[word, *_])
            | _errors.MissingArgs(unrecognized_tokens=[word, *_])
        ):
            if word.startswith("-"):
                nearest = difflib.get_close_matches(flag_name(word), flags_of(options), n=1)
                hint = f"did you mean {nearest[0]}?" if nearest else f"{help_command} lists them"
                return UnknownFlag(flag_name(word), hint)
            message = f"unexpected argument {word!r}"
        case _errors.MissingArgs(missing_arguments=arguments):
            names = [argument_name(missing.arg) for missing in arguments]
            message = f"missing: {', '.join(names)}"
        case _errors.InvalidChoice(argument=argument, value=value, choices=choices):
            message = f"{argument_name(argument)}: invalid choice {value!r}"
            message += f", choose from {', '.join(choices)}"
        case _errors.InstantiationFailure(argument=argument, message=text) if argument:
            # The reason is in the last line, behind the type that refuses the value if it is named.
            reason = text.rpartition("\n")[2].rpartition(">: ")[2]
            message = f"{argument_name(argument)}: {reason}"
        case _errors.BadValue(argument=argument):
            message = f"{argument_name(argument)} needs a value"
    return UsageError(f"{message} ({help_command})")


def argument_name(argument: Any) -> str:
    """Return a flag, or the name that the help text shows for a positional argument."""
    name = argument.lowered.metavar if argument.is_positional() else argument.display_name()
    return str(name)


@dataclass(frozen=True)
class Option:
    """A field of a dataclass as an option of a command; metadata: what `option` and tyro say."""

    name: str
    default: Any
    kind: Any
    metadata: Sequence[Any]

    @property
    def is_positional(self) -> bool:
        """Whether it is a plain word."""
        return Positional in self.metadata

    @property
    def flags(self) -> list[str]:
        """Its flag, and the one that turns it off if there is one."""
        flags = [flag_name(f"--{self.name}")]
        # tyro's flags of a bool have a second spelling unless they can only turn it on.
        if isinstance(self.default, bool) and FlagCreatePairsOff not in self.metadata:
            flags.append(flag_name(f"--no-{self.name}"))
        return flags

    def described(self, attribute: str) -> Any:
        """Return what `option` says of it, the last word where it says it twice; else ""."""
        values = [getattr(entry, attribute, None) for entry in reversed(self.metadata)]
        return next(filter(None, values), "")


def list_options(options: type[Any]) -> list[Option]:
    """Return the fields of a dataclass as options."""
    hints, entries = get_type_hints(options, include_extras=True), []
    for field in dataclasses.fields(options):
        hint = hints[field.name]
        metadata = getattr(hint, "__metadata__", ())
        kind = get_args(hint)[0] if metadata else hint
        entries.append(Option(field.name, field.default, kind, metadata))
    return entries


def flags_of(options: type[Any]) -> list[str]:
    """Return the flags of a dataclass."""
    return ["--help", *chain.from_iterable(option.flags for option in list_options(options))]


def flag_name(word: str) -> str:
    """Return the flag in a word such as `--limit_train=8`, as the help text spells it."""
    return word.partition("=")[0].replace("_", "-")
