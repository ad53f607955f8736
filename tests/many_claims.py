"""Many processes drain a grid of runs that train for no time: they only claim and record.

    python tests/many_claims.py --runs 1000 --workers 64 --store postgresql

prints how long it took, whether a run is there twice, how long `status` takes and the size of the
database.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grids
import sqlalchemy

from bench.execution.cost import Cost
from bench.execution.grid.drain import Drain
from bench.execution.grid.status import read_status
from bench.execution.grid.work import QueuedRun, RunOutcome
from bench.execution.job import is_recorded
from bench.execution.plan import PlannedRun, plan_runs
from bench.protocol.options import RunOptions
from bench.tracking.store import TrackingStore
from leaderboards.schema.fields import FINISHED, Tag


class ClaimAndRecord:
    """An executor whose runs take no time."""

    def __init__(self, context: Any) -> None:
        self.context = context
        self.ended: list[tuple[QueuedRun, RunOutcome]] = []

    def has_room(self) -> bool:
        return not self.ended

    def start(self, item: QueuedRun) -> None:
        self.ended.append((item, self.record(item.run)))

    def wait(self, seconds: float) -> list[tuple[QueuedRun, RunOutcome]]:
        ended, self.ended = self.ended, []
        return ended

    def record(self, run: PlannedRun) -> RunOutcome:
        store = self.context.store
        held = store.claims(run.spec.suite).take(run.spec.id)
        if not held:
            return RunOutcome("busy")
        with held:
            if is_recorded(run, self.context):
                return RunOutcome("recorded", "elsewhere")
            tags = run.spec.identity_tags | {"suite": run.spec.suite, Tag.VARIANT: ""}
            logger = store.start_run(run.spec, tags)
            logger.log_metrics({f"test/{number}": 0.5 for number in range(40)})
            logger.finish(FINISHED)
        return RunOutcome("recorded", "here")


def drain(root: Path, runs: Sequence[PlannedRun]) -> None:
    """Drain the grid in this process."""
    context: Any = SimpleNamespace(store=TrackingStore(root), root=root)
    items = [QueuedRun(n, run, Cost(0.0, 0.0, 0.0)) for n, run in enumerate(runs, 1)]
    report: Any = SimpleNamespace(finish=lambda *_: None)
    Drain(items, context, report).run(ClaimAndRecord(context))


def database_size(folder: Path) -> str:
    """Return the size of the tracking store's database, as far as it can be seen from here."""
    address = os.environ["MLFLOW_TRACKING_URI"]
    if address.startswith("postgresql"):
        with sqlalchemy.create_engine(address).connect() as connection:
            query = sqlalchemy.text("SELECT pg_database_size(current_database())")
            size = int(connection.execute(query).scalar_one())
    else:
        size = sum(path.stat().st_size for path in folder.glob("*.db"))
    return f"database of {size / 2**20:.1f} MiB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--store", choices=("sqlite", "postgresql", "http"), default="postgresql")
    arguments = parser.parse_args()
    # Before the fork: once for all.
    for name in (
        "mlflow.store.db.utils",
        "mlflow.tracking",
        "mlflow.store.tracking.sqlalchemy_store",
    ):
        importlib.import_module(name)
    seeds = ",".join(map(str, range(arguments.runs)))
    options = RunOptions(method="natural", student="resnet8-w4", seeds=seeds)
    runs = plan_runs(options, {})
    # Connections are the scarce thing of a database with many clients.
    os.environ["MLFLOW_SQLALCHEMYSTORE_POOL_SIZE"] = "1"
    os.environ["MLFLOW_SQLALCHEMYSTORE_MAX_OVERFLOW"] = "1"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        with grids.tracking_store(arguments.store, folder) as store:
            os.environ["MLFLOW_TRACKING_URI"] = store.address
            measure(folder, runs, arguments.workers)


def measure(folder: Path, runs: Sequence[PlannedRun], workers: int) -> None:
    """Start the workers, half of them with a folder of their own, and print what came of it."""
    start, begin = time.monotonic(), time.time()
    processes = set()
    for number in range(workers):
        process = os.fork()
        if not process:
            code = 1
            try:
                drain(folder / f"root{number // 2}", runs)
                code = 0
            finally:
                os._exit(code)
        processes.add(process)
    codes = [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes]
    seconds = time.monotonic() - start
    store = TrackingStore(folder / "root0")
    finished = store.runs_with_status(runs[0].spec.suite, FINISHED)
    counts = Counter(run.tags[Tag.SPEC_ID] for run in finished)
    # Processes need a while to see that others have done the rest.
    newest = store.client.search_runs(
        [store.get_or_create_experiment(runs[0].spec.suite)],
        order_by=["attributes.end_time DESC"],
        max_results=1,
    )
    last = newest[0].info.end_time / 1000 - begin
    start = time.monotonic()
    states = read_status(folder / "root0")
    status_seconds = time.monotonic() - start
    doubled = sum(count > 1 for count in counts.values())
    left = len(store.claims(runs[0].spec.suite).read())
    print(
        f"{len(counts)} of {len(runs)} runs by {workers} processes in {seconds:.1f} s, "
        f"the last after {last:.1f} s, "
        f"{doubled} doubled, {left} claims left, {sum(map(bool, codes))} workers failed, "
        f"status of {len(states)} in {status_seconds:.2f} s, {database_size(folder)}"
    )
    sys.stdout.flush()


if __name__ == "__main__":
    main()
