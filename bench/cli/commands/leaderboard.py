"""Turn records into tables and pages."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from bench.api.tables import TableOptions, build_tables
from bench.cli.parsing import Command
from bench.protocol.options import option


@dataclass(frozen=True, kw_only=True)
class LeaderboardOptions(TableOptions):
    """Write a site and tables from the records of a store.

    The site opens from its index.html; the tables are Markdown, LaTeX, JSON and CSV.
    """

    out: Annotated[Path, option("DIR")] = Path("leaderboard")


def write_leaderboard(options: LeaderboardOptions) -> None:
    """Write the pages and print their paths."""
    for path in build_tables(options).attrs["paths"]:
        print(path)


COMMAND = Command(LeaderboardOptions, write_leaderboard)
