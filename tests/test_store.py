"""The store's database: first starts that are killed, other MLflows, moved folders, odd names."""

from __future__ import annotations

import dataclasses
import gc
import logging
import multiprocessing
import os
import re
import shlex
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
import server
import sqlalchemy
from alembic import command
from mlflow.store.db import utils
from mlflow.store.tracking.dbmodels.initial_models import Base as FirstTables
from program import bench
from sqlalchemy.engine import Engine
from test_track import SPEC, TAGS

from bench import cli
from bench.system.database import lock_database, redact_password, sqlite_address, sqlite_file
from bench.system.errors import BenchError
from bench.tracking.moving import ADDRESSES, hold_store
from bench.tracking.store import TrackingStore, local_uri, open_client
from leaderboards.schema.fields import FINISHED

HERE = Path(__file__).parent
# Tables of a whole database that this program made, but for `webhooks`, which came later.
EARLIER = "cbc13b556ace"
OPEN_WITH_LIMIT = """
import resource, sys
from pathlib import Path
from bench.system.errors import BenchError
from bench.tracking.store import local_uri, open_client
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    open_client(local_uri(Path(sys.argv[1])))
except BenchError as error:
    print(error)
"""

# Record until that fails, after a word from the test.
RECORD_UNTIL_IT_FAILS = """
import resource, sys
from pathlib import Path
from bench.system import log
from bench.system.errors import one_line
from bench.tracking.store import TrackingStore
root = Path(sys.argv[1])
with log.command_log("run"):
    store = TrackingStore(root)
    log.open_log_file(root, "")
    logger = store.open_run("x@1 tuning", "any", {"number": "1"}, "", ("number",))
    print("ready", flush=True)
    if sys.stdin.readline() == "fill the disk\\n":
        size = (root / "mlflow.db").stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    try:
        for step in range(1000):
            logger.log_metrics({f"metric-{step}-{number}": 1.0 for number in range(100)}, step)
    except Exception as error:
        print(one_line(error))
"""


@pytest.fixture(autouse=True)
def no_tracking_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="module")
def postgresql_server() -> Iterator[str]:
    if not server.installed():
        pytest.skip("needs PostgreSQL's programs")
    with server.postgresql() as address:
        yield address


@pytest.fixture
def postgresql(postgresql_server: str) -> str:
    """The address of an empty database."""
    engine = sqlalchemy.create_engine(postgresql_server)
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text("DROP SCHEMA public CASCADE; CREATE SCHEMA public"))
    engine.dispose()
    return postgresql_server


def record_run(root: Path, seed: int, experiment: str = "") -> str:
    """Record a run with a file and a logged model, and leave the store; return the run's id."""
    store = TrackingStore(root)
    spec = dataclasses.replace(SPEC, seed=seed, suite=experiment or SPEC.suite)
    logger = store.start_run(spec, TAGS | {"spec_id": spec.id})
    logger.log_text("seed.txt", str(seed))
    run = store.client.get_run(logger.run_id)
    store.client.create_logged_model(run.info.experiment_id, f"model-{seed}", logger.run_id)
    logger.finish(FINISHED)
    return logger.run_id


# --- first starts


def first_starts(root: Path, steps: list[int], uri: str = "") -> list[str]:
    """Return what the starts after killed ones ended with; see first_start.py."""
    words = [sys.executable, HERE / "first_start.py", root, *map(str, steps)]
    environment = os.environ | ({"MLFLOW_TRACKING_URI": uri} if uri else {})
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    killed = re.findall(r"step \d+ of \d+: -9, then (-?\d+)", done.stdout)
    assert len(killed) == len(steps), done.stdout
    return killed


def test_a_first_start_that_was_killed_is_begun_again(tmp_path: Path) -> None:
    assert first_starts(tmp_path / "runs", [1000, -6]) == ["0"] * 2
    assert not list(tmp_path.glob("runs/*.part"))


def test_a_first_start_that_was_interrupted_says_so(tmp_path: Path) -> None:
    """In Alembic's transactions, which raise an error of their own when one is cut short."""

    def stop(_: object, __: object, statement: str, *___: object) -> None:
        if statement.lstrip().startswith("DROP TABLE"):
            raise KeyboardInterrupt

    command = "run --suite digits --method natural --limit-train 64 --limit-test 8 --epochs 1"
    sqlalchemy.event.listen(Engine, "before_cursor_execute", stop)
    try:
        ended = bench(command, tmp_path)
    finally:
        sqlalchemy.event.remove(Engine, "before_cursor_execute", stop)
    assert ended.code == 130, ended.err
    assert ended.err.splitlines()[-1] == "interrupted; the same command continues"
    assert not (tmp_path / "runs" / "mlflow.db").exists()
    assert record_run(tmp_path / "runs", 1)


