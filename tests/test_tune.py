"""The verb `tune` as a user runs it: searched, continued, joined, killed, without a test set, on PostgreSQL."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import optuna
import pytest
import server
import sqlalchemy
from mlflow import MlflowClient
from mlflow.entities import Run
from optuna.study import Study
from optuna.trial import TrialState

from bench import cli
from bench.datasets import fetching, loading
from bench.tuning import storage, study, trial

NAME = "digits/digits/resnet8-w4/pgd_at"
FEW = "--suite digits --method pgd_at --student resnet8-w4 --limit-train 128 --limit-test 8 --epochs 4 --min-clean 0"
ROOT = os.environ.get("BENCH_DATA_ROOT", "data")
ROUNDS = int(
    os.environ.get("BENCH_ROUNDS", "1")
)  # of starts at once; before a release 20, which are 20 kills, too
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning"),
]


def start(words: str, folder: Path, **variables: str) -> subprocess.Popen[str]:
    """The program in a process and a folder of its own."""
    clean = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    command = [sys.executable, "-m", "bench", *words.split()]
    settings = clean | {"OMP_NUM_THREADS": "1"} | variables
    return subprocess.Popen(
        command, cwd=folder, env=settings, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def bench(words: str, folder: Path, **variables: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error."""
    running = start(words, folder, **variables)
    out, said = running.communicate()
    return running.returncode, out, said


def found(folder: Path, place: str = "", name: str = NAME) -> Study:
    return optuna.load_study(
        study_name=name, storage=storage.connect(place or str(folder / "runs/tuning.journal"))
    )


def runs(uri: str, role: str) -> list[Run]:
    client = MlflowClient(uri)
    ids = [e.experiment_id for e in client.search_experiments()]
    return list(client.search_runs(ids, f"tags.role = '{role}'", order_by=["start_time"]))


def counted(tuned: Study, budget: int) -> None:
    """Asserts that each trial has one result, and that there are as many as the budget says."""
    tries = study.attempts(tuned)
    assert len(tries) == budget
    for attempts in tries.values():
        assert (
            sum(attempt.state in (TrialState.COMPLETE, TrialState.PRUNED) for attempt in attempts)
            == 1
        )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """After a whole search with its final runs."""
    folder = tmp_path_factory.mktemp("tuned")
    code, out, said = bench(f"tune {FEW} --trials 5 --workers 2 --seeds 0", folder)
    assert code == 0, said
    assert re.fullmatch(r"runs/tuned/digits-digits-resnet8-w4-pgd_at-\w{4}.toml", out.strip())
    assert len(re.findall(rf"^{NAME}: trial \d of 5: ", said, flags=re.MULTILINE)) == 5
    assert re.search(r"\[2/2\] .* seed 0.*: clean", said)
    return folder


def test_a_search_is_recorded_and_its_result_is_a_file(folder: Path) -> None:
    tuned, uri = found(folder), f"sqlite:///{folder / 'runs/mlflow.db'}"
    counted(tuned, 5)
    assert tuned.trials[0].params == {"lr": 0.2, "weight_decay": 5e-4}
    (whole,), trials = runs(uri, "study"), runs(uri, "trial")
    assert sorted(run.data.tags["trial"] for run in trials) == list("01234")
    assert {run.data.tags["mlflow.parentRunId"] for run in trials} == {whole.info.run_id}
    assert {run.data.tags["state"] for run in trials} <= {"complete", "pruned"}
    client = MlflowClient(uri)
    for run in trials:
        assert {"lr", "weight_decay"} <= set(run.data.params)
        epochs = len(client.get_metric_history(run.info.run_id, "val/robust"))
        assert epochs == {"pruned": 1, "complete": 1 + 4}[run.data.tags["state"]]
    files = {
        file.path
        for part in ("figures", "tuned")
        for file in client.list_artifacts(whole.info.run_id, part)
    }
    assert files >= {"figures/history.png", "figures/slice.png", "figures/parallel.png"}
    (path,) = (folder / "runs/tuned").iterdir()
    file = tomllib.loads(path.read_text())
    best = tuned.best_trial
    assert file["training"] == best.params
    assert (file["method"], file["suite"], file["student"]) == ("pgd_at", "digits@3", "resnet8-w4")
    assert file["provenance"]["val_robust"] == best.value >= tuned.trials[0].value
    assert (file["provenance"]["trials"], file["provenance"]["trial"]) == (5, best.number)


