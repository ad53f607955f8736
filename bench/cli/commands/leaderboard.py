"""Turn the record into tables and pages."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from bench.cli.parsing import Command
from bench.protocol.options import StoreFolder, Switch, option


@dataclass(frozen=True, kw_only=True)
class LeaderboardOptions:
    """Write a site and tables from the record.

    The site opens from its index.html; the tables are Markdown, LaTeX, JSON and CSV.
    """

    suite: Annotated[str, option("NAME|FILE.toml", "one suite", "all")] = ""
    out: Annotated[Path, option("DIR")] = Path("leaderboard")
    figures: Annotated[Switch, option(text="figures for papers too, in DIR/figures")] = False
    store: StoreFolder = Path("runs")
    records: Annotated[Path | None, option("DIR", "record files, instead of the store")] = None


def write_leaderboard(options: LeaderboardOptions) -> int:
    """Write the pages and print their paths."""
    import leaderboards
    from bench.execution.suite_file import DIGEST, resolve_experiment
    from bench.protocol import suites
    from bench.reference.about import describe_method
    from bench.system.errors import BenchError, unknown_name
    from bench.tracking.store import store_exists, tracking_uri
    from leaderboards.read.store import StoreError

    suite = resolve_experiment(options.suite)
    name = suite.partition("@")[0]
    if name and name not in suites.SUITES and not DIGEST.search(name):
        raise unknown_name("suite", suite, suites.SUITES)
    has_runs = options.records is not None or store_exists(options.store)
    try:
        source = options.records or tracking_uri(options.store)
        paths = leaderboards.write(
            source, options.out, suite or None, describe_method, options.figures,
            suites.protocol)  # fmt: skip
    except StoreError as error:
        raise BenchError(str(error)) from error
    except OSError as error:
        raise BenchError(f"cannot write to {str(options.out)!r}: {error.strerror}") from error
    if not has_runs:
        message = f"nothing is recorded in {str(options.store)!r} yet: the pages are empty"
        print(message, file=sys.stderr)
    for path in paths:
        print(path)
    return 0


COMMAND = Command(LeaderboardOptions, write_leaderboard)
