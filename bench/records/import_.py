"""Record files, checked and copied into a store as finished runs."""

from __future__ import annotations

import hashlib
import shutil
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from bench import datasets, models
from bench.datasets.loading import split_sizes
from bench.protocol import suites
from bench.protocol.suites import Suite
from bench.records.complete import complete_record
from bench.records.export import CHECKPOINT_SUFFIX, print_results
from bench.records.sync import sync_records
from bench.system.errors import BenchError, UsageError, one_line
from bench.system.files import sha256_of_file
from bench.system.signals import deferred_signals
from bench.teachers.cards import add_teacher, trained_card
from bench.tracking import note
from bench.tracking.outage import is_full_disk, is_outage
from bench.tracking.run_logger import RunLogger
from bench.tracking.store import IMPORTING, TrackingStore
from leaderboards.read.records import collect, read_record
from leaderboards.schema import fields
from leaderboards.schema.checkpoints import BEST
from leaderboards.schema.fields import FINISHED, escape_unprintable
from leaderboards.schema.metrics import TEST_PREFIXES
from leaderboards.schema.record import Record, RecordError

# What no option of a run changes. Teachers have a `limit_aa` of their own.
SUITE_FIELDS = (
    "norm",
    "eps",
    "inner_step",
    "inner_steps",
    "attacks",
    "full_checkpoints",
    "limit_val",
)


def import_records(
    root: Path,
    sources: tuple[Path, ...],
    data_root: Path,
    device: str,
    verify: bool,
    checkpoint: Path | None,
) -> int:
    """Take record files, and folders of them, into a store; return 1 if one is refused.

    The store is made for the first sound record. `verify`: evaluate each checkpoint again; without
    `checkpoint` it is the file beside the record, in the store, or where the record says.
    """
    paths = list_files(sources)

    @cache
    def open_store() -> tuple[TrackingStore, dict[str, Record]]:
        store = TrackingStore(root)
        return store, read_store(store)

    def import_file(path: Path) -> str:
        record = complete_record(check_protocol(read_record(path)), data_root)
        store, recorded = open_store()
        beside = path.with_suffix(CHECKPOINT_SUFFIX)
        if verify:
            # Imported here: it brings torch.
            from bench.records.reproduce import reproduce

            file = checkpoint or (beside if beside.is_file() else None)
            result = reproduce(record, store, checkpoint=file, data_root=data_root, device=device)
            print(escape_unprintable(f"{path}: {result}"))
        line = f"{path}: {import_record(store, recorded, record)}"
        return line + take_checkpoint(store, record, beside)

    return print_results(paths, import_file)


def list_files(sources: tuple[Path, ...]) -> list[Path]:
    """Return the files named, and those in folders. Raise BenchError for none."""
    if not sources:
        raise UsageError("missing: FILE-OR-DIR, records or folders of them")
    paths: list[Path] = []
    for source in sources:
        if source.is_dir():
            paths += sorted(source.glob("*.json"))
        else:
            paths.append(source)
    if not paths:
        raise BenchError(f"no record, a file NAME.json, in {', '.join(map(str, sources))}")
    return paths


def read_store(store: TrackingStore) -> dict[str, Record]:
    """Return the records of a store by spec id."""
    sync_records(store.root)
    if not store.records.exists():
        return {}
    runs = collect(store.records)
    return dict(zip(runs["spec_id"], runs["record"], strict=True))


def check_protocol(record: Record) -> Record:
    """Return a record of this checkout's suites.

    Raise RecordError for another suite, version, data set or threat model, and for what names no
    network; UsageError for more images than there are.
    """
    suite, spec = find_suite(record), record.spec
    if spec.dataset not in (datasets.get(name).name for name in suite.datasets):
        raise RecordError(f"{suite.id} is not for the data set {spec.dataset!r}")
    models.find(spec.arch)
    split_sizes(spec.dataset, spec.limit_train, spec.limit_test)
    for name in SUITE_FIELDS:
        value, stated = getattr(suite, name), getattr(spec, name)
        if stated != value:
            raise RecordError(f"{name} = {stated!r}, in {suite.id} it is {value!r}")
    limits = {suite.limit_aa}
    if spec.role == "teacher":
        limits.update(teacher.limit_aa for teacher in suite.teachers.values())
    if spec.limit_aa not in limits:
        raise RecordError(f"limit_aa = {spec.limit_aa}, in {suite.id} it is {suite.limit_aa}")
    return record


def find_suite(record: Record) -> Suite:
    """Return a record's suite. Raise RecordError for one of another name or version."""
    name, _, version = record.spec.suite.rpartition("@")
    try:
        suite = suites.get(name)
    except UsageError as error:
        names = ", ".join(suites.REGISTRY.names())
        raise RecordError(f"unknown suite {name!r}: here are {names}") from error
    if record.spec.suite != suite.id:
        age = "stale" if int(version) < suite.version else "newer"
        versions = f"{record.spec.suite}, this checkout has {suite.id}"
        raise RecordError(f"{age} protocol version: {versions}")
    return suite


