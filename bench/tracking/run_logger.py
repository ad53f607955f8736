"""One run that is being written to the MLflow store."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.system.errors import one_line
from bench.system.signals import deferred_signals

if TYPE_CHECKING:
    from mlflow import MlflowClient

# Digits of a run's id that people are shown, enough for `show`.
SHOWN_DIGITS = 8
FINISHED, RUNNING, FAILED, KILLED = "FINISHED", "RUNNING", "FAILED", "KILLED"


class RunLogger:
    """The parameters, metrics, tags and files of one run."""

    def __init__(self, client: MlflowClient, run_id: str) -> None:
        self.client, self.run_id = client, run_id
        # An interrupted write to SQLite would leave the database locked.
        is_sqlite = client.tracking_uri.startswith("sqlite:")
        self._complete_write = deferred_signals if is_sqlite else nullcontext
        history = client.get_metric_history(run_id, "epoch")
        self.last_epoch = max((metric.step for metric in history), default=-1)
        # For people who see the finished run.
        self.final_note = ""

    def log_params(self, values: dict[str, Any]) -> None:
        from mlflow.entities import Param

        params = [Param(name, str(value)) for name, value in values.items()]
        with self._complete_write():
            self.client.log_batch(self.run_id, params=params)

    def log_epoch(self, values: dict[str, float], epoch: int) -> None:
        """Log the metrics of an epoch in one call, unless the run has them."""
        if epoch > self.last_epoch:
            self.log_metrics(values, epoch)
            self.last_epoch = epoch

    def log_metrics(
        self, values: dict[str, float], step: int = 0, link: dict[str, str] | None = None
    ) -> None:
        """Log finite values as metrics, the others as tags; `link` is from `metric_link`."""
        from mlflow.entities import Metric, RunTag

        now = int(time.time() * 1000)
        metrics, tags = [], []
        for name, value in values.items():
            if math.isfinite(value):
                metrics.append(Metric(name, float(value), now, step, **(link or {})))
            else:
                # MLflow would store infinity as a large number.
                tags.append(RunTag(f"not_finite.{name}", str(value)))
        with self._complete_write():
            self.client.log_batch(self.run_id, metrics=metrics, tags=tags)

    def set_tags(self, values: dict[str, str]) -> None:
        from mlflow.entities import RunTag

        tags = [RunTag(name, value) for name, value in values.items()]
        with self._complete_write():
            self.client.log_batch(self.run_id, tags=tags)

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

    def log_folder(self, path: Path, folder: str) -> None:
        self.client.log_artifacts(self.run_id, str(path), folder)

    def finish(self, status: str, note: str = "") -> None:
        """Mark the run with its final status."""
        # Unless it finished: the error of a store that died would hide the cause.
        with nullcontext() if status == FINISHED else suppress(Exception):
            self.client.set_tag(self.run_id, "status_note", note)
            self.client.set_terminated(self.run_id, status)