@pytest.mark.slow
def test_a_server_does_not_keep_half_of_the_tables(postgresql: str, tmp_path: Path) -> None:
    """Over all statements; faults.py does it with a SQLite database."""
    instants = [*range(0, 1600, 200), -6, -1]
    assert first_starts(tmp_path / "runs", instants, postgresql) == ["0"] * 10


@pytest.mark.parametrize("limit", [0, 40_000, 400_000])
def test_a_disk_that_fills_in_a_first_start_is_one_line(limit: int, tmp_path: Path) -> None:
    """A limit on the size of files stands for it."""
    done = subprocess.run(
        [sys.executable, "-c", OPEN_WITH_LIMIT, tmp_path, str(limit)],
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    (line,) = done.stdout.splitlines()
    assert line.startswith(f"the MLflow store {local_uri(tmp_path)} cannot be opened: ")
    assert not (tmp_path / "mlflow.db").exists()
    assert not (tmp_path / "mlflow.db.part").exists()
    assert record_run(tmp_path, 1)


def open_shared(folder: str) -> str:
    """Open a store in a process of its own; return the id of an experiment."""
    logging.disable(logging.CRITICAL)
    return TrackingStore(Path(folder)).get_or_create_experiment("digits@1")


@pytest.mark.slow
def test_two_stores_share_a_fresh_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their folders, by which they once kept each other out, are different."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/shared.db")
    folders = [str(tmp_path / name) for name in "abcd"]
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        assert len(set(pool.map(open_shared, folders))) == 1


# --- half made databases and those of another MLflow


def make_half(address: str, revision: str) -> None:
    """Make the first tables, then those up to a revision, and one of the next without its mark."""
    engine = sqlalchemy.create_engine(address)
    FirstTables.metadata.create_all(engine)
    if revision:
        with engine.begin() as connection:
            config = utils._get_alembic_config(address)
            config.attributes["connection"] = connection
            command.upgrade(config, revision)
        with engine.begin() as connection:
            connection.execute(sqlalchemy.text("CREATE TABLE webhooks (id INTEGER)"))
    engine.dispose()


def execute(address: str, *statements: str) -> None:
    engine = sqlalchemy.create_engine(address)
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(sqlalchemy.text(statement))
    engine.dispose()


