"""Record files: one by its path or URI, or all in a folder as a store."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import url2pathname

import pandas as pd
from pydantic_core import from_json

from leaderboards.schema import fields
from leaderboards.schema.record import Record, RecordError, parse_record

MAX_BYTES = 1_000_000


def read_record(path: Path) -> Record:
    """Read the record in a file. Raises RecordError for whatever is wrong with it."""
    if path.exists() and not path.is_file():
        raise RecordError("no regular file")
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise RecordError(str(error.strerror)) from error
    if len(content) > MAX_BYTES:
        raise RecordError(f"larger than {MAX_BYTES:,} bytes")
    try:
        # from_json reads 1e400 as infinity, which dumps refuses.
        json.dumps(from_json(content, allow_inf_nan=False), allow_nan=False)
    except ValueError as error:
        raise RecordError(f"not JSON: {error}") from error
    return parse_record(content)


def is_record_uri(uri: str) -> bool:
    """Return whether the artifacts of a run are in a record."""
    return uri.startswith("file:") and uri.endswith(".json")


def read_record_uri(uri: str) -> Record:
    """Read the record behind the artifact URI of a run. Raises RecordError."""
    return read_record(Path(url2pathname(urlparse(uri).path)))


@dataclass(frozen=True)
class RecordReader:
    """A store.Reader of the files NAME.json in a folder; without a folder, of an empty store."""

    folder: Path | None = None

    def runs(self, suite: str | None, statuses: Sequence[str]) -> tuple[pd.DataFrame, list[str]]:
        rows = []
        records, problems = self._read_all()
        for path, record in records:
            if fields.in_suite(record.spec.suite, suite):
                origin = {"artifact_uri": path.absolute().as_uri(), "status": fields.FINISHED}
                rows.append(record.to_row() | origin)
        return pd.DataFrame(rows), problems

    def curves(self, run_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        curves = {}
        wanted = set(run_ids)
        for _, record in self._read_all()[0]:
            if record.run_id in wanted:
                points = record.curves.items()
                curves[record.run_id] = {
                    name: (*zip(*curve, strict=True),) for name, curve in points
                }
        return curves

    def _read_all(self) -> tuple[list[tuple[Path, Record]], list[str]]:
        """Return the records that count, by the names of their files, and what is wrong elsewhere.

        A file that repeats the spec, the run or the checkpoint of an earlier one is left out.
        """
        records, problems = [], []
        # File name and record by spec id, run id and sha256 of the best checkpoint.
        earlier: dict[str, tuple[str, Record]] = {}
        for path in sorted(self.folder.glob("*.json")) if self.folder else ():
            name = os.fsencode(path.name).decode(errors="backslashreplace")
            try:
                record = read_record(path)
                _refuse_repetition(record, earlier)
            except RecordError as error:
                problems.append(f"{name} is left out: {error}")
                continue
            for key in (record.spec_id, record.run_id, record.checksums.get("best")):
                if key:
                    earlier.setdefault(key, (name, record))
            records.append((path, record))
        return records, problems


def _refuse_repetition(record: Record, earlier: dict[str, tuple[str, Record]]) -> None:
    for key in (record.spec_id, record.run_id):
        if key in earlier:
            raise RecordError(f"{earlier[key][0]} is the record of {key} already")
    name, twin = earlier.get(record.checksums.get("best", ""), ("", record))
    if twin.training_key != record.training_key:
        raise RecordError(f"{name} has the same checkpoint, of another method, network or seed")
