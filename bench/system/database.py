"""Databases by their addresses: the file of a SQLite database, a lock, no password in messages."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.system.errors import BenchError

CONNECT_SECONDS = 20
SQLITE = re.compile(r"sqlite(?:\+\w+)?://(?:/?(?:file:)?([^?]*))(?:\?(.*))?")


def redact_password(text: str) -> str:
    """Remove users and passwords from the addresses in a text."""
    text = re.sub(r"//[^@/\s]*@", "//", text)
    return re.sub(r"(password=)[^&\s]*", r"\1***", text)


def sqlite_file(address: str) -> Path | None:
    """Return the file of a SQLite database, None for others; raise BenchError if in memory."""
    match = SQLITE.fullmatch(address)
    if not match:
        return None
    file, options = match[1], match[2] or ""
    if file in ("", ":memory:") or "mode=memory" in options:
        advice = "which ends with the program: sqlite:///FILE"
        raise BenchError(f"{address} is no file but a database in memory, {advice}")
    return Path(file)


@contextmanager
def lock_database(address: str, purpose: str = "open") -> Iterator[None]:
    """Hold an advisory lock of a PostgreSQL database, which all hosts respect; none elsewhere.

    Two processes that open an empty database at once would both try to create its tables.
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
        # The server releases the lock when its connection closes.
        engine.dispose()
