"""The metrics of each epoch of the runs in a store."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from leaderboards.read.store import MAX_VALUE, open_store
from leaderboards.schema import fields


def read_curves(source: str | Path, runs: pd.DataFrame) -> dict[str, fields.Curves]:
    """Read "train/...", "val/..." and "lr" of `runs`, which store.collect took from `source`.

    By run id, then by name; epochs ascend, and every value is finite. Raises store.StoreError.
    """
    with open_store(source) as reader:
        recorded = reader.curves(list(runs["run_id"]))
    curves: dict[str, fields.Curves] = {}
    for run_id, metrics in recorded.items():
        cleaned = {}
        for name in filter(fields.is_curve, sorted(metrics)):
            curve = _clean_curve(metrics[name])
            if curve[0]:
                cleaned[name] = curve
        curves[run_id] = cleaned
    return curves


def _clean_curve(curve: fields.Curve) -> fields.Curve:
    """Sort finite values by epoch; the last recorded one of an epoch counts."""
    points = dict(point for point in zip(*curve, strict=True) if abs(point[1]) < MAX_VALUE)
    epochs = sorted(points)
    return epochs, [points[epoch] for epoch in epochs]
