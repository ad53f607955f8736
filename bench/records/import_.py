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
from leaderboards.read.record_files import read_record
from leaderboards.schema import fields
from leaderboards.schema.record import Record, RecordError, describe_first_error

BATCH_SIZE = 1000  # metrics that MLflow takes at once
# The tags of a run in the order of Record.training_key.
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

    `verify`: evaluate each checkpoint again, from the store if there is no file `checkpoint`.
    """
    paths: list[Path] = []
    for source in sources:
        if source.is_dir():
            paths += sorted(source.glob("*.json"))
        else:
            paths.append(source)
    if not paths:
        raise BenchError(f"no record, a file NAME.json, in {', '.join(map(str, sources))}")
    tracking_store = TrackingStore(store)
    uri = tracking_store.uri

    def import_file(path: Path) -> str:
        record = read_record(path)
        spec = resolve_spec(record)
        if verify:
            # Imported here: it brings torch.
            from bench.records.reproduce import reproduce

            result = reproduce(
                record, spec, uri, checkpoint=checkpoint, data_root=data_root, device=device
            )
            print(f"{path}: {result}")
        return f"{path}: {import_record(tracking_store, record, spec)}"

    return print_results(paths, import_file)


def resolve_spec(record: Record) -> Spec:
    """Return the spec of a record. Raise RecordError for another suite or version than here."""
    name, _, version = record.spec.suite.rpartition("@")
    suite = SUITES.get(name)
    if not suite:
        raise RecordError(f"unknown suite {name!r}: here are {', '.join(SUITES)}")
    if record.spec.suite != suite.id:
        age = "stale" if int(version) < suite.version else "newer"
        versions = f"{record.spec.suite}, this checkout has {suite.id}"
        raise RecordError(f"{age} protocol version: {versions}")
    from pydantic import TypeAdapter, ValidationError

    try:
        spec = TypeAdapter(Spec).validate_python(record.spec.model_dump())
    except ValidationError as error:
        raise RecordError(f"spec.{describe_first_error(error)}") from error
    if spec.id != record.spec_id:
        raise RecordError("spec: it has fields or values that this version does not write")
    return spec


def import_record(store: TrackingStore, record: Record, spec: Spec) -> str:
    """Take a sound record into the store and say so. Raise RecordError for other numbers."""
    run = store.find_run(spec, FINISHED)
    if not run:
        check_training(store, record, spec)
        return f"taken in as run {create_run(store, record, spec)}"
    stored = comparable_values(run.data.tags, run.data.metrics)
    imported = comparable_values(record.to_row(), record.metrics)
    for name in sorted(stored.keys() | imported.keys()):
        if stored.get(name) != imported.get(name):
            other = f"other numbers: {name} {imported.get(name)}, not {stored.get(name)}"
            raise RecordError(f"run {run.info.run_id} has the same spec and {other}")
    return f"recorded already as run {run.info.run_id}, skipped"


def comparable_values(tags: dict[str, Any], metrics: dict[str, float]) -> dict[str, Any]:
    """Return the values that any evaluation of the same checkpoints must give again."""
    values = {name: tags.get(name) for name in fields.CHECKSUM_TAGS}
    return values | {name: value for name, value in metrics.items() if name.startswith("test")}


def check_training(store: TrackingStore, record: Record, spec: Spec) -> None:
    """Raise RecordError if the checkpoint is in the store with another method, network or seed."""
    same_checkpoint = f"tags.`sha256.best` = '{record.checksums.get('best', 'none')}'"
    experiment_id = store.get_or_create_experiment(spec.suite)
    for run in store.client.search_runs([experiment_id], same_checkpoint):
        if tuple(run.data.tags.get(name, "") for name in TRAINING_TAGS) != record.training_key:
            of_other = f"run {run.info.run_id}, of another method, network or seed"
            raise RecordError(f"its checkpoint is that of {of_other}")


def create_run(store: TrackingStore, record: Record, spec: Spec) -> str:
    """Create a run from a record; return its id. Raise RecordError if MLflow refuses a part."""
    from mlflow.exceptions import MlflowException

    client, experiment_id = store.client, store.get_or_create_experiment(spec.suite)
    # Left by an import that was killed.
    for partial_run in client.search_runs([experiment_id], f"tags.{IMPORTING} = '{spec.id}'"):
        client.delete_run(partial_run.info.run_id)
    tags = {"variant": "", "suite": spec.suite}
    tags |= {name: value for name, value in record.to_row().items() if name in fields.TAGS}
    name = f"{note.run_title(tags)} seed {spec.seed}"
    run_id, start_time = "", record.start_time
    try:
        parent = store.get_or_create_parent(experiment_id, tags)
        tags |= {fields.PARENT_TAG: parent, IMPORTING: spec.id}
        run_id = str(client.create_run(experiment_id, start_time, tags, name).info.run_id)
        log_record(RunLogger(client, run_id), record, spec)
        client.set_terminated(run_id, FINISHED, end_time=start_time)
        client.delete_tag(run_id, IMPORTING)
    except BaseException as error:
        if run_id:
            client.delete_run(run_id)
        if isinstance(error, MlflowException):
            raise RecordError(f"MLflow refuses it: {one_line(error)}") from error
        raise
    return run_id


def log_record(logger: RunLogger, record: Record, spec: Spec) -> None:
    """Log the parameters, metrics and files of a record."""
    from mlflow.entities import Metric

    time = record.start_time
    metrics = [Metric(name, value, time, 0) for name, value in record.metrics.items()]
    for name, curve in record.curves.items():
        metrics += [Metric(name, value, time, epoch) for epoch, value in curve]
    for start in range(0, len(metrics), BATCH_SIZE):
        logger.client.log_batch(logger.run_id, metrics=metrics[start : start + BATCH_SIZE])
    logger.log_params(spec.flat())
    logger.log_text("spec.json", json.dumps(record.spec.model_dump(), indent=2))
    logger.log_text("environment.json", json.dumps(record.environment, indent=2))
    if record.verdicts:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, Path(verdicts.VERDICTS_FILE).name)
            np.savez_compressed(path, robust_aa=record.survived)
            logger.log_file(path, str(Path(verdicts.VERDICTS_FILE).parent))
