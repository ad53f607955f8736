"""Write finished runs as small files for other checkouts."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional

from bench.cli.parsing import Command
from bench.protocol.options import StoreFolder, option


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Write finished runs as records, small files without tensors, for others to import."""

    runs: Positional[Annotated[tuple[str, ...], option("RUN", "ids of MLflow runs")]] = ()
    suite: Annotated[
        str, option("NAME|FILE.toml", "all runs of a suite, such as digits or digits@3")
    ] = ""
    out: Annotated[Path, option("DIR", "where to")] = Path("records")
    store: StoreFolder = Path("runs")


def export_records(options: ExportOptions) -> int:
    """Write the records; return 1 if one could not be written."""
    from bench.execution.suite_file import resolve_experiment
    from bench.records.export import export_runs

    suite = resolve_experiment(options.suite)
    return export_runs(options.store, options.out, options.runs, suite)


COMMAND = Command(ExportOptions, export_records)
