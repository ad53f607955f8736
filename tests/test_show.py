"""`show`: all runs of a store as a table, one run in full; nothing is made on disk."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric, RunTag
from record_store import TAGS

from bench import cli
from bench.cli.commands.show import find_run
from bench.execution.grid.overview import describe_record
from bench.system.errors import BenchError, UsageError

IDENTITY = {
    "role": "student",
    "spec_id": "cd" * 8,
    "suite": "digits@1",
    "dataset": "digits",
    "student": "resnet8-w4",
    "teacher": "robust",
    "seed": "0",
}
COMMIT, SHA256, SPEC = "0123abc", "5e" * 32, "ab" * 8


class Runs:
    """Write runs into an MLflow store as the benchmark does, without records."""

    def __init__(self, folder: Path, artifacts: str) -> None:
        self.client = MlflowClient(tracking_uri=f"sqlite:///{folder}/mlflow.db")
        self.experiment = self.client.create_experiment("digits@1", artifact_location=artifacts)
        self.group = self.client.create_run(self.experiment, tags={"role": "group"}).info.run_id
        self.clock = 1_700_000_000_000

    def run(self, method: str, status: str, metrics: dict[str, float], **tags: str) -> str:
        """Write a run and return its id."""
        self.clock += 60_000
        run_id = str(self.client.create_run(self.experiment, self.clock).info.run_id)
        names = TAGS | IDENTITY | {"method": method, "mlflow.parentRunId": self.group} | tags
        self.client.log_batch(
            run_id,
            metrics=[Metric(name, value, 0, 0) for name, value in metrics.items()],
            tags=[RunTag(name, value) for name, value in names.items()],
        )
        if status != "RUNNING":
            self.client.set_terminated(run_id, status)
        return run_id


@pytest.fixture(autouse=True)
def no_tracking_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="module")
def ids(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Record a run of each status; return their ids by status, and the folder of the store."""
    folder = tmp_path_factory.mktemp("shown")
    tracked = Runs(folder, (folder / "artifacts").as_uri())
    tags = {"spec_id": SPEC, "code_commit": COMMIT, "sha256.best": SHA256, "sha256.last": SHA256}
    tags |= {"flags": '{"a-flag": "why"}', "teacher_sha256": '{"robust": "77"}', "variant": "tau=2"}
    metrics = {"test/aa": 0.5, "test/worst": 0.5, "test/n": 360.0}
    metrics |= {"test/clean": 0.9, "test_last/clean": 0.8, "cost/train_seconds": 60.0}
    ids = {"folder": str(folder), "finished": tracked.run("rslad", "FINISHED", metrics, **tags)}
    file = folder / "artifacts" / ids["finished"] / "artifacts" / "checkpoints" / "best.pt"
    file.parent.mkdir(parents=True)
    file.touch()
    # The newest run of the spec, but it did not finish.
    failure = {"spec_id": SPEC, "status_note": "disk full"}
    ids["failed"] = tracked.run("rslad", "FAILED", {}, **failure)
    ids["running"] = tracked.run("kd", "RUNNING", {})
    ids["interrupted"] = tracked.run("ard", "KILLED", {})
    return ids


def show(ids: dict[str, str], *words: str) -> int:
    return cli.dispatch(["show", *words, "--store", ids["folder"]])


def read_document(ids: dict[str, str], capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    assert show(ids, *words, "--json") == 0
    return json.loads(capsys.readouterr().out)


def test_all_runs_newest_first(ids: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    statuses = ["interrupted", "running", "failed", "finished"]
    assert show(ids) == 0
    heading, *lines = capsys.readouterr().out.splitlines()
    assert heading.split() == ["id", "status", "suite", "dataset", "student", "method", "teacher",
                               "seed", "autoattack"]  # fmt: skip
    assert [line.split()[1] for line in lines] == statuses
    assert [line.split()[0] for line in lines] == [ids[status][:8] for status in statuses]
    assert lines[-1].split() == [ids["finished"][:8], "finished", "digits@1", "digits",
                                 "resnet8-w4", "rslad", "robust", "0", "50.00", "%"]  # fmt: skip
    summaries = read_document(ids, capsys)
    assert [run["id"] for run in summaries] == [ids[status] for status in statuses]
    assert [run["autoattack"] for run in summaries] == [None, None, None, 0.5]


def test_one_run_in_full(ids: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert show(ids, ids["finished"][:12]) == 0
    text = capsys.readouterr().out
    best = f"{ids['folder']}/artifacts/{ids['finished']}/artifacts/checkpoints/best.pt"
    parts = [ids["finished"], SPEC, "tau=2", "sha256 77", COMMIT, "flag a-flag: why", best]
    parts += [f"sha256 {SHA256}", "not in this store", "python -m bench run", "60.0"]
    for part in parts:
        assert part in text
    rows = [line.split() for line in text.splitlines() if line.startswith(("checkpoint ", "best"))]
    assert rows == [
        ["checkpoint", "Clean", "AutoAttack", "Worst"],
        ["best", "90.00", "50.00", "50.00"],
    ]
    document = read_document(ids, capsys, ids["finished"])
    assert document["accuracy"]["last"] == {"clean": 0.8}
    assert document["checkpoints"]["best"] == {"address": best, "sha256": SHA256}
    assert Path(document["checkpoints"]["best"]["address"]).exists()
    assert document["cost"] == {"train_seconds": 60.0}


def test_a_spec_is_its_finished_run(
    ids: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert read_document(ids, capsys, SPEC)["id"] == ids["finished"]


def test_a_failed_run_says_why(ids: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert show(ids, ids["failed"]) == 0
    assert "disk full" in capsys.readouterr().out


def test_a_store_on_a_server_has_addresses_of_mlflow(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tracked = Runs(tmp_path, "s3://bucket/x")
    run_id = tracked.run("kd", "FINISHED", {}, **{"sha256.best": SHA256})
    document = read_document({"folder": str(tmp_path)}, capsys, run_id)
    address = document["checkpoints"]["best"]["address"]
    assert address == f"runs:/{run_id}/checkpoints/best.pt"


@pytest.mark.parametrize("run", ["ffff0000", "0" * 16, "f" * 32])
def test_an_unknown_id_is_one_line(ids: dict[str, str], run: str) -> None:
    with pytest.raises(UsageError, match=f"no run '{run}'"):
        show(ids, run)


def test_an_ambiguous_id_is_one_line() -> None:
    ids = [f"abcd{digit}" + 27 * "0" for digit in range(4)]
    runs: list[Any] = [SimpleNamespace(info=SimpleNamespace(run_id=run_id)) for run_id in ids]
    with pytest.raises(UsageError, match=f"'abcd' begins the ids of 4 runs, such as {ids[0]}, "):
        find_run(runs, "abcd")
    assert find_run(runs, "abcd2") is runs[2]


def test_an_accuracy_on_fewer_images_says_so() -> None:
    metrics = {"test/n": 360, "test/aa_n": 100, "test/clean": 0.997, "test/aa": 0.92}
    info = SimpleNamespace(run_id="0123456789")
    record = SimpleNamespace(info=info, data=SimpleNamespace(metrics=metrics))
    assert describe_record(record) == ["99.7", "", "92.0 (100)", "0.0", "01234567"]


def test_an_empty_store_stays_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "none"
    with pytest.raises(BenchError, match="no run is recorded"):
        cli.dispatch(["show", "--store", str(folder)])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/other/mlflow.db")
    with pytest.raises(BenchError, match="no run is recorded"):
        cli.dispatch(["show", "abcd", "--store", str(folder)])
    assert not list(tmp_path.iterdir())
