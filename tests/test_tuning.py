"""Search spaces, samplers, pruners, storages and counting, without training."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import optuna
import pytest
import server
import sqlalchemy
from mlflow import MlflowClient
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.exceptions import StorageInternalError
from optuna.storages import JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import Study
from optuna.trial import TrialState
from sqlalchemy.engine import Engine

import methods
from bench.protocol import suites
from bench.system.errors import BenchError, UsageError
from bench.system.signals import StopWorker
from bench.tuning import storage
from bench.tuning.results import trials_table
from bench.tuning.space import SearchSpace, build_space, check_ranges
from bench.tuning.study import (
    SAMPLERS,
    StudyPlan,
    build_pruner,
    count_over,
    group_attempts,
    open_study,
    rung_epochs,
    seed_sampler,
)
from bench.tuning.trial import TrialContext, TrialRunner
from bench.tuning.worker import run_next_trial

pytestmark = pytest.mark.filterwarnings(
    "ignore::optuna.exceptions.ExperimentalWarning", "ignore:Heartbeat of storage"
)
FAIL, RUNNING, WAITING = TrialState.FAIL, TrialState.RUNNING, TrialState.WAITING


def space_of(method: str, *ranges: str) -> SearchSpace:
    """A method's space under the digits suite."""
    return build_space(methods.load(method), suites.DIGITS.training, ranges)


# --- search spaces


@pytest.mark.parametrize("name", methods.names())
def test_method_accepts_every_value_of_its_space(name: str) -> None:
    method_class, space = methods.load(name), space_of(name)
    fields = dataclasses.fields(method_class)
    quirks = {field.name for field in fields if field.metadata["quirk"]}
    assert not quirks & {parameter.name for parameter in space.hyper}
    assert {"lr", "weight_decay"} <= {parameter.name for parameter in space.searched}
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for values in space.first_trials():
        study.enqueue_trial(values)
    for _ in range(25):
        trial = study.ask()
        hyper, training = space.suggest(trial)
        method_class(**hyper)
        dataclasses.replace(suites.DIGITS.training, **training)
        assert space.split(trial.params) == (hyper, training)
        study.tell(trial, 0.0)


def test_first_trials_are_the_defaults_and_the_authors_values() -> None:
    defaults, authors = space_of("iad").first_trials()
    hyper = {"beta": 0.1, "tau": 1.0, "begin": 0.0, "detach": False}
    assert defaults == hyper | {"lr": 0.2, "weight_decay": 5e-4}
    assert authors == defaults | {"begin": 0.3}
    assert len(space_of("rslad").first_trials()) == 1


