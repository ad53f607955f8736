"""The command `tune` as users run it: searched, continued, tested, refused."""

from __future__ import annotations

import json
import os
import re
import tomllib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow import MlflowClient
from optuna.trial import TrialState
from program import bench
from tune_program import (
    FEW,
    NAME,
    SMALL,
    assert_budget,
    find_runs,
    load_study,
    mlflow_uri,
)

from bench import cli
from bench.datasets import loading
from bench.datasets.files import fetching
from bench.execution.job import REPEAT_MARK, find_untuned
from bench.execution.plan import plan_runs, work_folder
from bench.protocol.options import RunOptions
from bench.tracking.store import COPY_OF
from bench.training.trainer import STATE
from bench.tuning import search, trial
from leaderboards.schema.record import build_record

ROOT = os.environ.get("BENCH_DATA_ROOT", "data")
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder after a complete search with its final runs."""
    folder = tmp_path_factory.mktemp("tuned")
    code, out, err = bench(f"tune {FEW} --trials 5 --workers 2 --seeds 0", folder)
    assert code == 0, err
    assert re.fullmatch(r"runs/tuned/digits-digits-resnet8-w4-pgd_at-\w{4}.toml", out.strip())
    assert len(re.findall(rf"^{NAME}: trial \d of 5: ", err, flags=re.MULTILINE)) == 5
    # Where the defaults won, which differs from machine to machine, the second run is a copy.
    assert re.search(r"\[2/2\] .* seed 0.*: (clean|a copy of run)", err)
    return folder


@pytest.mark.slow
def test_search_is_recorded_and_its_result_is_a_file(folder: Path) -> None:
    study, uri = load_study(folder), mlflow_uri(folder)
    assert_budget(study, 5)
    assert study.trials[0].params == {"lr": 0.2, "weight_decay": 5e-4}
    (parent,), trials = find_runs(uri, "study"), find_runs(uri, "trial")
    assert sorted(run.data.tags["trial"] for run in trials) == list("01234")
    assert {run.data.tags["mlflow.parentRunId"] for run in trials} == {parent.info.run_id}
    assert {run.data.tags["state"] for run in trials} <= {"complete", "pruned"}
    client = MlflowClient(uri)
    for run in trials:
        assert {"lr", "weight_decay"} <= set(run.data.params)
        epochs = len(client.get_metric_history(run.info.run_id, "val/robust"))
        assert epochs == {"pruned": 1, "complete": 1 + 4}[run.data.tags["state"]]
    figures = {file.path for file in client.list_artifacts(parent.info.run_id, "figures")}
    assert figures >= {"figures/history.png", "figures/slice.png", "figures/parallel.png"}
    assert len(client.list_artifacts(parent.info.run_id, "tuned")) == 1
    (path,) = (folder / "runs/tuned").iterdir()
    config = tomllib.loads(path.read_text())
    provenance, best = config["provenance"], study.best_trial
    assert config["training"] == best.params
    names = (config["method"], config["suite"], config["student"])
    assert names == ("pgd_at", "digits@3", "resnet8-w4")
    assert provenance["val_robust"] == best.value
    assert best.values >= study.trials[0].values
    assert (provenance["trials"], provenance["trial"]) == (5, best.number)


@pytest.mark.slow
def test_default_and_tuned_rows_are_side_by_side(folder: Path) -> None:
    code, _, err = bench("leaderboard", folder)
    assert code == 0, err
    text = (folder / "leaderboard/leaderboard.md").read_text()
    for start in (r"(?!tuned)[^|]*", r"tuned, 5 trials, \w{4}; [^|]*"):
        row = rf"^\| 1 to 2 \| pgd_at \({start}limit_test=8[^|]*\) \| none \| 1 \|"
        assert re.search(row, text, flags=re.MULTILINE)
    assert "tuning" not in text


@pytest.mark.slow
def test_same_command_does_nothing_and_more_trials_go_on(folder: Path) -> None:
    code, _, err = bench(f"tune {FEW} --trials 5 --workers 2 --seeds 0", folder)
    assert (code, "0 to do, 2 already recorded" in err) == (0, True)
    assert ": trial " not in err.partition("complete")[0]
    code, _, err = bench(f"tune {FEW} --trials 6 --search-only", folder)
    assert code == 0, err
    assert re.findall(r": trial (\d) of 6", err) == ["6"]
    assert_budget(load_study(folder), 6)


@pytest.mark.slow
def test_other_search_space_needs_another_storage(folder: Path) -> None:
    words = f"tune {FEW} --trials 1 --range lr=0.1:0.3 --search-only"
    code, _, err = bench(words, folder)
    warning, *errors = err.splitlines()
    assert (code, len(errors), warning[:9]) == (1, 1, "warning: "), err
    assert "was made with another search space: lr" in err
    code, _, err = bench(f"{words} --storage sqlite:///runs/other.db --pruner none", folder)
    assert code == 0, err
    (first, second) = find_runs(mlflow_uri(folder), "study")
    assert (first.info.status, second.data.tags["pruner"]) == ("FINISHED", "none")


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_tuned_run_with_the_defaults_is_a_copy(workers: int, tmp_path: Path) -> None:
    words = f"tune {FEW} --trials 1 --seeds 0 --workers {workers}"
    code, _, err = bench(words, tmp_path)
    assert code == 0, err
    default, copy = sorted(
        find_runs(mlflow_uri(tmp_path), "student"), key=lambda run: int(run.data.params["tuned"])
    )
    text = f"a copy of run {default.info.run_id[:8]}, which has the same values"
    assert text in err
    assert (default.data.params["tuned"], copy.data.params["tuned"]) == ("0", "1")
    assert (default.data.tags["status_note"], copy.data.tags["status_note"]) == ("", text)
    assert copy.data.metrics == default.data.metrics
    assert copy.data.metrics["cost/train_seconds"] > 0
    own = {"spec_id", "variant", "sets", "status_note", "command", "mlflow.note.content"}
    own |= {"mlflow.parentRunId", "mlflow.runName", "sha256.record", COPY_OF}
    assert COPY_OF not in default.data.tags
    assert copy.data.tags[COPY_OF] == default.info.run_id
    for name in default.data.tags.keys() | copy.data.tags.keys():
        same = default.data.tags.get(name) == copy.data.tags.get(name)
        assert same or name in own, name
    client = MlflowClient(mlflow_uri(tmp_path))
    for name in ("val/robust", "train/loss"):
        curves = []
        for run in (default, copy):
            history = client.get_metric_history(run.info.run_id, name)
            curves.append([(point.step, point.value) for point in history])
        assert curves[0] == curves[1]
        assert len(curves[0]) == 36
    folders = [Path(run.info.artifact_uri.removeprefix("file://")) for run in (default, copy)]
    for file in ("checkpoints/best.pt", "verdicts/verdicts_best_aa.npz", "environment.json"):
        assert (folders[0] / file).read_bytes() == (folders[1] / file).read_bytes()
    assert json.loads((folders[1] / "spec.json").read_text())["tuned"] == 1
    assert not [path for path in (tmp_path / "runs/work").iterdir() if len(path.name) == 16]
    code, _, err = bench(words, tmp_path)
    assert (code, "0 to do, 2 already recorded" in err) == (0, True)


def test_only_the_same_training_is_copied(tmp_path: Path) -> None:
    (run,) = plan_runs(RunOptions(method="pgd_at", student="resnet8-w4", seeds="0", tuned=20), {})
    spec = replace(run.spec, tuned=0)
    context: Any = SimpleNamespace(root=tmp_path, store=SimpleNamespace(records=tmp_path))
    assert not find_untuned(run, context, {"robust": "ab"})
    record = build_record(
        spec_id=spec.id,
        run_id=32 * "0",
        start_time=0,
        spec=json.loads(spec.json()),
        tags={"teacher_sha256": '{"robust": "ab"}'},
        checksums={},
        metrics={},
        curves={},
        environment={},
    )
    (tmp_path / spec.record_name).write_text(record.to_json())
    assert find_untuned(run, context, {"robust": "ab"}) == record
    assert not find_untuned(run, context, {"robust": "cd"})
    assert not find_untuned(run, context, {})
    untuned = replace(run, spec=spec)
    assert not find_untuned(untuned, context, {"robust": "ab"})
    for name in (REPEAT_MARK, STATE):
        file = work_folder(tmp_path, run.spec) / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
        assert not find_untuned(run, context, {"robust": "ab"})
        file.unlink()


@pytest.mark.slow
def test_configuration_is_used(folder: Path) -> None:
    file = next((folder / "runs/tuned").iterdir()).relative_to(folder)
    limits = "--limit-train 128 --limit-test 8 --seeds 0,7 --dry-run"
    code, _, err = bench(f"run --config {file} {limits}", folder)
    assert code == 0, err
    assert re.search(r"pgd_at tuned, \d trials, \w{4} +digits +resnet8-w4 +7", err)
    for words, message in (
        (f"run --config {file} --method ard", "is for pgd_at"),
        (f"run --config {file} --suite cifar-mini", "is for pgd_at in digits@3"),
        (f"run --config {file} --official", "one of them"),
        ("run --config none.toml", "No such file"),
        ("run", "missing: --method, or --config"),
    ):
        code, _, err = bench(words, folder)
        assert (code, len(err.splitlines())) == (2, 1), err
        assert message in err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("", "is no TOML file"),
        ("method = 'ard'", "missing 6 required"),
        ("extra = 1", "unexpected keyword argument 'extra'"),
        ("suite = 'digits@2'", "found under digits@2, and this is digits@3"),
        ("hyper = {tau = 'warm'}", "tau = 'warm' should be a float"),
        ("hyper = {tua = 2.0}", "did you mean 'tau'"),
        ("hyper = {tau = -2.0}", "tau = -2.0"),
        ("training = {lr = -1.0}", "training.lr = -1.0"),
        ("training = {lr = 0.0}", "training.lr = 0.0: more than 0 and at most 100"),
        ("training = {lr = 1e308}", "training.lr = 1e+308: more than 0 and at most 100"),
        ("training = {lr = nan}", "training.lr = nan"),
        ("training = {lr = true}", "training.lr = True"),
        ("training = {momentum = 5}", "training.momentum = 5: not negative and at most 1"),
        ("training = {weight_decay = -1e-4}", "training.weight_decay = -0.0001: not negative"),
        ("provenance = {trials = 0}", "provenance.trials = 0: a whole number, 1 or more"),
        ("provenance = {trials = true}", "provenance.trials = True"),
        ("student = ''", "student = '' is no name"),
        ("dataset = ''", "dataset = '' is no name"),
        ("teacher = 1", "teacher = 1 is no name"),
        ("student = 'resnet8-w4,os:abort'", "its student is made by the function os:abort"),
        ("teacher = 'os:abort'", "its teacher is made by the function os:abort: name it if"),
        ("training = {awp = 1.0}", "training.awp: choose from"),
    ],
)
def test_bad_configuration_is_an_error_of_one_line(
    change: str,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    entries = {"method": "'ard'", "suite": "'digits@3'", "dataset": "'digits'"}
    entries |= {"student": "'resnet8-w4'", "teacher": "'robust'", "hyper": "{}", "training": "{}"}
    name, _, value = change.partition(" = ")
    lines = [f"{key} = {text}" for key, text in (entries | {name: value}).items()]
    text = "\n".join(lines)
    if name == "method":
        text = change
    if not change:
        text = "[["
    Path("c.toml").write_text(text)
    with pytest.raises(SystemExit) as stop:
        cli.main(["run", "--config", "c.toml", "--dry-run"])
    error = capsys.readouterr().err
    assert (stop.value.code, len(error.splitlines())) == (2, 1), error
    assert message in error


@pytest.mark.slow
def test_teacher_is_for_methods_that_have_one(tmp_path: Path) -> None:
    words = f"{SMALL} --method kd,pgd_at --epochs 1 --min-clean 0 --trials 1"
    code, out, err = bench(f"tune {words} --teacher natural --seeds 0", tmp_path)
    assert code == 0, err
    assert len(out.split()) == 2
    tags = [run.data.tags for run in find_runs(mlflow_uri(tmp_path), "student")]
    pairs = sorted((run_tags["method"], run_tags["teacher"]) for run_tags in tags)
    assert pairs == [("kd", "resnet8-w16-natural")] * 2 + [("pgd_at", "none")] * 2


@pytest.mark.slow
@pytest.mark.skipif(
    bool(fetching.is_missing("cifar10", ROOT)), reason="needs the real CIFAR-10 under data/"
)
def test_search_does_not_read_the_test_set(tmp_path: Path) -> None:
    cifar = tmp_path / "data" / "cifar-10-batches-py"
    cifar.mkdir(parents=True)
    for file in (Path(ROOT) / "cifar-10-batches-py").resolve().iterdir():
        if file.name != "test_batch":
            (cifar / file.name).symlink_to(file)
    words = "--suite cifar-mini --limit-train 128 --epochs 1 --method pgd_at"
    code, _, err = bench(f"tune {words} --min-clean 0 --trials 2 --search-only", tmp_path)
    assert code == 0, err
    assert_budget(load_study(tmp_path, name="cifar-mini/cifar10/resnet8-w16-s2/pgd_at"), 2)
    code, _, err = bench(f"run {words}", tmp_path)
    assert (code, "test_batch is missing" in err) == (1, True)


def test_data_without_the_test_set_is_otherwise_the_same() -> None:
    full, part = loading.load_data("digits", ""), loading.load_data("digits", "", test=False)
    assert (len(part.test), len(full.test)) == (0, 360)
    assert full.train.x.equal(part.train.x)
    assert full.val.x.equal(part.val.x)


@pytest.mark.slow
def test_pareto_front_is_unpruned_and_reports_nothing(tmp_path: Path) -> None:
    words = f"tune {FEW} --trials 3 --objectives clean,robust --sampler nsga2"
    code, out, err = bench(words, tmp_path)
    assert code == 0, err
    study = load_study(tmp_path, name=f"{NAME}/pareto")
    ends = {(trial.state, len(trial.intermediate_values)) for trial in study.trials}
    assert ends == {(TrialState.COMPLETE, 0)}
    assert len(out.split()) == len(study.best_trials)
    (parent,) = find_runs(mlflow_uri(tmp_path), "study")
    figures = MlflowClient(mlflow_uri(tmp_path)).list_artifacts(parent.info.run_id, "figures")
    assert [file.path for file in figures] == ["figures/pareto.png"]


def test_infeasible_and_failed_trials_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    words = f"tune {FEW} --trials 2 --search-only"
    assert cli.dispatch(words.replace("--min-clean 0", "--min-clean 1").split()) == 1
    assert "no trial has a clean accuracy of 100.0 %" in capsys.readouterr().err

    def fail(*_: object) -> None:
        raise RuntimeError("out of\nluck")

    monkeypatch.setattr(trial.TrialRunner, "train_rungs", fail)
    assert cli.dispatch(f"{words} --storage sqlite:///other.db".split()) == 1
    err = capsys.readouterr().err
    assert err.count("failed: out of luck") == 2
    assert "no trial was completed: out of luck" in err
    runs = find_runs("sqlite:///runs/mlflow.db", "trial")
    failed = [run for run in runs if run.info.status == "FAILED"]
    assert [run.data.tags["status_note"] for run in failed] == ["out of luck"] * 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--range gamma=1:2", "unknown parameter 'gamma'"),
        ("--trials 0", "--trials 0: at least 1"),
        ("--force", "a search is not repeated"),
        ("--search-seed 0 --seeds 0,1", "which must be fresh"),
        ("--search-seed -1", "not negative"),
        ("--search-seed 4294967296", "--search-seed 4294967296: not negative and below 2^32"),
        ("--range alpha=-1:0", "--range: rslad: alpha = -1.0: not negative"),
        ("--min-clean 2", "between 0 and 1"),
        ("--sampler grid", "--sampler"),
        ("--device cuda:99", "there is no such device here"),
        ("--search device --search-precision tf32 --device cpu", "this device (cpu) has none"),
        ("--storage runs/tuning.journal", "no longer used; use sqlite:///runs/tuning.db"),
        ("--storage postgresql://me:secret@127.0.0.1:1/none --min-clean 0", "cannot be used"),
    ],
)
def test_bad_option_is_an_error_of_one_line(
    words: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(SystemExit) as stop:
        cli.main(f"tune --method rslad --student resnet8-w4 --limit-train 128 {words}".split())
    error = capsys.readouterr().err
    assert stop.value.code in (1, 2), error
    assert message in error
    assert "Traceback" not in error
    assert "secret" not in error
    assert not list(tmp_path.iterdir())


def test_dry_run_shows_space_and_cost(tmp_path: Path) -> None:
    words = "tune --method iad,trades --trials 50 --student resnet8-w4 --dry-run"
    code, _, err = bench(words, tmp_path)
    assert code == 0, err
    assert re.search(r"tau +1 +1 to 30, logarithmic", err)
    assert re.search(r"lr +0.2 +0.05 to 0.8, logarithmic", err)
    cost = r"50 trials of 9 and 36 epochs for each of 2 searches with tpe: at most about"
    assert re.search(cost, err)
    assert not list((tmp_path / "runs").glob("tuning*"))
    assert "warning" not in err


@pytest.mark.parametrize(
    ("flags", "warns"),
    [("--trials 14", True), ("--trials 15", False), ("--trials 3 --sampler random", False)],
)
def test_a_search_that_is_mostly_random_is_warned_of(
    flags: str,
    warns: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(search, "show_plan", lambda *plan: 0)
    assert cli.dispatch(f"tune --method trades {flags} --dry-run".split()) == 0
    expected = "warning: --trials 14: the first 10 trials or more are drawn at random, so fewer "
    expected += "than 15 are a random search"
    assert capsys.readouterr().err.splitlines() == ([expected] if warns else [])


def test_an_old_journal_is_not_started_over(tmp_path: Path) -> None:
    """A search of 0.1.0 in the default place: the line says how to go on with it."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/tuning.journal").touch()
    code, _, err = bench(f"tune {FEW} --trials 1 --search-only", tmp_path)
    assert (code, len(err.splitlines())) == (2, 1), err
    assert "copy its studies to sqlite:///runs/tuning.db as CHANGELOG.md says" in err
