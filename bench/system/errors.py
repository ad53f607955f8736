"""Errors that a user can act on: one clear line, an exit code, never a traceback."""

from __future__ import annotations

import difflib
import errno
import io
import os
import sys
from collections.abc import Iterable

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class BenchError(Exception):
    """Something failed that the user can mend. The message is one line; the process exits with 1."""

    exit_code = 1


class UsageError(BenchError):
    """The command line or an argument is wrong. The process exits with 2."""

    exit_code = 2


def continue_hint(force: bool) -> str:
    """The command that goes on with what was interrupted: `--force` would begin all of it anew."""
    return "the same command without --force" if force else "the same command"


def unknown_name(kind: str, given: str, known: Iterable[str]) -> UsageError:
    """A `UsageError` for an unknown name that offers the nearest right spelling, or else all names."""
    names = sorted(known)
    near = difflib.get_close_matches(given, names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(names)}"
    return UsageError(f"unknown {kind} {given!r}: {hint}")


class Closed(io.TextIOBase):
    """A standard output that was closed before the program began: what prints nothing does not need one."""

    def write(self, text: str) -> int:
        raise BenchError("standard output is closed")


def open_output() -> None:
    """Stands in for a closed standard output, and takes its number, which the next file would have."""
    if sys.stdout is None:
        os.open(os.devnull, os.O_WRONLY)
        sys.stdout = Closed()


def of_output() -> int:
    """1 if standard output does not take what was printed, said in a line unless its reader has seen enough; else 0."""
    try:
        sys.stdout.flush()
        return 0
    except OSError as error:
        return of_system(error)


def of_system(error: OSError) -> int:
    """1, the exit code for what the system does not allow, said in a line that names the path if there is one.

    Raises the error again if it is a bug: of no path, no pipe and no full disk.
    """
    if isinstance(error, BrokenPipeError) or (error.errno in FULL and error.filename is None):
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), 1
        )  # the interpreter would try once more to write what is left
    elif error.filename is None:
        raise error
    if not isinstance(error, BrokenPipeError):  # whose reader, `head` say, has seen enough
        place = f"{str(error.filename)!r}: " if error.filename else ""
        print(f"error: {place}{error.strerror}", file=sys.stderr)
    return 1
