"""Databases that several processes may open while they are still empty."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

KEY = 7468821  # of the advisory lock: any number that others do not use
CONNECT_SECONDS = 20


@contextmanager
def alone_on(address: str) -> Iterator[None]:
    """Holds an advisory lock of a PostgreSQL server, which hosts without a common folder see too; nothing elsewhere.

    Two processes that prepare an empty database at once would both try to create its tables.
    """
    if not address.startswith("postgresql"):
        yield
        return
    import sqlalchemy

    engine = sqlalchemy.create_engine(address, connect_args={"connect_timeout": CONNECT_SECONDS})
    try:
        with engine.connect() as connection:
            connection.execute(sqlalchemy.text(f"SELECT pg_advisory_lock({KEY})"))
            yield
    finally:
        engine.dispose()  # the lock goes with its connection
