"""What a run does while the tracking store is away, and when it is another process's meanwhile."""

from __future__ import annotations

import errno
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
import torch
from clocks import pretend_time
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, TEMPORARILY_UNAVAILABLE
from records import claimed, make_context, plan_student, run_planned
from sqlalchemy.exc import OperationalError

from bench.execution import job
from bench.execution.cost import Cost
from bench.execution.grid import local
from bench.execution.grid.run import check_code_versions, clear_leftovers, unrecorded_runs
from bench.execution.grid.work import QueuedRun
from bench.execution.job import RunContext, is_recorded, mark_for_repeat, mlflow_run
from bench.execution.plan import work_folder
from bench.protocol.options import ProtocolOptions, RunOptions
from bench.system.errors import BenchError, UsageError
from bench.tracking import outage
from bench.tracking.claims import LostClaimError
from bench.tracking.outage import GridStopError, patiently
from bench.tracking.store import TrackingStore
from leaderboards.schema.fields import FINISHED, REPLACED_TAG, RUNNING, Tag

AWAY = [
    MlflowException("API request to http://host failed with exception refused"),
    MlflowException("API request to http://host failed with timeout exception"),
    MlflowException("connection refused", TEMPORARILY_UNAVAILABLE),
    requests.ConnectionError("reset"),
    OperationalError("SELECT 1", None, Exception("server closed the connection")),
]
FULL = [
    OSError(errno.ENOSPC, "No space left on device"),
    MlflowException("(sqlite3.OperationalError) database or disk is full", TEMPORARILY_UNAVAILABLE),
    OperationalError("SELECT 1", None, Exception("database or disk is full")),
]
OTHERS = [MlflowException("no such run", INVALID_PARAMETER_VALUE), ValueError("a bug")]


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Let waiting take no time."""
    return pretend_time(monkeypatch, outage)


def failing(error: Exception, times: int) -> Callable[[], str]:
    """Return a step that fails so many times before it succeeds."""
    left = iter([True] * times)

    def step() -> str:
        if next(left, False):
            raise error
        return "done"

    return step


@pytest.mark.parametrize("error", AWAY, ids=str)
def test_a_short_outage_is_waited_for(error: Exception, clock: list[float]) -> None:
    assert patiently(failing(error, 5)) == "done"
    assert 0 < clock[0] < outage.OUTAGE_SECONDS


@pytest.mark.parametrize("error", AWAY, ids=str)
def test_a_long_outage_stops_the_grid_in_time(error: Exception, clock: list[float]) -> None:
    with pytest.raises(GridStopError, match="has been away for 3 min, and what is trained waits"):
        patiently(failing(error, 10_000))
    assert clock[0] < outage.OUTAGE_SECONDS + 2 * outage.LONGEST_PAUSE


@pytest.mark.parametrize("error", FULL, ids=str)
def test_a_full_disk_stops_the_grid_at_once(error: Exception, clock: list[float]) -> None:
    with pytest.raises(GridStopError, match="no space is left"):
        patiently(failing(error, 1))
    assert clock[0] == 0


@pytest.mark.parametrize("error", OTHERS, ids=str)
def test_other_errors_are_what_they_are(error: Exception, clock: list[float]) -> None:
    with pytest.raises(type(error)):
        patiently(failing(error, 1))
    assert clock[0] == 0


def test_epochs_wait_for_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, run = TrackingStore(tmp_path), plan_student()
    logger = store.start_run(run.spec, job.run_tags(run, {}))
    write = logger.client.log_batch
    monkeypatch.setattr(logger.client, "log_batch", failing_call(AWAY[0]))
    for epoch in range(3):
        logger.log_epoch({"epoch": epoch, "train/loss": 1.0}, epoch)
    monkeypatch.setattr(logger.client, "log_batch", write)
    logger.log_epoch({"epoch": 3, "train/loss": 1.0}, 3)
    history = logger.client.get_metric_history(logger.run_id, "train/loss")
    assert [metric.step for metric in history] == [0, 1, 2, 3]


def failing_call(error: BaseException) -> Callable[..., None]:
    def call(*_: object, **__: object) -> None:
        raise error

    return call


def test_a_run_that_is_another_processs_is_left_to_it(tmp_path: Path) -> None:
    context, run = make_context(tmp_path), plan_student()
    with claimed(run, context) as held:
        held.lost_to = "process 7 on elsewhere"
        with (
            pytest.raises(LostClaimError, match="taken over by process 7 on elsewhere"),
            mlflow_run(run, context, held, tmp_path / "none"),
        ):
            held.check()
    assert context.store.find_run(run.spec, RUNNING), "neither failed nor killed"


def test_a_grid_that_stops_leaves_its_run_to_be_continued(tmp_path: Path) -> None:
    context, run = make_context(tmp_path), plan_student()
    with claimed(run, context) as held:
        with (
            pytest.raises(GridStopError),
            mlflow_run(run, context, held, tmp_path / "none") as logger,
        ):
            raise GridStopError("the store is away")
        again = context.store.start_run(run.spec, job.run_tags(run, {}))
    assert again.run_id == logger.run_id


def finished_runs(context: RunContext, spec_id: str) -> dict[str, bool]:
    """Return whether each finished run of a spec counts, oldest first."""
    experiment = context.store.get_or_create_experiment("digits@3")
    condition = f"attributes.status = '{FINISHED}' and tags.{Tag.SPEC_ID} = '{spec_id}'"
    runs = context.store.client.search_runs([experiment], condition)
    ordered = sorted(runs, key=lambda run: run.info.start_time)
    return {run.info.run_id: REPLACED_TAG not in run.data.tags for run in ordered}


def test_a_forced_run_that_is_killed_at_its_end_is_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context, run = make_context(tmp_path), plan_student()
    run_planned(run, context)
    assert is_recorded(run, context)
    mark_for_repeat(run, context)
    assert not is_recorded(run, context)
    folder, remove = work_folder(context.root, run.spec), shutil.rmtree

    def be_killed(path: Path, *rest: Any, **options: Any) -> None:
        if path == folder:
            raise SystemExit(1)
        remove(path, *rest, **options)

    with monkeypatch.context() as patch:
        # While its folder is removed: the mark is still there.
        patch.setattr(shutil, "rmtree", be_killed)
        with pytest.raises(SystemExit):
            run_planned(run, context)
    assert (folder / job.REPEAT_MARK).exists()
    assert is_recorded(run, context)
    assert [*finished_runs(context, run.spec.id).values()] == [False, True]
    todo = unrecorded_runs(ProtocolOptions(store=tmp_path), [run], context)
    assert not todo
    clear_leftovers([run], todo, context)
    assert not folder.exists()


def test_another_version_of_the_code_is_said_and_refused_with_strict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    context, run = make_context(tmp_path), plan_student()
    run_planned(run, context)
    monkeypatch.setattr("bench.execution.grid.run.LOGGER", logging.getLogger("pretended"))
    caplog.clear()
    check_code_versions(ProtocolOptions(store=tmp_path, strict=True), [run], context)
    assert not caplog.records, "the same version"
    other = RunContext(context.store, context.device, {"code_commit": "another"})
    check_code_versions(ProtocolOptions(store=tmp_path), [run], other)
    assert "made with other versions of the code: 1 of 0123abc" in caplog.text
    with pytest.raises(UsageError, match="--strict: runs of this grid"):
        check_code_versions(ProtocolOptions(store=tmp_path, strict=True), [run], other)


def test_a_worker_without_a_store_stops_the_grid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local.Worker, "open", failing_call(BenchError("it cannot be opened")))
    run = local.prepare(RunOptions(store=tmp_path), torch.device("cpu"), {}, 1)
    outcome = run(QueuedRun(1, plan_student(), Cost(1.0, 1.0, 1.0)))
    assert outcome.end == "stop"
    assert outcome.message.endswith(": it cannot be opened")
