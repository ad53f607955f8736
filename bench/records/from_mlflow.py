"""Records of runs that an earlier version left in MLflow alone."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bench.records.complete import complete_record
from bench.records.export import print_results
from bench.records.sync import newest_finished
from bench.system.errors import BenchError, one_line
from bench.tracking.run_logger import RunLogger
from bench.tracking.store import TrackingStore, fetch_artifact, store_exists
from leaderboards.schema import metrics
from leaderboards.schema.checkpoints import BEST
from leaderboards.schema.fields import CHECKSUM_TAGS, RECORD_TAGS, Artifact, Tag
from leaderboards.schema.packing import Verdicts
from leaderboards.schema.record import Record, RecordError, build_record

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

VERDICTS_FILE = f"{Artifact.VERDICTS}/verdicts_{BEST}_aa.npz"
MAX_VALUE = 1e300  # MLflow stores infinity as about 1.8e308


def convert_runs(root: Path, data_root: Path) -> int:
    """Make the records of finished runs that have none; return 1 if one fails."""
    if not store_exists(root):
        raise BenchError(f"nothing is recorded in {str(root)!r}")
    store = TrackingStore(root)
    finished, _ = newest_finished(store.client)
    todo = {}
    for run in finished.values():
        if Tag.RECORD not in run.data.tags:
            todo[run.info.run_id] = run

    def convert(run_id: str) -> str:
        record = complete_record(read_old_run(store, todo[run_id]), data_root)
        RunLogger(store.client, run_id).log_record_file(record)
        return str(store.save_record(record))

    return print_results(todo, convert)


def read_old_run(store: TrackingStore, run: Run) -> Record:
    """Build the record of a finished run from MLflow. Raise RecordError where it has none."""
    tags, run_id, client = run.data.tags, run.info.run_id, store.client
    curves, values = {}, {}
    for metric, value in run.data.metrics.items():
        if metrics.is_curve(metric):
            curves[metric] = read_curve(client, run_id, metric)
        elif metric.startswith(metrics.METRIC_PREFIXES) and abs(value) < MAX_VALUE:
            values[metric] = value
    with tempfile.TemporaryDirectory() as name:

        def fetch(artifact: str) -> Path:
            return fetch_artifact(client, store.root, run_id, artifact, Path(name))

        try:
            spec = json.loads(fetch(Artifact.SPEC).read_bytes())
            survived = None
            if metrics.RANK_METRIC in values:
                survived = read_verdicts(fetch(VERDICTS_FILE))
        # The errors of stores and damaged files have no common class.
        except Exception as error:
            message = f"its spec or its verdicts cannot be read: {one_line(error, 200)}"
            raise RecordError(message) from error
        environment = read_environment(fetch)
    return build_record(
        spec_id=tags.get(Tag.SPEC_ID, ""),
        run_id=run_id,
        start_time=run.info.start_time,
        spec=spec,
        tags={tag: tags[tag] for tag in RECORD_TAGS if tag in tags},
        checksums={name: tags[tag] for name, tag in CHECKSUM_TAGS.items() if tag in tags},
        metrics=values,
        curves={name: curve for name, curve in curves.items() if curve},
        environment=environment,
        survived=survived,
    )


def read_curve(client: MlflowClient, run_id: str, name: str) -> list[tuple[int, float]]:
    """Return (epoch, value) in order; of several values of an epoch the last one counts."""
    points = {}
    for point in client.get_metric_history(run_id, name):
        if abs(point.value) < MAX_VALUE:
            points[point.step] = point.value
    return sorted(points.items())


def read_verdicts(path: Path) -> Verdicts:
    """Return (images,) bool: whether each image survived AutoAttack."""
    with np.load(path, allow_pickle=False) as archive:
        survived: Verdicts = archive["robust_aa"]
    if survived.dtype != np.bool_ or survived.ndim != 1:
        raise ValueError(f"{path.name} holds other values")
    return survived


def read_environment(fetch: Callable[[str], Path]) -> dict[str, object]:
    """Return device, versions and data of a run, {} where they are missing or damaged."""
    try:
        environment = json.loads(fetch(Artifact.ENVIRONMENT).read_bytes())
    # No result depends on it.
    except Exception:
        return {}
    return environment if isinstance(environment, dict) else {}
