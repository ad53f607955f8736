"""Runs without their numbers: what MLflow's tables say is what MLflow itself says."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from records import make_context
from server import free_port
from sqlalchemy.exc import OperationalError

from bench.tracking import listing
from bench.tracking.listing import ListedRun, list_runs
from bench.tracking.outage import is_outage
from bench.tracking.store import suite_ids
from leaderboards.schema.fields import FINISHED, PARENT_TAG, REPLACED_TAG, Tag


def without_notes(run: ListedRun) -> ListedRun:
    """Return a run without the tags that are MLflow's own."""
    own = {name for name in run.tags if name.startswith("mlflow.") and name != PARENT_TAG}
    return dataclasses.replace(run, tags={n: v for n, v in run.tags.items() if n not in own})


def test_tables_and_client_say_the_same(tmp_path: Path) -> None:
    store = make_context(tmp_path).store
    (suite,) = ids = [store.get_or_create_experiment("digits@3")]
    (other,) = {*suite_ids(store.client), store.get_or_create_experiment("stl@2")} - {suite}
    parent = store.client.create_run(suite, tags={"role": "group"}).info.run_id
    tags = {PARENT_TAG: parent, Tag.SPEC_ID: "a", "mlflow.note.content": "x" * 5000}
    runs = [store.client.create_run(suite, start_time=n, tags=tags).info.run_id for n in (3, 1, 2)]
    elsewhere = store.client.create_run(other, start_time=4, tags=tags).info.run_id
    deleted = store.client.create_run(suite, tags=tags).info.run_id
    store.client.delete_run(deleted)
    for run_id in runs[:2]:
        store.client.set_terminated(run_id, FINISHED)
    store.client.set_tag(runs[0], REPLACED_TAG, runs[1])
    for status, expected in {"": [runs[1], runs[2], runs[0]], FINISHED: [runs[1], runs[0]]}.items():
        listed = list_runs(store.client, store.uri, ids, status)
        assert [run.run_id for run in listed] == expected
        asked = listing.ask_server(store.client, ids, status)
        asked = [without_notes(run) for run in asked if run.run_id != parent]
        assert sorted(asked, key=lambda run: run.start_time) == listed
    assert [run.run_id for run in list_runs(store.client, store.uri, [other])] == [elsewhere]
    assert [run.run_id for run in store.runs_with_status("digits@3", FINISHED)] == [runs[1]]
    assert list_runs(store.client, store.uri, []) == []


def test_a_database_that_is_away_is_waited_for(tmp_path: Path) -> None:
    store = make_context(tmp_path).store
    away = f"postgresql+psycopg://nobody@127.0.0.1:{free_port()}/mlflow"
    with pytest.raises(OperationalError) as caught:
        list_runs(store.client, away, ["1"])
    assert is_outage(caught.value)


def test_a_server_gives_page_after_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make_context(tmp_path).store
    suite = store.get_or_create_experiment("digits@3")
    for _ in range(5):
        store.client.create_run(suite, tags={PARENT_TAG: "p"})
    monkeypatch.setattr(listing, "PAGE_SIZE", 2)
    assert len(listing.ask_server(store.client, [suite], "")) == 5
