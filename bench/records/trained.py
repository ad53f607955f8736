"""Trained networks, named by a run, by a row of a table or by a file."""

from __future__ import annotations

import json
import re
import tempfile
from contextlib import suppress
from pathlib import Path

from bench import datasets
from bench.models import checkpoint, hub
from bench.records.sync import sync_records
from bench.system.errors import BenchError, UsageError, unknown_name
from bench.tracking.run_logger import SHOWN_DIGITS
from bench.tracking.store import (
    artifact_path,
    fetch_artifact,
    open_client,
    store_exists,
    tracking_uri,
)
from leaderboards.read.records import collect
from leaderboards.schema import fields
from leaderboards.schema.checkpoints import BEST, CHECKPOINTS
from leaderboards.schema.fields import Tag, checkpoint_artifact
from leaderboards.schema.metrics import VAL_ROBUST
from leaderboards.schema.record import Record
from methods.base import Net

RUN_ID = re.compile("[0-9a-f]{4,32}")
FILE_SUFFIXES = (checkpoint.SAFETENSORS, ".pt")
FORMS = "a run's id or 4 of its first digits, or a row SUITE/DATASET/STUDENT/METHOD"


def load(
    source: str | Path,
    store: Path,
    name: str,
    arch: str,
    dataset: str,
    key: str = "",
    mean: tuple[float, ...] = (),
    std: tuple[float, ...] = (),
) -> Net:
    """Load a network as `bench.load` describes it, whose `checkpoint` is called `name` here."""
    is_file = not isinstance(source, str) or source.endswith(FILE_SUFFIXES)
    if not is_file and not hub.is_address(source):
        if key or mean or std:
            raise UsageError(f"key, mean and std: of a file, and {source!r} is a run")
        return load_network(find_record(store, str(source)), store, name)
    path, _ = hub.locate(Path(source))
    if not path.exists():
        raise BenchError(f"there is no file {str(path)!r}")
    arch, dataset = checkpoint.stated_network(path, arch, dataset)
    if not (arch and dataset):
        raise UsageError(f"{str(path)!r} does not say its network: name arch= and dataset=")
    info = datasets.get(dataset)
    info.check_statistics(mean, std)
    return checkpoint.load(path, arch, info, None, mean, std, key)


def read_records(store: Path) -> list[Record]:
    """Read the records of a store, oldest first. Raise BenchError without any."""
    folder = sync_records(store).folder
    # The leaderboard names the files that are no records.
    records = list(collect(folder)["record"]) if folder.exists() else []
    if not records:
        raise BenchError(f"there is no record in {str(folder)!r}")
    return records


def find_record(store: Path, source: str) -> Record:
    """Return the record of a run, or of a row's best seed. Raise UsageError for none or several."""
    if "/" in source:
        return find_best_seed(store, source)
    if not RUN_ID.fullmatch(source):
        raise UsageError(f"{source!r} names no trained network: {FORMS}")
    records = read_records(store)
    matches = [
        record for record in records if record.run_id.startswith(source) or record.spec_id == source
    ]
    if not matches:
        raise UsageError(f"there is no record of a run {source!r}: `show` lists the runs")
    if len(matches) > 1:
        runs = ", ".join(record.run_id for record in matches)
        raise UsageError(f"{source!r} begins the ids of {len(matches)} runs: {runs}")
    return matches[0]


def find_records(store: Path, source: str) -> list[Record]:
    """Return the record of a run, or those of all seeds of a row. Raise UsageError for none."""
    return find_seeds(store, source) if "/" in source else [find_record(store, source)]


def find_seeds(store: Path, row: str) -> list[Record]:
    """Return the records of a row, oldest first. Raise UsageError for no row.

    row: SUITE/DATASET/STUDENT/METHOD, with /VARIANT for one that has a variant; without a version,
    the suite's newest.
    """
    records = read_records(store)
    suite, _, names = row.partition("/")
    versions = {
        record.spec.suite for record in records if fields.in_suite(record.spec.suite, suite)
    }
    newest = max(versions, key=lambda version: int(version.rpartition("@")[2]), default=suite)
    seeds = [record for record in records if row_address(record) == f"{newest}/{names}"]
    if not seeds:
        raise unknown_name("row", row, {row_address(record) for record in records})
    return seeds


