"""The record: one MLflow run per finished, failed or running spec, under one parent run per row of the leaderboard."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from bench.protocol.spec import Spec
from bench.system import signals
from bench.system.database import alone_on, file_of
from bench.system.errors import BenchError, UsageError
from bench.tracking import note

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

FINISHED, RUNNING, FAILED, KILLED = "FINISHED", "RUNNING", "FAILED", "KILLED"
IMPORTING = (
    "importing"  # tag of a run that is being taken from a record, and nobody's to go on with
)
TUNING = " tuning"  # ends the name of the experiment of a suite's searches
NONE: Mapping[str, str] = {}
PAGE = 50_000  # the most runs that MLflow gives at once
# MLflow's client retries a dead server for minutes; one short retry is enough to tell. It also prints where each run is.
BOUNDS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


def tracking_uri(root: Path) -> str:
    """The environment's MLFLOW_TRACKING_URI, or a sqlite file under `root`. Raises BenchError for one that keeps nothing."""
    if re.match(r"\w[\w+]+:(/|$)", str(root)):
        raise UsageError(
            f"--store {str(root)!r}: a folder; the address of a database belongs in MLFLOW_TRACKING_URI"
        )
    if root.is_file():
        raise UsageError(f"--store {str(root)!r}: a folder, and this is a file")
    uri = (
        os.environ.get("MLFLOW_TRACKING_URI")
        or f"sqlite:///{Path(os.path.realpath(root)) / 'mlflow.db'}"
    )
    file_of(uri)
    return uri


def store_exists(root: Path) -> bool:
    """Whether there is a record that can be looked at without making one: a file that exists, or any server."""
    file = file_of(tracking_uri(root))
    return file is None or file.exists()


class TrackingStore:
    """The MLflow store of one root folder. Opening creates what is missing, under a lock."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.uri = tracking_uri(root)
        try:
            root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=root):
                pass
        except OSError as error:
            raise BenchError(
                f"cannot write to {root}: {error.strerror}; choose another folder with --store"
            ) from error
        self.client = self._open()

    def _open(self) -> MlflowClient:
        for name, value in BOUNDS.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient

        for name in ("alembic", "mlflow"):  # after the import, which sets its own levels
            logging.getLogger(name).setLevel(logging.WARNING)
        try:
            # Several processes that open a fresh database at once would all try to create its tables.
            with self.alone():
                client = MlflowClient(self.uri)
                client.search_experiments(max_results=1)
        except Exception as error:  # MLflow raises many kinds: dead server, locked or foreign database, bad address
            said = f"the MLflow store {self.uri} cannot be opened: {str(error).strip().splitlines()[0][:200]}"
            raise BenchError(re.sub(r"//[^@/\s]*@", "//", said)) from error  # no password in it
        return client

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Holds off the other processes that use this folder or, on PostgreSQL, this server."""
        with FileLock(self.root / "store.lock", timeout=120), alone_on(self.uri):
            yield

    def experiment(self, suite: str) -> str:
        """The id of the suite's experiment, created on first use."""
        found = self.client.get_experiment_by_name(suite)
        if found:
            return str(found.experiment_id)
        with self.alone():
            found = self.client.get_experiment_by_name(suite)
            if found:
                return str(found.experiment_id)
            local = self.uri.startswith("sqlite:")
            location = Path(os.path.realpath(self.root / "artifacts")).as_uri() if local else None
            return self.client.create_experiment(suite, artifact_location=location)

    def find(self, spec: Spec, status: str) -> Run | None:
        """The newest run of exactly this spec with this status, unless it is half of an imported one."""
        place = self.client.get_experiment_by_name(spec.suite)
        if not place:
            return None
        runs = self.client.search_runs(
            [place.experiment_id],
            f"tags.spec_id = '{spec.id}' and attributes.status = '{status}'",
            order_by=["attributes.start_time DESC"],
            max_results=1,
        )
        return runs[0] if runs and IMPORTING not in runs[0].data.tags else None

    def unfinished(self) -> list[Run]:
        """Runs that are marked as running, in all experiments; a killed process leaves such a mark."""
        ids = [e.experiment_id for e in self.client.search_experiments()]
        return (
            list(
                self.client.search_runs(ids, "attributes.status = 'RUNNING' and tags.spec_id != ''")
            )
            if ids
            else []
        )

    def begin(self, spec: Spec, tags: dict[str, str], anew: bool = False) -> RunLogger:
        """The record of a spec that is not finished: its interrupted run if there is one, else a new run.

        anew: training begins with its first epoch, so a run that holds epochs already is left as it is.
        """
        run = next(
            (run for status in (RUNNING, KILLED, FAILED) if (run := self.find(spec, status))), None
        )
        if run and anew and RunLogger(self, run.info.run_id).logged >= 0:
            if run.info.status == RUNNING:  # its process was killed
                self.client.set_terminated(run.info.run_id, KILLED)
            run = None
        if not run:
            experiment = self.experiment(spec.suite)
            parent = self.group(experiment, tags)
            run = self._create(experiment, f"{note.title(tags)} seed {spec.seed}", tags, parent)
        record = RunLogger(
            self, run.info.run_id
        )  # filled in both cases: it may have been killed before it was
        self.client.update_run(record.run_id, status=RUNNING)
        record.params(spec.flat())
        record.text("spec.json", json.dumps(json.loads(spec.json()), indent=2))
        return record

    def open(
        self, experiment: str, name: str, tags: dict[str, str], parent: str, key: tuple[str, ...]
    ) -> RunLogger:
        """The record of a run that is known by the tags in `key`, whatever became of it; a new one if there is none.

        `experiment`: by name; `parent`: the id of the run that it belongs to, "" for none.
        """
        place = self.experiment(experiment)
        same = " and ".join(f"tags.{name} = '{tags[name]}'" for name in key)
        with self.alone():
            found = self.client.search_runs([place], same, max_results=1)
            run = found[0] if found else self._create(place, name, tags, parent)
        record = RunLogger(self, run.info.run_id)
        self.client.update_run(record.run_id, status=RUNNING)
        return record

    def _create(self, experiment: str, name: str, tags: dict[str, str], parent: str) -> Run:
        nested = {"mlflow.parentRunId": parent} if parent else {}
        return self.client.create_run(experiment, run_name=name, tags=tags | nested)

    def group(self, experiment: str, tags: dict[str, str]) -> str:
        """The parent run of all seeds of one leaderboard row."""
        keys = ("dataset", "student", "method", "teacher", "variant")
        plain = [
            key for key in keys if re.fullmatch(r"[\w@.+=, -]*", tags[key])
        ]  # no filter can hold every character
        same = " and ".join(
            ["tags.role = 'group'", *(f"tags.{key} = '{tags[key]}'" for key in plain)]
        )
        for run in self.client.search_runs([experiment], same, max_results=PAGE):
            if all(run.data.tags.get(key) == tags[key] for key in keys):
                return str(run.info.run_id)
        shared = {key: tags[key] for key in keys} | {"role": "group"}
        run = self._create(experiment, f"{note.title(tags)}, all seeds", shared, "")
        self.client.set_tag(
            run.info.run_id, note.TAG, note.of_group(tags, experiment, run.info.run_id)
        )
        self.client.set_terminated(run.info.run_id)
        return str(run.info.run_id)


