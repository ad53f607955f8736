"""Kill the first start of a store at single steps, and start again.

    python tests/first_start.py FOLDER STEP...

A step is a statement or a commit of the database, or a file that is renamed or removed. Step 0 is
counted from the first, -1 from the last. Prints a line for each: whether the next start works.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

# Loaded once, by the process whose children open stores.
import mlflow.store.tracking.sqlalchemy_store  # noqa: F401
from sqlalchemy import create_engine, event, text
from sqlalchemy.engine import Engine

from bench.tracking.store import TrackingStore

FILE_STEPS = ("os.rename", "os.remove")
CHILD = multiprocessing.get_context("fork")


def open_store(root: Path, last: int, steps: Any) -> None:
    """Open a store, count the steps, and die before the one with the number `last`."""

    def count(*_: Any) -> None:
        if steps.value == last:
            os.kill(os.getpid(), signal.SIGKILL)
        steps.value += 1

    event.listen(Engine, "before_cursor_execute", count)
    event.listen(Engine, "commit", count)
    sys.addaudithook(lambda name, _: count() if name in FILE_STEPS else None)
    TrackingStore(root).get_or_create_experiment("digits@3")


def start(root: Path, last: int = -1) -> tuple[int, int]:
    """Open a store in a process of its own; return its exit code and the number of its steps."""
    steps = CHILD.Value("i", 0)
    child = CHILD.Process(target=open_store, args=(root, last, steps))
    child.start()
    child.join()
    return child.exitcode or 0, int(steps.value)


def empty(root: Path) -> None:
    """Remove a store, and the tables of its database if that is on a server."""
    shutil.rmtree(root, ignore_errors=True)
    address = os.environ.get("MLFLOW_TRACKING_URI", "")
    if address.startswith("postgresql"):
        engine = create_engine(address)
        with engine.begin() as connection:
            connection.execute(text("DROP SCHEMA public CASCADE; CREATE SCHEMA public"))
        engine.dispose()


def main() -> None:
    root = Path(sys.argv[1])
    empty(root)
    code, total = start(root)
    assert code == 0, "an undisturbed start fails"
    for number in map(int, sys.argv[2:]):
        empty(root)
        killed, step = start(root, number % total)
        code, _ = start(root)
        print(f"step {step} of {total}: {killed}, then {code}", flush=True)


if __name__ == "__main__":
    try:
        main()
    except Exception:
        traceback.print_exc()
        sys.exit(1)
