"""Turn records into tables and pages, for `bench.leaderboard` and the command `leaderboard`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from bench.api.keywords import KeywordReader, call_log, takes_options
from bench.protocol.options import StoreFolder, Switch, option
from bench.system.errors import BenchError, UsageError, unknown_name
from bench.system.log import LOGGER

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, kw_only=True)
class TableOptions:
    """Read the records of a store; write a site and tables from them where `out` is stated."""

    suite: Annotated[str, option("NAME|FILE.toml", "one suite", "all")] = ""
    out: Annotated[Path | None, option("DIR")] = None
    figures: Annotated[Switch, option(text="figures for papers too, in DIR/figures")] = False
    store: StoreFolder = Path("runs")
    records: Annotated[Path | None, option("DIR", "records, instead of the store's")] = None


@takes_options(TableOptions)
def leaderboard(suite: str | Path = "", *, verbose: bool = False, **options: Any) -> pd.DataFrame:
    """Rank what is recorded. The options are the flags of the command `leaderboard`.

    Args:
        suite: one suite, all by default.
        verbose: print what is left out.
        options: as below, None for the default; with `out`, site and tables are written too.

    Returns: a row for each method with one setting, over its seeds, best first in each task, and
        for each teacher; accuracies in [0, 1]. attrs["problems"]: lines on what is left out.

    Raises:
        bench.system.errors.BenchError: options are wrong (UsageError), or records cannot be read
            or files not be written; the message is that of the command.
    """
    keywords = {"suite": suite, **options}
    with call_log("leaderboard", keywords, verbose):
        return build_tables(KeywordReader("leaderboard", keywords).read(TableOptions))


def build_tables(options: TableOptions) -> pd.DataFrame:
    """Return the rows of all tables. attrs: "problems" and the "paths" of what was written."""
    import leaderboards
    from bench.protocol import suites
    from bench.records.sync import StoreRecords, sync_records
    from bench.reference.about import describe_method
    from leaderboards.read.records import StoreError
    from leaderboards.render.site.boards import site_frame

    if options.figures and not options.out:
        raise UsageError("--figures: needs --out")
    suite = requested_suite(options.suite)
    synced = StoreRecords(options.records, []) if options.records else sync_records(options.store)
    folder = synced.folder if options.records or synced.folder.exists() else None
    try:
        protocols = suites.protocols()
        site = leaderboards.build_site(
            folder, suite or None, describe_method, protocols, synced.problems
        )
        frame = site_frame(site)
        # A suite that can be run may have no record yet, any other is known by its records alone.
        can_be_run = suite in (*protocols, *suites.REGISTRY.names()) or suite != options.suite
        if suite and frame.empty and not can_be_run:
            raise BenchError(f"no record of {suite} in {str(options.records or options.store)!r}")
        paths = leaderboards.write_site(site, options.out, options.figures) if options.out else []
    except StoreError as error:
        raise BenchError(str(error)) from error
    except OSError as error:
        raise BenchError(f"cannot write to {str(options.out)!r}: {error.strerror}") from error
    problems = [*synced.problems]
    if folder is None:
        problems.append(f"nothing is recorded in {str(options.store)!r} yet: the pages are empty")
    for line in problems:
        LOGGER.warning(line)
    frame.attrs |= {"problems": problems, "paths": paths}
    return frame


def requested_suite(text: str) -> str:
    """Return the suite of `--suite`, "" for all. Raise UsageError for the name of none."""
    from bench.execution.suite_file import DIGEST, resolve_experiment
    from bench.protocol import suites
    from leaderboards.schema.fields import EXPERIMENT

    suite = resolve_experiment(text)
    name, at, version = suite.partition("@")
    if name not in ("", *suites.REGISTRY.names()) and not DIGEST.search(name):
        raise unknown_name("suite", suite, suites.REGISTRY.names())
    if at and not EXPERIMENT.fullmatch(suite):
        raise UsageError(f"--suite {suite!r}: {version!r} is no version of {name!r}")
    return suite
