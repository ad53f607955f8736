"""Runs without their numbers: what is asked of all runs of a grid, again and again."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bench.system.database import connect, is_database
from leaderboards.schema.fields import PARENT_TAG

if TYPE_CHECKING:
    from mlflow import MlflowClient

PAGE_SIZE = 1000


@dataclass(frozen=True)
class ListedRun:
    """A run of MLflow with its tags; start_time in milliseconds."""

    run_id: str
    status: str
    start_time: int
    tags: dict[str, str]


def list_runs(
    client: MlflowClient, uri: str, experiment_ids: Sequence[str], status: str = ""
) -> list[ListedRun]:
    """Return the single runs of experiments, those with a status, oldest first.

    Of a database only the tags are read: MLflow gives a run with all of its numbers, and of a
    thousand runs that takes seconds. Notes for people and other tags of MLflow are left out then.
    """
    if not experiment_ids:
        return []
    if is_database(uri):
        runs = read_database(uri, experiment_ids, status)
    else:
        runs = ask_server(client, experiment_ids, status)
    runs = [run for run in runs if PARENT_TAG in run.tags]
    return sorted(runs, key=lambda run: (run.start_time, run.run_id))


def read_database(uri: str, experiment_ids: Sequence[str], status: str) -> list[ListedRun]:
    """Read the runs from the tables of MLflow."""
    from mlflow.store.tracking.dbmodels.models import SqlRun, SqlTag
    from sqlalchemy import or_, select

    columns = SqlRun.run_uuid, SqlRun.status, SqlRun.start_time, SqlTag.key, SqlTag.value
    query: Any = select(*columns).join(SqlTag, SqlTag.run_uuid == SqlRun.run_uuid)
    query = query.where(SqlRun.experiment_id.in_([*map(int, experiment_ids)]))
    query = query.where(SqlRun.lifecycle_stage == "active")
    query = query.where(or_(SqlTag.key == PARENT_TAG, SqlTag.key.not_like("mlflow.%")))
    if status:
        query = query.where(SqlRun.status == status)
    tags: defaultdict[tuple[str, str, int], dict[str, str]] = defaultdict(dict)
    with connect(uri) as connection:
        for run_id, state, start_time, key, value in connection.execute(query):
            tags[run_id, state, start_time][key] = value
    return [ListedRun(*run, tags=values) for run, values in tags.items()]


def ask_server(client: MlflowClient, experiment_ids: Sequence[str], status: str) -> list[ListedRun]:
    """Ask a server for the runs, page by page."""
    condition = f"attributes.status = '{status}'" if status else ""
    runs: list[ListedRun] = []
    token: str | None = ""
    while token is not None:
        page = client.search_runs(
            [*experiment_ids], condition, max_results=PAGE_SIZE, page_token=token or None
        )
        for run in page:
            info = run.info
            runs.append(ListedRun(info.run_id, info.status, info.start_time, dict(run.data.tags)))
        token = page.token or None
    return runs
