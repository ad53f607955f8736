"""Stores of every kind give the same frame, and a damaged one is described, not fatal."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import server
from mlflow.entities import Metric
from test_leaderboards import Store, by_client, fill

import leaderboards
from leaderboards.read import artifacts, store


@pytest.fixture(scope="module")
def curve_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store whose curves have gaps, NaN, infinity and epochs out of order."""
    folder = tmp_path_factory.mktemp("curves")
    tracked = Store(f"sqlite:///{folder}/mlflow.db", folder / "artifacts")
    for method in ("rslad", "ard"):
        run = tracked.run(method, 0.5, metrics={"test/clean": 0.9, "test/pgd20": float("nan")})
        points = [
            ("train/ce", 1.0, 1),
            ("train/ce", 2.0, 0),
            ("train/ce", 3.0, 10),
            ("val/robust", 0.4, 0),
            ("lr", 0.1, 0),
        ]
        points += [
            ("val/robust", float("nan"), 1),
            ("train/kl", float("inf"), 0),
            ("trainer", 5.0, 0),
        ]
        tracked.client.log_batch(
            run, metrics=[Metric(name, value, 0, step) for name, value, step in points]
        )
        tracked.client.log_text(run, '{"device": "cpu"}', "environment.json")
    return folder


@pytest.fixture
def folder(curve_store: Path, tmp_path: Path) -> Path:
    """A copy of the store to damage."""
    for name in ("mlflow.db", "artifacts"):
        source, copy = curve_store / name, tmp_path / name
        if source.is_dir():
            copy.symlink_to(source)
        else:
            copy.write_bytes(source.read_bytes())
    return tmp_path


def uri(folder: Path) -> str:
    return f"sqlite:///{folder}/mlflow.db"


def damage(folder: Path, *statements: str) -> None:
    with sqlite3.connect(folder / "mlflow.db") as database:
        for statement in statements:
            database.execute(statement)


def test_curves_are_finite_and_in_order(curve_store: Path) -> None:
    runs = store.collect(uri(curve_store))
    recorded = store.read_curves(uri(curve_store), runs)
    curves = {
        "lr": ([0], [0.1]),
        "train/ce": ([0, 1, 10], [2.0, 1.0, 3.0]),
        "val/robust": ([0], [0.4]),
    }
    assert recorded == dict.fromkeys(runs["run_id"], curves)
    assert [*recorded[runs["run_id"][0]]] == [*curves]
    assert store.read_curves(uri(curve_store), runs[:0]) == {}


