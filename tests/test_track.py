"""Test the MLflow store: one run per spec, several processes at once, stores that fail."""

from __future__ import annotations

import dataclasses
import logging
import math
import multiprocessing
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import records

from bench.cli.commands.doctor import describe_store
from bench.execution import plan
from bench.protocol.options import RunOptions
from bench.system.database import redact_password
from bench.system.errors import BenchError, one_line
from bench.tracking.run_logger import RunLogger
from bench.tracking.store import COPY_OF, TrackingStore, store_exists
from leaderboards.schema.fields import FAILED, FINISHED, KILLED, RUNNING
from leaderboards.schema.spec import Spec

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
def no_tracking_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="module")
def store_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


def spec_and_tags(seed: int) -> tuple[Spec, dict[str, str]]:
    """Return a spec that no other test uses, with the tags of its run."""
    spec = dataclasses.replace(SPEC, seed=seed)
    return spec, TAGS | {"spec_id": spec.id}


@pytest.mark.parametrize("copying", [True, False])
def test_epochs_that_were_copied_are_no_lost_work(copying: bool, store_folder: Path) -> None:
    """Those of a training whose files are elsewhere are: it begins again, in another run."""
    store = TrackingStore(store_folder)
    spec, tags = spec_and_tags(2000 + copying)
    first = store.start_run(spec, tags)
    store.client.log_metric(first.run_id, "epoch", 3, step=3)
    if copying:
        first.set_tags({COPY_OF: "source"})
    again = store.start_run(spec, tags, fresh=True)
    assert (again.run_id == first.run_id) == copying


def test_a_copy_whose_process_dies_as_it_ends_is_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context, untuned = records.make_context(tmp_path), records.plan_student()
    records.run_planned(untuned, context)
    tuned = dataclasses.replace(untuned, spec=dataclasses.replace(untuned.spec, tuned=2))

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunLogger, "finish", die)
        with pytest.raises(KeyboardInterrupt):
            records.run_planned(tuned, context)
    assert "a copy of run" in records.run_planned(tuned, context)
    runs = context.store.client.search_runs(
        [context.store.get_or_create_experiment(tuned.spec.suite)],
        f"tags.spec_id = '{tuned.spec.id}'",
    )
    assert [run.info.status for run in runs] == [FINISHED]


@pytest.mark.parametrize("status", [RUNNING, KILLED, FAILED])
def test_an_unfinished_run_is_continued(status: str, store_folder: Path) -> None:
    store = TrackingStore(store_folder)
    spec, tags = spec_and_tags(hash(status) % 1000 + 10)
    first = store.start_run(spec, tags)
    first.log_epoch({"train/ce": 1.0, "epoch": 0.0}, 0)
    if status != RUNNING:
        first.finish(status, "because")
    second = store.start_run(spec, tags)
    assert second.run_id == first.run_id
    # The run has this epoch already.
    second.log_epoch({"train/ce": 9.0, "epoch": 0.0}, 0)
    second.log_epoch({"train/ce": 0.5, "epoch": 1.0}, 1)
    history = store.client.get_metric_history(first.run_id, "train/ce")
    assert sorted((metric.step, metric.value) for metric in history) == [(0, 1.0), (1, 0.5)]
    second.finish(FINISHED)
    assert store.find_run(spec, FINISHED) is not None
    assert store.start_run(spec, tags).run_id != first.run_id


@pytest.mark.parametrize("status", [RUNNING, KILLED, FAILED])
def test_training_from_the_first_epoch_continues_no_run_that_has_epochs(
    status: str, tmp_path: Path
) -> None:
    """The folder was lost, or the run is forced: other code may have logged the epochs."""
    store = TrackingStore(tmp_path)
    spec, tags = spec_and_tags(4)
    first = store.start_run(spec, tags, fresh=True)
    assert store.start_run(spec, tags, fresh=True).run_id == first.run_id, "it has no epochs"
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
    assert store.start_run(spec, tags).run_id == second.run_id, "the newest is continued"


def test_a_run_has_spec_params_and_parent(store_folder: Path) -> None:
    store = TrackingStore(store_folder)
    loggers = [store.start_run(*spec_and_tags(seed)) for seed in (1, 2)]
    runs = [store.client.get_run(logger.run_id) for logger in loggers]
    parents = {run.data.tags["mlflow.parentRunId"] for run in runs}
    assert len(parents) == 1
    assert store.client.get_run(parents.pop()).data.tags["role"] == "group"
    assert runs[0].data.params["training.epochs"] == str(SPEC.training.epochs)
    assert runs[0].data.params["eps"] == "0.15"
    files = store.client.list_artifacts(loggers[0].run_id)
    assert [file.path for file in files] == ["spec.json"]
    unfinished = {run.info.run_id for run in store.unfinished_runs()}
    assert unfinished >= {logger.run_id for logger in loggers}


