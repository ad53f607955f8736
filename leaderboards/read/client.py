"""A store read through MLflow's client: one kept by a server, or in files."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from leaderboards.schema import fields

if TYPE_CHECKING:
    from mlflow import MlflowClient

PAGE_SIZE = 1000
# MLflow by default tries a dead server again for minutes.
PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}


@contextmanager
def open_client(uri: str) -> Iterator[ClientReader]:
    """Open a store with short retries and without MLflow's log lines; the user's settings stay.

    Raises ConnectionError for whatever MLflow raises.
    """
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    unset = PATIENCE.keys() - os.environ.keys()
    levels = {name: logging.getLogger(name).level for name in ("mlflow", "urllib3")}
    try:
        for name in unset:
            os.environ[name] = PATIENCE[name]
        for name in levels:
            logging.getLogger(name).setLevel(logging.ERROR)
        yield ClientReader(MlflowClient(tracking_uri=uri))
    except MlflowException as error:
        raise ConnectionError(str(error)) from error
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        for name in unset:
            os.environ.pop(name, None)


@dataclass(frozen=True)
class ClientReader:
    """A store.Reader."""

    client: MlflowClient

    def runs(self, suite: str | None, statuses: Sequence[str]) -> tuple[pd.DataFrame, list[str]]:
        rows, all_statuses = [], []
        for experiment in self._search("search_experiments"):
            if not fields.in_suite(experiment.name, suite):
                continue
            for run in self._search("search_runs", experiment_ids=[experiment.experiment_id]):
                if fields.PARENT_TAG not in run.data.tags:
                    continue
                all_statuses.append(run.info.status)
                if run.info.status in statuses:
                    rows.append(_to_row(experiment.name, run))
        return pd.DataFrame(rows), fields.describe_unfinished(all_statuses, statuses)

    def curves(self, run_ids: Sequence[str]) -> dict[str, fields.Curves]:
        return {run_id: dict(self._curves_of(run_id)) for run_id in run_ids}

    def _curves_of(self, run_id: str) -> Iterator[tuple[str, fields.Curve]]:
        for name in filter(fields.is_curve, self.client.get_run(run_id).data.metrics):
            points = self.client.get_metric_history(run_id, name)
            yield name, ([point.step for point in points], [point.value for point in points])

    def _search(self, search: str, **query: Any) -> Iterator[Any]:
        """Yield the entities on every page of a search."""
        token: str | None = None
        while True:
            page = getattr(self.client, search)(page_token=token, max_results=PAGE_SIZE, **query)
            yield from page
            token = page.token
            if not token:
                return


def _to_row(experiment: str, run: Any) -> dict[str, Any]:
    row = {"experiment": experiment, "run_id": run.info.run_id}
    row |= {"artifact_uri": run.info.artifact_uri, "start_time": run.info.start_time}
    row["status"] = run.info.status
    for name, tag in run.data.tags.items():
        if name in fields.TAGS:
            row[name] = tag
    for name, value in run.data.metrics.items():
        if name.startswith(fields.METRIC_PREFIXES):
            row[name] = value
    for name, text in run.data.params.items():
        row[f"param/{name}"] = text
    return row
