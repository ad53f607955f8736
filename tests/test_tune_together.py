"""Several processes of `tune` at once, on files and on PostgreSQL; killed and interrupted ones."""

from __future__ import annotations

import datetime
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import server
import sqlalchemy
from optuna.trial import TrialState
from program import bench, start
from tune_program import FEW, SMALL, assert_budget, find_runs, load_study, mlflow_uri

from bench.tuning.storage import retry_history
from bench.tuning.study import group_attempts

# Of four starts at once; before a release 20, which are 20 kills, too.
ROUNDS = int(os.environ.get("BENCH_ROUNDS", "1"))
# The same program with a grace period of seconds.
SHORT_GRACE = (str(Path(__file__).with_name("short_grace.py")),)
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning"),
]


@pytest.fixture
def postgresql() -> Iterator[str]:
    if not server.installed():
        pytest.skip("needs PostgreSQL's programs")
    with server.postgresql() as address:
        yield address


def create_mlflow_database(address: str) -> str:
    """Create a second database on a server and return its address.

    Optuna and MLflow keep the version of their tables under one name.
    """
    with sqlalchemy.create_engine(address, isolation_level="AUTOCOMMIT").connect() as connection:
        connection.execute(sqlalchemy.text("CREATE DATABASE mlflow"))
    return address.replace("/postgres", "/mlflow")


@pytest.mark.slow
@pytest.mark.parametrize("round_number", range(ROUNDS))
@pytest.mark.parametrize("kind", ["files", "server"])
def test_four_commands_at_once_on_a_fresh_store(
    kind: str, round_number: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url, uri = "sqlite:///runs/tuning.db", mlflow_uri(tmp_path)
    if kind == "server":
        url = request.getfixturevalue("postgresql")
        uri = create_mlflow_database(url)
    options = FEW.replace("--epochs 4", "--epochs 1")
    words = f"tune {options} --trials 6 --search-only --storage {url}"
    running = [start(words, tmp_path, MLFLOW_TRACKING_URI=uri) for _ in range(4)]
    errors = [process.communicate()[1] for process in running]
    assert [process.returncode for process in running] == [0] * 4, errors
    assert_budget(load_study(tmp_path, url if kind == "server" else ""), 6)
    assert len(find_runs(uri, "study")) == 1


@pytest.mark.slow
def test_two_commands_at_once_test_the_result_once(tmp_path: Path) -> None:
    words = f"tune {SMALL} --method rslad --epochs 1 --trials 2 --min-clean 0 --seeds 0"
    running = [start(words, tmp_path) for _ in range(2)]
    errors = [process.communicate()[1] for process in running]
    assert [process.returncode for process in running] == [0, 0], errors
    assert_budget(load_study(tmp_path, name="digits/digits/resnet8-w4/rslad"), 2)
    students = find_runs(mlflow_uri(tmp_path), "student")
    assert sorted(bool(run.data.tags["sets"]) for run in students) == [False, True]
    assert len(find_runs(mlflow_uri(tmp_path), "teacher")) == 1


def find_workers(parent: int) -> list[int]:
    """Return the processes of a running program that run trials."""
    command = ["pgrep", "-P", str(parent), "-f", "spawn_main"]
    listing = subprocess.run(command, capture_output=True, text=True)
    return [int(pid) for pid in listing.stdout.split()]


def trials_begun(folder: Path, since: datetime.datetime) -> list[int]:
    """Return the running trials that began after a time."""
    # There is no file or no study yet.
    if not (folder / "runs/tuning.db").exists():
        return []
    with suppress(KeyError):
        running = load_study(folder).get_trials(deepcopy=False, states=[TrialState.RUNNING])
        return [trial.number for trial in running if (trial.datetime_start or since) > since]
    return []


@pytest.mark.slow
def test_killed_workers_lose_nothing(tmp_path: Path) -> None:
    kills = max(4, ROUNDS)
    words = f"tune {FEW} --trials {4 * kills} --workers 2 --search-only"
    running = start(words, tmp_path, SHORT_GRACE)
    dice, killed, last_kill = random.Random(0), 0, datetime.datetime.min
    while running.poll() is None and killed < kills:
        time.sleep(dice.uniform(0, 2))
        workers, trials = find_workers(running.pid), trials_begun(tmp_path, last_kill)
        if len(workers) < 2 or not trials:
            continue
        # Both at once, then one by one.
        victims = [dice.choice(workers)] if killed else workers
        last_kill = datetime.datetime.now()
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
            killed += 1
            print(f"{time.strftime('%X')} kill {killed}: process {pid}, running: {trials}")
    err = running.communicate()[1]
    assert running.returncode == 0, err
    assert err.count("a worker died (-9) and is replaced") == killed == kills
    study = load_study(tmp_path)
    for position, attempts in enumerate(group_attempts(study).values()):
        print(f"trial {position}: {[trial.state.name for trial in attempts]}")
    assert_budget(study, 4 * kills)
    assert len(find_runs(mlflow_uri(tmp_path), "trial")) == 4 * kills
    assert not list((tmp_path / "runs/work/tuning").iterdir())


@pytest.mark.slow
def test_interrupted_search_goes_on_where_it_was(tmp_path: Path) -> None:
    options = FEW.replace("--epochs 4", "--epochs 12")
    words = f"tune {options} --trials 2 --pruner none --search-only"
    running = start(words, tmp_path)
    state = "runs/work/tuning/*/trial-0/12/state.pt"
    while running.poll() is None and not list(tmp_path.glob(state)):
        time.sleep(0.02)
    running.terminate()
    err = running.communicate()[1]
    assert running.returncode == 130, err
    assert "the same command continues" in err
    assert "Traceback" not in err
    code, _, err = bench(words, tmp_path)
    assert code == 0, err
    study = load_study(tmp_path)
    assert_budget(study, 2)
    assert [retry_history(trial) for trial in study.trials] == [[], [0], []]
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    assert bench(words, fresh)[0] == 0
    values = [trial.value for trial in load_study(fresh).trials]
    assert [trial.value for trial in study.trials[1:]] == values


@pytest.mark.slow
def test_two_machines_share_a_postgresql_server(postgresql: str, tmp_path: Path) -> None:
    # Two machines: their stores are apart.
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    uri = create_mlflow_database(postgresql)
    words = f"tune {FEW} --trials 4 --workers 2 --search-only --storage {postgresql}"
    running = [start(words, tmp_path / name, MLFLOW_TRACKING_URI=uri) for name in ("a", "b")]
    errors = [process.communicate()[1] for process in running]
    assert [process.returncode for process in running] == [0, 0], errors
    assert_budget(load_study(tmp_path, postgresql), 4)
    trials = find_runs(uri, "trial")
    assert sorted(run.data.tags["trial"] for run in trials) == list("0123")
    assert len(find_runs(uri, "study")) == 1
