"""One run that is being written to the MLflow store."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.system.errors import one_line
from bench.system.signals import deferred_signals
from bench.tracking.outage import is_outage
from leaderboards.schema.checkpoints import BEST
from leaderboards.schema.fields import FINISHED, Artifact, Tag, checksum_tag

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from leaderboards.schema.record import Record
    from leaderboards.schema.spec import Spec

SHOWN_DIGITS = 8  # digits of a run's id that people are shown, enough for `show`
BATCH_SIZE = 1000  # metrics that MLflow takes at once


class RunLogger:
    """The parameters, metrics, tags and files of one run."""

    def __init__(self, client: MlflowClient, run_id: str) -> None:
        self.client, self.run_id = client, run_id
        # An interrupted write to SQLite would leave the database locked.
        is_sqlite = client.tracking_uri.startswith("sqlite")
        self._complete_write = deferred_signals if is_sqlite else nullcontext
        history = client.get_metric_history(run_id, "epoch")
        self.last_epoch = max((metric.step for metric in history), default=-1)
        self._waiting: dict[int, dict[str, float]] = {}  # metrics of epochs that are not logged yet
        # For people who see the finished run.
        self.final_note = ""

    def log_spec(self, spec: Spec) -> None:
        """Log a spec: as parameters, one level deep, and as a file."""
        self.log_params(spec.flat())
        self.log_text(Artifact.SPEC, json.dumps(json.loads(spec.json()), indent=2))

    def log_params(self, values: dict[str, Any]) -> None:
        from mlflow.entities import Param

        params = [Param(name, str(value)) for name, value in values.items()]
        with self._complete_write():
            self.client.log_batch(self.run_id, params=params)

    def log_epoch(self, values: dict[str, float], epoch: int) -> None:
        """Log the metrics of an epoch in one call, unless the run has them.

        While the store is away they wait: training goes on.
        """
        if epoch > self.last_epoch:
            self._waiting[epoch] = values
            try:
                self.send_epochs()
            except Exception as error:
                if not is_outage(error):
                    raise

    def send_epochs(self) -> None:
        """Log the epochs that wait."""
        for epoch, values in sorted(self._waiting.items()):
            self.log_metrics(values, epoch)
            self.last_epoch = epoch
            del self._waiting[epoch]

    def log_metrics(
        self,
        values: dict[str, float],
        step: int = 0,
        link: dict[str, str] | None = None,
        times: Mapping[str, int] = {},
    ) -> None:
        """Log finite values as metrics, the others as tags.

        link: from `metric_link`. times: in ms, of those that are not of now.
        """
        from mlflow.entities import Metric, RunTag

        now = int(time.time() * 1000)
        metrics, tags = [], []
        for name, value in values.items():
            if math.isfinite(value):
                moment = times.get(name, now)
                metrics.append(Metric(name, float(value), moment, step, **(link or {})))
            else:
                # MLflow would store infinity as a large number.
                tags.append(RunTag(f"not_finite.{name}", str(value)))
        with self._complete_write():
            self.client.log_batch(self.run_id, metrics=metrics, tags=tags)

    def log_results(self, values: dict[str, float], link: dict[str, str] | None = None) -> None:
        """Log values of the whole run, but for those that it has; all if `link` says of what.

        A step that was interrupted is done again, and MLflow would draw each value as two points:
        those of one time are one.
        """
        logged = self.client.get_run(self.run_id).data.metrics
        again = {name for name, value in values.items() if logged.get(name) == value}
        if not link:
            values = {name: value for name, value in values.items() if name not in again}
            again.clear()
        history = {name: self.client.get_metric_history(self.run_id, name) for name in again}
        times = {name: points[-1].timestamp for name, points in history.items()}
        self.log_metrics(values, link=link, times=times)

    def set_tags(self, values: dict[str, str]) -> None:
        from mlflow.entities import RunTag

        tags = [RunTag(name, value) for name, value in values.items()]
        with self._complete_write():
            self.client.log_batch(self.run_id, tags=tags)

    def log_record(self, record: Record, link: dict[str, str] | None = None) -> None:
        """Log the tags, results and file of a record; `link` is of the best checkpoint's metrics.

        Its curves and parameters are logged as they arise.
        """
        checksums = {checksum_tag(name): value for name, value in record.checksums.items()}
        best = record.metrics_of(BEST)
        others = {name: value for name, value in record.metrics.items() if name not in best}
        self.log_results(best, link)
        self.log_results(others)
        self.set_tags(record.tags | checksums)
        self.log_record_file(record)

    def log_record_file(self, record: Record) -> None:
        """Log a record as a file, and its checksum."""
        content = record.to_json()
        self.log_text(Artifact.RECORD, content)
        self.set_tags({Tag.RECORD: hashlib.sha256(content.encode()).hexdigest()})

    def log_curves(self, record: Record) -> None:
        """Log the curves of a record, as a run does epoch by epoch."""
        from mlflow.entities import Metric

        points, epochs = [], set[int]()
        for name, curve in record.curves.items():
            for epoch, value in zip(*curve, strict=True):
                points.append(Metric(name, value, record.start_time, epoch))
            epochs.update(curve[0])
        points += [Metric("epoch", epoch, record.start_time, epoch) for epoch in sorted(epochs)]
        for start in range(0, len(points), BATCH_SIZE):
            self.client.log_batch(self.run_id, metrics=points[start : start + BATCH_SIZE])

    @contextmanager
    def optional_step(self, name: str) -> Iterator[None]:
        """Turn the failure of a step that no result depends on into a tag, `missing.NAME`."""
        try:
            yield
        # MLflow, the database, the disk and matplotlib have no common class of errors.
        except Exception as error:
            with suppress(Exception):
                self.set_tags({f"missing.{name}": f"{type(error).__name__}: {one_line(error)}"})

    def log_text(self, name: str, content: str) -> None:
        self.client.log_text(self.run_id, content, name)

    def log_file(self, path: Path, folder: str | None = None) -> None:
        self.client.log_artifact(self.run_id, str(path), folder)

    def log_folder(self, path: Path) -> None:
        self.client.log_artifacts(self.run_id, str(path), path.name)

    def finish(self, status: str, note: str = "") -> None:
        """Mark the run with its final status."""
        # Unless it finished: the error of a store that died would hide the cause.
        with nullcontext() if status == FINISHED else suppress(Exception):
            self.client.set_tag(self.run_id, Tag.STATUS_NOTE, note)
            self.client.set_terminated(self.run_id, status)
