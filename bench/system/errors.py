"""Errors that a user can act on: one line, an exit code, never a traceback."""

from __future__ import annotations

import difflib
import errno
import io
import os
import sys
from collections.abc import Iterable, Iterator
from importlib.metadata import distributions

from leaderboards.schema.fields import escape_unprintable

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class BenchError(Exception):
    """A failure that the user can mend. The message is one line; the process exits with 1."""

    exit_code = 1

    def __init__(self, message: str) -> None:
        # It may hold names from files of strangers.
        super().__init__(escape_unprintable(message))


class UsageError(BenchError):
    """A wrong command line or argument. The process exits with 2."""

    exit_code = 2


def one_line(error: BaseException, limit: int = 300) -> str:
    """Return the message of an error on one line, cut at `limit` characters; its type if empty."""
    return " ".join(str(error).split())[:limit] or type(error).__name__


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, and all that it was raised from or after."""
    visited, waiting = list[BaseException](), [error]
    while waiting:
        cause = waiting.pop()
        # They can form a ring.
        if not any(cause is other for other in visited):
            yield cause
            visited.append(cause)
            waiting += filter(None, (cause.__context__, cause.__cause__))


def damaged_package() -> str:
    """Return a line on an installed package whose entry points cannot be read, "" without one.

    All programs that look for plugins fail then, torch and MLflow among them.
    """
    for package in distributions():
        try:
            package.entry_points  # noqa: B018
        except Exception as error:
            folder = str(package.locate_file(""))
            fault = f"{type(error).__name__}: {one_line(error, 100)}"
            return f"the entry points of {package.name} in {folder!r} cannot be read ({fault})"
    return ""


def continue_hint(force: bool) -> str:
    """Return the command that continues an interrupted one: `--force` would restart it."""
    return "the same command without --force" if force else "the same command"


def unknown_name(kind: str, name: str, choices: Iterable[str]) -> UsageError:
    """Build the error for an unknown name. It offers the closest choice, or else all of them."""
    choices = sorted(choices)
    matches = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    hint = f"choose from {', '.join(choices)}"
    if matches:
        hint = f"did you mean {matches[0]!r}?"
    return UsageError(f"unknown {kind} {name!r}: {hint}")


class ClosedOutput(io.TextIOBase):
    """A standard output that was closed before the program began."""

    def write(self, text: str) -> int:
        raise BenchError("standard output is closed")


def replace_closed_stdout() -> None:
    """Replace a closed standard output: a command that prints nothing does not need one."""
    if sys.stdout is None:
        # Descriptor 1 must be taken, or the next file that is opened gets it.
        os.open(os.devnull, os.O_WRONLY)
        sys.stdout = ClosedOutput()


def flush_stdout() -> int:
    """Flush standard output; return 1 if that fails."""
    try:
        sys.stdout.flush()
        return 0
    except OSError as error:
        return report_os_error(error)


def report_os_error(error: OSError) -> int:
    """Print an error of the file system; return the exit code, 1. Raise it again if it is a bug."""
    if error.filename is not None:
        print(f"error: {str(error.filename)!r}: {error.strerror}", file=sys.stderr)
        return 1
    is_pipe = isinstance(error, BrokenPipeError)
    # No file, no pipe and no full disk: a bug.
    if not is_pipe and error.errno not in DISK_FULL:
        raise error
    # The interpreter flushes again at exit: the rest goes to the null device.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    # Behind a broken pipe is a reader, such as `head`, that has seen enough.
    if not is_pipe:
        print(f"error: {error.strerror}", file=sys.stderr)
    return 1
