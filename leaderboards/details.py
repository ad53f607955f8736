"""What a page about single runs shows beside store.collect's frame: curves over the epochs, what a run ran on."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leaderboards import artifacts

if TYPE_CHECKING:
    import pandas as pd

CURVES = ("train/", "val/", "lr")
COLUMNS = ("run_id", "metric", "step", "value")


def curves(source: str | Path, runs: pd.DataFrame) -> pd.DataFrame:
    """The metrics of each epoch ("train/...", "val/...", "lr") of `runs`, which store.collect took from `source`.

    `source`: a tracking URI, or as a Path the folder of record files.

    Columns: run_id and metric (categories), step (int), value (finite); by run in the order of `runs`, metric and step.
    """
    import pandas as pd
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=str(source))
    rows = []
    for run in runs["run_id"]:
        for name in sorted(client.get_run(run).data.metrics):
            if name.startswith(CURVES):
                points = {metric.step: metric.value for metric in client.get_metric_history(run, name)}
                rows += [(run, name, step, value) for step, value in sorted(points.items()) if math.isfinite(value)]
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype({"run_id": "category", "metric": "category"})


def environment(run: Mapping[str, Any]) -> dict[str, Any]:
    """What a run, a row of store.collect's frame, ran on: device, versions, data; {} where that is missing or damaged."""
    try:
        found = json.loads(artifacts.read(str(run["artifact_uri"]), "environment.json"))
    except Exception:  # stores and damaged files fail in more ways than can be named
        return {}
    return found if isinstance(found, dict) else {}