def import_record(store: TrackingStore, recorded: dict[str, Record], record: Record) -> str:
    """Take a sound record into the store and say so. Raise RecordError for other numbers."""
    earlier = recorded.get(record.spec_id)
    if not earlier:
        check_training(recorded, record)
        if run := store.find_run(record.spec, FINISHED):
            raise RecordError(f"run {run.info.run_id} has the same spec, and no record")
        run_id = create_run(store, record)
        recorded[record.spec_id] = record
        return f"taken in as run {run_id}"
    stored, imported = comparable_values(earlier), comparable_values(record)
    for name in sorted(stored.keys() | imported.keys()):
        if stored.get(name) != imported.get(name):
            other = f"other numbers: {name} {imported.get(name)}, not {stored.get(name)}"
            raise RecordError(f"run {earlier.run_id} has the same spec and {other}")
    return f"recorded already as run {earlier.run_id}, skipped"


def take_checkpoint(store: TrackingStore, record: Record, path: Path) -> str:
    """Take a teacher's checkpoint, if there is one, into the store and its run; say so.

    Raise RecordError for another one.
    """
    if record.spec.role != "teacher" or not path.is_file():
        return ""
    if sha256_of_file(path) != record.checksums[BEST]:
        raise RecordError(f"{path.name!r} is not the checkpoint of its record")
    add_teacher(store.root, path, trained_card(record.spec, record.checksums[BEST]))
    run = store.find_run(record.spec, FINISHED)
    assert run, "its record is in the store"
    store.clear_uploads(run.info.run_id)
    with TemporaryDirectory() as folder:
        copy = shutil.copy(path, Path(folder, Path(fields.checkpoint_artifact()).name))
        store.client.log_artifact(run.info.run_id, str(copy), fields.Artifact.CHECKPOINTS)
    return ", with its checkpoint"


def comparable_values(record: Record) -> dict[str, object]:
    """Return the values that any evaluation of the same checkpoints must give again."""
    results = {name: x for name, x in record.metrics.items() if name.startswith(TEST_PREFIXES)}
    return {**record.checksums, **results}


def check_training(recorded: dict[str, Record], record: Record) -> None:
    """Raise RecordError if the checkpoint is in the store with another method, network or seed."""
    sha256 = record.checksums.get(BEST)
    for other in recorded.values():
        same = sha256 is not None and other.checksums.get(BEST) == sha256
        if same and other.training_key != record.training_key:
            of_other = f"run {other.run_id}, of another method, network or seed"
            raise RecordError(f"its checkpoint is that of {of_other}")


def create_run(store: TrackingStore, record: Record) -> str:
    """Create a run from a record; return its id. Raise RecordError if MLflow refuses a part.

    Signals wait meanwhile; an import that was killed goes on with its run.
    """
    from mlflow.exceptions import MlflowException

    run_id, client = "", store.client
    try:
        with deferred_signals():
            # Of an import that was killed while it made the parent.
            store.claims(record.spec.suite).clear_dead()
            run_id = open_partial_run(store, record)
            store.clear_uploads(run_id)
            logger = RunLogger(client, run_id)
            logger.log_spec(record.spec)
            logger.log_curves(record)
            logger.log_record(record)
            client.set_terminated(run_id, FINISHED, end_time=record.start_time)
            client.delete_tag(run_id, IMPORTING)
            # The file comes last: it says that nothing is left to do.
            store.save_record(record)
    except MlflowException as error:
        if is_full_disk(error) or is_outage(error):
            raise BenchError(f"the tracking store fails: {one_line(error)}") from error
        if run_id:
            client.delete_run(run_id)
        raise RecordError(f"MLflow refuses it: {one_line(error)}") from error
    return run_id


def open_partial_run(store: TrackingStore, record: Record) -> str:
    """Return the id of the run that an import of this record left, or of a new one."""
    client, spec = store.client, record.spec
    experiment_id = store.get_or_create_experiment(spec.suite)
    digest = hashlib.sha256(record.to_json().encode()).hexdigest()
    for run in client.search_runs([experiment_id], f"tags.{IMPORTING} = '{digest}'"):
        return str(run.info.run_id)
    # Of another record of this spec.
    condition = f"tags.{IMPORTING} != '' and tags.{fields.Tag.SPEC_ID} = '{spec.id}'"
    for run in client.search_runs([experiment_id], condition):
        client.delete_run(run.info.run_id)
    tags = {fields.Tag.VARIANT: "", "suite": spec.suite} | spec.identity_tags | record.tags
    tags[fields.PARENT_TAG] = store.get_or_create_parent(spec.suite, tags)
    tags[IMPORTING] = digest
    name = f"{note.run_title(tags)} seed {spec.seed}"
    return str(client.create_run(experiment_id, record.start_time, tags, name).info.run_id)
