"""The tables of MLflow's database: made whole or not at all; refused if of another MLflow."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.system.database import (
    connect,
    lock_database,
    redact_password,
    sqlite_address,
    sqlite_file,
)
from bench.system.errors import BenchError
from bench.system.log import LOGGER

if TYPE_CHECKING:
    from sqlalchemy import Connection

VERSION_TABLE = "alembic_version"
DRAFT = "_alembic_tmp_"  # begins the name of a table that a migration is writing
# What MLflow writes into new tables by itself.
INITIAL_ROWS = {"experiments": "experiment_id = 0", "workspaces": "name = 'default'"}
JOURNALS = ("-journal", "-wal", "-shm")  # what SQLite keeps beside a database


@dataclass(frozen=True)
class Tables:
    """The names and version of a database's tables, and whether anything is recorded in them.

    revision: "" without one. has_records: in the tables of MLflow. has_others: of other programs.
    """

    names: frozenset[str]
    revision: str
    has_records: bool
    has_others: bool


def mlflow_tables() -> Any:
    """Return the module by which MLflow makes its tables. It has no types, and no public name."""
    from mlflow.store.db import utils

    return utils


def ensure_tables(address: str) -> None:
    """Make MLflow's tables in a database that has none, or some in which nothing is recorded.

    Raise BenchError for tables of another MLflow or of another program.
    """
    newest = mlflow_tables()._get_latest_schema_revision()
    if read_revision(address) == newest:
        return
    file = sqlite_file(address)
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
    # Processes that open an empty database at once would all try to create its tables.
    with lock_database(address, "tables"):
        if read_revision(address) == newest:
            return
        tables = read_tables(address)
        if tables.has_records or not is_from_here(tables, file):
            raise BenchError(foreign_tables(address, file, tables))
        if not file:
            complete_tables(address)
            return
        make_database(file)
        if tables.names:
            LOGGER.info(f"{file}: its tables were not whole and nothing was recorded: made anew")


def read_revision(address: str) -> str:
    """Return the version of a database's tables, "" without any; create nothing."""
    import sqlalchemy

    file = sqlite_file(address)
    if file and not file.exists():
        return ""
    with connect(address) as connection:
        if not sqlalchemy.inspect(connection).has_table(VERSION_TABLE):
            return ""
        select = sqlalchemy.text(f"SELECT version_num FROM {VERSION_TABLE}")
        return str(connection.execute(select).scalar() or "")


def read_tables(address: str) -> Tables:
    """Read what tables a database has; create nothing."""
    import sqlalchemy
    from mlflow.store.db.base_sql_model import Base

    file = sqlite_file(address)
    if file and not file.exists():
        return Tables(frozenset(), "", False, False)
    with connect(address) as connection:
        names = frozenset(sqlalchemy.inspect(connection).get_table_names())
        drafts = {name for name in names if name.startswith(DRAFT)}
        own = (names & Base.metadata.tables.keys()) | drafts
        has_records = any(has_rows(connection, name) for name in sorted(own))
    has_others = bool(names - own - {VERSION_TABLE})
    return Tables(names, read_revision(address), has_records, has_others)


def has_rows(connection: Connection, name: str) -> bool:
    """Return whether a table has rows that MLflow did not write by itself."""
    import sqlalchemy

    select = f"SELECT 1 FROM {name}"
    if condition := INITIAL_ROWS.get(name):
        select += f" WHERE NOT ({condition})"
    return connection.execute(sqlalchemy.text(f"{select} LIMIT 1")).first() is not None


def is_from_here(tables: Tables, file: Path | None) -> bool:
    """Return whether this MLflow may make its tables where these are, if they are empty."""
    # A file is replaced; on a server they lie beside those of others.
    if file and tables.has_others:
        return False
    return not tables.revision or is_known(tables.revision)


def is_known(revision: str) -> bool:
    """Return whether a version of the tables is one of this MLflow's or an earlier one's."""
    from alembic.script import ScriptDirectory
    from alembic.util import CommandError

    versions = ScriptDirectory.from_config(mlflow_tables()._get_alembic_config(""))
    try:
        return versions.get_revision(revision) is not None
    except CommandError:
        return False


def foreign_tables(address: str, file: Path | None, tables: Tables) -> str:
    """Return the line on tables that this MLflow cannot use."""
    import mlflow

    shown = redact_password(address)
    if "experiments" not in tables.names:
        return f"{shown} has tables of another program; MLflow needs a database of its own"
    if tables.revision and not is_known(tables.revision):
        return f"{shown} is of a newer MLflow than {mlflow.__version__}: update mlflow here"
    # An address with a password is not printed: it is in the variable.
    copy = 'pg_dump --format=custom --file=mlflow.dump "$MLFLOW_TRACKING_URI"'
    target = '"$MLFLOW_TRACKING_URI"'
    if file:
        path = shlex.quote(str(file))
        copy, target = f"cp {path} {path}.copy", shlex.quote(shown)
    return f"{shown} is of an earlier MLflow: {copy} && mlflow db upgrade {target}"


def complete_tables(address: str) -> None:
    """Make the tables of a database on a server, each step of which is whole or not at all."""
    import sqlalchemy

    engine = sqlalchemy.create_engine(address)
    try:
        mlflow_tables()._initialize_tables(engine)
    finally:
        engine.dispose()


def make_database(file: Path) -> None:
    """Make a SQLite database with MLflow's tables beside a file, then give it the file's name.

    A process that is killed leaves the file as it was. Raise OSError or an error of SQLAlchemy.
    """
    import sqlalchemy

    file = Path(os.path.realpath(file))
    part = file.with_name(f"{file.name}.part")
    part.unlink(missing_ok=True)
    engine = mlflow_tables().create_sqlalchemy_engine(sqlite_address(part))
    sqlalchemy.event.listen(engine, "connect", write_quickly)
    try:
        mlflow_tables()._initialize_tables(engine)
        engine.dispose()
        with part.open("rb") as written:
            os.fsync(written.fileno())
        for ending in JOURNALS:
            # SQLite would take it for the new database's.
            file.with_name(f"{file.name}{ending}").unlink(missing_ok=True)
        part.replace(file)
    except BaseException:
        engine.dispose()
        part.unlink(missing_ok=True)
        raise


def write_quickly(connection: Any, _: Any) -> None:
    """Let SQLite neither wait for the disk nor write a journal: half a file is never used."""
    connection.execute("PRAGMA synchronous = OFF")
    connection.execute("PRAGMA journal_mode = MEMORY")
