"""Databases by their addresses: files of SQLite, and those that several processes may open while still empty."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.system.errors import BenchError

CONNECT_SECONDS = 20
SQLITE = re.compile(r"sqlite(?:\+\w+)?://(?:/?(?:file:)?([^?]*))(?:\?(.*))?")


def file_of(address: str) -> Path | None:
    """The file of a SQLite database; None for any other kind. Raises BenchError for one in memory, which would be lost."""
    found = SQLITE.fullmatch(address)
    if not found:
        return None
    if found[1] in ("", ":memory:") or "mode=memory" in (found[2] or ""):
        raise BenchError(
            f"{address} is no file but a database in memory, which ends with the program: sqlite:///FILE"
        )
    return Path(found[1])


@contextmanager
def alone_on(address: str, purpose: str = "open") -> Iterator[None]:
    """Holds an advisory lock of a PostgreSQL database, which hosts without a common folder see too; nothing elsewhere.

    To open, for example: two processes that prepare an empty database at once would both try to create its tables.
    """
    if not address.startswith("postgresql"):
        yield
        return
    import sqlalchemy

    key = zlib.crc32(f"robust-distill-bench {purpose}".encode())
    engine = sqlalchemy.create_engine(address, connect_args={"connect_timeout": CONNECT_SECONDS})
    try:
        with engine.connect() as connection:
            connection.execute(sqlalchemy.text(f"SELECT pg_advisory_lock({key})"))
            yield
    finally:
        engine.dispose()  # the lock goes with its connection
