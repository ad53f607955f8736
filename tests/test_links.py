"""Test the links of a run in MLflow: data set, logged model, aliases, note, figures."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import records
import torch
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.entities import Run as Recorded
from mlflow.exceptions import MlflowException
from mlflow.pytorch import load_model

from bench import datasets
from bench.datasets import loading
from bench.execution import job, plan
from bench.models import checkpoint
from bench.protocol.options import RunOptions
from bench.tracking import links, note
from bench.tracking.store import TrackingStore
from leaderboards.read.records import collect

NASTY = '<script>alert("x")</script>|`*_$\\'
MODEL = "digits@3.digits.resnet8-w4"


@pytest.fixture(autouse=True)
def no_tracking_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a store with one run."""
    folder = tmp_path_factory.mktemp("links")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        records.run_planned(records.plan_student(variant=NASTY), records.make_context(folder))
    return folder


def no_network() -> None:
    """Log nothing that a version could load: only its alias is of interest."""


def runs(client: MlflowClient, role: str = "student") -> list[Recorded]:
    experiment = client.get_experiment_by_name("digits@3")
    assert experiment
    return list(client.search_runs([experiment.experiment_id], f"tags.role = '{role}'"))


def models(client: MlflowClient) -> list[Any]:
    experiment = client.get_experiment_by_name("digits@3")
    assert experiment
    return list(client.search_logged_models([experiment.experiment_id]))


def test_data_and_checkpoint_are_linked_to_run_and_metrics(folder: Path) -> None:
    client = TrackingStore(folder).client
    (run,), (model,) = runs(client), models(client)
    (dataset_input,) = run.inputs.dataset_inputs
    dataset = dataset_input.dataset
    assert (dataset.name, len(dataset.digest)) == ("digits", 32)
    artifacts = folder / "artifacts" / run.info.run_id / "artifacts"
    environment = json.loads((artifacts / "environment.json").read_text())
    assert environment["data"]["sha256"].startswith(dataset.digest)
    assert [output.model_id for output in run.outputs.model_outputs] == [model.model_id]
    assert (model.status, model.source_run_id) == ("READY", run.info.run_id)
    linked = {metric.key: (metric.value, metric.dataset_digest) for metric in model.metrics}
    assert linked["test/aa"] == (0.5, dataset.digest)
    assert not {name for name in linked if not name.startswith("test/")}
    assert run.data.metrics["test/aa"] == 0.5
    assert model.tags["checkpoint"] == f"runs:/{run.info.run_id}/checkpoints/best.pt"


