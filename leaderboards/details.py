"""What a page about single runs shows beside store.collect's frame: curves over the epochs, what a run ran on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leaderboards import artifacts, fields, record, store

if TYPE_CHECKING:
    import pandas as pd


def curves(source: str | Path, runs: pd.DataFrame) -> pd.DataFrame:
    """The metrics of each epoch ("train/...", "val/...", "lr") of `runs`, which store.collect took from `source`.

    Columns: run_id and metric (categories), step (int), value (finite); by run in the order of `runs`, metric and step.
    Raises store.StoreError.
    """
    ids = list(runs["run_id"])
    with store.opened(source) as reader:
        found = reader.curves(ids)
    found = found[(found["value"].abs() < store.LARGEST) & found["metric"].map(fields.curve).astype(bool)].copy()
    for name, values in ("run_id", ids), ("metric", sorted(found["metric"].unique())):
        found[name] = found[name].astype("category").cat.set_categories(values)
    key = list(fields.POINT[:3])
    return found.sort_values(key, kind="stable").drop_duplicates(key, keep="last").reset_index(drop=True)


def environment(run: Mapping[str, Any]) -> dict[str, Any]:
    """What a run, a row of store.collect's frame, ran on: device, versions, data; {} where that is missing or damaged."""
    uri = str(run["artifact_uri"])
    try:
        if record.holds(uri):
            return record.at(uri).environment
        found = json.loads(artifacts.read(uri, "environment.json"))
    except Exception:  # stores and damaged files fail in more ways than can be named
        return {}
    return found if isinstance(found, dict) else {}
