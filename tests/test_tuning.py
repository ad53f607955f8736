"""Search spaces, samplers, storages and counting, on functions that take no time; then the real PostgreSQL."""

from __future__ import annotations

import dataclasses
import datetime
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import optuna
import pytest
import server
from mlflow import MlflowClient
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.study import Study
from optuna.trial import TrialState

import methods
from bench.protocol import suites
from bench.system.errors import BenchError, UsageError
from bench.tuning import space as space_module
from bench.tuning import storage
from bench.tuning import study as study_module
from bench.tuning.study import Plan
from methods.base import Method

pytestmark = pytest.mark.filterwarnings(
    "ignore::optuna.exceptions.ExperimentalWarning", "ignore:Heartbeat of storage"
)
TRAINING = suites.DIGITS.training
KINDS = ("journal", "sqlite", "postgresql")


def form(name: str) -> type[Method]:
    return methods.load(name)


# --- search spaces


@pytest.mark.parametrize("name", methods.names())
def test_every_method_accepts_the_whole_of_its_space(name: str) -> None:
    found = space_module.space(form(name), TRAINING)
    quirks = {field.name for field in dataclasses.fields(form(name)) if field.metadata["quirk"]}
    assert not quirks & {parameter.name for parameter in found.hyper}
    assert {"lr", "weight_decay"} <= {parameter.name for parameter in found.searched}
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for values in found.first(form(name)):
        study.enqueue_trial(values)
    for _ in range(25):
        trial = study.ask()
        hyper, training = found.suggest(trial)
        form(name)(**hyper)
        dataclasses.replace(TRAINING, **training)
        assert found.split(trial.params) == (hyper, training)
        study.tell(trial, 0.0)


def test_the_first_trials_are_the_defaults_and_the_authors_values() -> None:
    found = space_module.space(form("iad"), TRAINING)
    default, theirs = found.first(form("iad"))
    assert default == {
        "beta": 0.1,
        "tau": 1.0,
        "begin": 0.0,
        "detach": False,
        "lr": 0.2,
        "weight_decay": 5e-4,
    }
    assert theirs == default | {"begin": 0.3}
    assert len(space_module.space(form("rslad"), TRAINING).first(form("rslad"))) == 1


def test_ranges_can_be_given() -> None:
    given = ("alpha=0.6:0.9", "lr=0.05:0.5:log", "weight-decay=0.0001")
    whole = space_module.space(form("rslad"), TRAINING, given)
    found = {p.name: p for p in (*whole.hyper, *whole.training)}
    assert found["alpha"].distribution == FloatDistribution(0.6, 0.9)
    assert found["lr"].distribution == FloatDistribution(0.05, 0.5, log=True)
    assert (found["weight_decay"].distribution, found["weight_decay"].default) == (None, 0.0001)
    gacd = {
        p.name: p
        for p in space_module.space(form("gacd"), TRAINING, ("weight=prob,none", "dim=16:64")).hyper
    }
    assert gacd["weight"].words == "prob, none"
    assert gacd["dim"].distribution == IntDistribution(16, 64)
    assert gacd["dim"].default == 64  # the method's own, moved into the range


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("alpha",), "write NAME=LOW:HIGH"),
        (("alpha=0.9:0.6",), "alpha"),
        (("alpha=a:b",), "could not convert"),
        (("alpha=0.5:1", "alpha=0:1"), "each parameter once"),
        (("lr=0:1:log",), "lr"),
        (("lr=0.1:inf",), "finite"),
        (("alpha=nan:1",), "finite"),
        (("lr=nan",), "--range lr=nan: nan is not finite"),
        (("lr=1e999",), "1e999 is not finite"),
        (("lr=0.1,nan,0.2",), "nan is not finite"),
    ],
)
def test_a_bad_range_is_one_line(given: tuple[str, ...], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        space_module.space(form("rslad"), TRAINING, given)


def test_a_range_for_a_parameter_that_no_method_has_is_an_error() -> None:
    spaces = {"rslad": space_module.space(form("rslad"), TRAINING, ("tau=1:4",))}
    with pytest.raises(UsageError, match="unknown parameter 'tau'"):
        space_module.check({"rslad": form("rslad")}, spaces, ("tau=1:4",))
    spaces["ard"] = space_module.space(form("ard"), TRAINING, ("tau=1:4",))
    space_module.check({name: form(name) for name in spaces}, spaces, ("tau=1:4",))


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("rslad", "alpha=-5:-1", "alpha = -5.0: not negative"),
        ("rslad", "lr=0:1", "lr = 0.0: more than 0"),
        ("rslad", "lr=1e308", "lr = 1e[+]308: more than 0 and at most 100"),
        ("rslad", "weight-decay=-1", "weight_decay = -1.0: not negative and at most 1"),
        ("gacd", "weight=foo,prob", "weight = 'foo'"),
        ("igdm", "base=ard,nothing", "base = 'nothing'"),
        ("iad2", "alpha_robust=0:0.9", "at most 1"),
    ],
)
def test_a_range_that_the_method_cannot_take_is_told_at_once(
    name: str, given: str, said: str
) -> None:
    found = space_module.space(form(name), TRAINING, (given,))
    with pytest.raises(UsageError, match=said):
        space_module.check({name: form(name)}, {name: found}, (given,))


