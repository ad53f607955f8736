"""Test records: export and import, refused files, a folder as a store, evaluation again."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import ViewType
from mlflow.exceptions import MlflowException

import methods
from bench import cli, models
from bench.datasets import loading
from bench.execution import evaluation, job, plan
from bench.execution.plan import PlannedRun
from bench.models import checkpoint
from bench.protocol import suites
from bench.protocol.options import RunOptions
from bench.records import reproduce
from bench.records.complete import network_sizes
from bench.records.sync import sync_records
from bench.system import environment
from bench.system.errors import BenchError, UsageError
from bench.system.files import sha256_of_file
from bench.tracking.run_logger import RunLogger
from bench.tracking.store import TrackingStore
from leaderboards.read.records import collect, read_record, record_row
from leaderboards.render import json_tables, markdown
from leaderboards.schema.fields import FINISHED, RECORD_TAGS
from leaderboards.schema.packing import Verdicts, pack_verdicts
from leaderboards.schema.record import PackedVerdicts, Record, RecordError, build_record
from leaderboards.tables import suite_tables

NASTY = '<script>alert("x")</script>|`*\'& $x_1^2$ \\alpha{} żółw 鳥'
# Of the clone: they are not installed.
RESULTS = Path(__file__).parents[1] / "leaderboards" / "results"
CODE = {"code_commit": "0" * 40, "code_dirty": "false"}
ENVIRONMENT = {"device": "cpu", "note": NASTY}

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def no_tracking_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def log_run(
    tracking: TrackingStore, planned: PlannedRun, survived: Verdicts, folder: Path, **metrics: float
) -> RunLogger:
    """Log a finished run as version 0.1 did, without record and checkpoints."""
    run = tracking.start_run(planned.spec, job.run_tags(planned, CODE))
    run.log_text("environment.json", json.dumps(ENVIRONMENT))
    for epoch in range(3):
        values = {
            "epoch": float(epoch),
            "train/kl_adv": 2.5 / (epoch + 3),
            "val/robust": 0.1 * epoch,
        }
        run.log_epoch(values if epoch else values | {"train/kl_adv": np.inf}, epoch)
    aa = float(np.float32(np.mean(survived)))
    run.log_metrics(
        {
            "test/aa": aa,
            "test/worst": aa,
            "test/clean": 0.9,
            "test/n": 90,
            "test/aa_n": survived.size,
            **metrics,
        }
    )
    path = folder / "verdicts_best_aa.npz"
    np.savez_compressed(path, clean=survived, robust_aa=survived)
    run.log_file(path, "verdicts")
    run.set_tags({"sha256.best": planned.spec.id * 4})
    run.set_tags(
        {
            "teacher_sha256": json.dumps(dict.fromkeys(planned.spec.teachers, "ab" * 32)),
            "training_path": "captured",
        }
    )
    run.set_tags({"flags": json.dumps({"softmax-output": NASTY} if planned.spec.seed else {})})
    run.finish(FINISHED)
    return run


def record_run(
    tracking: TrackingStore, planned: PlannedRun, survived: Verdicts, **metrics: float
) -> Record:
    """Record the same run as `log_run`, with labels and predictions, as a run does today."""
    tags = job.run_tags(planned, CODE)
    logger = tracking.start_run(planned.spec, tags)
    robust = float(np.float32(np.mean(survived)))
    labels = (np.arange(90) % 10).astype(np.uint16)
    # The last nine are classified wrongly; AutoAttack saw others.
    predictions = np.where(np.arange(90) < 81, labels, (labels + 1) % 10).astype(np.uint16)
    teachers = dict.fromkeys(planned.spec.teachers, "ab" * 32)
    tags |= {"teacher_sha256": json.dumps(teachers), "training_path": "captured"}
    tags["status_note"] = ""
    tags["flags"] = json.dumps({"softmax-output": NASTY} if planned.spec.seed else {})
    counts = {"test/n": 90, "test/aa_n": survived.size}
    finished = build_record(
        spec_id=planned.spec.id,
        run_id=logger.run_id,
        start_time=logger.client.get_run(logger.run_id).info.start_time,
        spec=json.loads(planned.spec.json()),
        tags={tag: tags[tag] for tag in RECORD_TAGS if tag in tags},
        checksums={"best": planned.spec.id * 4},
        metrics={"test/aa": robust, "test/worst": robust, "test/clean": 0.9, **counts, **metrics},
        curves={
            "train/kl_adv": [(epoch, 2.5 / (epoch + 3)) for epoch in (1, 2)],
            "val/robust": [(epoch, 0.1 * epoch) for epoch in range(3)],
        },
        environment=ENVIRONMENT,
        labels=labels,
        predictions=predictions,
        survived=survived,
    )
    logger.log_curves(finished)
    logger.log_record(finished)
    tracking.save_record(finished)
    logger.finish(FINISHED)
    return finished


def plan_all(folder: Path) -> list[tuple[PlannedRun, Verdicts, dict[str, float]]]:
    """Plan two methods of two seeds, their teacher, and a run of nasty names, with results."""
    rng = np.random.default_rng(0)
    options = RunOptions(method="rslad,ard", student="resnet8-w4", seeds="0,1", store=folder)
    planned_runs = plan.plan_runs(options, {})
    spec = dataclasses.replace(
        planned_runs[-1].spec,
        method=NASTY,
        teachers={"robust": f"{NASTY}-0"},
        hyper={"base": NASTY},
    )
    nasty = PlannedRun(spec, planned_runs[-1].method, NASTY, NASTY, ("lr",))
    return [
        (planned, rng.random(61) < 0.4 + 0.05 * number, {"cost/train_seconds": 60.0 + number})
        for number, planned in enumerate([*planned_runs, nasty])
    ]


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a store of six runs with records."""
    folder = tmp_path_factory.mktemp("origin")
    tracking = TrackingStore(folder)
    for planned, survived, metrics in plan_all(folder):
        record_run(tracking, planned, survived, **metrics)
    return folder


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a store of the same runs without records."""
    folder = tmp_path_factory.mktemp("old")
    tracking = TrackingStore(folder)
    for planned, survived, metrics in plan_all(folder):
        log_run(tracking, planned, survived, folder, **metrics)
    (folder / "verdicts_best_aa.npz").unlink()
    return folder


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return TrackingStore(tmp_path_factory.mktemp("empty")).root


@pytest.fixture
def home(empty: Path, tmp_path: Path) -> Path:
    """Return an empty store, copied because MLflow takes seconds to create one."""
    return Path(shutil.copytree(empty, tmp_path / "home"))


@pytest.fixture(scope="module")
def records(origin: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("records")
    words = ["export", "--suite", "digits", "--store", str(origin), "--out", str(folder)]
    assert cli.dispatch(words) == 0
    return folder


def stored(folder: Path) -> pd.DataFrame:
    """Return the records of a store as a frame."""
    return collect(TrackingStore(folder).records)


def import_into(folder: Path, *sources: Path, flags: tuple[str, ...] = ()) -> int:
    """Import records into a store; return the exit code."""
    return cli.dispatch(["import", *map(str, sources), "--store", str(folder), *flags])


def tables(runs: pd.DataFrame) -> str:
    """Return every table of the runs and all numbers in it, without the ids of runs."""
    sections = suite_tables.build_sections(runs)
    content = json.loads(json_tables.render(sections))
    for suite in content["suites"]:
        for group in (*suite["tasks"], suite["teachers"]):
            for row in group["rows"]:
                assert row.pop("runs")
    return markdown.render(sections) + json.dumps(content)


def test_another_store_gives_the_same_leaderboard(origin: Path, records: Path, home: Path) -> None:
    assert import_into(home, records) == 0
    first, *others = [collect(folder) for folder in (origin / "records", home / "records", records)]
    assert len(first) == 6
    assert first["param/hyper.base"].isin([NASTY]).sum() == first["command"].eq(NASTY).sum() == 1
    points = [len(epochs) for record in first["record"] for epochs, _ in record.curves.values()]
    assert sum(points) == 6 * 5
    for frame in others:
        pd.testing.assert_frame_equal(frame.drop(columns="record"), first.drop(columns="record"))
        assert list(frame["record"]) == list(first["record"])
        assert [record.environment for record in frame["record"]] == [ENVIRONMENT] * 6
        assert tables(frame) == tables(first)
        assert frame.attrs == {"problems": []}
    assert tables(first).count('"tier": 1') >= 2
    for folder in (origin, home):
        assert sync_records(folder).problems == []


def test_an_old_store_gives_the_same_records_once(
    old: Path, origin: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They have no classes: version 0.1 kept no predictions, and these runs state no data."""
    shutil.copytree(old, tmp_path, dirs_exist_ok=True)
    (problem,) = sync_records(tmp_path).problems
    assert problem.startswith("finished runs without a record are left out: 6; `python -m bench ")
    words = ["export", "--from-mlflow", "--store", str(tmp_path)]
    assert cli.dispatch(words) == 0
    assert capsys.readouterr().out.count(".json\n") == 6
    assert sync_records(tmp_path).problems == []
    expected = {record.spec_id: record for record in collect(origin / "records")["record"]}
    for record in stored(tmp_path)["record"]:
        other = expected.pop(record.spec_id)
        assert record.metrics.items() >= other.metrics.items()
        for field in ("spec", "tags", "checksums", "curves", "environment", "verdicts"):
            assert getattr(record, field) == getattr(other, field), field
    assert not expected
    assert cli.dispatch(words) == 0
    assert capsys.readouterr().out == ""