def test_ranges_replace_the_declared_ones() -> None:
    space = space_of("rslad", "alpha=0.6:0.9", "lr=0.05:0.5:log", "weight-decay=0.0001")
    parameters = {parameter.name: parameter for parameter in space.parameters}
    assert parameters["alpha"].distribution == FloatDistribution(0.6, 0.9)
    assert parameters["lr"].distribution == FloatDistribution(0.05, 0.5, log=True)
    fixed = parameters["weight_decay"]
    assert (fixed.distribution, fixed.default) == (None, 0.0001)
    space = space_of("gacd", "weight=prob,none", "dim=16:64")
    gacd = {parameter.name: parameter for parameter in space.hyper}
    assert gacd["weight"].label == "prob, none"
    assert gacd["dim"].distribution == IntDistribution(16, 64)
    # The method's own default, moved into the range.
    assert gacd["dim"].default == 64


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        (("alpha",), "write NAME=LOW:HIGH"),
        (("alpha=0.9:0.6",), "alpha"),
        (("alpha=a:b",), "'a' is no finite number"),
        (("alpha=0.5:1", "alpha=0:1"), "each parameter once"),
        (("lr=0:1:log",), "lr"),
        (("lr=0.1:inf",), "finite"),
        (("alpha=nan:1",), "finite"),
        (("lr=nan",), "--range lr=nan: 'nan' is no finite number"),
        (("lr=1e999",), "'1e999' is no finite number"),
        (("lr=0.1,nan,0.2",), "'nan' is no finite number"),
    ],
)
def test_unreadable_range_is_an_error(ranges: tuple[str, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        space_of("rslad", *ranges)


def test_range_for_a_parameter_that_no_method_has_is_an_error() -> None:
    spaces = {"rslad": space_of("rslad", "tau=1:4")}
    with pytest.raises(UsageError, match="unknown parameter 'tau'"):
        check_ranges(spaces, ("tau=1:4",))
    spaces["ard"] = space_of("ard", "tau=1:4")
    check_ranges(spaces, ("tau=1:4",))


@pytest.mark.parametrize(
    ("name", "text", "message"),
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
def test_range_that_the_method_cannot_take_is_an_error(name: str, text: str, message: str) -> None:
    space = space_of(name, text)
    with pytest.raises(UsageError, match=message):
        check_ranges({name: space}, (text,))


@pytest.mark.parametrize("name", methods.names())
def test_method_can_take_its_declared_ranges(name: str) -> None:
    check_ranges({name: space_of(name)}, ())


def test_first_trials_stay_inside_the_ranges() -> None:
    trials = space_of("iad", "begin=0:0.2").first_trials()
    assert [values["begin"] for values in trials] == [0.0]


# --- samplers and pruners


def proposals(kind: str, stops: tuple[int, ...]) -> list[dict[str, float]]:
    """The proposals of a study that is loaded again after each of `stops` trials."""
    memory = optuna.storages.InMemoryStorage()

    def objective(trial: optuna.Trial) -> float:
        return trial.suggest_float("x", -1, 1) ** 2 + trial.suggest_float("y", 0.1, 1, log=True)

    for count in stops:
        study = optuna.create_study(storage=memory, study_name="s", load_if_exists=True)
        for _ in range(count):
            seed_sampler(study, kind, 3)
            study.optimize(objective, 1)
    return [trial.params for trial in study.trials]


@pytest.mark.parametrize("kind", SAMPLERS)
def test_continued_search_proposes_the_same(kind: str) -> None:
    assert proposals(kind, (14,)) == proposals(kind, (5, 7, 2))
    assert len({values["x"] for values in proposals(kind, (14,))}) == 14


@pytest.mark.parametrize("pruner", ["none", "halving", "hyperband"])
def test_trials_that_run_at_once_differ(pruner: str) -> None:
    study = optuna.create_study(pruner=build_pruner(pruner, 36), study_name="s")
    values = set()
    for _ in range(30):
        seed_sampler(study, "random", 0)
        values.add(study.ask().suggest_float("x", 0, 1))
    assert len(values) == 30


def test_retry_does_not_shift_the_seeds(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'db'}"
    drawn = []
    for fails in (False, True):
        study = make_study(url, f"fails {fails}")
        seed_sampler(study, "random", 0)
        first = study.ask()
        first.suggest_float("x", 0, 1)
        first.set_user_attr("drawn", True)
        study.tell(first, None if fails else 0.0, FAIL if fails else None)
        requeue(study, url)
        if fails:
            seed_sampler(study, "random", 0)
            study.tell(study.ask(), 0.0)
        seed_sampler(study, "random", 0)
        drawn.append(study.ask().suggest_float("x", 0, 1))
    assert drawn[0] == drawn[1] != first.params["x"]


@pytest.mark.parametrize("drawn", [0, 1])
def test_a_retry_draws_what_its_first_attempt_would_have(drawn: int, tmp_path: Path) -> None:
    """It ended before it had all of its values."""
    url = f"sqlite:///{tmp_path / 'db'}"
    values = []
    for fails in (False, True):
        study = make_study(url, f"fails {fails}")
        if fails:
            seed_sampler(study, "random", 0)
            first = study.ask()
            for name in ("x", "y")[:drawn]:
                first.suggest_float(name, 0, 1)
            requeue(study, url)
        seed_sampler(study, "random", 0)
        trial = study.ask()
        values.append([trial.suggest_float(name, 0, 1) for name in ("x", "y")])
        # The next one draws others.
        study.tell(trial, 0.0)
        seed_sampler(study, "random", 0)
        values.append(study.ask().suggest_float("x", 0, 1))
    assert values[:2] == values[2:]
    assert values[0][0] != values[1]


def test_a_trial_is_named_by_its_position_whatever_was_interrupted(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'db'}"
    study = make_study(url, "study")
    study.tell(study.ask(), state=FAIL)
    requeue(study, url)
    study.tell(study.ask(), 0.5)
    (best,) = study.best_trials
    context = cast(TrialContext, SimpleNamespace(plan=plan_for(url, "study")))
    assert best.number == 1
    assert trials_table(study, [best], context).splitlines()[-1].startswith("| 0 |")


def test_rungs_are_complete_schedules() -> None:
    assert rung_epochs("halving", 36) == rung_epochs("hyperband", 36) == (9, 36)
    assert rung_epochs("none", 36) == (36,)
    assert rung_epochs("halving", 3) == (3,)


# Of hyperband's two brackets one prunes nothing.
@pytest.mark.parametrize(("kind", "low", "high"), [("halving", 10, 20), ("hyperband", 31, 60)])
def test_about_one_trial_in_five_goes_on(kind: str, low: int, high: int) -> None:
    pruner = build_pruner(kind, 36)
    study = optuna.create_study(direction="maximize", pruner=pruner, study_name="s")
    goes_on = []
    for value in np.random.RandomState(0).permutation(80):
        trial = study.ask()
        trial.report(float(value), 9)
        goes_on.append(not trial.should_prune())
        study.tell(trial, float(value))
    assert low <= sum(goes_on) <= high
    assert any(goes_on[:4]) == (kind == "hyperband")


# --- storages


@pytest.fixture(scope="module")
def postgresql() -> Iterator[str]:
    if not server.installed():
        pytest.skip("needs PostgreSQL's programs")
    with server.postgresql() as address:
        yield address


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgresql":
        return str(request.getfixturevalue("postgresql"))
    return f"sqlite:///{tmp_path / 'db'}"


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """The name of the test's own study in a shared database."""
    return str(request.node.name)


@pytest.fixture
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "HEARTBEAT_SECONDS", 1)
    monkeypatch.setattr(storage, "GRACE_SECONDS", 5)


def plan_for(url: str, name: str, **changes: object) -> StudyPlan:
    identity = {"suite": "digits@3", "search space": {"alpha": "a"}} | changes
    return StudyPlan(name, url, ("robust",), "tpe", "halving", 0, 36, identity)


def make_study(url: str, name: str, first_trials: tuple[dict[str, float], ...] = ()) -> Study:
    return open_study(plan_for(url, name), [*first_trials], 0.5, is_explicit=False)


def requeue(study: Study, url: str) -> None:
    with storage.exclusive(url, "study"):
        storage.requeue_trials(study)


def states_of(study: Study) -> list[TrialState]:
    return [trial.state for trial in study.trials]


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def is_retried(study: optuna.Study, url: str, alive: optuna.Trial) -> bool:
    """Look for dead workers while one is alive; tell whether a third trial has been added."""
    storage.connect(url).record_heartbeat(alive._trial_id)
    requeue(study, url)
    return len(study.trials) > 2


@pytest.mark.usefixtures("short_grace")
def test_trial_of_a_dead_worker_is_retried_once(url: str, name: str) -> None:
    study = make_study(url, name)
    backend = storage.connect(url)
    trial = study.ask()
    x = trial.suggest_float("x", 0, 1)
    trial.set_user_attr("drawn", True)
    trial.report(0.5, 9)
    # Notes the rung.
    trial.should_prune()
    storage.mark_begun(backend, trial)
    alive = study.ask()
    storage.mark_begun(backend, alive)
    wait_until(lambda: is_retried(study, url, alive))
    for _ in range(3):
        assert is_retried(study, url, alive)
    assert states_of(study) == [FAIL, RUNNING, WAITING]
    retry = study.ask()
    assert (retry.number, retry.suggest_float("x", 0, 1)) == (2, x)
    rungs = [key for key in study.trials[2].system_attrs if key.startswith("completed_rung")]
    assert not rungs
    assert count_over(study) == 0
    study.tell(retry, 1.0)
    assert count_over(study) == 1
    counts = {first: len(attempts) for first, attempts in group_attempts(study).items()}
    assert counts == {0: 2, 1: 1}


def test_a_heartbeat_that_fails_is_not_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Optuna's thread would print a traceback and end, and the trial would count as dead."""
    monkeypatch.setattr(storage, "HEARTBEAT_SECONDS", 1)
    url = f"sqlite:///{tmp_path / 'db'}"
    study = make_study(url, "study")
    failed = threading.Event()

    def fail(*_: object) -> None:
        failed.set()
        raise StorageInternalError("database or disk is full")

    def wait(trial: optuna.Trial) -> float:
        assert failed.wait(10)
        failed.clear()
        assert failed.wait(10), "no second heartbeat"
        return 0.0

    monkeypatch.setattr(RDBStorage, "record_heartbeat", fail)
    study.optimize(wait, 1)
    assert capfd.readouterr().err == ""


def test_a_stop_signal_interrupts_no_write(tmp_path: Path) -> None:
    """The next write of this process would find the database locked."""
    url = f"sqlite:///{tmp_path / 'db'}"
    study = make_study(url, "study")
    trial = study.ask()

    def stop(*_: object) -> None:
        signal.raise_signal(signal.SIGINT)

    sqlalchemy.event.listen(Engine, "commit", stop)
    try:
        with pytest.raises(KeyboardInterrupt):
            trial.set_user_attr("begun", True)
    finally:
        sqlalchemy.event.remove(Engine, "commit", stop)
    assert study.trials[0].user_attrs == {"begun": True}


@pytest.mark.parametrize("fault", [StorageInternalError("disk is full"), KeyboardInterrupt()])
def test_a_result_that_cannot_be_stored_raises_why(
    fault: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Optuna raises an error of its own then."""
    url = f"sqlite:///{tmp_path / 'db'}"
    study = make_study(url, "study")
    context = SimpleNamespace(
        plan=plan_for(url, "study"), budget=1, trial_folder=lambda _: tmp_path / "none"
    )
    runner = SimpleNamespace(trial_context=context, run_trial=lambda _: (0.0,))

    def fail(*_: object, **__: object) -> None:
        raise fault

    monkeypatch.setattr(storage.Storage, "set_trial_state_values", fail)
    with pytest.raises(type(fault)):
        run_next_trial(study, storage.connect(url), cast(TrialRunner, runner))


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), StopWorker(1)])
def test_a_stop_signal_ends_a_trial_whatever_fails_after_it(
    stop: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Optuna reads the trial once more, and says only what that raises."""
    url = f"sqlite:///{tmp_path / 'db'}"
    study = make_study(url, "study")
    context = SimpleNamespace(plan=plan_for(url, "study"), budget=1)

    def read_trial(*_: object) -> None:
        raise StorageInternalError("cannot start a transaction within a transaction")

    def run_trial(_: object) -> None:
        monkeypatch.setattr(storage.Storage, "get_trial", read_trial)
        raise stop

    runner = SimpleNamespace(trial_context=context, run_trial=run_trial)
    with pytest.raises(KeyboardInterrupt):
        run_next_trial(study, storage.connect(url), cast(TrialRunner, runner))


@pytest.mark.usefixtures("short_grace")
def test_only_a_silent_worker_counts_as_dead(url: str, name: str) -> None:
    study = make_study(url, name)
    backend = storage.connect(url)
    silent, alive = study.ask(), study.ask()
    for trial in (silent, alive):
        storage.mark_begun(backend, trial)
    wait_until(lambda: is_retried(study, url, alive))
    assert states_of(study) == [FAIL, RUNNING, WAITING]


def test_trial_of_a_worker_that_dies_beginning_it_is_retried(url: str, name: str) -> None:
    study = make_study(url, name)
    study.ask()
    requeue(study, url)
    assert states_of(study) == [FAIL, WAITING]
    # The retry ends in the same way.
    study.ask()
    requeue(study, url)
    assert states_of(study) == [FAIL, FAIL, WAITING]


def test_failure_with_a_reason_is_final_and_retries_are_bounded(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'db'}"
    study = make_study(url, "study")
    diverged = study.ask()
    diverged.set_user_attr("reason", "kl became nan")
    study.tell(diverged, state=FAIL)
    requeue(study, url)
    assert (len(study.trials), count_over(study)) == (1, 1)
    for _ in range(storage.MAX_RETRIES + 3):
        if count_over(study) < 2:
            study.tell(study.ask(), state=FAIL)
            requeue(study, url)
    assert (len(study.trials), count_over(study)) == (storage.MAX_RETRIES + 2, 2)


def test_study_is_recognised(url: str, name: str) -> None:
    make_study(url, name, ({"x": 0.5},))
    study = make_study(url, name, ({"x": 0.5},))
    assert states_of(study) == [WAITING]
    changes: list[tuple[dict[str, object], str]] = [
        ({"suite": "digits@2"}, r"another suite \(digits@3, now digits@2\)"),
        ({"search space": {"alpha": "b"}}, r"another search space: alpha \(a, now b\)"),
    ]
    for change, message in changes:
        with pytest.raises(BenchError, match=message) as caught:
            open_study(plan_for(url, name, **change), [], 0.5, is_explicit=False)
        assert "secret" not in str(caught.value)
    study = open_study(plan_for(url, name), [], 0.6, is_explicit=False)
    assert study.user_attrs["floor"] == 0.5
    with pytest.raises(BenchError, match=r"another clean accuracy to keep \(0.5, now 0.6\)"):
        open_study(plan_for(url, name), [], 0.6, is_explicit=True)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("postgresql://me:secret@127.0.0.1:1/none", "cannot be used: .*[Cc]onnection"),
        ("sqlite:////proc/none/db", "cannot write to '/proc/none'"),
        ("nonsense://x", "cannot be used"),
        ("sqlite://", "is no file"),
        ("sqlite:///:memory:", "is no file"),
    ],
)
def test_unreachable_storage_is_an_error_of_one_line(address: str, message: str) -> None:
    with pytest.raises(BenchError, match=message) as caught:
        storage.connect(address)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_database_of_mlflow_is_refused(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'mlflow.db'}"
    MlflowClient(url).search_experiments()
    with pytest.raises(BenchError, match="needs a database of its own"):
        storage.connect(url)


def test_locked_or_foreign_file_is_an_error_of_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "BUSY_SECONDS", 1)
    url = f"sqlite:///{tmp_path / 'db'}"
    make_study(url, "study")
    with sqlite3.connect(tmp_path / "db") as holder:
        holder.execute("BEGIN EXCLUSIVE")
        with pytest.raises(BenchError, match="database is locked"):
            make_study(url, "study")
        holder.rollback()
    # Random bytes, and a line as journal files have them.
    for content in (os.urandom(4096), b'{"some": "thing"}\n'):
        (tmp_path / "foreign").write_bytes(content)
        with pytest.raises(BenchError, match="cannot be used"):
            make_study(f"sqlite:///{tmp_path / 'foreign'}", "study")