@pytest.mark.parametrize("name", methods.names())
def test_every_declared_range_can_be_taken(name: str) -> None:
    space_module.check({name: form(name)}, {name: space_module.space(form(name), TRAINING)}, ())


def test_first_trials_stay_inside_a_given_range() -> None:
    assert [
        t["begin"]
        for t in space_module.space(form("iad"), TRAINING, ("begin=0:0.2",)).first(form("iad"))
    ] == [0.0]


# --- sampler and pruner


def searched(kind: str, stops: tuple[int, ...]) -> list[dict[str, float]]:
    """The proposals of a study that begins anew, with a sampler of its own, after each number of trials in `stops`."""
    memory = optuna.storages.InMemoryStorage()
    for count in stops:
        study = optuna.create_study(
            storage=memory,
            study_name="s",
            sampler=study_module.PerTrial(kind, 3),
            load_if_exists=True,
        )
        study.optimize(
            lambda t: t.suggest_float("x", -1, 1) ** 2 + t.suggest_float("y", 0.1, 1, log=True),
            count,
        )
    return [trial.params for trial in study.trials]


@pytest.mark.parametrize("kind", study_module.SAMPLERS)
def test_a_search_that_goes_on_proposes_what_it_would_have(kind: str) -> None:
    assert searched(kind, (14,)) == searched(kind, (5, 7, 2))
    assert len({trial["x"] for trial in searched(kind, (14,))}) == 14


@pytest.mark.parametrize("pruner", ["none", "halving", "hyperband"])
def test_trials_that_run_at_once_are_not_the_same(pruner: str) -> None:
    sampler, pruning = study_module.PerTrial("random", 0), study_module.pruner(pruner, 36)
    study = optuna.create_study(sampler=sampler, pruner=pruning, study_name="s")
    assert len({study.ask().suggest_float("x", 0, 1) for _ in range(30)}) == 30


def test_rungs_are_whole_schedules() -> None:
    assert study_module.rungs("halving", 36) == study_module.rungs("hyperband", 36) == (9, 36)
    assert study_module.rungs("none", 36) == (36,)
    assert study_module.rungs("halving", 3) == (3,)


