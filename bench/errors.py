"""Errors that a user can act on: one clear line, an exit code, never a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class BenchError(Exception):
    """Something failed that the user can mend. The message is one line; the process exits with 1."""

    exit_code = 1


class UsageError(BenchError):
    """The command line or an argument is wrong. The process exits with 2."""

    exit_code = 2


def again(force: bool) -> str:
    """The command that goes on with what was interrupted: `--force` would begin all of it anew."""
    return "the same command without --force" if force else "the same command"


def unknown(kind: str, given: str, known: Iterable[str]) -> UsageError:
    """A `UsageError` for an unknown name that offers the nearest right spelling, or else all names."""
    names = sorted(known)
    near = difflib.get_close_matches(given, names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(names)}"
    return UsageError(f"unknown {kind} {given!r}: {hint}")
