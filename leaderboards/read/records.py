"""A folder of records as one DataFrame with a row for each run."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd

from leaderboards.schema import fields, metrics
from leaderboards.schema.checkpoints import BEST
from leaderboards.schema.record import Record, RecordError, parse_record

MAX_BYTES = 1_000_000
COLUMNS = ("experiment", "suite", "version", *fields.IDENTITY_TAGS, *fields.RECORD_TAGS)
COLUMNS = (*COLUMNS, *fields.CHECKSUM_TAGS.values(), "run_id", "start_time", "record")


class StoreError(ConnectionError):
    """The records cannot be read; the message is one line."""


def read_record(path: Path) -> Record:
    """Read the record in a file. Raises RecordError for whatever is wrong with it."""
    return parse_record(read_content(path))


def read_content(path: Path) -> bytes:
    """Return the bytes of a record's file. Raises RecordError for one that is none."""
    try:
        # To open a pipe would wait for its writer.
        if not stat.S_ISREG(path.stat().st_mode):
            raise RecordError("no regular file")
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise RecordError(str(error.strerror)) from error
    if len(content) > MAX_BYTES:
        raise RecordError(f"larger than {MAX_BYTES:,} bytes")
    return content


def collect(folder: Path | None, suite: str | None = None) -> pd.DataFrame:
    """Collect the records NAME.json in a folder, oldest first.

    Of several records of one spec the newest counts. A file that is no record, and one that has the
    checkpoint of another method, network or seed, is left out.

    Args:
        folder: without one, there are no records.
        suite: the suite to restrict the records to, as "digits" or "digits@1".
    Raises: StoreError if there is no such folder.

    Returns COLUMNS: text, "" where absent; version int; start_time in UTC; record a Record.
    Metrics under their names: fractions, seconds or counts, NaN where absent. "param/<name>" as
    text. attrs["problems"]: a line for each file that was left out.
    """
    # Path.is_dir raises for a name that is too long.
    if folder and not os.path.isdir(folder):
        raise StoreError(f"cannot read records: there is no folder {str(folder)!r}")
    problems: list[str] = []
    records = _read_all(folder.glob("*.json") if folder else (), suite, problems)
    records.sort(key=lambda record: (record.start_time, record.run_id))
    rows = [*map(record_row, records)]
    extra = set(chain.from_iterable(rows)).difference(COLUMNS)
    frame = pd.DataFrame(rows, columns=[*COLUMNS, *sorted(extra)])
    measured = frame.columns.str.startswith((*metrics.METRIC_PREFIXES, metrics.CLASS))
    frame = frame.astype(dict.fromkeys(frame.columns[measured], float))
    frame["start_time"] = pd.to_datetime(frame["start_time"], unit="ms", utc=True)
    frame.attrs["problems"] = problems
    return frame


def _read_all(paths: Iterable[Path], suite: str | None, problems: list[str]) -> list[Record]:
    # File name and record by spec id and by sha256 of the best checkpoint.
    newest: dict[str, tuple[str, Record]] = {}
    trained: dict[str, tuple[str, Record]] = {}
    for path in sorted(paths):
        name = fields.escape_unprintable(path.name)
        try:
            record = read_record(path)
            _refuse_twin(name, record, trained)
        except RecordError as error:
            problems.append(f"{name} is left out: {error}")
            continue
        other = newest.setdefault(record.spec_id, (name, record))
        if other[1] is not record:
            pair = (name, record), other
            earlier, later = sorted(pair, key=lambda item: item[1].start_time)
            newest[record.spec_id] = later
            problems.append(f"{earlier[0]} is left out: {later[0]} is of the same spec and newer")
    records = [record for _, record in newest.values()]
    return [record for record in records if fields.in_suite(record.spec.suite, suite)]


def _refuse_twin(name: str, record: Record, trained: dict[str, tuple[str, Record]]) -> None:
    sha256 = record.checksums.get(BEST, record.run_id)
    other, twin = trained.setdefault(sha256, (name, record))
    if twin.training_key != record.training_key:
        raise RecordError(f"{other} has the same checkpoint, of another method, network or seed")


def record_row(record: Record) -> dict[str, Any]:
    """Return a record as the row that `collect` makes of it, unprintable letters escaped."""
    spec = record.spec
    suite, _, version = spec.suite.rpartition("@")
    texts = {"experiment": spec.suite, "suite": suite, "run_id": record.run_id}
    texts |= spec.identity_tags | dict.fromkeys(fields.RECORD_TAGS, "") | record.tags
    texts |= {tag: record.checksums.get(name, "") for name, tag in fields.CHECKSUM_TAGS.items()}
    texts |= {f"param/{name}": str(value) for name, value in spec.flat().items()}
    escape = fields.escape_unprintable
    row: dict[str, Any] = {escape(name): escape(text) for name, text in texts.items()}
    row |= {"version": int(version), "start_time": record.start_time, "record": record}
    for name, (_, values) in record.curves.items():
        if values and name.startswith(metrics.METRIC_PREFIXES):
            row[name] = values[-1]
    return row | record.metrics | record.class_metrics


def frame_rows(runs: pd.DataFrame) -> list[dict[Any, Any]]:
    """Return the rows of a frame as dictionaries, by column name."""
    # DataFrame.to_dict takes three times as long.
    names = list(runs.columns)
    columns = [runs[name].tolist() for name in names]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
