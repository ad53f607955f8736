"""Databases by their addresses: the file of a SQLite database, a lock, no password in messages."""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote

from bench.system.errors import BenchError

if TYPE_CHECKING:
    from sqlalchemy import Connection

CONNECT_SECONDS = 20
LOCK_SECONDS = 120  # how long another process may hold a lock
DATABASE = re.compile(r"(sqlite|postgresql|mysql|mssql)(\+\w+)?:")
SQLITE = re.compile(r"sqlite(?:\+\w+)?://(?:/?([^?]*))(?:\?(.*))?")
# A user and a password. A password of a database may hold a slash, as SQLAlchemy reads it.
USER = re.compile(
    r"(https?://)[^@/\s]*@"
    r"|((?!https?:)\b[\w+.-]+://)[^@/\s:]*(?::[^?\s]*)?@"
)


def redact_password(text: str) -> str:
    """Remove users and passwords from the addresses in a text."""
    text = USER.sub(lambda match: match[1] or match[2], text)
    return re.sub(r"(password=)[^&\s]*", r"\1***", text)


def is_database(address: str) -> bool:
    """Return whether an address is of a database, not of a server or a folder."""
    return DATABASE.match(address) is not None


def sqlite_address(file: Path) -> str:
    """Return the address of a SQLite database."""
    path = str(file)
    quoted = path.replace("%", "%25").replace("?", "%3F")
    # For sqlite:/// MLflow makes a folder of the name as it is quoted.
    driver = "sqlite" if quoted == path else "sqlite+pysqlite"
    return f"{driver}:///{quoted}"


def sqlite_file(address: str) -> Path | None:
    """Return the file of a SQLite database, None for others; raise BenchError if in memory."""
    match = SQLITE.fullmatch(address)
    if not match:
        return None
    file, options = unquote(match[1]), parse_qs(match[2] or "")
    # Then SQLite itself reads an address, in the address.
    if "uri" in options:
        file = unquote(file.removeprefix("file:"))
    if file in ("", ":memory:") or options.get("mode") == ["memory"]:
        advice = "which ends with the program: sqlite:///FILE"
        raise BenchError(f"{address} is no file but a database in memory, {advice}")
    return Path(file)


@contextmanager
def connect(address: str) -> Iterator[Connection]:
    """Open a connection to a database, and close it in the end. Waiting is bounded."""
    import sqlalchemy

    options: dict[str, Any] = {}
    if address.startswith("postgresql"):
        options["connect_timeout"] = CONNECT_SECONDS
    engine = sqlalchemy.create_engine(address, connect_args=options)
    try:
        with engine.connect() as connection:
            yield connection
    finally:
        engine.dispose()


@contextmanager
def lock_file(path: Path, seconds: float | None = LOCK_SECONDS) -> Iterator[None]:
    """Hold the lock of a file. Raise BenchError if another process has it for longer than that."""
    from filelock import FileLock, Timeout

    try:
        lock = FileLock(path).acquire(-1 if seconds is None else seconds)
    except Timeout as error:
        raise BenchError(f"another process has held {str(path)!r} for {seconds} s") from error
    with lock:
        yield


@contextmanager
def lock_database(
    address: str, purpose: str = "open", seconds: float | None = LOCK_SECONDS
) -> Iterator[None]:
    """Keep out all other processes that use a database for the same purpose.

    Of SQLite by a file beside the database, of PostgreSQL by an advisory lock, which all hosts
    respect; there is none elsewhere. Raise BenchError if another process holds it for longer than
    `seconds`; None waits for ever.
    """
    if file := sqlite_file(address):
        # One file may have several names.
        with lock_file(Path(f"{os.path.realpath(file)}.{purpose}.lock"), seconds):
            yield
    elif address.startswith("postgresql"):
        with connect(address) as connection:
            lock_postgresql(connection, purpose, seconds)
            # The server releases the lock when its connection closes.
            yield
    else:
        yield


def lock_postgresql(connection: Connection, purpose: str, seconds: float | None) -> None:
    """Take the advisory lock of a purpose. Raise BenchError if that takes too long."""
    import sqlalchemy

    key = zlib.crc32(f"robust-distill-bench {purpose}".encode())
    # 0 is no limit.
    connection.execute(sqlalchemy.text(f"SET lock_timeout = '{seconds or 0}s'"))
    try:
        connection.execute(sqlalchemy.text(f"SELECT pg_advisory_lock({key})"))
    except sqlalchemy.exc.OperationalError as error:
        if type(error.orig).__name__ != "LockNotAvailable":
            raise
        shown = redact_password(connection.engine.url.render_as_string())
        raise BenchError(f"another process has held {shown!r} for {seconds} s") from error