def find_best_seed(store: Path, row: str) -> Record:
    """Return the record of a row's seed with the highest robust accuracy in validation.

    row: as `find_seeds` takes it. Raise UsageError for no row, or runs that are no seeds of one
    row.
    """
    seeds = find_seeds(store, row)
    values: dict[str, set[str]] = {}
    for record in seeds:
        for name, value in record.spec.flat().items():
            values.setdefault(name, set()).add(str(value))
    different = sorted(name for name in values if len(values[name]) > 1 and name != "seed")
    if different:
        runs = ", ".join(record.run_id[:SHOWN_DIGITS] for record in seeds)
        raise UsageError(f"{row!r}: runs {runs} differ in {', '.join(different)}: name one of them")
    # -1 where no validation was recorded.
    return max(
        seeds, key=lambda record: max(record.curves.get(VAL_ROBUST, ((), ()))[1], default=-1.0)
    )


def row_address(record: Record) -> str:
    """Return how the row of a record is named on the command line."""
    spec = record.spec
    parts = (spec.suite, spec.dataset, spec.arch, spec.method, record.tags.get(Tag.VARIANT, ""))
    return "/".join(filter(None, parts))


def load_network(record: Record, store: Path, name: str) -> Net:
    """Load a checkpoint of a run in eval mode on the CPU.

    Raise BenchError where it cannot be had, or has another hash than the record says.
    """
    spec, sha256 = record.spec, checkpoint_sha256(record, name)
    with tempfile.TemporaryDirectory() as folder:
        path = fetch_checkpoint(record, store, name, Path(folder))
        return checkpoint.load(path, spec.arch, datasets.get(spec.dataset), sha256)


def fetch_checkpoint(record: Record, store: Path, name: str, folder: Path) -> Path:
    """Return the file of a run's checkpoint: in the store, or fetched to a folder or from a hub.

    Raise BenchError where it is in none of them.
    """
    artifact, has_runs = checkpoint_artifact(name), store_exists(store)
    local = artifact_path(store, record.run_id, artifact)
    if local.is_file():
        return local
    if has_runs:
        client = open_client(tracking_uri(store))
        # Stores fail in more ways than can be named.
        with suppress(Exception):
            return fetch_artifact(client, store, record.run_id, artifact, folder)
    if path := fetch_published(record, name):
        return path
    address = f"runs:/{record.run_id}/{artifact}"
    if not has_runs:
        raise BenchError(f"{address} is not in {str(store)!r}, which has no runs")
    cause = "an imported record has none, and files can be deleted"
    raise BenchError(f"{address} is not in the store: {cause}")


def fetch_published(record: Record, name: str) -> Path | None:
    """Return the file of a checkpoint from the hub that its record names, None if it names none."""
    address = record.tags.get(Tag.CHECKPOINT_ADDRESS)
    return hub.locate(Path(address))[0] if address and name == BEST else None


def checkpoint_sha256(record: Record, name: str) -> str:
    """Return the hash that the record states. Raise BenchError for another checkpoint's name."""
    if name not in CHECKPOINTS:
        raise unknown_name("checkpoint", name, CHECKPOINTS)
    if name not in record.checksums:
        others = ", ".join(record.checksums) or "none"
        raise BenchError(f"run {record.run_id} has no checkpoint {name!r}: it has {others}")
    return record.checksums[name]


def describe(record: Record, name: str) -> dict[str, str]:
    """Return texts that say what a checkpoint is, for the head of a safetensors file."""
    spec = record.spec
    return {
        "arch": spec.arch,
        "dataset": spec.dataset,
        "method": spec.method,
        "suite": spec.suite,
        "run_id": record.run_id,
        "checkpoint": name,
        "source_sha256": checkpoint_sha256(record, name),
        "accuracy": json.dumps(record.accuracies.get(name, {})),
    }
