"""What a page about single runs shows beside store.collect's frame: curves over the epochs, what a run ran on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leaderboards.read import artifacts, store
from leaderboards.schema import fields, record

if TYPE_CHECKING:
    import pandas as pd


def curves(source: str | Path, runs: pd.DataFrame) -> dict[str, fields.Curves]:
    """The metrics of each epoch ("train/...", "val/...", "lr") of `runs`, which store.collect took from `source`.

    By run id, then by name; epochs ascend, and every value is finite. Raises store.StoreError.
    """
    with store.opened(source) as reader:
        found = reader.curves(list(runs["run_id"]))
    return {
        run: {
            name: curve
            for name in sorted(filter(fields.curve, metrics))
            if (curve := _sound(metrics[name]))[0]
        }
        for run, metrics in found.items()
    }


def _sound(curve: fields.Curve) -> fields.Curve:
    """In order, without values that are none; what was recorded last holds for an epoch."""
    points = {step: value for step, value in zip(*curve, strict=True) if abs(value) < store.LARGEST}
    steps = sorted(points)
    return steps, [points[step] for step in steps]


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
