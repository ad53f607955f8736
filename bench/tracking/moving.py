"""Addresses of artifacts in the database of a local store, which may have been moved or copied."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

from bench.system.log import LOGGER

ARTIFACTS = "artifacts"  # the folder of the artifacts of a local store
BUSY_SECONDS = 20  # how long to wait for another process's write
# What begins with the address of the folder of artifacts.
ADDRESSES = {
    "experiments": "artifact_location",
    "runs": "artifact_uri",
    "logged_models": "artifact_location",
}


def artifacts_address(root: Path) -> str:
    """Return the address of the artifacts of a local store."""
    return Path(os.path.realpath(root / ARTIFACTS)).as_uri()


def hold_store(root: Path) -> int:
    """Return a descriptor that tells other processes, while it is open, that a store is in use.

    Raise OSError if its file cannot be opened.
    """
    use = os.open(root / "in-use.lock", os.O_CREAT | os.O_RDWR, 0o666)
    # Not every network file system has locks.
    with suppress(OSError):
        fcntl.flock(use, fcntl.LOCK_SH)
    return use


def is_held_by_others(use: int) -> bool:
    """Return whether another descriptor of the same store is open."""
    try:
        fcntl.flock(use, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        with suppress(OSError):
            fcntl.flock(use, fcntl.LOCK_SH)


def find_moved(database: Path, root: Path) -> list[str]:
    """Return the addresses in a local store's database of artifacts that are now in `root`."""
    here = artifacts_address(root)
    select = "SELECT DISTINCT artifact_location FROM experiments"
    with closing(sqlite3.connect(database, BUSY_SECONDS)) as connection:
        locations = [str(location) for (location,) in connection.execute(select)]
        return [
            location
            for location in locations
            if location != here and is_folder(location) and is_moved(connection, location, root)
        ]


def is_folder(location: str) -> bool:
    """Return whether an address is of a folder of artifacts, as this program makes them."""
    return location.startswith("file:") and location.endswith(f"/{ARTIFACTS}")


def is_moved(connection: sqlite3.Connection, location: str, root: Path) -> bool:
    """Return whether what was logged to a location is not there any more, or here as well.

    Where another store wrote into this database, its artifacts stay there and are not here.
    """
    runs = list(run_ids(connection, location))
    if not runs or any((root / ARTIFACTS / run).exists() for run in runs):
        return True
    return not Path(url2pathname(urlparse(location).path)).exists()


def run_ids(connection: sqlite3.Connection, location: str) -> Iterator[str]:
    """Return the ids of the runs whose artifacts are at a location."""
    select = "SELECT run_uuid FROM runs WHERE substr(artifact_uri, 1, length(?)) = ?"
    for (run_id,) in connection.execute(select, (f"{location}/", f"{location}/")):
        yield str(run_id)


def adopt_artifacts(database: Path, root: Path, use: int) -> None:
    """Let the addresses of artifacts be those of where a local store is now.

    use: from `hold_store`. A process that uses the store under another name keeps its addresses.
    """
    moved = find_moved(database, root)
    if moved and is_held_by_others(use):
        shared = f"another process uses this store as {moved[0]}: artifacts of new runs go there"
        LOGGER.warning(f"warning: {shared}")
        return
    with closing(sqlite3.connect(database, BUSY_SECONDS)) as connection:
        for location in moved:
            move_addresses(connection, location, artifacts_address(root))
        connection.commit()
    if moved:
        forget_places()


def forget_places() -> None:
    """Let MLflow look up where artifacts are: it remembers that by run, whatever the store."""
    from mlflow.tracking._tracking_service import utils

    utils._artifact_repos_cache.clear()


def move_addresses(database: sqlite3.Connection, old: str, new: str) -> None:
    """Let the addresses of artifacts that begin with one begin with another."""
    for table, column in ADDRESSES.items():
        database.execute(
            f"UPDATE {table} SET {column} = ? || substr({column}, length(?) + 1)"
            f" WHERE substr({column} || '/', 1, length(?) + 1) = ? || '/'",
            (new, old, old, old),
        )
