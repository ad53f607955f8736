"""A store read through MLflow's client: one kept by a server, or in files."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from leaderboards.schema import fields

if TYPE_CHECKING:
    import pandas as pd
    from mlflow import MlflowClient

PAGE = 1000
PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}


@contextmanager
def connect(uri: str) -> Iterator[Client]:
    """Short retries and no log lines of MLflow's own while the store is read; what the user has set stays.

    Raises ConnectionError for whatever MLflow raises.
    """
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    before = {name: os.environ.get(name) for name in PATIENCE}
    os.environ.update({name: value for name, value in PATIENCE.items() if before[name] is None})
    loggers = [logging.getLogger(name) for name in ("mlflow", "urllib3")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        yield Client(MlflowClient(tracking_uri=uri))
    except MlflowException as error:
        raise ConnectionError(str(error)) from error
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        for name in [name for name, value in before.items() if value is None]:
            os.environ.pop(name, None)


@dataclass(frozen=True)
class Client:
    """A store.Reader."""

    client: MlflowClient

    def runs(self, suite: str | None) -> tuple[pd.DataFrame, list[str]]:
        import pandas as pd

        rows, statuses = [], []
        for experiment in self._paged("search_experiments"):
            if fields.wanted(experiment.name, suite):
                for run in self._paged("search_runs", experiment_ids=[experiment.experiment_id]):
                    if fields.PARENT in run.data.tags:
                        statuses.append(run.info.status)
                        rows += (
                            [_row(experiment.name, run)]
                            if run.info.status == fields.FINISHED
                            else []
                        )
        return pd.DataFrame(rows), fields.unfinished(statuses)

    def curves(self, runs: Sequence[str]) -> dict[str, fields.Curves]:
        return {run: dict(self._curves(run)) for run in runs}

    def _curves(self, run: str) -> Iterator[tuple[str, fields.Curve]]:
        for name in filter(fields.curve, self.client.get_run(run).data.metrics):
            points = self.client.get_metric_history(run, name)
            yield name, ([point.step for point in points], [point.value for point in points])

    def _paged(self, search: str, **query: Any) -> Iterator[Any]:
        token: str | None = None
        while True:
            page = getattr(self.client, search)(page_token=token, max_results=PAGE, **query)
            yield from page
            token = page.token
            if not token:
                return


def _row(experiment: str, run: Any) -> dict[str, Any]:
    place = {name: getattr(run.info, name) for name in ("run_id", "artifact_uri", "start_time")}
    tags = {name: value for name, value in run.data.tags.items() if name in fields.TAGS}
    metrics = {
        name: value for name, value in run.data.metrics.items() if name.startswith(fields.METRICS)
    }
    params = {f"param/{name}": value for name, value in run.data.params.items()}
    return {"experiment": experiment, **place, **tags, **metrics, **params}