def test_records_are_small_and_readably_named(records: Path) -> None:
    names = sorted(path.name for path in records.iterdir())
    assert len(names) == 6
    assert sum(name.startswith("digits@3-digits-resnet8-w4-rslad-seed0-") for name in names) == 1
    assert all(name.isascii() and not set(name) & set("/\\<>\"'|*?: ") for name in names)
    for path in records.iterdir():
        assert path.stat().st_size < 10_000
        assert read_record(path).to_json() == path.read_text(encoding="utf-8")


def test_a_recorded_run_is_skipped_and_other_numbers_are_refused(
    records: Path, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = min(records.glob("*rslad*"))
    assert import_into(home, path) == import_into(home, path) == 0
    assert "recorded already" in capsys.readouterr().out
    changed = tmp_path / "changed.json"
    for change in ({"metrics": {"test/worst": 0.01}}, {"checksums": {"best": "a" * 64}}):
        content = json.loads(path.read_text())
        for name, values in change.items():
            content[name] |= values
        changed.write_text(json.dumps(content))
        assert import_into(home, changed) == 1
        message = capsys.readouterr().err
        assert "same spec and other numbers: " in message
        assert message.count("\n") == 1
    assert len(stored(home)) == 1


def put(*path: str, value: Any) -> Callable[[dict[str, Any]], str]:
    """Return a function that writes a record with another value at `path`."""

    def change(content: dict[str, Any]) -> str:
        inner = content
        for step in path[:-1]:
            inner = inner[step]
        inner[path[-1]] = value
        return json.dumps(content)

    return change


def spec_id(content: dict[str, Any]) -> str:
    """Return the id of a record's spec."""
    return hashlib.sha256(json.dumps(content["spec"], sort_keys=True).encode()).hexdigest()[:16]


def put_suite(name: str) -> Callable[[dict[str, Any]], str]:
    """Return a function that writes a record of another suite, with the right id."""

    def change(content: dict[str, Any]) -> str:
        content["spec"]["suite"] = name
        content["spec_id"] = spec_id(content)
        return json.dumps(content)

    return change


def add_spec_field(content: dict[str, Any]) -> str:
    """Write a record with an unknown field in its spec, with the right id."""
    content["spec"]["unheard"] = 1
    content["spec_id"] = spec_id(content)
    return json.dumps(content)


BAD_RECORDS: dict[str, tuple[Callable[[dict[str, Any]], str], str]] = {
    "no JSON": (lambda _: "hello", "Invalid JSON: "),
    "empty": (lambda _: "", "Invalid JSON: "),
    "truncated": (lambda content: json.dumps(content)[:-40], "Invalid JSON: EOF"),
    "a list": (lambda content: f"[{json.dumps(content)}]", "Input should be an object"),
    "deep": (lambda _: "[" * 100_000, "Invalid JSON: recursion"),
    "large": (lambda _: " " * 2_000_000, "larger than 1,000,000 bytes"),
    "NaN": (
        put("metrics", "test/clean", value=float("nan")),
        "metrics.test/clean: Input should be a finite number",
    ),
    "infinite": (
        lambda content: json.dumps(content).replace('"device": "cpu"', '"device": 1e999'),
        "Out of range float values",
    ),
    "other schema": (
        put("schema", "name", value="x"),
        "schema.name: Input should be 'robust-distill-bench/record'",
    ),
    "other version": (
        put("schema", "version", value=4),
        "of schema version 4, this program reads 1 to 3",
    ),
    "no spec": (put("spec", value={}), "spec.suite: Field required"),
    "unknown field": (put("more", value=1), "more: Extra inputs are not permitted"),
    "number as text": (
        put("metrics", "test/clean", value="0.9"),
        "metrics.test/clean: Input should be a valid number",
    ),
    "path as id": (put("run_id", value="../../etc/passwd"), "run_id: String should match"),
    "spec changed": (put("spec", "seed", value=7), "spec_id is "),
    "unknown in spec": (
        add_spec_field,
        "spec.unheard: ",
    ),
    "stale": (
        put_suite("digits@2"),
        "stale protocol version: digits@2, this checkout has digits@3",
    ),
    "newer": (
        put_suite("digits@99"),
        "newer protocol version: digits@99, this checkout has digits@3",
    ),
    "unknown suite": (put_suite("mine@1"), "unknown suite 'mine'"),
    "no version": (put("spec", "suite", value="digits@3x"), "spec.suite: String should match"),
    "another 3": (put("spec", "suite", value="digits@03"), "spec.suite: String should match"),
    "a long version": (
        put("spec", "suite", value="digits@" + "9" * 5000),
        "spec.suite: String should match",
    ),
    "no seed": (put("spec", "seed", value=-1), "spec.seed: Input should be greater"),
    "many seeds": (put("spec", "seed", value=10**30), "spec.seed: "),
    "deep flags": (put("tags", "flags", value="[" * 100_000), "tags.flags: not a JSON object"),
    "like a heading": (
        put("metrics", "test/AutoAttack", value=0.99),
        "metrics: 'test/AutoAttack' does not belong",
    ),
    "like a rate": (put("curves", "lrX", value=[[0, 0.1]]), "curves: 'lrX' is none"),
    "accuracy changed": (put("metrics", "test/aa", value=0.99), "verdicts: AutoAttack accuracy "),
    "clean accuracy changed": (
        put("metrics", "test/clean", value=0.91),
        "classes: clean accuracy 0.9000, recorded is 0.9100",
    ),
    "classes gone": (put("classes", "labels", value=""), "classes of images: "),
    "many classes": (put("classes", "images", value=10**6), "classes.images: Input should be less"),
    "no accuracy": (
        put("metrics", "test/clean", value=1.2),
        "metrics: test/clean = 1.2 is no accuracy",
    ),
    "verdicts gone": (put("verdicts", value=None), "there must be both or neither"),
    "too few bits": (put("verdicts", "survived", value="AAA="), "verdicts: 16 bits for 61 images"),
    "no base64": (put("verdicts", "survived", value="???"), "base64"),
    "many images": (
        put("verdicts", "images", value=10**12),
        "verdicts.images: Input should be less than",
    ),
    "checksum": (put("checksums", "best", value="abc"), "checksums.best: String should match"),
    "flags": (put("tags", "flags", value="{"), "tags.flags: not a JSON object"),
    "teachers": (
        put("tags", "teacher_sha256", value="[]"),
        "tags.teacher_sha256: not a JSON object",
    ),
    "flags of no letters": (
        put("tags", "flags", value='{"a": "\\ud800"}'),
        "tags.flags: not a JSON object",
    ),
    "an endless epoch": (
        put("curves", "val/robust", value=[[10**400, 0.5]]),
        "curves.val/robust.0.0: ",
    ),
    "tag": (put("tags", "mlflow.user", value="me"), "tags: 'mlflow.user' does not belong there"),
    "metric": (put("metrics", "<b>", value=1.0), "metrics: '<b>' does not belong there"),
    "epochs": (
        put("curves", "val/robust", value=[[1, 0.5], [0, 0.5]]),
        "its epochs are not in order",
    ),
    "for MLflow": (put("metrics", "cost/" + 300 * "b", value=1.0), "MLflow refuses it: "),
}


def test_one_network_is_not_two_seeds(
    records: Path, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor two methods. More test images for the same network are another record of it."""
    (path, *_) = sorted(records.glob("*ard-seed*"))
    assert import_into(home, path) == 0
    (tmp_path / "a.json").write_bytes(path.read_bytes())
    changes = {"seed": 77, "method": "rslad", "limit_test": 200}
    for number, (name, value) in enumerate(changes.items()):
        content = json.loads(path.read_text()) | {"run_id": f"{number:032}"}
        content["spec"][name] = value
        content["spec_id"] = spec_id(content)
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
        assert import_into(home, tmp_path / f"{name}.json") == (name != "limit_test")
        assert ("its checkpoint is that of run " in capsys.readouterr().err) == (
            name != "limit_test"
        )
    problems = collect(tmp_path).attrs["problems"]
    left_out = "is left out: a.json has the same checkpoint, of another method, network or seed"
    assert problems == [f"method.json {left_out}", f"seed.json {left_out}"]


STEPS = {
    "parent": (MlflowClient, "set_terminated"),
    "numbers": (RunLogger, "log_record"),
    "finished": (MlflowClient, "delete_tag"),
    "file": (TrackingStore, "save_record"),
}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(
    "fault", [KeyboardInterrupt(), MlflowException("database or disk is full")], ids=type
)
def test_an_import_goes_on_where_it_was_stopped(
    step: str, fault: BaseException, records: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (path, *_) = sorted(records.glob("*ard-seed*"))
    spec, tracking = read_record(path).spec, TrackingStore(home)

    def stop(*_: object, **__: object) -> None:
        raise fault

    with monkeypatch.context() as patch:
        patch.setattr(*STEPS[step], stop)
        if isinstance(fault, KeyboardInterrupt):
            with pytest.raises(KeyboardInterrupt):
                import_into(home, path)
        else:
            assert import_into(home, path) == 1
    assert tracking.find_run(spec, "RUNNING") is None, "`run` would continue it"
    assert import_into(home, path) == 0
    assert tracking.find_run(spec, FINISHED)
    runs = tracking.client.search_runs(
        [tracking.get_or_create_experiment(spec.suite)],
        f"tags.spec_id = '{spec.id}'",
        run_view_type=ViewType.ALL,
    )
    assert ["importing" in run.data.tags for run in runs] == [False]
    assert len(stored(home)) == 1


def test_an_import_removes_the_claims_of_killed_ones(records: Path, home: Path) -> None:
    """One is made while the parent of a run is."""
    (path, *_) = sorted(records.glob("*ard-seed*"))
    tracking, suite = TrackingStore(home), read_record(path).spec.suite
    with tracking.alone(suite, "parent"):
        claim = tracking.claims(suite).read()[0]
    experiment = tracking.get_or_create_experiment(suite)
    tracking.client.set_experiment_tag(experiment, claim.tag, claim.text)
    assert import_into(home, path) == 0
    assert TrackingStore(home).claims(suite).read() == []


@pytest.fixture(scope="module")
def refused(
    empty: Path, records: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[str], str]:
    """Import every bad record with a good one; return the lines of errors, and the results."""
    folder, home = tmp_path_factory.mktemp("bad"), tmp_path_factory.mktemp("home")
    shutil.copytree(empty, home, dirs_exist_ok=True)
    good, original = sorted(records.glob("*ard-seed*"))
    for number, (change, _) in enumerate(BAD_RECORDS.values()):
        content = change(json.loads(original.read_text()))
        (folder / f"bad{number}.json").write_text(content, encoding="utf-8")
    shutil.copy(good, folder / "good.json")
    with (
        contextlib.redirect_stderr(io.StringIO()) as errors,
        contextlib.redirect_stdout(io.StringIO()) as results,
    ):
        assert import_into(home, folder) == 1
    assert len(stored(home)) == 1
    return errors.getvalue().replace(f"{folder}/", "").splitlines(), results.getvalue()


@pytest.mark.parametrize("name", BAD_RECORDS)
def test_a_bad_record_is_refused_in_one_line(name: str, refused: tuple[list[str], str]) -> None:
    start = f"error: bad{[*BAD_RECORDS].index(name)}.json: "
    (line,) = [line for line in refused[0] if line.startswith(start)]
    assert BAD_RECORDS[name][1] in line


def test_the_good_record_beside_bad_ones_is_imported(refused: tuple[list[str], str]) -> None:
    errors, results = refused
    assert len(errors) == len(BAD_RECORDS)
    assert results.count("\n") == 1
    assert "good.json: taken in as run " in results


def test_a_missing_file_and_an_empty_folder(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "none.json"
    assert import_into(home, path) == 1
    assert capsys.readouterr().err == f"error: {path}: No such file or directory\n"
    with pytest.raises(BenchError, match="no record, a file NAME"):
        import_into(home, home)


def test_an_old_run_on_data_that_is_here_gets_its_labels(tmp_path: Path) -> None:
    options = RunOptions(method="natural", student="resnet8-w4", limit_test=90, store=tmp_path)
    planned = plan.plan_runs(options, {})[0]
    images = loading.load_data("digits", "", limit_test=90)
    run = log_run(TrackingStore(tmp_path), planned, np.arange(61) < 30, tmp_path)
    run.log_text("environment.json", json.dumps(job.describe_data(images)))
    assert cli.dispatch(["export", "--from-mlflow", "--store", str(tmp_path)]) == 0
    (record,) = stored(tmp_path)["record"]
    assert record.classes
    assert record.classes.unpack_labels().tolist() == images.test.y.tolist()
    assert record.classes.predictions is None
    assert record.metrics["cost/parameters"] > 0


def test_a_damaged_old_run_is_named_and_the_others_are_converted(
    old: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A missing environment is no damage: no result depends on it."""
    shutil.copytree(old, tmp_path, dirs_exist_ok=True)
    # The copied database has the addresses of the files of the store that was copied.
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        moved = "UPDATE runs SET artifact_uri = replace(artifact_uri, ?, ?)"
        database.execute(moved, (str(old), str(tmp_path)))
    folders = sorted(path.parent for path in tmp_path.glob("artifacts/*/artifacts/verdicts"))
    (folders[0] / "spec.json").write_text("{")
    (folders[1] / "verdicts" / "verdicts_best_aa.npz").unlink()
    np.savez(folders[2] / "verdicts" / "verdicts_best_aa.npz", robust_aa=np.full(61, np.nan))
    np.savez(folders[3] / "verdicts" / "verdicts_best_aa.npz", robust_aa=np.array([{}], object))
    (folders[4] / "environment.json").unlink()
    assert cli.dispatch(["export", "--from-mlflow", "--store", str(tmp_path)]) == 1
    lines = sorted(capsys.readouterr().err.splitlines())
    ids = [folder.parent.name for folder in folders]
    assert len(lines) == 4
    for run_id, line in zip(ids[:4], lines, strict=True):
        assert line.startswith(f"error: {run_id}: its spec or its verdicts cannot be read: ")
    assert set(stored(tmp_path)["run_id"]) == {*ids[4:]}


def test_export_names_what_it_cannot_copy(
    origin: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    ids = list(stored(origin)["run_id"][:2])
    words = ["export", *ids, "f" * 32, "--store", str(origin), "--out", str(out)]
    assert cli.dispatch(words) == 1
    assert capsys.readouterr().err.splitlines() == [
        f"error: {'f' * 32}: no finished run of a suite has this id, or it has no record",
    ]
    assert len(list(out.iterdir())) == 2
    for wrong in ([], [ids[0], "--suite", "digits"]):
        with pytest.raises(UsageError, match="name runs by their MLflow ids"):
            cli.dispatch(["export", *wrong, "--store", str(origin), "--out", str(out)])


def test_an_export_that_fails_leaves_the_earlier_file(
    origin: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run_id = stored(origin)["run_id"][0]
    words = ["export", run_id, "--store", str(origin), "--out", str(tmp_path)]
    assert cli.dispatch(words) == 0
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()

    def fill_disk(descriptor: int) -> None:
        os.truncate(descriptor, 20)
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fill_disk)
        assert cli.dispatch(words) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [content]


# A folder as a store.


def test_a_corrupt_record_is_left_out_and_named(records: Path, tmp_path: Path) -> None:
    folder = tmp_path / "results"
    shutil.copytree(records, folder)
    first, second, *_ = sorted(folder.iterdir())
    first.write_text("{")
    shutil.copy(second, folder / "zz.json")
    (folder / "README.md").write_text("no record")
    runs = collect(folder)
    assert len(runs) == 5
    problems = runs.attrs["problems"]
    assert problems[0].startswith(f"{first.name} is left out: Invalid JSON")
    assert problems[1].startswith(f"zz.json is left out: {second.name} is of the same spec")
    assert len(problems) == 2
    assert collect(folder, "digits@2").empty
    words = ["leaderboard", "--records", str(folder)]
    words += ["--out", str(tmp_path / "out"), "--store", str(tmp_path / "none")]
    assert cli.dispatch(words) == 0
    assert "rslad" in (tmp_path / "out" / "leaderboard.md").read_text()
    assert not (tmp_path / "none").exists()


def test_the_repositorys_own_records_are_valid() -> None:
    paths = sorted(RESULTS.glob("*.json"))
    results = [read_record(path) for path in paths]
    assert results
    assert [path.name for path in paths] == [result.spec.record_name for result in results]
    assert len({result.spec_id for result in results}) == len(results)
    for result in results:
        suite, _, version = result.spec.suite.partition("@")
        # A version of the future would make all others older ones.
        assert int(version) <= suites.SUITES[suite].version
    assert collect(RESULTS).attrs["problems"] == []


def test_two_teachers_have_one_name_whatever_their_order() -> None:
    result = read_record(next(RESULTS.glob("digits@*-mtard-*.json")))
    assert len(result.spec.teachers) == 2
    spec = result.spec
    reordered = dataclasses.replace(spec, teachers=dict(reversed(spec.teachers.items())))
    assert reordered.id == spec.id
    names = {spec.teacher, reordered.teacher, record_row(result)["teacher"]}
    assert names == {"resnet8-w16-trades + resnet8-w16-natural"}


# Evaluation again.


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return a store with one run, and its record.

    The network gets every test image wrong, so that AutoAttack is quick.
    """
    folder = tmp_path_factory.mktemp("evaluated")
    options = RunOptions(
        method="natural", student="resnet8-w4", seeds="0", limit_test=6, store=folder
    )
    planned = plan.plan_runs(options, {})[0]
    spec = planned.spec
    images = loading.load_data("digits", "", limit_test=6)
    torch.manual_seed(0)
    net = models.build("resnet8-w4", images.info).eval()
    linear = next(layer for layer in net.modules() if isinstance(layer, torch.nn.Linear))
    with torch.no_grad():
        linear.bias[min({*range(10)} - {*images.test.y.tolist()})] = 100
    checkpoint.save(folder / "best.pt", {"state_dict": net.state_dict()})
    (folder / "verdicts").mkdir()
    stem = folder / "verdicts" / "verdicts_best"
    result = evaluation.evaluate_checkpoint(net, spec, "best", images.test, stem, lambda *_: None)
    assert result.accuracy["clean"] == result.accuracy["aa"] == 0
    assert result.survived is not None
    tracking = TrackingStore(folder)
    run = tracking.start_run(spec, job.run_tags(planned, CODE))
    environment_values = environment.describe_environment(torch.device("cpu")) | job.describe_data(
        images
    )
    run.log_file(folder / "best.pt", "checkpoints")
    finished = build_record(
        spec_id=spec.id,
        run_id=run.run_id,
        start_time=0,
        spec=json.loads(spec.json()),
        tags={"flags": json.dumps(result.flags)},
        checksums={"best": sha256_of_file(folder / "best.pt")},
        metrics=result.metrics("best"),
        curves={},
        environment=environment_values,
        labels=images.test.y.numpy(),
        predictions=result.predictions.numpy(),
        survived=result.survived.numpy(),
    )
    run.log_record(finished)
    tracking.save_record(finished)
    run.finish(FINISHED)
    words = ["export", run.run_id, "--store", str(folder), "--out", str(folder / "out")]
    assert cli.dispatch(words) == 0
    (path,) = (folder / "out").iterdir()
    return folder, path


def test_a_record_is_verified_with_the_checkpoint_of_its_store(
    evaluated: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, path = evaluated
    assert import_into(folder, path, flags=("--verify", "--device", "cpu")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{path}: reproduced 9 numbers; verdicts of AutoAttack differ on 0 images"
    assert "recorded already" in lines[1]


def test_a_record_is_verified_with_a_checkpoint_file_and_not_without(
    evaluated: tuple[Path, Path], home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, path = evaluated
    verify = ("--verify", "--device", "cpu")
    assert import_into(home, path, flags=verify) == 1
    assert "not verified: no checkpoint " in capsys.readouterr().err
    other = tmp_path / "other.pt"
    checkpoint.save(other, {"state_dict": {}})
    assert import_into(home, path, flags=(*verify, "--checkpoint", str(other))) == 1
    assert "another or damaged file" in capsys.readouterr().err
    assert not list(home.glob("records/*"))
    assert import_into(home, path, flags=(*verify, "--checkpoint", str(folder / "best.pt"))) == 0
    assert "taken in as run" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            put("metrics", "test/fgsm", value=1 / 6),
            "not reproduced: test/fgsm is 0.0000 here, recorded 0.1667",
        ),
        (put("metrics", "test/pgd10", value=0.0), "not reproduced: test/pgd10 is in one of "),
        (
            put("environment", "data", value={"sha256": "0"}),
            "not verified: it states other data than those here",
        ),
        (
            put("tags", "flags", value="{}"),
            "not reproduced: it does not have the flag planted, a reason",
        ),
    ],
)
def test_a_record_that_is_not_reproduced_is_refused(
    evaluated: tuple[Path, Path],
    change: Callable[[dict[str, Any]], str],
    message: str,
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, path = evaluated
    bad = tmp_path / "bad.json"
    bad.write_text(change(json.loads(path.read_text())))
    flags = ("--verify", "--device", "cpu", "--checkpoint", str(folder / "best.pt"))
    if "planted" in message:
        evaluate = evaluation.evaluate_checkpoint

        def add_flag(*arguments: Any) -> evaluation.CheckpointEvaluation:
            return dataclasses.replace(evaluate(*arguments), flags={"planted": "a reason"})

        monkeypatch.setattr(evaluation, "evaluate_checkpoint", add_flag)
    assert import_into(home, bad, flags=flags) == 1
    assert message in capsys.readouterr().err
    assert not list(home.glob("records/*"))


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_no_function_that_a_record_names_is_called(
    role: str,
    evaluated: tuple[Path, Path],
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("planted.py").write_text("open('called', 'w')\ndef net(): pass\n")
    folder, path = evaluated
    entry = json.loads(path.read_text())
    if role == "student":
        entry["spec"]["arch"] = "planted:net"
    else:
        entry["spec"] |= {"teachers": {"robust": "planted:net-kd-01234567"}, "method": "kd"}
        entry["spec"]["hyper"] = dataclasses.asdict(methods.load("kd")())
    entry["spec_id"] = spec_id(entry)
    record = tmp_path / "record.json"
    record.write_text(json.dumps(entry))
    # Records of earlier versions are completed with the sizes of networks.
    assert network_sizes(read_record(record)) == {}
    if role == "student":
        flags = ("--verify", "--device", "cpu", "--checkpoint", str(folder / "best.pt"))
        assert import_into(home, record, flags=flags) == 1
        message = "not verified: its network is made by the function planted:net: name it if you"
        assert message in capsys.readouterr().err
    assert not Path("called").exists()


def test_rounding_may_turn_no_image_where_only_the_benchmark_is_newer() -> None:
    device = torch.device("cpu")
    here = environment.describe_environment(device)
    assert reproduce.rounding_share(here | {"bench": "0.1.0"}, device) == 0
    assert reproduce.rounding_share(here | {"torch": "2.0"}, device) == reproduce.ROUNDING_SHARE


@pytest.mark.parametrize(("share", "allowed"), [(0.0, 0), (reproduce.ROUNDING_SHARE, 1), (0.02, 4)])
def test_as_many_images_may_differ_as_are_allowed(
    records: Path, share: float, allowed: int
) -> None:
    original = read_record(min(records.iterdir()))
    survived = np.arange(200) < 100
    metrics = {"test/n": 200.0, "test/aa_n": 200.0, "test/aa": 0.5}
    verdicts = PackedVerdicts(images=survived.size, survived=pack_verdicts(survived))
    recorded = original.model_copy(update={"metrics": metrics, "verdicts": verdicts})
    for half in range(6):
        evaluated = survived.copy()
        # As many either way, so that the accuracy stays.
        evaluated[100 - half : 100 + half] ^= True
        if 2 * half <= allowed:
            result = reproduce.compare_results(recorded, metrics, evaluated, share)
            assert f"differ on {2 * half} images" in result
        else:
            with pytest.raises(RecordError, match=f"differs on {2 * half} of 200 images"):
                reproduce.compare_results(recorded, metrics, evaluated, share)
    lowest = metrics | {"test/aa": 0.5 - allowed / 200}
    reproduce.compare_results(recorded, lowest, survived, share)
    too_low = metrics | {"test/aa": 0.5 - (allowed + 1) / 200}
    with pytest.raises(RecordError, match="test/aa is "):
        reproduce.compare_results(recorded, too_low, survived, share)
