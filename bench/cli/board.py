"""The verb `leaderboard`, apart from the others: they bring torch, which takes longer than all the pages."""

from __future__ import annotations

import sys

import leaderboards
from bench.cli import options
from bench.protocol import suites
from bench.reference.about import about
from bench.system.errors import BenchError, unknown_name
from bench.tracking.store import store_exists, tracking_uri
from leaderboards.read.store import StoreError


def leaderboard(given: options.Leaderboard) -> int:
    """Writes the pages and says where they are."""
    if given.suite and given.suite.partition("@")[0] not in suites.SUITES:
        raise unknown_name("suite", given.suite, suites.SUITES)
    there = given.records or store_exists(given.store)
    try:
        source = given.records or tracking_uri(given.store)
        paths = leaderboards.write(
            source, given.out, given.suite or None, about, given.figures, suites.protocol
        )
    except StoreError as error:
        raise BenchError(str(error)) from error
    except OSError as error:
        raise BenchError(f"cannot write to {str(given.out)!r}: {error.strerror}") from error
    if not there:
        print(
            f"nothing is recorded in {str(given.store)!r} yet: the pages are empty", file=sys.stderr
        )
    for path in paths:
        print(path)
    return 0