@pytest.mark.parametrize("kind", ["halving", "hyperband"])
def test_about_one_in_five_goes_on(kind: str) -> None:
    study = optuna.create_study(
        direction="maximize", pruner=study_module.pruner(kind, 36), study_name="s"
    )
    going = []
    for value in np.random.RandomState(0).permutation(80):
        trial = study.ask()
        trial.report(float(value), 9)
        going.append(not trial.should_prune())
        study.tell(trial, float(value))
    low, high = {"halving": (10, 20), "hyperband": (31, 60)}[
        kind
    ]  # one of hyperband's two brackets prunes nothing
    assert low <= sum(going) <= high
    assert any(going[:4]) == (kind == "hyperband")


# --- storages


@pytest.fixture(scope="module")
def postgresql() -> Iterator[str]:
    if not server.installed():
        pytest.skip("needs PostgreSQL's programs")
    with server.postgresql() as address:
        yield address


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgresql":
        return str(request.getfixturevalue("postgresql"))
    return (
        str(tmp_path / "journal") if request.param == "journal" else f"sqlite:///{tmp_path / 'db'}"
    )


def plan(place: str, name: str = "study", **changes: object) -> Plan:
    identity = {"suite": "digits@3", "search space": {"alpha": "a"}} | changes
    return Plan(name, place, ("robust",), "tpe", "halving", 0, 36, identity)


def made(place: str, name: str, first: tuple[dict[str, float], ...] = ()) -> Study:
    return study_module.establish(plan(place, name), list(first), 0.5, False)


def test_a_dead_workers_trial_is_queued_again_once(
    place: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    study = made(place, request.node.name)
    trial = study.ask()
    x = trial.suggest_float("x", 0, 1)
    trial.report(0.5, 9)
    trial.should_prune()  # which notes the rung
    done = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True
    )
    trial.set_user_attr("worker", [storage.HERE, int(done.stdout), trial.number])
    mine = study.ask()
    storage.sign(mine)
    for _ in range(3):
        storage.release(study, place)
    states = [found.state for found in study.trials]
    assert states == [TrialState.FAIL, TrialState.RUNNING, TrialState.WAITING]
    again = study.ask()
    assert (again.number, again.suggest_float("x", 0, 1)) == (2, x)
    assert not [key for key in study.trials[2].system_attrs if key.startswith("completed_rung")]
    assert study_module.done(study) == 0
    study.tell(again, 1.0)
    assert study_module.done(study) == 1
    assert {first: len(tries) for first, tries in study_module.attempts(study).items()} == {
        0: 2,
        1: 1,
    }


def test_a_silent_worker_of_another_host_counts_as_dead(
    place: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "BEAT", 1)
    monkeypatch.setattr(storage, "GRACE", 2)
    study = made(place, request.node.name)
    store = study._storage
    silent, lively = study.ask(), study.ask()
    for trial in (silent, lively):
        trial.set_user_attr("worker", ["elsewhere", 1, trial.number])
        backend(store).record_heartbeat(trial._trial_id)
    deadline = datetime.datetime.now() + datetime.timedelta(seconds=6)
    while datetime.datetime.now() < deadline:
        backend(store).record_heartbeat(lively._trial_id)
        storage.release(study, place)
    states = [trial.state for trial in study.trials]
    assert states == [TrialState.FAIL, TrialState.RUNNING, TrialState.WAITING]


def backend(store: optuna.storages.BaseStorage) -> storage.BaseHeartbeat:
    """The storage that takes heartbeats, without Optuna's cache before it."""
    assert isinstance(store, storage.BaseHeartbeat)
    return store


def test_a_trial_that_nobody_signed_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = str(tmp_path / "journal")
    study = made(str(tmp_path / "journal"), "study")
    study.ask()
    storage.release(study, place)
    assert [trial.state for trial in study.trials] == [TrialState.RUNNING]
    monkeypatch.setattr(storage, "GRACE", -1)
    storage.release(study, place)
    assert [trial.state for trial in study.trials] == [TrialState.FAIL, TrialState.WAITING]