def run_copies(code: str, count: int) -> list[str]:
    """Run a program in several processes at once; return what each prints."""
    command = [sys.executable, "-W", "ignore", "-c", code]
    pipe = subprocess.PIPE
    running = [subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) for _ in range(count)]
    outputs = [process.communicate() for process in running]
    assert [process.returncode for process in running] == [0] * count, outputs
    return [out for out, _ in outputs]


def test_processes_that_look_at_once_retry_a_trial_once(
    url: str, name: str, short_grace: None
) -> None:
    study = make_study(url, name)
    trial = study.ask()
    storage.mark_begun(storage.connect(url), trial)
    time.sleep(7)
    run_copies(
        "import optuna; from bench.tuning import storage; storage.GRACE_SECONDS = 5\n"
        f"backend = storage.connect({url!r}); study = optuna.load_study(study_name={name!r}, "
        f"storage=backend)\nwith storage.exclusive({url!r}, 'study'): "
        "storage.requeue_trials(study)",
        3,
    )
    assert states_of(study) == [FAIL, WAITING]


def test_processes_that_begin_at_once_never_share_a_trial(url: str, name: str) -> None:
    study = make_study(url, name)
    for _ in range(60):
        study.enqueue_trial({})
    outputs = run_copies(
        "import optuna; from bench.tuning import storage\n"
        f"study = optuna.load_study(study_name={name!r}, storage=storage.connect({url!r}))\n"
        "print(*[study.ask().number for _ in range(20)])",
        3,
    )
    numbers = [int(word) for out in outputs for word in out.split()]
    assert sorted(numbers) == list(range(60))


def test_study_of_a_journal_file_can_be_copied(tmp_path: Path) -> None:
    journal = JournalStorage(JournalFileBackend(str(tmp_path / "tuning.journal")))
    url = f"sqlite:///{tmp_path / 'tuning.db'}"
    old = optuna.create_study(study_name="study", storage=journal, direction="maximize")
    for key, value in {"id": "0123", "floor": 0.4}.items():
        old.set_user_attr(key, value)
    old.set_user_attr("identity", json.dumps(plan_for(url, "study").identity))
    old.optimize(lambda trial: trial.suggest_float("x", 0, 1), 2)
    optuna.copy_study(from_study_name="study", from_storage=journal, to_storage=url)
    study = make_study(url, "study")
    assert (study.user_attrs["floor"], count_over(study)) == (0.4, 2)
    assert [trial.params for trial in study.trials] == [trial.params for trial in old.trials]
