"""Turn records into tables and pages."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from bench.cli.parsing import Command
from bench.protocol.options import StoreFolder, Switch, option


@dataclass(frozen=True, kw_only=True)
class LeaderboardOptions:
    """Write a site and tables from the records of a store.

    The site opens from its index.html; the tables are Markdown, LaTeX, JSON and CSV.
    """

    suite: Annotated[str, option("NAME|FILE.toml", "one suite", "all")] = ""
    out: Annotated[Path, option("DIR")] = Path("leaderboard")
    figures: Annotated[Switch, option(text="figures for papers too, in DIR/figures")] = False
    store: StoreFolder = Path("runs")
    records: Annotated[Path | None, option("DIR", "records, instead of the store's")] = None


def write_leaderboard(options: LeaderboardOptions) -> None:
    """Write the pages and print their paths."""
    import leaderboards
    from bench.execution.suite_file import DIGEST, resolve_experiment
    from bench.protocol import suites
    from bench.records.sync import StoreRecords, sync_records
    from bench.reference.about import describe_method
    from bench.system.errors import BenchError, unknown_name
    from leaderboards.read.records import StoreError

    suite = resolve_experiment(options.suite)
    name = suite.partition("@")[0]
    if name and name not in suites.REGISTRY.names() and not DIGEST.search(name):
        raise unknown_name("suite", suite, suites.REGISTRY.names())
    synced = StoreRecords(options.records, []) if options.records else sync_records(options.store)
    folder = synced.folder if options.records or synced.folder.exists() else None
    try:
        paths = leaderboards.write(
            folder, options.out, suite or None, describe_method, options.figures,
            suites.protocols(), synced.problems)  # fmt: skip
    except StoreError as error:
        raise BenchError(str(error)) from error
    except OSError as error:
        raise BenchError(f"cannot write to {str(options.out)!r}: {error.strerror}") from error
    for line in synced.problems:
        print(line, file=sys.stderr)
    if folder is None:
        message = f"nothing is recorded in {str(options.store)!r} yet: the pages are empty"
        print(message, file=sys.stderr)
    for path in paths:
        print(path)


COMMAND = Command(LeaderboardOptions, write_leaderboard)
