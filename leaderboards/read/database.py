"""MLflow's database read in a few bulk queries; its client takes milliseconds for each run."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import sqlalchemy
from sqlalchemy import ColumnElement, Connection, Inspector, Select, TableClause, select

from leaderboards.schema import fields

CONNECT_SECONDS = 10
RUNS_PER_QUERY = 1000
ROWS_PER_FETCH = 10_000
# In KiB. With SQLite's default of 2 MiB the same pages are read again and again.
CACHE_SIZE = "PRAGMA cache_size = -65536"
RUNS = ("run_uuid", "experiment_id", "status", "lifecycle_stage", "start_time", "artifact_uri")
# The columns that are read of each table. MLflow has had them since 1.0.
TABLES = {
    "experiments": ("experiment_id", "name", "lifecycle_stage"),
    "runs": RUNS,
    "tags": ("run_uuid", "key", "value"),
    "params": ("run_uuid", "key", "value"),
    "latest_metrics": ("run_uuid", "key", "value", "is_nan"),
    "metrics": ("run_uuid", "key", "step", "value", "is_nan"),
}


@contextmanager
def open_database(uri: str) -> Iterator[DatabaseReader]:
    """Open a database in one attempt: MLflow tries a dead one again and again for minutes.

    A database file that does not exist is an empty store, and is not created.
    """
    url = sqlalchemy.make_url(uri)
    is_sqlite = url.get_backend_name() == "sqlite"
    options, artifacts = {"connect_timeout": CONNECT_SECONDS}, None
    if is_sqlite:
        file = Path(os.path.realpath(url.database or ""))
        options, artifacts = {}, file.parent / "artifacts"
        if not file.is_file():
            url = sqlalchemy.make_url("sqlite://")
    engine = sqlalchemy.create_engine(url, connect_args=options)
    try:
        with engine.connect() as connection:
            if is_sqlite:
                connection.exec_driver_sql(CACHE_SIZE)
            yield DatabaseReader(connection, artifacts)
    finally:
        engine.dispose()


@dataclass(frozen=True)
class DatabaseReader:
    """A store.Reader; artifacts: beside a database file, which may have been copied with it."""

    connection: Connection
    artifacts: Path | None

    def runs(self, suite: str | None, statuses: Sequence[str]) -> tuple[pd.DataFrame, list[str]]:
        inspector = sqlalchemy.inspect(self.connection)
        if not inspector.has_table("experiments"):
            return pd.DataFrame(), []
        missing = _missing_columns(inspector)
        if missing:
            problem = f"the store is of another version of MLflow, without {', '.join(missing)}"
            return pd.DataFrame(), [f"{problem}, and cannot be read"]
        experiments = self._experiments(suite)
        runs, tags = _table("runs").c, _table("tags").c
        single = select(tags.run_uuid).where(tags.key == fields.PARENT_TAG)
        in_suite = runs.experiment_id.in_(experiments) & runs.run_uuid.in_(single)
        active = in_suite & (runs.lifecycle_stage == "active")
        rows = self.connection.execute(select(*runs).where(active)).all()
        columns: dict[str, list[Any]] = {name: [] for name in ("experiment", *fields.ORIGIN)}
        for run in rows:
            if run.status in statuses:
                columns["experiment"].append(experiments[run.experiment_id])
                columns["run_id"].append(run.run_uuid)
                columns["artifact_uri"].append(self._artifact_uri(run))
                columns["start_time"].append(run.start_time)
                columns["status"].append(run.status)
        selected = select(runs.run_uuid).where(active, runs.status.in_(statuses))
        columns |= self._values(columns["run_id"], selected)
        return pd.DataFrame(columns), fields.describe_unfinished(
            (run.status for run in rows), statuses
        )

    def curves(self, run_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        points = _table("metrics").c
        query = select(points.run_uuid, points.key, points.step, points.value)
        query = query.where(_starts_with(points.key, fields.CURVE_PREFIXES), ~points.is_nan)
        curves: dict[str, dict[str, Any]] = {run_id: {} for run_id in run_ids}
        for start in range(0, len(run_ids), RUNS_PER_QUERY):
            batch = points.run_uuid.in_(run_ids[start : start + RUNS_PER_QUERY])
            for run_id, name, epoch, value in self._fetch(query.where(batch)):
                epochs, values = curves[run_id].setdefault(name, ([], []))
                epochs.append(epoch)
                values.append(value)
        return curves

    def _experiments(self, suite: str | None) -> dict[int, str]:
        """Return the names of active experiments that belong to a suite, by id."""
        table = _table("experiments").c
        query = select(table.experiment_id, table.name).where(table.lifecycle_stage == "active")
        rows = self.connection.execute(query)
        return {row.experiment_id: row.name for row in rows if fields.in_suite(row.name, suite)}

    def _values(self, run_ids: Sequence[str], selected: Select[Any]) -> dict[str, list[Any]]:
        """Return a column for each tag, metric and parameter of the selected runs."""
        tags, params, latest = _table("tags").c, _table("params").c, _table("latest_metrics").c
        finite = sqlalchemy.case((latest.is_nan, sqlalchemy.null()), else_=latest.value)
        is_result = _starts_with(latest.key, fields.METRIC_PREFIXES)
        positions = dict(zip(run_ids, range(len(run_ids)), strict=True))
        columns: dict[str, list[Any]] = {}
        for query in (
            select(tags.run_uuid, tags.key, tags.value).where(tags.key.in_(fields.TAGS)),
            select(latest.run_uuid, latest.key, finite).where(is_result),
            select(params.run_uuid, "param/" + params.key, params.value),
        ):
            rows = self._fetch(query.where(query.selected_columns[0].in_(selected)))
            columns |= _pivot(rows, positions)
        return columns

    def _fetch(self, query: Select[Any]) -> Iterator[Any]:
        """Yield the driver's rows. Raises OSError for what the driver cannot read.

        SQLAlchemy's rows take as long to make as the query, and only there are errors wrapped.
        """
        result: Any
        with self.connection.execute(query) as result:
            try:
                while rows := result.cursor.fetchmany(ROWS_PER_FETCH):
                    yield from rows
            except self.connection.dialect.loaded_dbapi.Error as error:
                raise OSError(str(error)) from error

    def _artifact_uri(self, run: Any) -> str:
        """Return where the artifacts of a run lie: beside the database if they are there."""
        if self.artifacts:
            folder = self.artifacts / str(run.run_uuid) / "artifacts"
            if folder.exists():
                return folder.as_uri()
        return str(run.artifact_uri)


def _missing_columns(inspector: Inspector) -> list[str]:
    existing = inspector.get_table_names()
    missing = []
    for table, names in TABLES.items():
        columns: set[str] = set()
        if table in existing:
            columns = {column["name"] for column in inspector.get_columns(table)}
        missing += [f"{table}.{name}" for name in names if name not in columns]
    return missing


def _pivot(rows: Iterable[tuple[str, str, Any]], positions: dict[str, int]) -> dict[str, list[Any]]:
    """Turn (run, name, value) into a column for each name, None where a run has no value."""
    columns: dict[str, list[Any]] = {}
    # Equal values become one object, which saves memory.
    shared: dict[Any, Any] = {}
    for run_id, name, value in rows:
        if name not in columns:
            columns[name] = [None] * len(positions)
        columns[name][positions[run_id]] = shared.setdefault(value, value)
    return columns


def _table(name: str) -> TableClause:
    """Return a table by name alone: MLflow's models would cost the import of all of MLflow."""
    types: dict[str, Any] = {"key": sqlalchemy.String, "is_nan": sqlalchemy.Boolean}
    columns = [sqlalchemy.column(column, types.get(column)) for column in TABLES[name]]
    return sqlalchemy.table(name, *columns)


def _starts_with(key: ColumnElement[str], prefixes: Iterable[str]) -> ColumnElement[bool]:
    return sqlalchemy.or_(*(key.startswith(prefix, autoescape=True) for prefix in prefixes))
