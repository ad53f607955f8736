"""The MLflow store: one run per spec, under one parent run per row of the leaderboard."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import stat
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlparse
from urllib.request import url2pathname

from bench.system.database import (
    is_database,
    lock_database,
    redact_password,
    sqlite_address,
    sqlite_file,
)
from bench.system.errors import BenchError, UsageError, one_line
from bench.system.files import file_mode, save_file
from bench.system.log import log_to_file_alone
from bench.tracking import note
from bench.tracking.claims import Claims
from bench.tracking.listing import ListedRun, list_runs
from bench.tracking.moving import (
    ARTIFACTS,
    adopt_artifacts,
    artifacts_address,
    find_moved,
    hold_store,
)
from bench.tracking.run_logger import RunLogger
from bench.tracking.tables import ensure_tables
from leaderboards.schema.fields import (
    EXPERIMENT,
    FAILED,
    FINISHED,
    KILLED,
    PARENT_TAG,
    REPLACED_TAG,
    RUNNING,
    Tag,
)
from leaderboards.schema.spec import Spec

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

    from leaderboards.schema.record import Record

# Tag of a run that an import has not finished: its record's sha256. No other process continues it.
IMPORTING = "importing"
# Tag of a run whose results are copied from another, its id: the epochs are no training's.
COPY_OF = "copy_of"
LOCKS = "work"  # the folder of unfinished work, and of the locks of claims
DATABASE = "mlflow.db"
TUNING_SUFFIX = " tuning"  # suffix of the experiment of a suite's searches
UPLOADS = ".artifact.uploading.*"  # artifacts that MLflow has not given their names yet
PAGE_SIZE = 50_000  # the most runs that MLflow returns at once
ROW_TAGS = ("dataset", "student", "method", "teacher", "variant")  # a row of the leaderboard
# What logs when a database or a server fails.
LIBRARIES = ("mlflow", "alembic", "sqlalchemy", "urllib3")
# MLflow's client would retry a dead server for minutes, and print the address of every run.
CLIENT_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # A bar for each of thousands of small files.
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}


def tracking_uri(root: Path) -> str:
    """Return MLFLOW_TRACKING_URI, or the address of a SQLite file under `root`.

    Raise UsageError if `root` is no folder, BenchError for a database in memory.
    """
    if re.match(r"\w[\w+]+:(/|$)", str(root)):
        advice = "a folder; the address of a database belongs in MLFLOW_TRACKING_URI"
        raise UsageError(f"--store {str(root)!r}: {advice}")
    mode = file_mode(root)
    if mode and not stat.S_ISDIR(mode):
        raise UsageError(f"--store {str(root)!r}: a folder, and this is a file")
    uri = os.environ.get("MLFLOW_TRACKING_URI") or local_uri(root)
    sqlite_file(uri)
    return uri


def local_uri(root: Path) -> str:
    """Return the address of the database in a folder."""
    return sqlite_address(Path(os.path.realpath(root), DATABASE))


def store_exists(root: Path) -> bool:
    """Return whether reading the store would not create it: its file exists, or it is a server."""
    file = sqlite_file(tracking_uri(root))
    return file is None or file.exists()


def records_folder(root: Path, uri: str) -> Path:
    """Return the folder of the records of a tracking store: one for each server."""
    if uri == local_uri(root):
        return root / "records"
    address = redact_password(uri)
    return root / f"records-{hashlib.sha256(address.encode()).hexdigest()[:8]}"


def open_client(uri: str) -> MlflowClient:
    """Open an MLflow store. Raise BenchError if that fails."""
    for name, value in CLIENT_SETTINGS.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    # After the import, which gives them handlers that print.
    log_to_file_alone(LIBRARIES)
    try:
        if is_database(uri):
            ensure_tables(uri)
        client = MlflowClient(uri)
        client.search_experiments(max_results=1)
    except BenchError:
        raise
    # A dead server, a locked or foreign database and a bad address have no common class.
    except Exception as error:
        # SQLAlchemy adds the statement, and where to read about the error.
        cause = getattr(error, "orig", None) or error
        message = f"the MLflow store {uri} cannot be opened: {one_line(cause, 200)}"
        raise BenchError(redact_password(message)) from error
    return client


def artifact_path(root: Path, run_id: str, artifact: str) -> Path:
    """Return where a local store has an artifact of a run.

    A store that was moved or copied has its artifacts with it, wherever MLflow believes them.
    """
    return root / ARTIFACTS / run_id / "artifacts" / artifact


def fetch_artifact(
    client: MlflowClient, root: Path, run_id: str, artifact: str, folder: Path
) -> Path:
    """Return an artifact of a run as a file: in the store if it is there, else fetched to a folder.

    The errors of stores have no common class.
    """
    path = artifact_path(root, run_id, artifact)
    return path if path.exists() else Path(client.download_artifacts(run_id, artifact, str(folder)))


def local_artifact(root: Path, run: Run, artifact: str) -> Path | None:
    """Return an artifact of a run that lies on this machine, else None."""
    address = urlparse(run.info.artifact_uri)
    paths = [artifact_path(root, run.info.run_id, artifact)]
    if address.scheme in ("", "file"):
        paths.append(Path(url2pathname(address.path), artifact))
    return next((path for path in paths if path.exists()), None)


def suite_ids(client: MlflowClient) -> list[str]:
    """Return the ids of the experiments of suites."""
    experiments = client.search_experiments(max_results=PAGE_SIZE)
    return [entry.experiment_id for entry in experiments if EXPERIMENT.fullmatch(entry.name)]


def suite_runs(client: MlflowClient, condition: str = "") -> list[Run]:
    """Return the single runs of suites that meet a condition, oldest first."""
    ids = suite_ids(client)
    runs: list[Run] = []
    token: str | None = ""
    while ids and token is not None:
        page = client.search_runs(ids, condition, max_results=1000, page_token=token or None)
        runs += [run for run in page if PARENT_TAG in run.data.tags]
        token = page.token or None
    return sorted(runs, key=lambda run: (run.info.start_time, run.info.run_id))


class TrackingStore:
    """The MLflow store of a root folder, created on first use. Raise BenchError if that fails."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.uri = tracking_uri(root)
        self._claims: dict[str, Claims] = {}
        try:
            root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=root):
                pass
        except OSError as error:
            cause = f"{error.strerror}; choose another folder with --store"
            raise BenchError(f"cannot write to {root}: {cause}") from error
        self.client = open_client(self.uri)
        use = hold_store(root)
        weakref.finalize(self, os.close, use)
        if self.uri == local_uri(root) and find_moved(root / DATABASE, root):
            with lock_database(self.uri):
                adopt_artifacts(root / DATABASE, root, use)

    @property
    def records(self) -> Path:
        """The folder of the records of finished runs."""
        return records_folder(self.root, self.uri)

    def save_record(self, record: Record) -> Path:
        """Write a record among those of the store; return its path."""
        path = self.records / record.spec.record_name
        save_file(path, record.to_json().encode())
        return path

    def get_or_create_experiment(self, name: str) -> str:
        """Return the id of an experiment, created on first use."""
        from mlflow.exceptions import MlflowException

        # A server has a place of its own; MLflow would take `mlruns` in the working folder.
        location = artifacts_address(self.root) if is_database(self.uri) else None
        experiment = self.client.get_experiment_by_name(name)
        if not experiment:
            try:
                return self.client.create_experiment(name, artifact_location=location)
            except MlflowException:
                # Another process created it meanwhile: names are unique.
                experiment = self.client.get_experiment_by_name(name)
                if not experiment:
                    raise
        return str(experiment.experiment_id)

    def claims(self, experiment: str) -> Claims:
        """Return the claims on the runs of an experiment, which is created on first use."""
        if experiment not in self._claims:
            experiment_id = self.get_or_create_experiment(experiment)
            self._claims[experiment] = Claims(self.client, experiment_id, self.root / LOCKS)
        return self._claims[experiment]

    @contextmanager
    def alone(self, experiment: str, purpose: str) -> Iterator[None]:
        """Keep out all other processes of the tracking store that have the same purpose."""
        name = hashlib.sha256(purpose.encode()).hexdigest()[:16]
        with self.claims(experiment).alone(name):
            yield

    def find_run(self, spec: Spec, status: str) -> Run | None:
        """Return the newest run of a spec with a status, unless its import has not finished."""
        condition = f"tags.spec_id = '{spec.id}' and attributes.status = '{status}'"
        return self.newest_run(spec.suite, condition)

    def newest_run(self, experiment_name: str, condition: str) -> Run | None:
        """Return the newest run that meets a condition, unless its import has not finished."""
        runs = self._counting_runs(experiment_name, condition)
        return None if not runs or IMPORTING in runs[0].data.tags else runs[0]

    def _counting_runs(self, experiment_name: str, condition: str) -> list[Run]:
        """Return the runs that meet a condition and are not replaced, newest first."""
        experiment = self.client.get_experiment_by_name(experiment_name)
        if not experiment:
            return []
        order = ["attributes.start_time DESC"]
        ids = [experiment.experiment_id]
        runs = self.client.search_runs(ids, condition, order_by=order, max_results=PAGE_SIZE)
        return [run for run in runs if REPLACED_TAG not in run.data.tags]

    def mark_replaced(self, spec: Spec, run_id: str) -> None:
        """Mark the finished runs of a spec but for one, which counts from now on."""
        condition = f"tags.spec_id = '{spec.id}' and attributes.status = '{FINISHED}'"
        for run in self._counting_runs(spec.suite, condition):
            if run.info.run_id != run_id:
                self.client.set_tag(run.info.run_id, REPLACED_TAG, run_id)

    def runs_with_status(self, experiment_name: str, status: str) -> list[ListedRun]:
        """Return the runs of an experiment with a spec and a status that count, oldest first."""
        ids = [self.get_or_create_experiment(experiment_name)]
        uncounted = {IMPORTING, REPLACED_TAG}
        return [
            run
            for run in list_runs(self.client, self.uri, ids, status)
            if Tag.SPEC_ID in run.tags and uncounted.isdisjoint(run.tags)
        ]

    def unfinished_runs(self) -> list[Run]:
        """Return the runs that are running or were interrupted.

        A killed process leaves its run marked as running.
        """
        ids = [experiment.experiment_id for experiment in self.client.search_experiments()]
        runs: list[Run] = []
        for status in (RUNNING, KILLED):
            condition = f"attributes.status = '{status}' and tags.spec_id != ''"
            runs += self.client.search_runs(ids, condition)
        return runs

    def start_run(self, spec: Spec, tags: dict[str, str], fresh: bool = False) -> RunLogger:
        """Return a logger of a spec's unfinished run, or of a new one.

        fresh: training starts at epoch 0, so a run that has epochs is not continued.
        """
        run_id = self._unfinished_run_id(spec, fresh)
        if not run_id:
            experiment_id = self.get_or_create_experiment(spec.suite)
            parent = self.get_or_create_parent(spec.suite, tags)
            name = f"{note.run_title(tags)} seed {spec.seed}"
            run_id = self._create_run(experiment_id, name, tags, parent)
        self.clear_uploads(run_id)
        logger = self._resume_run(run_id)
        # Also into a continued run: it may have been killed before it had them.
        logger.log_spec(spec)
        return logger

    def _unfinished_run_id(self, spec: Spec, fresh: bool) -> str:
        runs = (self.find_run(spec, status) for status in (RUNNING, KILLED, FAILED))
        run = next(filter(None, runs), None)
        if not run:
            return ""
        begun = COPY_OF not in run.data.tags
        if fresh and begun and RunLogger(self.client, run.info.run_id).last_epoch >= 0:
            # Its process was killed before it could mark the run.
            if run.info.status == RUNNING:
                self.client.set_terminated(run.info.run_id, KILLED)
            # Why a run failed stays.
            if run.info.status != FAILED:
                text = f"begun again on {platform.node()}, which does not have its unfinished work"
                self.client.set_tag(run.info.run_id, Tag.STATUS_NOTE, text)
            return ""
        return str(run.info.run_id)

    def clear_uploads(self, run_id: str) -> None:
        """Remove what a process that was killed left of a run's files; none may write them now."""
        for path in (self.root / ARTIFACTS / run_id).rglob(UPLOADS):
            path.unlink(missing_ok=True)

    def open_run(
        self, experiment: str, name: str, tags: dict[str, str], parent: str, key: tuple[str, ...]
    ) -> RunLogger:
        """Continue the run with these tags in `key`, or create it; `parent` is "" or a run's id."""
        experiment_id = self.get_or_create_experiment(experiment)
        condition = " and ".join(f"tags.{tag} = '{tags[tag]}'" for tag in key)
        with self.alone(experiment, condition):
            runs = self.client.search_runs([experiment_id], condition, max_results=1)
            if not runs:
                return self._resume_run(self._create_run(experiment_id, name, tags, parent))
        return self._resume_run(runs[0].info.run_id)

    def _resume_run(self, run_id: str) -> RunLogger:
        logger = RunLogger(self.client, run_id)
        self.client.update_run(run_id, status=RUNNING)
        return logger

    def _create_run(self, experiment_id: str, name: str, tags: dict[str, str], parent: str) -> str:
        if parent:
            tags = tags | {PARENT_TAG: parent}
        return str(self.client.create_run(experiment_id, run_name=name, tags=tags).info.run_id)

    def get_or_create_parent(self, experiment: str, tags: dict[str, str]) -> str:
        """Return the parent run of all seeds of a row, created on first use."""
        row = {name: tags[name] for name in ROW_TAGS}
        parent = self._find_parent(experiment, row)
        if parent and parent.info.status == FINISHED:
            return str(parent.info.run_id)
        with self.alone(experiment, json.dumps(row)):
            # An unfinished one is of a process that was killed here.
            parent = self._find_parent(experiment, row)
            if parent:
                run_id = str(parent.info.run_id)
            else:
                name = f"{note.run_title(tags)}, all seeds"
                experiment_id = self.get_or_create_experiment(experiment)
                run_id = self._create_run(experiment_id, name, row | {"role": "group"}, "")
            if not parent or parent.info.status != FINISHED:
                text = note.parent_note(tags, self.get_or_create_experiment(experiment), run_id)
                self.client.set_tag(run_id, note.NOTE_TAG, text)
                self.client.set_terminated(run_id)
        return run_id

    def _find_parent(self, experiment: str, row: dict[str, str]) -> Run | None:
        conditions = ["tags.role = 'group'"]
        for name, value in row.items():
            # MLflow's filters cannot express every character: the loop below compares the rest.
            if re.fullmatch(r"[\w@.+=, -]*", value):
                conditions.append(f"tags.{name} = '{value}'")
        condition = " and ".join(conditions)
        ids = [self.get_or_create_experiment(experiment)]
        runs = self.client.search_runs(ids, condition, max_results=PAGE_SIZE)
        return next((run for run in runs if row.items() <= run.data.tags.items()), None)
