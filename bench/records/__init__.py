"""The verbs `export` and `import`: finished runs as small files that another checkout takes into its store."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from bench.cli import options
from bench.protocol import suites
from bench.protocol.spec import Spec
from bench.system.errors import BenchError, UsageError
from bench.tracking import note, track
from bench.tracking.track import FINISHED, Store, tracking_uri
from leaderboards.read import artifacts, verdicts
from leaderboards.read.record_files import read_record
from leaderboards.read.store import StoreError, collect, frame_rows, read_curves
from leaderboards.schema import fields, record
from leaderboards.schema.record import Record, RecordError

BATCH = 1000  # metrics that MLflow takes at once
TRAINED = (
    "role",
    "dataset",
    "student",
    "method",
    "seed",
)  # tags, as record.Record.training_key has them


def export(given: options.Export) -> int:
    """Writes a file for each run; 1 if one could not be."""
    if bool(given.runs) == bool(given.suite):
        raise UsageError(
            "name runs by their MLflow ids, or with --suite all finished runs of a suite"
        )
    source = tracking_uri(given.store)
    try:
        runs = collect(source, given.suite or None)
        runs = runs[~runs["superseded"]] if given.suite else runs[runs["run_id"].isin(given.runs)]
        curves = read_curves(source, runs)
        given.out.mkdir(parents=True, exist_ok=True)
    except StoreError as error:
        raise BenchError(str(error)) from error
    except OSError as error:
        raise BenchError(f"cannot write to {str(given.out)!r}: {error.strerror}") from error
    found = {run["run_id"]: run for run in frame_rows(runs)}
    if not found and given.suite:
        raise BenchError(f"no finished run of {given.suite!r} in {source}")

    def write(name: str) -> str:
        if name not in found:
            raise RecordError("no finished run of a suite has this id")
        made = of(found[name], curves.get(name, {}))
        path = given.out / made.file_name
        part = path.with_suffix(
            ".part"
        )  # a full disk leaves the file of an earlier export as it is
        try:
            part.write_text(made.to_json(), encoding="utf-8")
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        return str(path)

    return each(given.runs or found, write)


def of(run: dict[str, Any], curves: fields.Curves) -> Record:
    """The record of a run in store.collect's frame, with its part of details.curves. Raises RecordError."""
    metrics = {
        name: value
        for name, value in run.items()
        if name.startswith(fields.METRIC_PREFIXES) and value == value
    }
    try:
        spec = json.loads(artifacts.read_artifact(run["artifact_uri"], "spec.json"))
        survived = verdicts.read_verdicts(run["artifact_uri"]) if "test/aa" in metrics else None
    except verdicts.VerdictError as error:
        raise RecordError(str(error)) from error
    except Exception as error:  # stores fail in more ways than can be named
        raise RecordError("its spec.json is missing or damaged") from error
    return record.build_record(
        spec_id=run["spec_id"],
        run_id=run["run_id"],
        start_time=run["start_time"].value // 1_000_000,
        spec=spec,
        tags={name: run[name] for name in fields.RECORD_TAGS},
        checksums={
            name.removeprefix("sha256."): run[name] for name in fields.CHECKSUM_TAGS if run[name]
        },
        metrics={name: value for name, value in metrics.items() if name not in curves},
        curves={name: [*zip(*curve, strict=True)] for name, curve in curves.items()},
        environment=artifacts.read_environment(run),
        verdicts=None if survived is None else record.pack_verdicts(survived),
    )


def take(given: options.Import) -> int:
    """Takes records into the store; 1 if one was refused."""
    paths = [
        path
        for source in given.sources
        for path in ([*sorted(source.glob("*.json"))] if source.is_dir() else [source])
    ]
    if not paths:
        raise BenchError(f"no record, a file NAME.json, in {', '.join(map(str, given.sources))}")
    store = Store(given.store)

    def one(path: Path) -> str:
        found = read_record(path)
        spec = resolved(found)
        if given.verify:
            from bench.records import reproduce

            print(f"{path}: {reproduce.verify(found, spec, store.uri, given)}")
        return f"{path}: {keep(store, found, spec)}"

    return each(paths, one)


def each(names: Iterable[Any], work: Callable[[Any], str]) -> int:
    """Prints what became of each name, or why nothing did; 1 if there was one such."""
    failed = 0
    for name in names:
        try:
            print(work(name))
        except (
            BenchError,
            RecordError,
            ValueError,
            LookupError,
            OSError,
        ) as error:  # the last three of a lying spec
            print(
                f"error: {name}: {' '.join(str(error).split())[:300] or type(error).__name__}",
                file=sys.stderr,
            )
            failed = 1
    return failed