def test_a_failure_with_a_reason_is_final_and_one_without_is_not_for_ever(tmp_path: Path) -> None:
    place = str(tmp_path / "journal")
    study = made(str(tmp_path / "journal"), "study")
    diverged = study.ask()
    diverged.set_user_attr("reason", "kl became nan")
    study.tell(diverged, state=TrialState.FAIL)
    storage.release(study, place)
    assert (len(study.trials), study_module.done(study)) == (1, 1)
    for _ in range(storage.RETRIES + 3):
        if study_module.done(study) < 2:
            study.tell(study.ask(), state=TrialState.FAIL)
            storage.release(study, place)
    assert (len(study.trials), study_module.done(study)) == (storage.RETRIES + 2, 2)


def test_a_study_is_recognised(place: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    name = request.node.name
    made(place, name, ({"x": 0.5},))
    study = made(place, name, ({"x": 0.5},))
    assert [trial.state for trial in study.trials] == [TrialState.WAITING]
    for changed, said in (
        ({"suite": "digits@2"}, r"another suite \(digits@3, now digits@2\)"),
        ({"search space": {"alpha": "b"}}, r"another search space: alpha \(a, now b\)"),
    ):
        with pytest.raises(BenchError, match=said) as caught:
            study_module.establish(plan(place, name, **changed), [], 0.5, False)
        assert "secret" not in str(caught.value)
    assert study_module.establish(plan(place, name), [], 0.6, False).user_attrs["floor"] == 0.5
    with pytest.raises(BenchError, match=r"another clean accuracy to keep \(0.5, now 0.6\)"):
        study_module.establish(plan(place, name), [], 0.6, True)


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("postgresql://me:secret@127.0.0.1:1/none", "cannot be used: .*[Cc]onnection"),
        ("sqlite:////proc/none/db", "cannot be used"),
        ("nonsense://x", "cannot be used"),
        ("sqlite://", "is no file"),
        ("sqlite:///:memory:", "is no file"),
    ],
)
def test_a_storage_that_cannot_be_reached_is_one_line(address: str, said: str) -> None:
    with pytest.raises(BenchError, match=said) as caught:
        storage.connect(address)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_database_of_mlflow_is_told(tmp_path: Path) -> None:
    place = f"sqlite:///{tmp_path / 'mlflow.db'}"
    MlflowClient(place).search_experiments()
    with pytest.raises(BenchError, match="needs a database of its own"):
        storage.connect(place)


def test_a_locked_or_foreign_file_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "PATIENCE", 1)
    place = f"sqlite:///{tmp_path / 'db'}"
    made(place, "study")
    with sqlite3.connect(tmp_path / "db") as holder:
        holder.execute("BEGIN EXCLUSIVE")
        with pytest.raises(BenchError, match="database is locked"):
            made(place, "study")
        holder.rollback()
    for content in (os.urandom(4096), b'{"some": "thing"}\n'):
        (tmp_path / "other").write_bytes(content)
        with pytest.raises(BenchError, match="cannot be used"):
            made(str(tmp_path / "other"), "study")


def test_passwords_are_not_shown() -> None:
    assert storage.public("postgresql://me:secret@host/db") == "postgresql://host/db"
    assert "secret" not in storage.public("postgresql://host/db?user=me&password=secret")


def test_two_that_look_at_once_queue_a_dead_trial_once(
    place: str, request: pytest.FixtureRequest
) -> None:
    name = request.node.name
    study = made(place, name)
    trial = study.ask()
    trial.set_user_attr("worker", [storage.HERE, 2**22 + 1, trial.number])
    code = (
        "from bench.tuning import storage, study; "
        f"p = study.Plan({name!r}, {place!r}, ('robust',), 'tpe', 'none', 0, 36, {{}}); "
        f"storage.release(study.attach(p, storage.connect({place!r})), {place!r})"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE) for _ in range(3)
    ]
    assert [each.communicate()[1][-500:] if each.wait() else 0 for each in running] == [0, 0, 0]
    assert [found.state for found in study.trials] == [TrialState.FAIL, TrialState.WAITING]
