"""Record files, checked and taken into a store as finished runs."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from bench.protocol.spec import Spec
from bench.protocol.suites import SUITES
from bench.records.export import print_results
from bench.system.errors import BenchError, one_line
from bench.tracking import note
from bench.tracking.run_logger import FINISHED, RunLogger
from bench.tracking.store import IMPORTING, TrackingStore
from leaderboards.read import verdicts
from leaderboards.schema import fields, record
from leaderboards.schema.record import Record, RecordError

BATCH_SIZE = 1000  # metrics that MLflow takes at once
# The tags of a run that Record.trained lists.
TRAINING_TAGS = ("role", "dataset", "student", "method", "seed")


def import_records(
    store: Path,
    sources: tuple[Path, ...],
    data_root: Path,
    device: str,
    verify: bool,
    checkpoint: Path | None,
) -> int:
    """Take record files, and folders of them, into a store; return 1 if one is refused.

    Args:
        verify: evaluate the checkpoint again and refuse a record with other numbers.
        checkpoint: the file to evaluate; None for the one in the store.
    """
    paths: list[Path] = []
    for source in sources:
        paths += sorted(source.glob("*.json")) if source.is_dir() else [source]
    if not paths:
        names = ", ".join(str(source) for source in sources)
        raise BenchError(f"no record, a file NAME.json, in {names}")
    tracking_store = TrackingStore(store)

    def import_file(path: Path) -> str:
        run_record = record.read(path)
        spec = resolve_spec(run_record)
        if verify:
            # Imported here: it brings torch.
            from bench.records.reproduce import reproduce

            print(
                f"{path}: "
                + reproduce(
                    run_record,
                    spec,
                    tracking_store.uri,
                    checkpoint=checkpoint,
                    data_root=data_root,
                    device=device,
                )
            )
        return f"{path}: {import_record(tracking_store, run_record, spec)}"

    return print_results(paths, import_file)


def resolve_spec(run_record: Record) -> Spec:
    """Return the spec of a record. Raise RecordError for another suite or version than here."""
    name, _, version = run_record.spec.suite.rpartition("@")
    suite = SUITES.get(name)
    if not suite:
        raise RecordError(f"unknown suite {name!r}: here are {', '.join(SUITES)}")
    if run_record.spec.suite != suite.id:
        age = "stale" if int(version) < suite.version else "newer"
        versions = f"{run_record.spec.suite}, this checkout has {suite.id}"
        raise RecordError(f"{age} protocol version: {versions}")
    from pydantic import TypeAdapter, ValidationError

    try:
        spec = TypeAdapter(Spec).validate_python(run_record.spec.model_dump())
    except ValidationError as error:
        raise RecordError(f"spec.{record.first(error)}") from error
    if spec.id != run_record.spec_id:
        raise RecordError("spec: it has fields or values that this version does not write")
    return spec


def import_record(store: TrackingStore, run_record: Record, spec: Spec) -> str:
    """Take a sound record into the store and say so. Raise RecordError for other numbers."""
    run = store.find_run(spec, FINISHED)
    if not run:
        check_training(store, run_record, spec)
        return f"taken in as run {create_run(store, run_record, spec)}"
    stored = comparable_values(run.data.tags, run.data.metrics)
    imported = comparable_values(run_record.row(), run_record.metrics)
    for name in sorted(stored.keys() | imported.keys()):
        if stored.get(name) != imported.get(name):
            values = f"{name} {imported.get(name)}, not {stored.get(name)}"
            message = f"run {run.info.run_id} has the same spec and other numbers: {values}"
            raise RecordError(message)
    return f"recorded already as run {run.info.run_id}, skipped"


def comparable_values(tags: dict[str, Any], metrics: dict[str, float]) -> dict[str, Any]:
    """Return the values that any evaluation of the same checkpoints must give again."""
    values = {name: tags.get(name) for name in fields.CHECKSUMS}
    return values | {name: value for name, value in metrics.items() if name.startswith("test")}


def check_training(store: TrackingStore, run_record: Record, spec: Spec) -> None:
    """Raise RecordError if the checkpoint is in the store with another method, network or seed."""
    same_checkpoint = f"tags.`sha256.best` = '{run_record.checksums.get('best', 'none')}'"
    experiment_id = store.experiment_id(spec.suite)
    for run in store.client.search_runs([experiment_id], same_checkpoint):
        if tuple(run.data.tags.get(name, "") for name in TRAINING_TAGS) != run_record.trained:
            of_other = f"run {run.info.run_id}, of another method, network or seed"
            raise RecordError(f"its checkpoint is that of {of_other}")


def create_run(store: TrackingStore, run_record: Record, spec: Spec) -> str:
    """Create a run from a record; return its id. Raise RecordError if MLflow refuses a part."""
    from mlflow.exceptions import MlflowException

    client, experiment_id = store.client, store.experiment_id(spec.suite)
    # Left by an import that was killed.
    for half in client.search_runs([experiment_id], f"tags.{IMPORTING} = '{spec.id}'"):
        client.delete_run(half.info.run_id)
    tags = {"variant": "", "suite": spec.suite}
    for name, value in run_record.row().items():
        if name in fields.TAGS:
            tags[name] = value
    name = f"{note.run_title(tags)} seed {spec.seed}"
    run_id, start_time = "", run_record.start_time
    try:
        tags |= {fields.PARENT: store.parent_run_id(experiment_id, tags), IMPORTING: spec.id}
        run_id = str(client.create_run(experiment_id, start_time, tags, name).info.run_id)
        log_record(RunLogger(client, run_id), run_record, spec)
        client.set_terminated(run_id, FINISHED, end_time=start_time)
        client.delete_tag(run_id, IMPORTING)
    except BaseException as error:
        if run_id:
            client.delete_run(run_id)
        if isinstance(error, MlflowException):
            raise RecordError(f"MLflow refuses it: {one_line(error)}") from error
        raise
    return run_id


def log_record(logger: RunLogger, run_record: Record, spec: Spec) -> None:
    """Log the parameters, metrics and files of a record."""
    from mlflow.entities import Metric

    time = run_record.start_time
    metrics = [Metric(name, value, time, 0) for name, value in run_record.metrics.items()]
    for name, curve in run_record.curves.items():
        metrics += [Metric(name, value, time, epoch) for epoch, value in curve]
    for start in range(0, len(metrics), BATCH_SIZE):
        logger.client.log_batch(logger.run_id, metrics=metrics[start : start + BATCH_SIZE])
    logger.log_params(spec.flat())
    logger.log_text("spec.json", json.dumps(run_record.spec.model_dump(), indent=2))
    logger.log_text("environment.json", json.dumps(run_record.environment, indent=2))
    if run_record.verdicts:
        file = Path(verdicts.FILE)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / file.name
            np.savez_compressed(path, robust_aa=run_record.survived)
            logger.log_file(path, str(file.parent))
