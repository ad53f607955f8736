"""Databases that several processes may open while they are still empty."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager

CONNECT_SECONDS = 20


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