@pytest.mark.parametrize("pickles", ["true", "false"])
def test_the_alias_loads_the_best_checkpoint(
    pickles: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its logits are those of best.pt, bit for bit, also where MLflow may not unpickle."""
    store = TrackingStore(folder)
    assert len(list((folder / "artifacts").rglob("*.pt"))) == 4
    version = store.client.get_model_version_by_alias(MODEL, "best")
    (run,) = runs(store.client)
    assert version.run_id == run.info.run_id
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri)
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", pickles)
    network = load_model(f"models:/{MODEL}@best")
    path = Path(download_artifacts(artifact_uri=version.tags["checkpoint"]))
    net = checkpoint.load(path, "resnet8-w4", datasets.DIGITS, run.data.tags["sha256.best"])
    for count in (1, 2, 9):
        x = torch.rand(count, *datasets.DIGITS.shape)
        with torch.no_grad():
            assert torch.equal(network(x), net(x))


def test_a_network_that_cannot_be_exported_is_not_registered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = records.make_context(tmp_path)
    monkeypatch.setattr("torch.export.export", raising(RuntimeError("no graph")))
    records.run_planned(records.plan_student(), context)
    (run,) = runs(context.store.client)
    assert run.info.status == "FINISHED"
    assert run.data.tags["missing.alias"] == "RuntimeError: no graph"
    assert not context.store.client.search_registered_models()


def test_the_note_has_all_results_and_escapes_text(folder: Path) -> None:
    client = TrackingStore(folder).client
    (run,), (group,) = runs(client), runs(client, "group")
    text = run.data.tags[note.NOTE_TAG]
    assert "| best | 87.5 | 50.0 | 50.0 | 75.0 | 62.5 | 62.5 |" in text
    assert "| SWA | 87.5 | - | 50.0 | 75.0 | 62.5 | 62.5 |" in text
    for part in (
        "8 test images",
        "**pgd-far-above-aa**",
        "Teacher: none",
        "uncommitted",
        run.data.tags["command"],
    ):
        assert part in text
    assert run.info.run_name == f"natural ({NASTY}) resnet8-w4 digits seed 0"
    assert "<script" not in group.data.tags[note.NOTE_TAG]
    assert f"tags.mlflow.parentRunId = '{group.info.run_id}'" in group.data.tags[note.NOTE_TAG]
    children = client.search_runs(
        [group.info.experiment_id], f"tags.mlflow.parentRunId = '{group.info.run_id}'"
    )
    assert [child.info.run_id for child in children] == [run.info.run_id]
    figures = folder / "artifacts" / run.info.run_id / "artifacts" / "figures"
    assert {path.name for path in figures.iterdir()} == {"curves.png", "attacks.png"}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in figures.iterdir())


def test_leaderboards_see_no_search(folder: Path) -> None:
    TrackingStore(folder).get_or_create_experiment("digits@3 tuning")
    assert list(collect(TrackingStore(folder).records)["test/aa"]) == [0.5]


def raising(error: BaseException) -> Callable[..., Any]:
    """Return a function that raises an error, whatever its arguments."""

    def call(*_: Any, **__: Any) -> None:
        raise error

    return call


@pytest.mark.parametrize("call", ["log_outputs", "log_artifacts", "set_registered_model_alias"])
def test_a_run_that_is_killed_and_continues_creates_nothing_twice(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context, planned = records.make_context(tmp_path), records.plan_student()
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, call, raising(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            records.run_planned(planned, context)
    records.run_planned(planned, context)
    client = context.store.client
    (run,), (model,) = runs(client), models(client)
    assert run.info.status == "FINISHED"
    assert not [tag for tag in run.data.tags if tag.startswith("missing.")]
    assert [output.model_id for output in run.outputs.model_outputs] == [model.model_id]
    assert len(run.inputs.dataset_inputs) == 1
    assert [metric.key for metric in model.metrics].count("test/aa") == 1
    assert len(client.search_model_versions(f"name = '{MODEL}'")) == 1
    assert client.get_model_version_by_alias(MODEL, "best").run_id == run.info.run_id


@pytest.mark.parametrize(
    ("owner", "call", "missing"),
    [
        (MlflowClient, "log_inputs", "inputs"),
        (MlflowClient, "create_logged_model", "model"),
        (MlflowClient, "create_model_version", "alias"),
        (note, "run_note", "note"),
        (note, "draw_figures", "figures"),
    ],
)
def test_a_failing_link_fails_no_run(
    owner: Any, call: str, missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = records.make_context(tmp_path)
    monkeypatch.setattr(owner, call, raising(MlflowException("no room")))
    assert "aa 50.0" in records.run_planned(records.plan_student(), context)
    (run,) = runs(context.store.client)
    assert (run.info.status, run.data.metrics["test/aa"]) == ("FINISHED", 0.5)
    tags = {tag: text for tag, text in run.data.tags.items() if tag.startswith("missing.")}
    assert tags == {f"missing.{missing}": "MlflowException: no room"}


def test_the_alias_follows_validation(tmp_path: Path) -> None:
    store, best_seeds = TrackingStore(tmp_path), []
    for seed, val_robust in enumerate([0.4, 0.3, 0.4, 0.5]):
        planned = records.plan_student(seed=seed)
        tags = job.run_tags(planned, {})
        logger = store.start_run(planned.spec, tags)
        model = links.log_checkpoint(logger, planned.spec, tags)
        links.register_model(
            store, logger, model, planned.spec, planned.identity, val_robust, no_network
        )
        version = store.client.get_model_version_by_alias(MODEL, "best")
        best_seeds.append(store.client.get_run(str(version.run_id)).data.params["seed"])
    assert best_seeds == ["0", "0", "0", "3"]


def test_a_teachers_checkpoint_has_an_alias_and_is_an_input_of_students(tmp_path: Path) -> None:
    store = TrackingStore(tmp_path)
    student = records.plan_student("rslad")
    options = RunOptions(method="rslad", student="resnet8-w4", limit_train=128, limit_test=8)
    teacher = plan.plan_runs(options, {})[0]
    assert [teacher.identity] == list(student.spec.teachers.values())
    images = loading.load_data("digits", "", 128, 8)
    tags = job.run_tags(teacher, {})
    teacher_logger = store.start_run(teacher.spec, tags)
    model = links.log_checkpoint(teacher_logger, teacher.spec, tags)
    links.register_model(
        store, teacher_logger, model, teacher.spec, teacher.identity, 0.5, no_network
    )
    name = f"digits@3.digits.{teacher.identity}"
    assert store.client.get_model_version_by_alias(name, "teacher").run_id == teacher_logger.run_id
    logger = store.start_run(student.spec, job.run_tags(student, {}))
    for _ in range(2):
        links.log_inputs(logger, student.spec, images)
    inputs = store.client.get_run(logger.run_id).inputs
    assert [model_input.model_id for model_input in inputs.model_inputs] == [model.model_id]
    assert len(inputs.dataset_inputs) == 1


EXPORT_TO_A_FULL_DISK = """
import resource, sys
from pathlib import Path
from types import SimpleNamespace
from bench import datasets, models
from bench.tracking.links import log_network
net = models.build("resnet8-w4", datasets.DIGITS).eval()
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
try:
    log_network(SimpleNamespace(run_id="0"), net, datasets.DIGITS.shape, Path(sys.argv[1]))
except OSError as error:
    print(error.strerror)
"""


@pytest.mark.slow
def test_a_full_disk_does_not_end_the_process_that_exports(tmp_path: Path) -> None:
    """Torch's own writer of files aborts it. A limit on the size of files stands for the disk."""
    words = [sys.executable, "-c", EXPORT_TO_A_FULL_DISK, tmp_path / "model"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "File too large\n"), done.stderr
