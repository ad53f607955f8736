"""The record in a real MLflow store: one run a spec, what is kept, several processes at once, stores that fail."""

from __future__ import annotations

import dataclasses
import logging
import math
import multiprocessing
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.execution import plan
from bench.protocol.options import RunOptions
from bench.protocol.spec import Spec
from bench.system.errors import BenchError
from bench.tracking.run_logger import FAILED, FINISHED, KILLED, RUNNING
from bench.tracking.store import TrackingStore, store_exists

SPEC = plan.plan_runs(RunOptions(method="natural"), {})[0].spec
TAGS = {
    "role": "student",
    "spec_id": SPEC.id,
    "dataset": "digits",
    "student": SPEC.arch,
    "method": "natural",
    "teacher": "none",
    "variant": "",
}


@pytest.fixture(autouse=True)
def local(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


def other(seed: int) -> tuple[Spec, dict[str, str]]:
    spec = dataclasses.replace(SPEC, seed=seed)
    return spec, TAGS | {"spec_id": spec.id}


@pytest.mark.parametrize("status", [RUNNING, KILLED, FAILED])
def test_an_unfinished_run_goes_on_as_the_same_run(status: str, shared: Path) -> None:
    store = TrackingStore(shared)
    spec, tags = other(hash(status) % 1000 + 10)
    first = store.start_run(spec, tags)
    first.log_epoch({"train/ce": 1.0, "epoch": 0.0}, 0)
    if status != RUNNING:
        first.finish(status, "because")
    again = store.start_run(spec, tags)
    assert again.run_id == first.run_id
    again.log_epoch({"train/ce": 9.0, "epoch": 0.0}, 0)  # already there
    again.log_epoch({"train/ce": 0.5, "epoch": 1.0}, 1)
    history = store.client.get_metric_history(first.run_id, "train/ce")
    assert sorted((metric.step, metric.value) for metric in history) == [(0, 1.0), (1, 0.5)]
    again.finish(FINISHED)
    assert store.find_run(spec, FINISHED) is not None
    assert store.start_run(spec, tags).run_id != first.run_id


@pytest.mark.parametrize("status", [RUNNING, KILLED, FAILED])
def test_training_that_begins_again_takes_no_epochs_over(status: str, tmp_path: Path) -> None:
    """Its folder was lost, or it is forced: the epochs of the run before may be those of other code."""
    store = TrackingStore(tmp_path)
    spec, tags = other(4)
    first = store.start_run(spec, tags, fresh=True)
    assert store.start_run(spec, tags, fresh=True).run_id == first.run_id, "nothing to take over"
    first.log_epoch({"train/ce": 1.0, "epoch": 0.0}, 0)
    if status != RUNNING:
        first.finish(status, "because")
    second = store.start_run(spec, tags, fresh=True)
    assert second.run_id != first.run_id
    assert store.client.get_run(first.run_id).info.status == (
        KILLED if status == RUNNING else status
    )
    assert store.client.get_metric_history(second.run_id, "train/ce") == []
    second.finish(KILLED, "interrupted")
    assert store.start_run(spec, tags).run_id == second.run_id, "the newest goes on"


def test_record_holds_spec_params_and_parent(shared: Path) -> None:
    store = TrackingStore(shared)
    records = [store.start_run(*other(seed)) for seed in (1, 2)]
    runs = [store.client.get_run(record.run_id) for record in records]
    parents = {run.data.tags["mlflow.parentRunId"] for run in runs}
    assert len(parents) == 1
    assert store.client.get_run(parents.pop()).data.tags["role"] == "group"
    assert runs[0].data.params["training.epochs"] == str(SPEC.training.epochs)
    assert runs[0].data.params["eps"] == "0.15"
    assert [file.path for file in store.client.list_artifacts(records[0].run_id)] == ["spec.json"]
    assert {run.info.run_id for run in store.unfinished_runs()} >= {
        record.run_id for record in records
    }


def test_what_is_not_finite_is_a_tag(shared: Path) -> None:
    store = TrackingStore(shared)
    record = store.start_run(*other(3))
    record.log_metrics({"test/aa": 0.5, "test/x": math.nan, "test/y": math.inf})
    data = store.client.get_run(record.run_id).data
    assert data.metrics == {"test/aa": 0.5}
    assert (data.tags["not_finite.test/x"], data.tags["not_finite.test/y"]) == ("nan", "inf")


def opened(root: str) -> str:
    logging.disable(logging.CRITICAL)
    store = TrackingStore(Path(root))
    return store.experiment_id("digits@1")


@pytest.mark.slow
def test_several_processes_open_a_fresh_store_at_once(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        assert len(set(pool.map(opened, [str(tmp_path)] * 4))) == 1


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("http://user:secret@127.0.0.1:9", "store http://127.0.0.1:9 cannot be opened"),
        ("sqlite:////dev/null/x.db", "cannot be opened"),
        ("nonsense://x", "cannot be opened"),
        ("sqlite://", "a database in memory, which ends with the program: sqlite:///FILE"),
        ("sqlite:///", "a database in memory"),
        ("sqlite:///:memory:", "a database in memory"),
        ("sqlite+pysqlite:///:memory:", "a database in memory"),
        ("sqlite:///file::memory:?uri=true", "a database in memory"),
        ("sqlite:///file:x?mode=memory&cache=shared&uri=true", "a database in memory"),
    ],
)
def test_a_store_that_fails_is_one_line(
    uri: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(BenchError, match=said) as caught:
        TrackingStore(tmp_path)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BenchError, match="choose another folder with --store"):
        TrackingStore(tmp_path / "file" / "runs")


def test_whether_there_is_a_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not store_exists(tmp_path)
    (tmp_path / "mlflow.db").touch()
    assert store_exists(tmp_path)
    for uri, there in (
        (f"sqlite:///{tmp_path}/mlflow.db?timeout=9", True),
        (f"sqlite:///file:{tmp_path}/mlflow.db?uri=true", True),
        (f"sqlite:///{tmp_path}/none/mlflow.db", False),
        ("http://somewhere:5000", True),
    ):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        assert store_exists(tmp_path / "typo") is there, uri


def test_looking_for_a_run_makes_no_experiment(tmp_path: Path) -> None:
    store = TrackingStore(tmp_path)
    assert store.find_run(SPEC, FINISHED) is None
    assert store.client.get_experiment_by_name(SPEC.suite) is None


def test_opening_prints_nothing(tmp_path: Path) -> None:
    code = f"from bench.tracking.store import TrackingStore; from pathlib import Path; TrackingStore(Path({str(tmp_path)!r}))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout + done.stderr == ""


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_an_interruption_waits_for_a_write(
    stop: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And then comes, with what was written in the record and the database free for the mark."""
    before = signal.signal(
        stop, signal.default_int_handler
    )  # SIGINT is ignored where the tests run in the background
    try:
        record = TrackingStore(tmp_path).open_run(
            "x@1 tuning", "any", {"number": "1"}, "", ("number",)
        )
        write = record.client.log_batch

        def interrupted(*args: Any, **kwargs: Any) -> None:
            signal.raise_signal(stop)
            write(*args, **kwargs)

        monkeypatch.setattr(record.client, "log_batch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            record.log_metrics({"val/clean": 0.5})
        record.finish("KILLED", "interrupted")
        run = record.client.get_run(record.run_id)
        assert run.data.metrics["val/clean"] == 0.5
        assert (run.info.status, run.data.tags["status_note"]) == ("KILLED", "interrupted")
    finally:
        signal.signal(stop, before)
