"""A finished run copied into another MLflow run: the same training under another spec."""

from __future__ import annotations

import tempfile
from typing import TYPE_CHECKING

from bench.tracking.note import MAX_LENGTH, NOTE_TAG
from bench.tracking.run_logger import SHOWN_DIGITS, RunLogger
from leaderboards.schema.fields import CHECKSUM_TAGS, RECORD_TAGS

if TYPE_CHECKING:
    from mlflow.entities import Metric, Run

# What follows from the spec, and not from the training.
OWN_TAGS = ("variant", "sets", "status_note", "command")
# Files that follow from the spec, and the network of a registered model, which stays one.
OWN_FILES = ("spec.json", "model")
BATCH_SIZE = 1000  # metrics that MLflow takes at once


def copy_results(logger: RunLogger, source: Run) -> str:
    """Copy results, curves and files of a finished run; return a line that says so."""
    client, source_id = logger.client, source.info.run_id
    text = f"a copy of run {source_id[:SHOWN_DIGITS]}, which has the same values"
    with tempfile.TemporaryDirectory() as folder:
        for file in client.list_artifacts(source_id):
            if file.path not in OWN_FILES:
                client.download_artifacts(source_id, file.path, folder)
        client.log_artifacts(logger.run_id, folder)
    metrics: list[Metric] = []
    for name in source.data.metrics:
        metrics += client.get_metric_history(source_id, name)
    for start in range(0, len(metrics), BATCH_SIZE):
        client.log_batch(logger.run_id, metrics=metrics[start : start + BATCH_SIZE])
    names = {*RECORD_TAGS, *CHECKSUM_TAGS}.difference(OWN_TAGS)
    tags = {name: value for name, value in source.data.tags.items() if name in names}
    note = f"{text}.\n\n{source.data.tags.get(NOTE_TAG, '')}"
    logger.set_tags(tags | {NOTE_TAG: note[:MAX_LENGTH]})
    logger.final_note = text
    return text
