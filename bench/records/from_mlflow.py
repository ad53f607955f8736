"""Records of runs that an earlier version left in MLflow alone."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bench.records.complete import complete_record
from bench.records.export import print_results
from bench.records.sync import newest_finished
from bench.system.errors import one_line
from bench.tracking.run_logger import RunLogger
from bench.tracking.store import TrackingStore
from leaderboards.schema import metrics
from leaderboards.schema.checkpoints import BEST
from leaderboards.schema.fields import CHECKSUM_TAGS, RECORD_TAGS, Artifact, Tag
from leaderboards.schema.packing import Verdicts
from leaderboards.schema.record import Record, RecordError, build_record

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

VERDICTS_FILE = f"{Artifact.VERDICTS}/verdicts_{BEST}_aa.npz"
# MLflow stores infinity as about 1.8e308.
MAX_VALUE = 1e300


def convert_runs(root: Path, data_root: Path) -> int:
    """Make the records of finished runs that have none; return 1 if one fails."""
    store = TrackingStore(root)
    finished, _ = newest_finished(store.client)
    todo = {}
    for run in finished.values():
        if Tag.RECORD not in run.data.tags:
            todo[run.info.run_id] = run

    def convert(run_id: str) -> str:
        record = complete_record(read_old_run(store.client, todo[run_id]), data_root)
        RunLogger(store.client, run_id).log_record_file(record)
        return str(store.save_record(record))

    return print_results(todo, convert)


def read_old_run(client: MlflowClient, run: Run) -> Record:
    """Build the record of a finished run from MLflow. Raise RecordError where it has none."""
    tags, run_id = run.data.tags, run.info.run_id
    curves, values = {}, {}
    for name, value in run.data.metrics.items():
        if metrics.is_curve(name):
            curves[name] = read_curve(client, run_id, name)
        elif name.startswith(metrics.METRIC_PREFIXES) and abs(value) < MAX_VALUE:
            values[name] = value
    with tempfile.TemporaryDirectory() as name:
        try:
            # All at once: a request for each would take as long again.
            folder = Path(name)
            spec = json.loads(fetch(client, run_id, Artifact.SPEC, folder).read_bytes())
            survived = None
            if metrics.RANK_METRIC in values:
                survived = read_verdicts(fetch(client, run_id, VERDICTS_FILE, folder))
        # The errors of stores and damaged files have no common class.
        except Exception as error:
            message = f"its spec or its verdicts cannot be read: {one_line(error, 200)}"
            raise RecordError(message) from error
        environment = read_environment(client, run_id, folder)
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


def fetch(client: MlflowClient, run_id: str, artifact: str, folder: Path) -> Path:
    """Copy an artifact of a run into a folder and return its path."""
    return Path(client.download_artifacts(run_id, artifact, str(folder)))


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


def read_environment(client: MlflowClient, run_id: str, folder: Path) -> dict[str, object]:
    """Return device, versions and data of a run, {} where they are missing or damaged."""
    try:
        path = fetch(client, run_id, Artifact.ENVIRONMENT, folder)
        environment = json.loads(path.read_bytes())
    # No result depends on it.
    except Exception:
        return {}
    return environment if isinstance(environment, dict) else {}
