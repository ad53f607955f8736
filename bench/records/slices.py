"""Slices: runs on a machine that is borrowed for some minutes, and their way back into a store.

A slice brings back records and, in parts, the store. Joined, it is what the next one goes on from.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing, suppress
from pathlib import Path

from bench.system import parts
from bench.system.errors import BenchError, UsageError, one_line
from bench.system.files import save_file
from bench.system.signals import deferred_signals
from bench.tracking.moving import ARTIFACTS, artifacts_address, is_folder, move_addresses
from bench.tracking.store import DATABASE, local_uri, tracking_uri

BACK_BYTES = 14_000_000  # of a part on the way back
POLL_SECONDS = 0.5
STOP_SIGNALS, GRACE_SECONDS = 3, 20.0  # before a run is killed; to wait after each
RECORDS, UNFINISHED = "records", ("teachers", "work")  # folders of a store
RUNS = "SELECT run_uuid FROM runs UNION SELECT run_uuid || status FROM runs WHERE status='FINISHED'"


def local_database(store: Path) -> Path:
    """Return the database of a store. Raise UsageError where its runs are on a server."""
    if tracking_uri(store) != local_uri(store):
        raise UsageError("a slice has its runs in a folder: unset MLFLOW_TRACKING_URI")
    return Path(os.path.realpath(store), DATABASE)


def write_store(store: Path, folder: Path, most_bytes: int, finished: bool) -> None:
    """Write a store in parts: what unfinished runs need, and with `finished` all of its runs."""
    database = local_database(store)
    if not database.exists():
        return
    with tempfile.TemporaryDirectory() as scratch:
        snapshot = Path(scratch, DATABASE)
        # Not a copy of the file: a run that was killed may have left a write half done.
        with closing(sqlite3.connect(database)) as source, closing(sqlite3.connect(snapshot)) as to:
            source.backup(to)
        folders = (*UNFINISHED, RECORDS) if finished else UNFINISHED
        files = {DATABASE: snapshot} | files_below(store, folders)
        parts.write_archive(folder, parts.STATE, files, most_bytes)
    if finished:
        parts.write_archive(folder, ARTIFACTS, files_below(store, [ARTIFACTS]), most_bytes)


def files_below(store: Path, folders: Iterable[str]) -> dict[str, Path]:
    """Return the files of some folders of a store by their paths in it, without locks."""
    paths = [path for name in folders for path in sorted((store / name).rglob("*"))]
    files = [path for path in paths if path.is_file() and path.suffix != ".lock"]
    return {str(path.relative_to(store)): path for path in files}


def run_slice(
    words: Sequence[str], store: Path, folder: Path, is_over: Callable[[], bool]
) -> int | None:
    """Carry out `bench run` until it ends or `is_over`, then write its store to a folder.

    Records are in the folder as soon as they are written. Return the exit code of `bench run`, None
    if it was stopped.
    """
    local_database(store)
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "bench", "run", *words]
    # In a group of its own: Ctrl-C reaches this process alone, which stops the other one once.
    process = subprocess.Popen(command, process_group=0)
    code = None
    try:
        while code is None and not is_over():
            with suppress(subprocess.TimeoutExpired):
                code = process.wait(POLL_SECONDS)
            copy_records(store, folder)
    finally:
        with deferred_signals():
            stop_process(process)
            copy_records(store, folder)
            write_store(store, folder, BACK_BYTES, finished=True)
    return code


def stop_process(process: subprocess.Popen[bytes]) -> None:
    """End a process as a stop signal does: it keeps its state. Kill it if that takes too long."""
    # PyTorch may swallow an interruption, where it looks an attribute up.
    for _ in range(STOP_SIGNALS):
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_SECONDS)
            return
    process.kill()
    process.wait()


def copy_records(store: Path, folder: Path) -> None:
    """Copy the records of a store that a folder lacks."""
    for path in (store / RECORDS).glob("*.json"):
        copy = folder / RECORDS / path.name
        if not copy.exists() or copy.stat().st_mtime < path.stat().st_mtime:
            save_file(copy, path.read_bytes())


def join_slice(folder: Path, store: Path) -> None:
    """Take what a slice brought back, or a pack, into a store.

    Raise BenchError, and change nothing, for parts that are missing or damaged, and for a store
    with runs that the slice did not have.
    """
    names = [name for name in (parts.STATE, ARTIFACTS) if parts.listing(folder, name).is_file()]
    if not names:
        raise UsageError(f"{str(folder)!r} holds no {parts.listing(folder, parts.STATE).name}")
    database = local_database(store)
    store.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=store) as name:
        scratch = Path(name)
        try:
            for archive in names:
                parts.join_archive(folder, archive, scratch)
            if parts.STATE in names:
                adopt_database(scratch / DATABASE, database)
        except (parts.PartsError, sqlite3.Error) as error:
            raise BenchError(one_line(error)) from error
        if parts.STATE in names:
            # The work of runs that ended meanwhile goes.
            shutil.rmtree(store / "work", ignore_errors=True)
        files = files_below(scratch, [ARTIFACTS, RECORDS, *UNFINISHED])
        # The database comes last: it says what is there.
        for path in [*files, *[DATABASE] * (parts.STATE in names)]:
            (store / path).parent.mkdir(parents=True, exist_ok=True)
            (scratch / path).replace(store / path)


def adopt_database(brought: Path, local: Path) -> None:
    """Make a database that was brought fit to replace another one: it has all of its runs.

    Artifacts are then in the folder of the store. Raise BenchError if runs are missing.
    """
    with closing(sqlite3.connect(brought)) as database:
        if local.exists():
            with closing(sqlite3.connect(local)) as replaced:
                missing = set(replaced.execute(RUNS)) - set(database.execute(RUNS))
            if missing:
                advice = "join into an empty --store and take its records over by `bench import`"
                raise BenchError(f"the store has runs that the slice does not have: {advice}")
        select = "SELECT DISTINCT artifact_location FROM experiments"
        locations = [location for (location,) in database.execute(select)]
        for old in locations:
            if is_folder(old):
                move_addresses(database, old, artifacts_address(local.parent))
        database.commit()
