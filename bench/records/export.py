"""Records of a store, copied with checks for other checkouts."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from bench.records.sync import sync_records
from bench.system.errors import BenchError, UsageError, one_line
from bench.system.files import save_file, sha256_of_file
from bench.teachers.cards import teacher_file, teacher_identity
from leaderboards.read.records import StoreError, collect
from leaderboards.schema.checkpoints import BEST
from leaderboards.schema.fields import escape_unprintable
from leaderboards.schema.record import Record, RecordError

CHECKPOINT_SUFFIX = ".pt"  # of a teacher's checkpoint, beside its record


def export_runs(store: Path, out: Path, run_ids: tuple[str, ...], suite: str) -> int:
    """Copy the record of each run, or all of a suite, into a folder; return 1 if one fails."""
    if bool(run_ids) == bool(suite):
        raise UsageError("name runs by their MLflow ids, or a suite of finished runs by --suite")
    synced = sync_records(store)
    try:
        runs = collect(synced.folder if synced.folder.exists() else None, suite or None)
    except StoreError as error:
        raise BenchError(str(error)) from error
    for line in (*synced.problems, *runs.attrs["problems"]):
        print(line, file=sys.stderr)
    records: dict[str, Record] = dict(zip(runs["run_id"], runs["record"], strict=True))
    if not records and suite:
        raise BenchError(f"no record of {suite!r} in {synced.folder}")

    def copy_record(run_id: str) -> str:
        if run_id not in records:
            raise RecordError("no finished run of a suite has this id, or it has no record")
        path = out / records[run_id].spec.record_name
        save_file(path, (synced.folder / path.name).read_bytes())
        return str(path) + export_checkpoint(store, records[run_id], path)

    return print_results(run_ids or records, copy_record)


def export_checkpoint(store: Path, record: Record, path: Path) -> str:
    """Copy a teacher's checkpoint beside its record, so that others train with it; say so."""
    spec = record.spec
    source = teacher_file(store, teacher_identity(spec))
    if spec.role != "teacher" or not source.exists():
        return ""
    if sha256_of_file(source) != record.checksums[BEST]:
        raise RecordError(f"{str(source)!r} is not the checkpoint of its record")
    save_file(path.with_suffix(CHECKPOINT_SUFFIX), source.read_bytes())
    return " and its checkpoint"


def print_results(items: Iterable[Any], process: Callable[[Any], str]) -> int:
    """Print the result of each item or the error that it raises; return 1 if there is an error."""
    exit_code = 0
    for item in items:
        try:
            print(escape_unprintable(process(item)))
        # ValueError, LookupError and OSError come from records whose spec is wrong.
        except (BenchError, ValueError, LookupError, OSError) as error:
            print(f"error: {escape_unprintable(str(item))}: {one_line(error)}", file=sys.stderr)
            exit_code = 1
    return exit_code
