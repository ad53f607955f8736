"""A tracking store's folder of records, and the finished runs of its MLflow store."""

from __future__ import annotations

import hashlib
import tempfile
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench.system.database import redact_password
from bench.system.errors import BenchError, one_line
from bench.system.files import save_file
from bench.tracking.store import (
    IMPORTING,
    fetch_artifact,
    open_client,
    records_folder,
    store_exists,
    suite_runs,
    tracking_uri,
)
from leaderboards.read.records import read_content
from leaderboards.schema.fields import FINISHED, REPLACED_TAG, Artifact, Tag
from leaderboards.schema.record import RecordError, parse_record

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

CONVERT = "`python -m bench export --from-mlflow` makes their records, once"


@dataclass(frozen=True)
class StoreRecords:
    """The folder of a store's records, and a line for each way in which MLflow differs from it."""

    folder: Path
    problems: list[str]


def sync_records(root: Path) -> StoreRecords:
    """Fetch the records of a store's finished runs that its folder lacks.

    A record that does not have its run's checksum is fetched again, so that runs of other machines
    on one server are there too. Without an MLflow store nothing is made. Raise BenchError for a
    store that cannot be read.
    """
    uri = tracking_uri(root)
    folder = records_folder(root, uri)
    if not store_exists(root):
        return StoreRecords(folder, [])
    client = open_client(uri)
    finished, problems = newest_finished(client)
    digests = digest_records(folder)
    without, specs = 0, set[str]()
    for spec_id, run in finished.items():
        specs.add(spec_id[:8])
        digest = run.data.tags.get(Tag.RECORD)
        if digest and digests.get(spec_id[:8]) != digest:
            try:
                content = fetch_record(client, root, run, digest)
                save_file(folder / parse_record(content).spec.record_name, content)
            except (RecordError, BenchError) as error:
                problems.append(f"run {run.info.run_id}: {error}")
        without += not digest and spec_id[:8] not in digests
    if without:
        problems.append(f"finished runs without a record are left out: {without}; {CONVERT}")
    gone = sorted(digests.keys() - specs)
    if gone:
        names = ", ".join(f"*-{digest}.json" for digest in gone[:3])
        store = redact_password(uri)
        problems.append(f"records without a finished run in {store}: {len(gone)}, such as {names}")
    return StoreRecords(folder, problems)


def newest_finished(client: MlflowClient) -> tuple[dict[str, Run], list[str]]:
    """Return the newest finished run of each spec id, and a line on runs that did not finish."""
    finished: dict[str, Run] = {}
    unfinished = Counter[str]()
    for run in suite_runs(client):
        if REPLACED_TAG in run.data.tags:
            continue
        if IMPORTING in run.data.tags:
            unfinished["half imported"] += 1
        elif run.info.status == FINISHED:
            finished[run.data.tags.get(Tag.SPEC_ID, "")] = run
        else:
            unfinished[run.info.status] += 1
    if not unfinished:
        return finished, []
    counts = ", ".join(f"{count} {status}" for status, count in sorted(unfinished.items()))
    return finished, [f"runs that did not finish are left out: {counts}"]


def digest_records(folder: Path) -> dict[str, str]:
    """Return the sha256 of each record by the digits of the spec id that end its name."""
    digests = {}
    for path in folder.glob("*.json"):
        # `collect` names a file that cannot be read.
        with suppress(RecordError):
            digests[path.stem[-8:]] = hashlib.sha256(read_content(path)).hexdigest()
    return digests


def fetch_record(client: MlflowClient, root: Path, run: Run, digest: str) -> bytes:
    """Return the record file of a run. Raise RecordError if it is missing or damaged."""
    with tempfile.TemporaryDirectory() as name:
        try:
            path = fetch_artifact(client, root, run.info.run_id, Artifact.RECORD, Path(name))
            content = path.read_bytes()
        # The errors of stores have no common class.
        except Exception as error:
            raise RecordError(f"its record cannot be fetched: {one_line(error, 200)}") from error
    if hashlib.sha256(content).hexdigest() != digest:
        raise RecordError("its record is not the file of its checksum")
    return content
