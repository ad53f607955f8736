"""Finished runs of a store, written as record files."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from bench.system.errors import BenchError, UsageError, one_line
from bench.system.files import write_atomically
from bench.tracking.store import tracking_uri
from leaderboards.read import artifacts, verdicts
from leaderboards.read.store import StoreError, collect, frame_rows, read_curves
from leaderboards.schema import fields
from leaderboards.schema.checkpoints import CHECKPOINTS
from leaderboards.schema.record import Record, RecordError, build_record, pack_verdicts


def export_runs(store: Path, out: Path, run_ids: tuple[str, ...], suite: str) -> int:
    """Write a record for each run, or each finished run of a suite; return 1 if one fails."""
    if bool(run_ids) == bool(suite):
        raise UsageError("name runs by their MLflow ids, or a suite of finished runs by --suite")
    source = tracking_uri(store)
    try:
        runs = collect(source, suite or None)
        runs = runs[~runs["superseded"]] if suite else runs[runs["run_id"].isin(run_ids)]
        curves = read_curves(source, runs)
        out.mkdir(parents=True, exist_ok=True)
    except StoreError as error:
        raise BenchError(str(error)) from error
    except OSError as error:
        raise BenchError(f"cannot write to {str(out)!r}: {error.strerror}") from error
    rows = {row["run_id"]: row for row in frame_rows(runs)}
    if not rows and suite:
        raise BenchError(f"no finished run of {suite!r} in {source}")

    def write_record(run_id: str) -> str:
        if run_id not in rows:
            raise RecordError("no finished run of a suite has this id")
        record = record_of_run(rows[run_id], curves.get(run_id, {}))
        path = out / record.file_name
        write_atomically(path, record.to_json().encode())
        return str(path)

    return print_results(run_ids or rows, write_record)


def record_of_run(run: dict[str, Any], curves: fields.Curves) -> Record:
    """Build the record of a row of `store.collect` and its curves. Raise RecordError."""
    metrics, survived = {}, None
    for name, value in run.items():
        # NaN, for a metric that the run does not have, is not equal to itself.
        if name.startswith(fields.METRIC_PREFIXES) and name not in curves and value == value:
            metrics[name] = value
    try:
        spec = json.loads(artifacts.read_artifact(run["artifact_uri"], "spec.json"))
        if "test/aa" in metrics:
            survived = verdicts.read_verdicts(run["artifact_uri"])
    except verdicts.VerdictError as error:
        raise RecordError(str(error)) from error
    # The errors of stores have no common class.
    except Exception as error:
        raise RecordError("its spec.json is missing or damaged") from error
    checksums = {name: run[f"sha256.{name}"] for name in CHECKPOINTS if run[f"sha256.{name}"]}
    return build_record(
        spec_id=run["spec_id"],
        run_id=run["run_id"],
        start_time=run["start_time"].value // 1_000_000,
        spec=spec,
        tags={name: run[name] for name in fields.RECORD_TAGS},
        checksums=checksums,
        metrics=metrics,
        curves={name: [*zip(*curve, strict=True)] for name, curve in curves.items()},
        environment=artifacts.read_environment(run),
        verdicts=None if survived is None else pack_verdicts(survived),
    )


def print_results(items: Iterable[Any], process: Callable[[Any], str]) -> int:
    """Print the result of each item or the error that it raises; return 1 if there is an error."""
    exit_code = 0
    for item in items:
        try:
            print(process(item))
        # ValueError, LookupError and OSError come from records whose spec is wrong.
        except (BenchError, ValueError, LookupError, OSError) as error:
            print(f"error: {item}: {one_line(error)}", file=sys.stderr)
            exit_code = 1
    return exit_code
