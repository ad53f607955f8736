"""Fetch, import or verify a data set."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional

from bench.cli.parsing import Command
from bench.protocol.options import DataFolder, option


@dataclass(frozen=True, kw_only=True)
class FetchDataOptions:
    """Download a data set's official files."""

    name: Positional[Annotated[str, option("NAME", "a data set; see `list`")]]
    data_root: DataFolder = Path("data")


@dataclass(frozen=True, kw_only=True)
class ImportDataOptions(FetchDataOptions):
    """Take a data set's official files from a folder or a tar archive."""

    source: Positional[Annotated[Path, option("FILE-OR-DIR", "a tar archive, or a folder")]]


@dataclass(frozen=True, kw_only=True)
class VerifyDataOptions(FetchDataOptions):
    """Check a data set's files and print its counts and hash."""


def fetch_data(options: FetchDataOptions) -> None:
    """Download the files and print where they are."""
    from bench.datasets.files import fetching

    print(fetching.fetch_data(options.name, options.data_root))


def import_data(options: ImportDataOptions) -> None:
    """Copy the files and print where they are."""
    from bench.datasets.files import fetching

    print(fetching.import_data(options.name, options.source, options.data_root))


def verify_data(options: VerifyDataOptions) -> None:
    """Check the files and print what they hold."""
    from bench.datasets.files import fetching

    print(fetching.verify_data(options.name, options.data_root))


COMMAND = {
    "fetch": Command(FetchDataOptions, fetch_data),
    "import": Command(ImportDataOptions, import_data),
    "verify": Command(VerifyDataOptions, verify_data),
}