def test_doctor_names_interrupted_runs_and_no_password(
    store_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted = TrackingStore(store_folder).start_run(*spec_and_tags(4))
    interrupted.finish(KILLED, "interrupted")
    uri = f"sqlite:///{store_folder}/mlflow.db?timeout=20&password=secret"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    lines: list[str] = []
    document = describe_store(store_folder, lines.append)
    assert interrupted.run_id in {run["run_id"] for run in document["unfinished"]}
    assert document["uri"].endswith("password=***")
    assert "secret" not in "".join(lines)


def test_values_that_are_not_finite_are_tags(store_folder: Path) -> None:
    store = TrackingStore(store_folder)
    logger = store.start_run(*spec_and_tags(3))
    logger.log_metrics({"test/aa": 0.5, "test/x": math.nan, "test/y": math.inf})
    data = store.client.get_run(logger.run_id).data
    assert data.metrics == {"test/aa": 0.5}
    assert (data.tags["not_finite.test/x"], data.tags["not_finite.test/y"]) == ("nan", "inf")


def test_results_that_a_run_has_are_not_logged_again(store_folder: Path) -> None:
    """The run was killed after it had them, and continued."""
    store = TrackingStore(store_folder)
    logger = store.start_run(*spec_and_tags(5))
    logger.log_results({"test/clean": 0.5, "cost/train_seconds": 1.0})
    logger.log_results({"test/clean": 0.5, "cost/train_seconds": 2.0, "test/aa": 0.25})
    history = partial(store.client.get_metric_history, logger.run_id)
    assert [point.value for point in history("test/clean")] == [0.5]
    assert store.client.get_run(logger.run_id).data.metrics == {
        "test/clean": 0.5,
        "cost/train_seconds": 2.0,
        "test/aa": 0.25,
    }


def test_results_that_a_run_has_get_a_link_and_no_second_point(store_folder: Path) -> None:
    """The run was killed after it had them, before the checkpoint's logged model did."""
    store = TrackingStore(store_folder)
    logger = store.start_run(*spec_and_tags(7))
    logger.log_results({"test/clean": 0.5})
    time.sleep(0.01)
    experiment_id = store.client.get_run(logger.run_id).info.experiment_id
    model = store.client.create_logged_model(experiment_id, "net", logger.run_id)
    logger.log_results({"test/clean": 0.5, "test/aa": 0.25}, {"model_id": model.model_id})
    points = store.client.get_metric_history(logger.run_id, "test/clean")
    assert [point.value for point in points] == [0.5]
    linked = store.client.get_logged_model(model.model_id).metrics
    assert {point.key: point.value for point in linked} == {"test/clean": 0.5, "test/aa": 0.25}


def test_who_continues_a_run_removes_what_was_not_uploaded(store_folder: Path) -> None:
    store = TrackingStore(store_folder)
    logger = store.start_run(*spec_and_tags(6))
    logger.log_text("checkpoints/note.txt", "whole")
    folder = store_folder / "artifacts" / logger.run_id / "artifacts"
    # As MLflow leaves it after SIGKILL.
    (folder / "checkpoints" / ".artifact.uploading.abcd1234").write_text("half")
    assert store.start_run(*spec_and_tags(6)).run_id == logger.run_id
    names = {path.name for path in folder.rglob("*")}
    assert names == {"spec.json", "checkpoints", "note.txt"}


def open_experiment(root: str) -> str:
    """Open a store in a process of its own; return the id of an experiment."""
    logging.disable(logging.CRITICAL)
    store = TrackingStore(Path(root))
    return store.get_or_create_experiment("digits@1")


@pytest.mark.slow
def test_several_processes_open_a_fresh_store_at_once(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        assert len(set(pool.map(open_experiment, [str(tmp_path)] * 4))) == 1


@pytest.mark.parametrize(
    ("uri", "message"),
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
def test_a_store_that_cannot_be_opened_is_one_line(
    uri: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(BenchError, match=message) as caught:
        TrackingStore(tmp_path)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BenchError, match="choose another folder with --store"):
        TrackingStore(tmp_path / "file" / "runs")


def test_whether_a_store_exists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not store_exists(tmp_path)
    (tmp_path / "mlflow.db").touch()
    assert store_exists(tmp_path)
    for uri, exists in (
        (f"sqlite:///{tmp_path}/mlflow.db?timeout=9", True),
        (f"sqlite:///file:{tmp_path}/mlflow.db?uri=true", True),
        (f"sqlite:///{tmp_path}/none/mlflow.db", False),
        ("http://somewhere:5000", True),
    ):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        assert store_exists(tmp_path / "typo") is exists, uri


def test_searching_a_run_creates_no_experiment(tmp_path: Path) -> None:
    store = TrackingStore(tmp_path)
    assert store.find_run(SPEC, FINISHED) is None
    assert store.client.get_experiment_by_name(SPEC.suite) is None


def test_opening_prints_nothing(tmp_path: Path) -> None:
    code = (
        "from bench.tracking.store import TrackingStore; from pathlib import Path; "
        f"TrackingStore(Path({str(tmp_path)!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout + done.stderr == ""


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_an_interruption_waits_for_a_write(
    stop: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After it, the values are stored and the database is free for the mark of the run."""
    # SIGINT is ignored where the tests run in the background.
    handler = signal.signal(stop, signal.default_int_handler)
    try:
        logger = TrackingStore(tmp_path).open_run(
            "x@1 tuning", "any", {"number": "1"}, "", ("number",)
        )
        log_batch = logger.client.log_batch

        def interrupted(*args: Any, **kwargs: Any) -> None:
            signal.raise_signal(stop)
            log_batch(*args, **kwargs)

        monkeypatch.setattr(logger.client, "log_batch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            logger.log_metrics({"val/clean": 0.5})
        logger.finish("KILLED", "interrupted")
        run = logger.client.get_run(logger.run_id)
        assert run.data.metrics["val/clean"] == 0.5
        assert (run.info.status, run.data.tags["status_note"]) == ("KILLED", "interrupted")
    finally:
        signal.signal(stop, handler)


def test_no_password_stays_in_an_address() -> None:
    message = "postgresql://me:secret@host/db?user=me&password=secret is down"
    assert redact_password(message) == "postgresql://host/db?user=me&password=*** is down"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("two\n  lines"), "two lines"),
        (KeyError(), "KeyError"),
        (ValueError("x" * 400), "x" * 300),
    ],
)
def test_an_error_is_one_line(error: Exception, line: str) -> None:
    assert one_line(error) == line
