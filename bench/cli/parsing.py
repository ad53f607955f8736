"""Read options with tyro; every mistake becomes a UsageError of one line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from bench.protocol.options import flag_name, unknown_flag
from bench.system.errors import UsageError
from bench.system.log import command_log
from bench.system.words import check_words, parse_real, parse_whole

if TYPE_CHECKING:
    from tyro._errors import ParseErrorEvent
    from tyro.constructors import (
        ConstructorRegistry,
        PrimitiveConstructorSpec,
        PrimitiveTypeInfo,
    )

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


def parse_options(
    options: type[Options], argv: Sequence[str], command: str, default: Options | None = None
) -> Options:
    """Return the options in the words after a command; `default` has what they leave out."""
    import tyro

    check_words(argv)
    # Of a flag that is given twice tyro takes the last value silently.
    if "--" in argv:
        raise UsageError("unknown flag --: every option is a flag or a plain word")
    for flag, count in Counter(map(flag_name, argv)).items():
        if flag.startswith("--") and count > 1:
            raise UsageError(f"{flag} is given twice")
    values = tyro.MISSING_NONPROP if default is None else default
    with one_line_errors(options, command):
        return tyro.cli(
            options,
            args=argv,
            prog=f"python -m bench {command}",
            default=values,
            registry=plain_numbers(),
        )


@dataclass(frozen=True)
class FlagReader:
    """The words after a command whose options depend on each other."""

    argv: Sequence[str]
    command: str

    def partial(self, form: type[Options]) -> Options:
        """Return the options that a dataclass has, and ignore all other flags."""
        return parse_known(form, self.argv, self.command)

    def read(self, form: type[Options], defaults: Mapping[str, Any] | None = None) -> Options:
        """Return the options, all of which the dataclass must have, over `defaults`."""
        default = None if defaults is None else form(**defaults)
        return parse_options(form, self.argv, self.command, default)


def split_run_words(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the words before `--`, and those after it, which are of `run`."""
    words = [*argv]
    if "--" not in words:
        return words, []
    position = words.index("--")
    return words[:position], words[position + 1 :]


def parse_known(options: type[Options], argv: Sequence[str], command: str) -> Options:
    """Parse the flags of `options` and ignore all others, `--help` too."""
    import tyro

    check_words(argv)
    with one_line_errors(options, command):
        parsed, _ = tyro.cli(
            options,
            args=argv,
            add_help=False,
            return_unknown_args=True,
            registry=plain_numbers(),
        )
    return parsed


@cache
def plain_numbers() -> ConstructorRegistry:
    """Return how tyro reads numbers: as Python does, but for digits of other scripts and "1_0"."""
    from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec

    readers: dict[Any, Callable[[str], Any]] = {int: parse_whole, float: parse_real}
    # A default may be a whole number where fractions are allowed.
    kinds: dict[Any, tuple[type[Any], ...]] = {int: (int,), float: (float, int)}
    registry = ConstructorRegistry()

    @registry.primitive_rule
    def read_number(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
        if info.type not in readers:
            return None
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar=info.type.__name__.upper(),
            instance_from_str=lambda words: readers[info.type](words[0]),
            is_instance=lambda value: isinstance(value, kinds[info.type]),
            str_from_instance=lambda value: [str(value)],
        )

    return registry


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
                return unknown_flag(word, options, help_command)
            message = f"unexpected argument {word!r}"
        case _errors.MissingArgs(missing_arguments=arguments):
            names = [argument_name(missing.arg) for missing in arguments]
            message = f"missing: {', '.join(names)}"
        case _errors.InvalidChoice(argument=argument, value=value, choices=choices):
            message = f"{argument_name(argument)}: invalid choice {value!r}"
            message += f", choose from {', '.join(choices)}"
        case _errors.InstantiationFailure(argument=argument, message=text) if argument:
            # A line for each type that refuses the value, behind its name; of a choice, not so.
            lines = text.splitlines()
            named = [line for line in lines if ">: " in line]
            reason = (named or lines)[-1].rpartition(">: ")[2]
            message = f"{argument_name(argument)}: {reason}"
        case _errors.BadValue(argument=argument):
            message = f"{argument_name(argument)} needs a value"
    return UsageError(f"{message} ({help_command})")


def argument_name(argument: Any) -> str:
    """Return a flag, or the name that the help text shows for a positional argument."""
    name = argument.lowered.metavar if argument.is_positional() else argument.display_name()
    return str(name)