class RunLogger:
    """One run being written."""

    def __init__(self, store: TrackingStore, run_id: str) -> None:
        self.client, self.run_id = store.client, run_id
        # A write to SQLite that is broken off stays open, and the database is locked when the run is to be marked.
        self.whole = signals.held if store.uri.startswith("sqlite:") else nullcontext
        history = self.client.get_metric_history(run_id, "epoch")
        self.logged = max((metric.step for metric in history), default=-1)

    def params(self, values: dict[str, Any]) -> None:
        from mlflow.entities import Param

        with self.whole():
            self.client.log_batch(self.run_id, params=[Param(k, str(v)) for k, v in values.items()])

    def epoch(self, values: dict[str, float], step: int) -> None:
        """Logs one epoch's metrics in one call; an epoch that is already there is left alone."""
        if step > self.logged:
            self.metrics(values, step)
            self.logged = step

    def metrics(
        self, values: dict[str, float], step: int = 0, link: Mapping[str, str] = NONE
    ) -> None:
        """Logs the finite values; the others become tags, because MLflow stores infinity as a large number.

        `link`: the logged model and the data set that they belong to, as `links.link` gives them.
        """
        from mlflow.entities import Metric, RunTag

        now = int(time.time() * 1000)
        finite = [
            Metric(k, float(v), now, step, **link) for k, v in values.items() if math.isfinite(v)
        ]
        others = [
            RunTag(f"not_finite.{k}", str(v)) for k, v in values.items() if not math.isfinite(v)
        ]
        with self.whole():
            self.client.log_batch(self.run_id, metrics=finite, tags=others)

    def tag(self, name: str, value: str) -> None:
        with self.whole():
            self.client.set_tag(self.run_id, name, value)

    def tags(self, values: dict[str, str]) -> None:
        from mlflow.entities import RunTag

        with self.whole():
            self.client.log_batch(
                self.run_id, tags=[RunTag(name, value) for name, value in values.items()]
            )

    @contextmanager
    def aside(self, what: str) -> Iterator[None]:
        """For what only helps to read a run: its failure is a tag, `missing.<what>`, and never fails the run."""
        try:
            yield
        except Exception as error:  # MLflow's own, the database's, the disk's, matplotlib's
            with suppress(Exception):
                self.tag(
                    f"missing.{what}",
                    f"{type(error).__name__}: {' '.join(str(error).split())[:300]}",
                )

    def text(self, name: str, content: str) -> None:
        self.client.log_text(self.run_id, content, name)

    def file(self, path: Path, folder: str | None = None) -> None:
        self.client.log_artifact(self.run_id, str(path), folder)

    def files(self, path: Path, folder: str) -> None:
        """All files of the folder `path`."""
        self.client.log_artifacts(self.run_id, str(path), folder)

    def end(self, status: str, note: str = "") -> None:
        """Marks the run; unless it finished, a store that has died meanwhile may not hide why."""
        with nullcontext() if status == FINISHED else suppress(Exception):
            self.client.set_tag(self.run_id, "status_note", note)
            self.client.set_terminated(self.run_id, status)
