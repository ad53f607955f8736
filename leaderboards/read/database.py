"""MLflow's database read in a handful of bulk queries; its own client takes milliseconds for each run."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leaderboards.schema import fields

if TYPE_CHECKING:
    import pandas as pd
    from sqlalchemy import ColumnElement, Connection, CursorResult, Select, TableClause

CONNECT_SECONDS = 10
BATCH = 1000  # runs whose curves are asked for at once
PART = 10_000  # rows
CACHE = "PRAGMA cache_size = -65536"  # KiB; with SQLite's own 2 MiB the same pages are read again and again
TABLES = {  # what is read of each table; MLflow has had these columns since 1.0
    "experiments": ("experiment_id", "name", "lifecycle_stage"),
    "runs": (
        "run_uuid",
        "experiment_id",
        "status",
        "lifecycle_stage",
        "start_time",
        "artifact_uri",
    ),
    "tags": ("run_uuid", "key", "value"),
    "params": ("run_uuid", "key", "value"),
    "latest_metrics": ("run_uuid", "key", "value", "is_nan"),
    "metrics": ("run_uuid", "key", "step", "value", "is_nan"),
}


@contextmanager
def connect(uri: str) -> Iterator[Database]:
    """One attempt to connect, because MLflow tries a dead database again and again for minutes.

    A database file that does not exist is an empty store, and is not created.
    """
    import sqlalchemy

    url = sqlalchemy.make_url(uri)
    local = url.get_backend_name() == "sqlite"
    file = Path(url.database or "") if local else None
    url = sqlalchemy.make_url("sqlite://") if file and not file.is_file() else url
    engine = sqlalchemy.create_engine(
        url, connect_args={} if local else {"connect_timeout": CONNECT_SECONDS}
    )
    try:
        with engine.connect() as connection:
            if local:
                connection.exec_driver_sql(CACHE)
            yield Database(
                connection, Path(os.path.realpath(file)).parent / "artifacts" if file else None
            )
    finally:
        engine.dispose()


@dataclass(frozen=True)
class Database:
    """A store.Reader; `files`: where artifacts lie beside a database file, which may have been copied with them."""

    connection: Connection
    files: Path | None

    def runs(self, suite: str | None) -> tuple[pd.DataFrame, list[str]]:
        import pandas as pd
        from sqlalchemy import case, null, select

        there = self._columns()
        lacks = [
            f"{table}.{name}"
            for table, names in TABLES.items()
            for name in names
            if name not in there[table]
        ]
        if lacks:
            other = f"the store is of another version of MLflow, without {', '.join(lacks)}, and cannot be read"
            return pd.DataFrame(), [other] if there["experiments"] else []
        experiments, runs, tags, params, latest, _ = (_table(name).c for name in TABLES)
        names = select(experiments.experiment_id, experiments.name).where(
            experiments.lifecycle_stage == "active"
        )
        places = {
            key: name for key, name in self.connection.execute(names) if fields.wanted(name, suite)
        }
        single = select(tags.run_uuid).where(tags.key == fields.PARENT)
        here = (
            runs.experiment_id.in_(places),
            runs.lifecycle_stage == "active",
            runs.run_uuid.in_(single),
        )
        every = self.connection.execute(select(*runs).where(*here)).all()
        done = [run for run in every if run.status == fields.FINISHED]
        columns: dict[str, list[Any]] = {
            "experiment": [places[run.experiment_id] for run in done],
            "run_id": [run.run_uuid for run in done],
            "artifact_uri": [self._moved(run.run_uuid, run.artifact_uri) for run in done],
            "start_time": [run.start_time for run in done],
        }
        position = {run: index for index, run in enumerate(columns["run_id"])}
        chosen = select(runs.run_uuid).where(*here, runs.status == fields.FINISHED)
        finite = case((latest.is_nan, null()), else_=latest.value)
        for prefix, query in (
            ("", select(tags.run_uuid, tags.key, tags.value).where(tags.key.in_(fields.TAGS))),
            (
                "",
                select(latest.run_uuid, latest.key, finite).where(
                    _starts(latest.key, fields.METRICS)
                ),
            ),
            ("param/", select(params.run_uuid, params.key, params.value)),
        ):
            query = query.where(query.selected_columns[0].in_(chosen))
            columns |= {
                prefix + name: values
                for name, values in _pivot(self._rows(query), position).items()
            }
        return pd.DataFrame(columns), fields.unfinished(run.status for run in every)

    def curves(self, runs: Sequence[str]) -> dict[str, dict[str, fields.Curve]]:
        from sqlalchemy import not_, select

        points = _table("metrics").c
        query = select(points.run_uuid, points.key, points.step, points.value)
        query = query.where(_starts(points.key, fields.CURVES), not_(points.is_nan))
        found: dict[str, dict[str, Any]] = {run: {} for run in runs}
        for start in range(0, len(runs), BATCH):
            for run, name, step, value in self._rows(
                query.where(points.run_uuid.in_(runs[start : start + BATCH]))
            ):
                curves = found[run]
                if name not in curves:
                    curves[name] = ([], [])
                steps, values = curves[name]
                steps.append(step)
                values.append(value)
        return found

    def _rows(self, query: Select[Any]) -> Iterator[Any]:
        """The driver's own rows, a part at a time: SQLAlchemy's take as long to make as the query.

        Raises OSError for what the driver cannot read.
        """
        with self.connection.execute(query) as result:
            while rows := self._part(result):
                yield from rows

    def _part(self, result: CursorResult[Any]) -> Sequence[Any]:
        errors = (
            self.connection.dialect.loaded_dbapi.Error
        )  # not wrapped, as those of SQLAlchemy's own rows are
        try:
            return result.cursor.fetchmany(PART) if result.cursor else []
        except errors as error:
            raise OSError(str(error)) from error

    def _columns(self) -> dict[str, set[str]]:
        """The columns of each table; none of a table that does not exist."""
        import sqlalchemy

        look = sqlalchemy.inspect(self.connection)
        there = look.get_table_names()
        return {
            table: {c["name"] for c in look.get_columns(table)} if table in there else set()
            for table in TABLES
        }

    def _moved(self, run: str, recorded: str) -> str:
        folder = self.files / run / "artifacts" if self.files else None
        return folder.as_uri() if folder and folder.exists() else recorded


def _pivot(rows: Iterable[tuple[str, str, Any]], position: dict[str, int]) -> dict[str, list[Any]]:
    """(run, name, value) -> a column for each name, None where a run has no value; equal values are one object."""
    columns: dict[str, list[Any]] = {}
    known: dict[Any, Any] = {}
    for run, name, value in rows:
        if name not in columns:
            columns[name] = [None] * len(position)
        columns[name][position[run]] = known.setdefault(value, value)
    return columns


def _table(name: str) -> TableClause:
    """A table by name alone: MLflow's own models would cost the import of all of MLflow."""
    import sqlalchemy

    kinds = {"key": sqlalchemy.String, "is_nan": sqlalchemy.Boolean}
    return sqlalchemy.table(
        name, *(sqlalchemy.column(column, kinds.get(column)) for column in TABLES[name])
    )


def _starts(key: ColumnElement[str], names: Iterable[str]) -> ColumnElement[bool]:
    from sqlalchemy import or_

    return or_(*(key.startswith(name, autoescape=True) for name in names))