def test_default_and_tuned_rows_stand_side_by_side(folder: Path) -> None:
    code, _, said = bench("leaderboard", folder)
    assert code == 0, said
    text = (folder / "leaderboard/leaderboard.md").read_text()
    assert re.search(
        r"^\| 1 \| pgd_at \((?!tuned)[^|]*limit_test=8[^|]*\) \| none \| 1 \|",
        text,
        flags=re.MULTILINE,
    )
    assert re.search(
        r"^\| 1 \| pgd_at \(tuned, 5 trials, \w{4}; [^|]*limit_test=8[^|]*\) \| none \| 1 \|",
        text,
        flags=re.MULTILINE,
    )
    assert "tuning" not in text


def test_the_same_command_does_nothing_and_more_trials_go_on(folder: Path) -> None:
    code, _, said = bench(f"tune {FEW} --trials 5 --workers 2 --seeds 0", folder)
    assert (
        code,
        "0 to do, 2 already recorded" in said,
        "trial" in said.partition("complete")[0],
    ) == (0, True, False)
    code, _, said = bench(f"tune {FEW} --trials 6 --search-only", folder)
    assert code == 0, said
    assert re.findall(r": trial (\d) of 6", said) == ["6"]
    counted(found(folder), 6)


def test_another_search_space_is_refused_and_needs_another_storage(folder: Path) -> None:
    words = f"tune {FEW} --trials 1 --range lr=0.1:0.3 --search-only"
    code, _, said = bench(words, folder)
    assert (code, len(said.splitlines())) == (1, 1), said
    assert "was made with another search space: lr" in said
    code, _, said = bench(f"{words} --storage runs/other.journal --pruner none", folder)
    assert code == 0, said
    (first, second) = runs(f"sqlite:///{folder / 'runs/mlflow.db'}", "study")
    assert (first.info.status, second.data.tags["pruner"]) == ("FINISHED", "none")


def test_a_configuration_is_used(folder: Path) -> None:
    file = next((folder / "runs/tuned").iterdir()).relative_to(folder)
    code, _, said = bench(
        f"run --config {file} --limit-train 128 --limit-test 8 --seeds 0,7 --dry-run", folder
    )
    assert code == 0, said
    assert re.search(r"resnet8-w4 +pgd_at tuned, \d trials, \w{4} +7", said)
    for words, wrong in (
        (f"run --config {file} --method ard", "is for pgd_at"),
        (f"run --config {file} --suite cifar-mini", "is for pgd_at in digits@3"),
        (f"run --config {file} --official", "one of them"),
        ("run --config none.toml", "No such file"),
        ("run", "missing: --method, or --config"),
    ):
        code, _, said = bench(words, folder)
        assert (code, len(said.splitlines())) == (2, 1), said
        assert wrong in said