def resolved(found: Record) -> Spec:
    """The spec of a record. Raises RecordError unless its suite is one of this checkout, in this version."""
    suite, _, version = found.spec.suite.rpartition("@")
    known = suites.SUITES.get(suite)
    if not known:
        raise RecordError(f"unknown suite {suite!r}: here are {', '.join(suites.SUITES)}")
    if found.spec.suite != known.id:
        age = "stale" if int(version) < known.version else "newer"
        raise RecordError(
            f"{age} protocol version: {found.spec.suite}, this checkout has {known.id}"
        )
    from pydantic import TypeAdapter, ValidationError

    try:
        spec = TypeAdapter(Spec).validate_python(found.spec.model_dump())
    except ValidationError as error:
        raise RecordError(f"spec.{record.describe_first_error(error)}") from error
    if spec.id != found.spec_id:
        raise RecordError("spec: it has fields or values that this version does not write")
    return spec


def keep(store: Store, found: Record, spec: Spec) -> str:
    """What became of a sound record, in words. Raises RecordError if the store has other numbers for its spec."""
    held = store.find(spec, FINISHED)
    if not held:
        once(store, found, spec)
        return f"taken in as run {add(store, found, spec)}"
    there = {name: held.data.tags.get(name) for name in fields.CHECKSUM_TAGS} | results(
        held.data.metrics
    )
    here = {name: found.to_row().get(name) for name in fields.CHECKSUM_TAGS} | results(
        found.metrics
    )
    for name in sorted(there.keys() | here.keys()):
        if there.get(name) != here.get(name):
            other = f"{name} {here.get(name)}, not {there.get(name)}"
            raise RecordError(
                f"run {held.info.run_id} has the same spec and other numbers: {other}"
            )
    return f"recorded already as run {held.info.run_id}, skipped"


def once(store: Store, found: Record, spec: Spec) -> None:
    """Raises RecordError if the checkpoint is in the store under another method, network or seed."""
    sha256 = found.checksums.get("best", "none")
    for run in store.client.search_runs(
        [store.experiment(spec.suite)], f"tags.`sha256.best` = '{sha256}'"
    ):
        if tuple(run.data.tags.get(name, "") for name in TRAINED) != found.training_key:
            raise RecordError(
                f"its checkpoint is that of run {run.info.run_id}, of another method, network or seed"
            )


def add(store: Store, found: Record, spec: Spec) -> str:
    """The id of a new run with all that the record says. Raises RecordError if MLflow refuses a part of it.

    Half a run, left by an import that was killed, is nobody's to go on with, and is deleted when the record comes again.
    """
    from mlflow.exceptions import MlflowException

    experiment, run = store.experiment(spec.suite), ""
    tags = {"variant": "", "suite": spec.suite} | {
        name: v for name, v in found.to_row().items() if name in fields.TAGS
    }
    for half in store.client.search_runs([experiment], f"tags.{track.IMPORTING} = '{spec.id}'"):
        store.client.delete_run(half.info.run_id)
    try:
        parent = {fields.PARENT_TAG: store.group(experiment, tags), track.IMPORTING: spec.id}
        name = f"{note.title(tags)} seed {spec.seed}"
        run = str(
            store.client.create_run(experiment, found.start_time, tags | parent, name).info.run_id
        )
        fill(track.Record(store, run), found, spec)
        store.client.set_terminated(run, FINISHED, end_time=found.start_time)
        store.client.delete_tag(run, track.IMPORTING)
    except BaseException as error:
        if run:
            store.client.delete_run(run)
        if isinstance(error, MlflowException):
            raise RecordError(f"MLflow refuses it: {str(error).splitlines()[0][:300]}") from error
        raise
    return run


def fill(run: track.Record, found: Record, spec: Spec) -> None:
    """Parameters, metrics and artifacts of a record."""
    from mlflow.entities import Metric

    points = [(name, 0, value) for name, value in found.metrics.items()]
    points += [(name, step, value) for name, curve in found.curves.items() for step, value in curve]
    metrics = [Metric(name, value, found.start_time, step) for name, step, value in points]
    for start in range(0, len(metrics), BATCH):
        run.client.log_batch(run.run_id, metrics=metrics[start : start + BATCH])
    run.params(spec.flat())
    run.text("spec.json", json.dumps(found.spec.model_dump(), indent=2))
    run.text("environment.json", json.dumps(found.environment, indent=2))
    if found.verdicts:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / Path(verdicts.VERDICTS_FILE).name
            np.savez_compressed(path, robust_aa=found.survived)
            run.file(path, str(Path(verdicts.VERDICTS_FILE).parent))


def results(metrics: dict[str, float]) -> dict[str, float]:
    """Those that another evaluation of the same checkpoints must give again."""
    return {name: value for name, value in metrics.items() if name.startswith("test")}
