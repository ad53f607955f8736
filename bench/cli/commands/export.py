"""Copy the records of finished runs for other checkouts, or publish a run on a hub of models."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional

from bench.cli.parsing import Command
from bench.protocol.options import DataFolder, StoreFolder, Switch, option


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Copy records of finished runs, small files without tensors, for others to import.

    A store of version 0.1 has no records: `--from-mlflow` makes those of its MLflow runs, once.
    With `--hub` a run's network goes to a hub of models, with its record and a model card.
    """

    runs: Positional[
        Annotated[tuple[str, ...], option("RUN", "ids of MLflow runs; with --hub one run or row")]
    ] = ()
    suite: Annotated[
        str, option("NAME|FILE.toml", "all runs of a suite, such as digits or digits@3")
    ] = ""
    out: Annotated[Path, option("DIR", "where to")] = Path("records")
    hub: Annotated[str, option("OWNER/NAME", "the repository on the hub", "none")] = ""
    from_mlflow: Annotated[Switch, option(text="make the records of an old store, in it")] = False
    store: StoreFolder = Path("runs")
    data_root: DataFolder = Path("data")


def export_records(options: ExportOptions) -> int:
    """Copy or publish the records; return 1 if one could not be copied."""
    from bench.execution.suite_file import resolve_experiment
    from bench.records.export import export_runs
    from bench.records.from_mlflow import convert_runs

    if options.hub:
        return publish(options)
    if options.from_mlflow:
        return convert_runs(options.store, options.data_root)
    suite = resolve_experiment(options.suite)
    return export_runs(options.store, options.out, options.runs, suite)


def publish(options: ExportOptions) -> int:
    """Publish a run and print the address of its commit."""
    from bench.cli.model_files import publish_run
    from bench.system.errors import UsageError

    if len(options.runs) != 1 or options.suite or options.from_mlflow:
        raise UsageError("--hub takes one run or row, and neither --suite nor --from-mlflow")
    print(publish_run(options.store, options.runs[0], options.hub))
    return 0


COMMAND = Command(ExportOptions, export_records)