def test_the_client_gives_the_same_curves(
    curve_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = store.collect(uri(curve_store))
    expected = store.read_curves(uri(curve_store), runs)
    monkeypatch.setattr(store, "DATABASES", ())
    assert store.read_curves(uri(curve_store), runs) == expected


def test_invisible_letters_are_shown_as_escapes(folder: Path) -> None:
    damage(
        folder,
        "UPDATE tags SET value = 'a' || char(0x202e) || 'b' || char(10) WHERE key = 'method'",
    )
    assert {*store.collect(uri(folder))["method"]} == {r"a\u202eb\n"}


def test_text_that_is_not_utf8_is_one_clear_error(folder: Path) -> None:
    damage(folder, "UPDATE tags SET value = CAST(x'ff41' AS TEXT) WHERE key = 'method'")
    with pytest.raises(store.StoreError, match=r"cannot read the tracking store .*UTF-8") as error:
        store.collect(uri(folder))
    assert "\n" not in str(error.value)


def test_impossible_values_do_not_stop_the_pages(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A time beyond all dates, values too small to round, lone surrogates, texts like formulas."""
    damage(
        folder,
        "UPDATE runs SET start_time = 9000000000000000000",
        "UPDATE metrics SET value = 1e-310 WHERE key = 'train/ce'",
        "UPDATE tags SET value = '=1+1' WHERE key = 'variant'",
    )
    monkeypatch.setattr(
        "leaderboards.read.artifacts.read_artifact", lambda *_: b'{"device": "\\ud800"}'
    )
    leaderboards.write(uri(folder), folder / "out")
    (page, *_) = (folder / "out" / "runs").iterdir()
    assert "1970-01-01" in page.read_text()
    assert r"<dd>\ud800</dd>" in page.read_text()
    assert "'=1+1" in (folder / "out" / "leaderboard.csv").read_text()


def test_postgresql_gives_the_same_frame(tmp_path: Path) -> None:
    if not server.installed():
        pytest.skip("needs PostgreSQL's programs")
    with server.postgresql() as address:
        server_uri = address.replace("postgresql:", "postgresql+psycopg:")
        sqlite_uri = f"sqlite:///{tmp_path}/mlflow.db"
        for source in (server_uri, sqlite_uri):
            tracked = Store(source)
            fill(tracked)
            run = tracked.run(
                "ard", 0.1 + 0.2, metrics={"val/clean": float("nan"), "train/ce": 1e300}
            )
            points = [Metric("lr", 1 / (3 + step), 0, step) for step in (2, 0, 1)]
            tracked.client.log_batch(run, metrics=points)
        on_server, in_sqlite = store.collect(server_uri), store.collect(sqlite_uri)
        drop = ["run_id", "artifact_uri"]
        pd.testing.assert_frame_equal(on_server.drop(columns=drop), in_sqlite.drop(columns=drop))
        server_curves = store.read_curves(server_uri, on_server)
        sqlite_curves = store.read_curves(sqlite_uri, in_sqlite)
        assert [*server_curves.values()] == [*sqlite_curves.values()]


def test_a_store_in_files_is_read_through_the_client(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    files, base = (tmp_path / "mlruns").as_uri(), f"sqlite:///{tmp_path}/mlflow.db"
    for source in (files, base):
        tracked = Store(source)
        tracked.run("rslad", 0.5, spec_id="a", metrics={"test/clean": 0.9, "train/ce": 1.0})
        tracked.run("ard", None, spec_id="b", variant="$x$ 'y' \"z\"")
        tracked.run("kd", 0.5, spec_id="c", status="RUNNING")
    in_files, in_base = store.collect(files), store.collect(base)
    drop = ["run_id", "artifact_uri"]
    pd.testing.assert_frame_equal(in_files.drop(columns=drop), in_base.drop(columns=drop))
    assert (
        in_files.attrs
        == in_base.attrs
        == {"problems": ["runs that did not finish are left out: 1 RUNNING"]}
    )
    assert [*store.read_curves(files, in_files).values()] == [
        *store.read_curves(base, in_base).values()
    ]
    assert store.collect((tmp_path / "none").as_uri()).empty
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    "statement",
    [
        "ALTER TABLE latest_metrics RENAME COLUMN is_nan TO nan",
        "DROP TABLE params",
        "ALTER TABLE runs RENAME COLUMN run_uuid TO run_id",
    ],
)
def test_another_version_of_mlflow_is_reported_on_the_page(
    statement: str, folder: Path, tmp_path: Path
) -> None:
    damage(folder, "DROP INDEX IF EXISTS index_params_run_uuid", statement)
    runs = store.collect(uri(folder))
    assert runs.empty
    (problem,) = runs.attrs["problems"]
    assert problem.startswith("the store is of another version of MLflow, without ")
    assert leaderboards.write(uri(folder), tmp_path / "out")


def test_a_store_that_mlflow_would_migrate_is_read_as_it_is(
    folder: Path, curve_store: Path
) -> None:
    damage(
        folder,
        "UPDATE alembic_version SET version_num = '0'",
        "ALTER TABLE experiments ADD COLUMN later INTEGER",
    )
    before = (folder / "mlflow.db").read_bytes()
    assert len(store.collect(uri(folder))) == 2
    assert (folder / "mlflow.db").read_bytes() == before


@pytest.mark.parametrize(
    ("statement", "problem", "left"),
    [
        (
            "UPDATE tags SET value = '{\"a\": 1' WHERE key = 'flags'",
            "2 finished runs have unreadable flags",
            2,
        ),
        (
            "UPDATE tags SET value = '[1]' WHERE key = 'flags'",
            "2 finished runs have unreadable flags",
            2,
        ),
        (
            "DELETE FROM tags WHERE key = 'method'",
            "2 finished runs say no method or no data set and are left out",
            0,
        ),
        ("UPDATE runs SET status = 'FAILED'", "runs that did not finish are left out: 2 FAILED", 0),
        ("DELETE FROM latest_metrics", "", 2),
        ("DELETE FROM params", "", 2),
        ("UPDATE tags SET value = NULL WHERE key = 'command'", "", 2),
        ("UPDATE latest_metrics SET value = 0, is_nan = 1", "", 2),
    ],
)
def test_half_written_runs(
    statement: str, problem: str, left: int, folder: Path, tmp_path: Path
) -> None:
    damage(
        folder,
        "INSERT OR IGNORE INTO tags (key, value, run_uuid) "
        "SELECT 'flags', '{}', run_uuid FROM tags WHERE key = 'method'",
        statement,
    )
    runs = store.collect(uri(folder))
    assert len(runs) == left
    assert runs.attrs["problems"] == ([problem] if problem else [])
    pd.testing.assert_frame_equal(
        by_client(uri(folder)).drop(columns="artifact_uri"), runs.drop(columns="artifact_uri")
    )
    assert leaderboards.write(uri(folder), tmp_path / "out")


@pytest.mark.parametrize("content", [None, "", "{", "[1]", "\0"])
def test_a_missing_or_damaged_environment_is_empty(content: Any, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "environment.json").write_text(content)
    assert artifacts.read_environment({"artifact_uri": tmp_path.as_uri()}) == {}
    (tmp_path / "environment.json").write_text('{"torch": "2"}')
    assert artifacts.read_environment({"artifact_uri": tmp_path.as_uri()}) == {"torch": "2"}
