"""The options of a command as keyword arguments, as `help` shows them."""

from __future__ import annotations

import dataclasses
import inspect
import logging
import reprlib
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

from bench.protocol.options import Option, list_options, unknown_flag
from bench.system.errors import UsageError
from bench.system.log import command_log
from bench.system.words import check_words

Options = TypeVar("Options")
Function = TypeVar("Function", bound=Callable[..., Any])

# Options that say what a command prints.
PRINTING = ("quiet", "verbose", "json")
ONE_CALL = threading.RLock()


@dataclass(frozen=True)
class KeywordReader:
    """The keyword arguments of a call of `bench.NAME`; None stands for an option's default."""

    name: str
    keywords: Mapping[str, Any]

    def partial(self, form: type[Options]) -> Options:
        """Return the options that a dataclass has, and ignore all others."""
        names = {entry.name for entry in list_options(form)}
        stated = {name: value for name, value in self.keywords.items() if name in names}
        return KeywordReader(self.name, stated).read(form)

    def read(self, form: type[Options], defaults: Mapping[str, Any] | None = None) -> Options:
        """Return the options as a dataclass. Raise UsageError for an unknown or wrong one."""
        entries = {entry.name: entry for entry in list_options(form) if entry.name not in PRINTING}
        values = dict(defaults or {})
        for name, value in self.keywords.items():
            if name in PRINTING:
                raise UsageError(f"--{name}: of the command alone")
            if name not in entries:
                raise unknown_flag(f"--{name}", form, self.help_command)
            if value is not None:
                values[name] = self.convert(entries[name], value)
        required = {name for name in entries if entries[name].default is dataclasses.MISSING}
        if missing := required - values.keys():
            raise UsageError(f"missing: {', '.join(f'--{name}' for name in sorted(missing))}")
        return form(**values)

    @property
    def help_command(self) -> str:
        """What shows the options."""
        return f"`help(bench.{self.name})`"

    def convert(self, option: Option, value: Any) -> Any:
        """Return a value as the type of its option. Raise UsageError where that is impossible."""
        from pydantic import TypeAdapter, ValidationError

        flag = option.flags[0]
        if isinstance(value, str | Path):
            check_words([flag, str(value)])
        if option.kind is str:
            # Text with commas stands for a list on a command line.
            return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        choices = get_args(option.kind)
        if get_origin(option.kind) is Literal and value not in choices:
            message = f"{flag}: invalid choice {str(value)!r}, choose from {', '.join(choices)}"
            raise UsageError(f"{message} ({self.help_command})")
        try:
            return TypeAdapter(option.kind).validate_python(value)
        except ValidationError as error:
            reason = f"{error.errors()[0]['msg'].partition(',')[0]}, not {reprlib.repr(value)}"
            raise UsageError(f"{flag}: {reason} ({self.help_command})") from error


@contextmanager
def call_log(name: str, keywords: Mapping[str, Any], verbose: bool) -> Iterator[None]:
    """Print what a call logs and warnings if it is to be verbose, else nothing.

    A call from another thread waits: random numbers, logs and graphs are the whole process's.
    """
    words = ", ".join(f"{key}={value!r}" for key, value in keywords.items())
    level = logging.INFO if verbose else logging.CRITICAL
    with ONE_CALL, command_log(name, level, f"bench.{name}({words})"):
        logging.captureWarnings(not verbose)
        yield


def takes_options(form: type[Any]) -> Callable[[Function], Function]:
    """Return a decorator: `help` shows the options of a dataclass for a function's `**options`."""

    def describe(function: Function) -> Function:
        signature = inspect.signature(function)
        parameters = [*signature.parameters.values()]
        named = signature.parameters.keys() | set(PRINTING)
        lines = []
        for option in list_options(form):
            if option.name in named:
                continue
            parameters.insert(-1, option_parameter(option))
            about = option.described("help") or option.described("metavar")
            default = option.described("help_behavior_hint")
            lines.append(f"    {option.name}: {about} {default}".rstrip())
        parameters.sort(key=lambda parameter: parameter.kind)
        described = signature.replace(parameters=parameters)
        function.__signature__ = described  # type: ignore[attr-defined]
        head = inspect.cleandoc(function.__doc__ or "")
        function.__doc__ = "\n".join([head, "", "Options:", *lines])
        return function

    return describe


def option_parameter(option: Option) -> inspect.Parameter:
    """Return an option as a parameter that is given by keyword."""
    default = option.default
    if default is dataclasses.MISSING:
        default = inspect.Parameter.empty
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(option.name, kind, default=default, annotation=option.kind)