@pytest.mark.parametrize("revision", ["", EARLIER])
def test_a_half_made_database_is_made_anew(
    revision: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As an interrupted first start of 0.1.0 left it: "table already exists" for ever."""
    make_half(local_uri(tmp_path), revision)
    with pytest.raises(BenchError, match="no run is recorded"):
        cli.dispatch(["show", "--store", str(tmp_path)])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("its tables were not whole and nothing was recorded: made anew")
    assert record_run(tmp_path, 1)


def test_a_half_made_database_on_a_server_is_completed(
    postgresql: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_half(postgresql, "")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", postgresql)
    assert record_run(tmp_path, 1)


def make_earlier(address: str) -> None:
    """Make a database as an earlier MLflow had it, with a run."""
    make_half(address, EARLIER)
    execute(
        address,
        "DROP TABLE webhooks",
        "INSERT INTO experiments (experiment_id, name, lifecycle_stage) "
        "VALUES (1, 'digits@3', 'active')",
        "INSERT INTO runs (run_uuid, experiment_id, lifecycle_stage, status, user_id, start_time) "
        "VALUES ('0123456789abcdef', 1, 'active', 'FINISHED', 'me', 1)",
    )


def refusal(root: Path) -> str:
    """Return the line with which a store is not opened."""
    with pytest.raises(BenchError) as caught:
        TrackingStore(root)
    return str(caught.value)


def test_a_database_of_an_earlier_mlflow_is_upgraded_by_the_command_in_the_line(
    tmp_path: Path,
) -> None:
    """MLflow would upgrade it by itself, without a copy."""
    root = tmp_path / "o'ne two"
    root.mkdir()
    file = root / "mlflow.db"
    make_earlier(local_uri(root))
    content = file.read_bytes()
    line = refusal(root)
    assert file.read_bytes() == content
    before, upgrade = line.split(" is of an earlier MLflow: ")
    assert before == local_uri(root)
    assert shlex.split(upgrade)[:3] == ["cp", str(file), f"{file}.copy"]
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    subprocess.run(["sh", "-c", upgrade], env=os.environ | {"PATH": path}, check=True)
    assert Path(f"{file}.copy").read_bytes() == content
    assert [run.info.run_id for run in open_client(local_uri(root)).search_runs(["1"])]


def test_one_on_a_server_too_and_no_password_is_in_the_line(
    postgresql: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_earlier(postgresql)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", postgresql)
    line = refusal(tmp_path)
    assert "secret" not in line
    assert line.endswith('&& mlflow db upgrade "$MLFLOW_TRACKING_URI"')
    assert "pg_dump " in line


def test_a_database_of_a_newer_mlflow_says_which_to_update(tmp_path: Path) -> None:
    record_run(tmp_path, 1)
    execute(local_uri(tmp_path), "UPDATE alembic_version SET version_num = 'ffffffffffff'")
    assert re.search(
        r"is of a newer MLflow than 3\.\d+\.\d+: update mlflow here$", refusal(tmp_path)
    )


@pytest.mark.parametrize("version", ["", "v3.2.0.a"])
def test_tables_of_another_program_stay(version: str, tmp_path: Path) -> None:
    statements = ["CREATE TABLE studies (id INTEGER)"]
    if version:
        statements.append("CREATE TABLE alembic_version (version_num VARCHAR)")
        statements.append(f"INSERT INTO alembic_version VALUES ('{version}')")
    execute(local_uri(tmp_path), *statements)
    content = (tmp_path / "mlflow.db").read_bytes()
    assert "has tables of another program" in refusal(tmp_path)
    assert (tmp_path / "mlflow.db").read_bytes() == content


def test_a_lock_that_is_not_released_is_a_line(tmp_path: Path, postgresql: str) -> None:
    for address in (f"sqlite:///{tmp_path}/db", postgresql):
        with (
            lock_database(address, "tables"),
            pytest.raises(BenchError, match=r"another process has held .* for 1 s") as caught,
            lock_database(address, "tables", seconds=1),
        ):
            pass
        assert "secret" not in str(caught.value)


# --- moved and copied stores


def contents(root: Path) -> dict[str, bytes]:
    files = [path for path in sorted(root.rglob("*")) if path.is_file()]
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


@pytest.mark.parametrize("kind", ["moved", "copied", "moved twice", "copied without runs"])
def test_a_store_works_where_it_is_now(kind: str, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "sec%20ond"
    runs = {} if kind == "copied without runs" else {record_run(first, 1): "1"}
    TrackingStore(first).get_or_create_experiment(SPEC.suite)
    gc.collect()
    if kind.startswith("copied"):
        shutil.copytree(first, second)
        before = contents(first)
    else:
        first.rename(second)
    runs[record_run(second, 2)] = "2"
    if kind == "moved twice":
        gc.collect()
        second.rename(first)
        second = first
        runs[record_run(second, 3)] = "3"
    client = open_client(local_uri(second))
    for run_id, seed in runs.items():
        assert (second / "artifacts" / run_id / "artifacts" / "seed.txt").is_file()
        folder = tmp_path / f"fetched-{run_id}"
        folder.mkdir()
        client.download_artifacts(run_id, "seed.txt", str(folder))
        assert (folder / "seed.txt").read_text() == seed
    with closing(sqlite3.connect(second / "mlflow.db")) as connection:
        for table, column in ADDRESSES.items():
            for (address,) in connection.execute(f"SELECT {column} FROM {table}"):
                # MLflow's own experiment, which has no runs.
                if not address.endswith("/mlruns/0"):
                    assert address.startswith((second / "artifacts").as_uri()), table
    if kind.startswith("copied"):
        assert contents(first) == before


def test_what_another_store_wrote_into_a_database_stays_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, other = tmp_path / "home", tmp_path / "other"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", local_uri(home))
    run_id = record_run(other, 1)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    record_run(home, 2, "digits@1")
    run = TrackingStore(home).client.get_run(run_id)
    assert run.info.artifact_uri == (other / "artifacts" / run_id / "artifacts").as_uri()


def test_a_store_in_use_under_another_name_keeps_its_addresses(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process in a container would write to a path that it does not have."""
    monkeypatch.setattr("bench.system.log.LOGGER.propagate", True)
    first, second = tmp_path / "first", tmp_path / "second"
    run_id = record_run(first, 1)
    gc.collect()
    first.rename(second)
    use = hold_store(second)
    try:
        run = TrackingStore(second).client.get_run(run_id)
    finally:
        os.close(use)
    assert run.info.artifact_uri.startswith(first.as_uri())
    assert "another process uses this store" in caplog.text
    gc.collect()
    run = TrackingStore(second).client.get_run(run_id)
    assert run.info.artifact_uri.startswith(second.as_uri())


# --- databases that fail


def fail_while_recording(root: Path, environment: dict[str, str], fault: ExitStack | None) -> None:
    """Check that of a database that fails while a command records nothing is printed.

    fault: what fails when it is closed; None for the disk.
    """
    with subprocess.Popen(
        [sys.executable, "-c", RECORD_UNTIL_IT_FAILS, root],
        env=os.environ | environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        assert running.stdout
        assert running.stdout.readline() == "ready\n"
        if fault:
            fault.close()
        output, errors = running.communicate("go on\n" if fault else "fill the disk\n")
    assert errors == ""
    assert len(output.splitlines()) == 1
    (log,) = root.glob("logs/*.log")
    text = log.read_text()
    assert "Traceback" in text
    assert "secret" not in text


@pytest.mark.slow
def test_nothing_of_mlflow_is_printed_when_the_disk_is_full(tmp_path: Path) -> None:
    fail_while_recording(tmp_path, {}, None)


@pytest.mark.slow
def test_nor_when_the_server_of_a_database_stops(tmp_path: Path) -> None:
    if not server.installed():
        pytest.skip("needs PostgreSQL's programs")
    with ExitStack() as running:
        address = running.enter_context(server.postgresql())
        fail_while_recording(tmp_path, {"MLFLOW_TRACKING_URI": address}, running)


def test_a_database_server_that_is_down_is_a_line_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """MLflow alone would try for 100 seconds, and print each try."""
    uri = "postgresql://me:secret@127.0.0.1:9/db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    line = refusal(tmp_path)
    assert line.startswith("the MLflow store postgresql://127.0.0.1:9/db cannot be opened: ")
    assert "\n" not in line
    assert "secret" not in line
    assert capfd.readouterr().err == ""


# --- addresses


@pytest.mark.parametrize("uri", ["sqlite+pysqlite:///{tmp}/db", "postgresql"])
def test_artifacts_are_in_the_store_whatever_the_database(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """MLflow's place for them is `mlruns` in the folder where a command is first given."""
    monkeypatch.chdir(tmp_path)
    if uri == "postgresql":
        uri = str(request.getfixturevalue("postgresql"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri.format(tmp=tmp_path))
    run_id = record_run(Path("runs"), 1)
    assert Path("runs/artifacts", run_id, "artifacts/seed.txt").read_text() == "1"
    assert not Path("mlruns").exists()


@pytest.mark.parametrize(
    "name",
    ["a[/b]", "[/]", "per%20cent", "per%25", "que?stion", "que?x", "a b#c", "ü+=&:;'\"", "[red]"],
)
def test_a_store_of_any_name_has_its_own_database(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run_id = record_run(Path(name), 1)
    assert Path(name, "mlflow.db").stat().st_size
    assert Path(name, "artifacts", run_id, "artifacts", "seed.txt").is_file()
    # And no folder is made of what the name means in an address.
    assert [path.name for path in tmp_path.iterdir()] == [name.partition("/")[0]]
    assert cli.dispatch(["show", run_id, "--store", name]) == 0
    assert run_id in capsys.readouterr().out
    assert cli.dispatch(["leaderboard", "--store", name, "--out", "pages"]) == 0
    assert "left out: 1;" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["que?x", "per%20cent", "a b", "plain"])
def test_an_address_leads_to_its_file(name: str, tmp_path: Path) -> None:
    file = tmp_path / name / "mlflow.db"
    address = sqlite_address(file)
    assert sqlite_file(address) == file
    assert sqlalchemy.make_url(address).database == str(file)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://me:secret@host/db", "postgresql://host/db"),
        ("postgresql+psycopg://me:se/cr:et@host:5432/db", "postgresql+psycopg://host:5432/db"),
        ("postgresql://me:se@cret@host/db is down", "postgresql://host/db is down"),
        ("postgresql://me:12/34@host/db", "postgresql://host/db"),
        ("http://token@host:5000", "http://host:5000"),
        ("http://127.0.0.1:5000/#/suite@3", "http://127.0.0.1:5000/#/suite@3"),
        ("sqlite:////tmp/a@b/c", "sqlite:////tmp/a@b/c"),
        ("file:///a@b", "file:///a@b"),
    ],
)
def test_no_password_is_shown(text: str, shown: str) -> None:
    assert redact_password(text) == shown