@pytest.mark.parametrize(
    ("change", "said"),
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
        ("training = {awp = 1.0}", "training.awp: choose from"),
    ],
)
def test_a_bad_configuration_is_one_line(
    change: str,
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    usual = {
        "method": "'ard'", "suite": "'digits@3'", "dataset": "'digits'", "student": "'resnet8-w4'",
        "teacher": "'robust'", "hyper": "{}", "training": "{}",
    }  # fmt: skip
    name, _, value = change.partition(" = ")
    lines = [f"{key} = {text}" for key, text in (usual | {name: value} if name else {}).items()]
    Path("c.toml").write_text("\n".join(lines if name != "method" else [change]) or "[[")
    with pytest.raises(SystemExit) as stop:
        cli.main(["run", "--config", "c.toml", "--dry-run"])
    error = capsys.readouterr().err
    assert (stop.value.code, len(error.splitlines())) == (2, 1), error
    assert said in error


@pytest.fixture
def postgresql() -> Iterator[str]:
    if not server.installed():
        pytest.skip("needs PostgreSQL's programs")
    with server.postgresql() as address:
        yield address


def another(address: str) -> str:
    """A second database of the same server: Optuna and MLflow keep the version of their tables under one name."""
    with sqlalchemy.create_engine(address, isolation_level="AUTOCOMMIT").connect() as connection:
        connection.execute(sqlalchemy.text("CREATE DATABASE mlflow"))
    return address.replace("/postgres", "/mlflow")


@pytest.mark.parametrize("turn", range(ROUNDS))
@pytest.mark.parametrize("kind", ["files", "server"])
def test_four_commands_at_once_on_a_fresh_store(
    kind: str, turn: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    place, record = "runs/tuning.journal", f"sqlite:///{tmp_path / 'runs/mlflow.db'}"
    if kind == "server":
        place = request.getfixturevalue("postgresql")
        record = another(place)
    words = f"tune {FEW} --trials 6 --search-only --storage {place}".replace(
        "--epochs 4", "--epochs 1"
    )
    running = [start(words, tmp_path, MLFLOW_TRACKING_URI=record) for _ in range(4)]
    said = [each.communicate()[1] for each in running]
    assert [each.returncode for each in running] == [0] * 4, said
    counted(found(tmp_path, place if kind == "server" else ""), 6)
    assert len(runs(record, "study")) == 1


def test_two_whole_commands_at_once_test_the_result_once(tmp_path: Path) -> None:
    words = "tune --suite digits --method rslad --student resnet8-w4 --limit-train 128 --limit-test 8 --epochs 1"
    running = [start(f"{words} --trials 2 --min-clean 0 --seeds 0", tmp_path) for _ in range(2)]
    said = [each.communicate()[1] for each in running]
    assert [each.returncode for each in running] == [0, 0], said
    counted(found(tmp_path, name="digits/digits/resnet8-w4/rslad"), 2)
    students = runs(f"sqlite:///{tmp_path / 'runs/mlflow.db'}", "student")
    assert sorted(bool(run.data.tags["sets"]) for run in students) == [False, True]
    assert len(runs(f"sqlite:///{tmp_path / 'runs/mlflow.db'}", "teacher")) == 1


def test_a_teacher_is_for_methods_that_have_one(tmp_path: Path) -> None:
    words = "--method kd,pgd_at --student resnet8-w4 --limit-train 128 --limit-test 8 --epochs 1 --min-clean 0 --trials 1"
    code, out, said = bench(f"tune {words} --teacher natural --seeds 0", tmp_path)
    assert code == 0, said
    assert len(out.split()) == 2
    students = runs(f"sqlite:///{tmp_path / 'runs/mlflow.db'}", "student")
    assert sorted((run.data.tags["method"], run.data.tags["teacher"]) for run in students) == [
        ("kd", "resnet8-w16-natural"), ("kd", "resnet8-w16-natural"), ("pgd_at", "none"), ("pgd_at", "none"),
    ]  # fmt: skip


def workers(parent: int) -> list[int]:
    """The processes of a running program that carry out trials."""
    words = ["pgrep", "-P", str(parent), "-f", "spawn_main"]
    return [
        int(pid) for pid in subprocess.run(words, capture_output=True, text=True).stdout.split()
    ]


def begun(folder: Path) -> dict[int, int]:
    """The processes that have a trial, dead ones that no other has noticed too; each with the trial's number."""
    if not (folder / "runs/tuning.journal").exists():
        return {}
    with suppress(KeyError):  # there is no study yet
        running = found(folder).get_trials(deepcopy=False, states=[TrialState.RUNNING])
        return {
            trial.user_attrs["worker"][1]: trial.number
            for trial in running
            if "worker" in trial.user_attrs
        }
    return {}


def test_killed_workers_lose_nothing(tmp_path: Path) -> None:
    kills = max(4, ROUNDS)
    running = start(f"tune {FEW} --trials {4 * kills} --workers 2 --search-only", tmp_path)
    dice, killed = random.Random(0), 0
    while running.poll() is None and killed < kills:
        time.sleep(dice.uniform(0, 2))
        at_work, busy = workers(running.pid), begun(tmp_path)
        if len(at_work) < 2 or not busy.keys() & {*at_work}:
            continue
        for pid in (
            at_work if not killed else [dice.choice(at_work)]
        ):  # both at once, then one by one
            os.kill(pid, signal.SIGKILL)
            killed += 1
            print(
                f"{time.strftime('%X')} kill {killed}: process {pid}, trial {busy.get(pid, 'not begun')}"
            )
    said = running.communicate()[1]
    assert running.returncode == 0, said
    assert said.count("a worker died (-9) and is replaced") == killed == kills
    counted(found(tmp_path), 4 * kills)
    assert len(runs(f"sqlite:///{tmp_path / 'runs/mlflow.db'}", "trial")) == 4 * kills
    assert not list((tmp_path / "runs/work/tuning").glob("*/trial-*"))
    print("\n".join(f"trial {place}: {[each.state.name for each in tries]}"
                    for place, tries in enumerate(study.attempts(found(tmp_path)).values())))  # fmt: skip


def test_an_interrupted_search_goes_on_where_it_was(tmp_path: Path) -> None:
    words = f"tune {FEW} --trials 2 --pruner none --search-only".replace(
        "--epochs 4", "--epochs 12"
    )
    running = start(words, tmp_path)
    while running.poll() is None and not list(
        tmp_path.glob("runs/work/tuning/*/trial-0/12/state.pt")
    ):
        time.sleep(0.02)
    running.terminate()
    said = running.communicate()[1]
    assert (running.returncode, "the same command continues" in said, "Traceback" in said) == (
        130,
        True,
        False,
    ), said
    code, _, said = bench(words, tmp_path)
    assert code == 0, said
    counted(found(tmp_path), 2)
    assert [storage.history(each) for each in found(tmp_path).trials] == [[], [0], []]
    (tmp_path / "other").mkdir()
    assert bench(words, tmp_path / "other")[0] == 0
    assert [each.value for each in found(tmp_path).trials[1:]] == [
        each.value for each in found(tmp_path / "other").trials
    ]


@pytest.mark.skipif(
    bool(fetching.is_missing("cifar10", ROOT)), reason="needs the real CIFAR-10 under data/"
)
def test_the_test_set_is_not_read(tmp_path: Path) -> None:
    cifar = tmp_path / "data" / "cifar-10-batches-py"
    cifar.mkdir(parents=True)
    for file in (Path(ROOT) / "cifar-10-batches-py").resolve().iterdir():
        if file.name != "test_batch":
            (cifar / file.name).symlink_to(file)
    words = "--suite cifar-mini --limit-train 128 --epochs 1 --method pgd_at --min-clean 0 --trials 2 --search-only"
    code, _, said = bench(f"tune {words}", tmp_path)
    assert code == 0, said
    counted(found(tmp_path, name="cifar-mini/cifar10/resnet8-w16-s2/pgd_at"), 2)
    code, _, said = bench(f"run {words.partition(' --min')[0]}", tmp_path)
    assert (code, "test_batch is missing" in said) == (1, True)


def test_without_the_test_set_the_rest_is_the_same() -> None:
    whole, part = loading.load_data("digits", ""), loading.load_data("digits", "", test=False)
    assert (len(part.test), len(whole.test)) == (0, 360)
    assert whole.train.x.equal(part.train.x)
    assert whole.val.x.equal(part.val.x)


def test_the_pareto_front_is_unpruned_and_reports_nothing(tmp_path: Path) -> None:
    code, out, said = bench(
        f"tune {FEW} --trials 3 --objectives clean,robust --sampler nsga2", tmp_path
    )
    assert code == 0, said
    tuned = found(tmp_path, name=f"{NAME}/pareto")
    assert {(each.state, len(each.intermediate_values)) for each in tuned.trials} == {
        (TrialState.COMPLETE, 0)
    }
    assert len(out.split()) == len(tuned.best_trials)
    (whole,) = runs(f"sqlite:///{tmp_path / 'runs/mlflow.db'}", "study")
    client = MlflowClient(f"sqlite:///{tmp_path / 'runs/mlflow.db'}")
    assert [file.path for file in client.list_artifacts(whole.info.run_id, "figures")] == [
        "figures/pareto.png"
    ]


def test_no_feasible_trial_and_one_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    words = f"tune {FEW} --trials 2 --search-only".replace("--min-clean 0", "--min-clean 1")
    assert cli.dispatch(words.split()) == 1
    assert "no trial has a clean accuracy of 100.0 %" in capsys.readouterr().err

    def fail(*_: object) -> None:
        raise RuntimeError("out of\nluck")

    monkeypatch.setattr(trial, "train", fail)
    assert cli.dispatch(f"tune {FEW} --trials 2 --search-only --storage other".split()) == 1
    said = capsys.readouterr().err
    assert said.count("failed: out of luck") == 2
    assert "no trial was completed: out of luck" in said
    failed = [
        run for run in runs("sqlite:///runs/mlflow.db", "trial") if run.info.status == "FAILED"
    ]
    assert [run.data.tags["status_note"] for run in failed] == ["out of luck"] * 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--range gamma=1:2", "unknown parameter 'gamma'"),
        ("--trials 0", "--trials 0 --workers 1: at least 1"),
        ("--force", "a search is not repeated"),
        ("--search-seed 0 --seeds 0,1", "which must be fresh"),
        ("--search-seed -1", "not negative"),
        ("--search-seed 4294967296", "--search-seed 4294967296: not negative and below 2^32"),
        ("--range alpha=-1:0", "--range: rslad: alpha = -1.0: not negative"),
        ("--min-clean 2", "between 0 and 1"),
        ("--sampler grid", "--sampler"),
        ("--storage postgresql://me:secret@127.0.0.1:1/none --min-clean 0", "cannot be used"),
    ],
)
def test_bad_input_is_one_line(
    words: str,
    said: str,
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
    assert said in error
    assert "Traceback" not in error
    assert "secret" not in error


def test_a_dry_run_shows_space_and_cost(tmp_path: Path) -> None:
    code, _, said = bench(
        "tune --method iad,trades --trials 50 --student resnet8-w4 --dry-run", tmp_path
    )
    assert code == 0, said
    assert re.search(r"tau +1 +1 to 30, logarithmic", said)
    assert re.search(r"lr +0.2 +0.05 to 0.8, logarithmic", said)
    assert re.search(
        r"50 trials of 9 and 36 epochs for each of 2 searches with tpe: at most about", said
    )
    assert not list((tmp_path / "runs").glob("tuning*"))


def test_two_machines_and_one_postgresql_server(postgresql: str, tmp_path: Path) -> None:
    for name in ("a", "b"):  # two machines: their stores are apart
        (tmp_path / name).mkdir()
    record = another(postgresql)
    words = f"tune {FEW} --trials 4 --workers 2 --search-only --storage {postgresql}"
    running = [start(words, tmp_path / name, MLFLOW_TRACKING_URI=record) for name in ("a", "b")]
    said = [each.communicate()[1] for each in running]
    assert [each.returncode for each in running] == [0, 0], said
    counted(found(tmp_path, postgresql), 4)
    assert sorted(run.data.tags["trial"] for run in runs(record, "trial")) == list("0123")
    assert len(runs(record, "study")) == 1
