"""The MLflow store as one DataFrame: a line per finished run, whatever the store holds besides."""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    from mlflow import MlflowClient

EXPERIMENT = re.compile(r"(?P<suite>.+)@(?P<version>\d+)")
TAGS = (
    "role",
    "spec_id",
    "dataset",
    "method",
    "variant",
    "sets",
    "student",
    "teacher",
    "seed",
    "status_note",
    "flags",
    "code_dirty",
    "code_commit",
    "command",
    "sha256.best",
)
COLUMNS = ("experiment", "suite", "version", *TAGS, "run_id", "artifact_uri", "start_time", "superseded")
METRICS = ("test/", "test_last/", "test_ema/", "test_swa/", "cost/", "val/")
PAGE = 1000
PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
CONNECT_SECONDS = 10


class StoreError(ConnectionError):
    """The tracking store cannot be read; the message is one line."""


def collect(tracking_uri: str, suite: str | None = None) -> pd.DataFrame:
    """Finished runs of every experiment named <suite>@<version>, oldest first; `suite` picks one ("digits", "digits@1").

    Columns: COLUMNS (text, "" where absent; version int, start_time in UTC, superseded bool: a newer run has the same
    spec_id), metrics under their own names (fractions, seconds or counts; NaN where absent or not finite) and params as
    "param/<name>" (text). A store that does not exist yet is an empty one. Raises StoreError when it cannot be read.
    """
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        with _bounded():
            rows = list(_rows(tracking_uri, suite)) if _reachable(tracking_uri) else []
    except (MlflowException, SQLAlchemyError, OSError, ImportError) as error:
        cause = str(error).strip().splitlines() or [type(error).__name__]
        raise StoreError(_public(f"cannot read the tracking store {tracking_uri}: {cause[0]}")) from error
    return _frame(rows)


def _rows(tracking_uri: str, suite: str | None) -> Iterator[dict[str, Any]]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=tracking_uri)
    for experiment in _paged(client, "search_experiments", max_results=PAGE):
        match = EXPERIMENT.fullmatch(experiment.name)
        if match is None or suite not in (None, match["suite"], experiment.name):
            continue
        place = {"experiment": experiment.name, "suite": match["suite"], "version": int(match["version"])}
        ids, finished = [experiment.experiment_id], "attributes.status = 'FINISHED'"
        for run in _paged(client, "search_runs", experiment_ids=ids, filter_string=finished, max_results=PAGE):
            if "mlflow.parentRunId" in run.data.tags:
                yield place | _row(run) | _moved(tracking_uri, run.info.run_id)


def _moved(tracking_uri: str, run_id: str) -> dict[str, str]:
    """Where the artifacts of a run lie beside a database file, which may have been copied with them from elsewhere."""
    folder = Path(tracking_uri.removeprefix("sqlite:///")).parent / "artifacts" / run_id / "artifacts"
    return {"artifact_uri": folder.resolve().as_uri()} if tracking_uri.startswith("sqlite:") and folder.exists() else {}


def _paged(client: MlflowClient, search: str, **query: Any) -> Iterator[Any]:
    token: str | None = None
    while True:
        page = getattr(client, search)(page_token=token, **query)
        yield from page
        token = page.token
        if not token:
            return


def _row(run: Any) -> dict[str, Any]:
    tags = {tag: run.data.tags.get(tag, "") for tag in TAGS}
    metrics = {name: _finite(value) for name, value in run.data.metrics.items() if name.startswith(METRICS)}
    params = {f"param/{name}": value for name, value in run.data.params.items()}
    info = {name: getattr(run.info, name) for name in ("run_id", "artifact_uri", "start_time")}
    return {**tags, **info, **metrics, **params}


def _finite(value: float) -> float:
    """NaN for what MLflow made of a number that was not finite: it stores inf as about 1.8e308."""
    return value if abs(value) < 1e300 else math.nan


def _frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    import pandas as pd

    rows = sorted(rows, key=lambda row: row["start_time"])
    frame = pd.DataFrame(rows).reindex(columns=[*COLUMNS, *sorted({key for row in rows for key in row} - {*COLUMNS})])
    frame["start_time"] = pd.to_datetime(frame["start_time"], unit="ms", utc=True)
    same = frame[["experiment", "spec_id"]].duplicated(keep="last")
    frame["superseded"] = same & (frame["spec_id"] != "")
    return frame


def _reachable(tracking_uri: str) -> bool:
    """False for a store not made yet, so that looking does not create one; raises at once where a server is down.

    One attempt of our own, because MLflow tries a dead database again and again for minutes.
    """
    if tracking_uri.startswith(("http://", "https://")):
        return True
    if "://" not in tracking_uri or tracking_uri.startswith("file:"):
        return Path(tracking_uri.removeprefix("file://").removeprefix("file:")).exists()
    import sqlalchemy

    url = sqlalchemy.make_url(tracking_uri)
    local = url.get_backend_name() == "sqlite"
    if local and not (url.database and Path(url.database).exists()):
        return False
    engine = sqlalchemy.create_engine(url, connect_args={} if local else {"connect_timeout": CONNECT_SECONDS})
    try:
        return "experiments" in sqlalchemy.inspect(engine).get_table_names()  # else MLflow would add its tables here
    finally:
        engine.dispose()


@contextmanager
def _bounded() -> Iterator[None]:
    """Short retries and no log lines of MLflow's own while the store is read; what the user has set stays."""
    before = {name: os.environ.get(name) for name in PATIENCE}
    os.environ.update({name: value for name, value in PATIENCE.items() if before[name] is None})
    loggers = [logging.getLogger(name) for name in ("mlflow", "urllib3", "alembic")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        for name in [name for name, value in before.items() if value is None]:
            os.environ.pop(name, None)


def _public(message: str) -> str:
    """The message with no password in its addresses."""
    return re.sub(r"//[^@/\s]*@", "//", message)
