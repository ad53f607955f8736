"""A finished run copied into another MLflow run: the same training under another spec."""

from __future__ import annotations

import json
import tempfile

from bench.tracking.run_logger import SHOWN_DIGITS, RunLogger
from bench.tracking.store import COPY_OF, TrackingStore
from leaderboards.schema.fields import RECORD_TAGS, Artifact, Tag
from leaderboards.schema.record import Record, copy_record
from leaderboards.schema.spec import Spec

# What follows from the spec, and not from the training.
OWN_TAGS = (Tag.VARIANT, Tag.SETS, Tag.COMMAND)
# Files that follow from the spec, and the network of a registered model, which stays one.
OWN_FILES = (Artifact.SPEC, Artifact.RECORD, Artifact.MODEL)


def copy_results(
    store: TrackingStore, logger: RunLogger, source: Record, spec: Spec, tags: dict[str, str]
) -> str:
    """Record a run of `spec` with the results and files of another; return a line that says so."""
    client, source_id = logger.client, source.run_id
    text = f"a copy of run {source_id[:SHOWN_DIGITS]}, which has the same values"
    with tempfile.TemporaryDirectory() as folder:
        for file in client.list_artifacts(source_id):
            if file.path not in OWN_FILES:
                client.download_artifacts(source_id, file.path, folder)
        client.log_artifacts(logger.run_id, folder)
    own = {tag: tags[tag] for tag in OWN_TAGS} | {Tag.STATUS_NOTE: text}
    copied = {tag: text for tag, text in source.tags.items() if tag in RECORD_TAGS}
    run = client.get_run(logger.run_id)
    record = copy_record(
        source,
        spec_id=spec.id,
        run_id=logger.run_id,
        start_time=run.info.start_time,
        spec=json.loads(spec.json()),
        tags=copied | own,
    )
    logger.set_tags({COPY_OF: source_id})
    logger.log_curves(record)
    logger.log_record(record)
    store.save_record(record)
    logger.final_note = text
    return text
