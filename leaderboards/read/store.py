"""A store of runs as one DataFrame with a row for each finished run."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import pandas as pd
from sqlalchemy.exc import SQLAlchemyError

from leaderboards.read.client import open_client
from leaderboards.read.database import open_database
from leaderboards.read.record_files import RecordReader
from leaderboards.schema import fields

COLUMNS = ("experiment", "suite", "version", *fields.TAGS, *fields.ORIGIN, "superseded")
DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
SERVER = re.compile("(?!file:)[a-z0-9+-]+:")
# MLflow stores infinity as about 1.8e308.
MAX_VALUE = 1e300


class StoreError(ConnectionError):
    """The store cannot be read; the message is one line."""


class Reader(Protocol):
    """One kind of store."""

    def runs(self, suite: str | None, statuses: Sequence[str]) -> tuple[pd.DataFrame, list[str]]:
        """Return runs of some statuses, and a line for each thing that was left out.

        Columns: experiment, fields.ORIGIN (start_time in ms), fields.TAGS, metrics, "param/...".
        """

    def curves(self, run_ids: Sequence[str]) -> Mapping[str, fields.Curves]:
        """Return the curves of those runs that have any, as recorded, by run id and metric."""


def collect(
    source: str | Path,
    suite: str | None = None,
    statuses: Sequence[str] = (fields.FINISHED,),
) -> pd.DataFrame:
    """Collect finished runs of every experiment named <suite>@<version>, oldest first.

    source: a tracking URI, where nothing yet is an empty store, or as a Path a folder of records.
    suite: restricts the runs to one, as "digits" or "digits@1".
    statuses: of the runs that are wanted, if not the finished ones. Raises StoreError.

    Returns COLUMNS: text, "" where absent; version int; start_time in UTC; superseded bool, a newer
    run has the same spec_id. Metrics under their names: fractions, seconds or counts, NaN where
    absent or not finite. "param/<name>" as text. attrs["problems"]: lines of what was unusable.
    """
    with open_store(source) as reader:
        runs, problems = reader.runs(suite, statuses)
    return _to_frame(runs, problems)


def read_curves(source: str | Path, runs: pd.DataFrame) -> dict[str, dict[str, fields.Curve]]:
    """Read "train/...", "val/..." and "lr" of `runs`, which `collect` took from `source`.

    By run id, then by name; epochs ascend, and every value is finite. Raises StoreError.
    """
    with open_store(source) as reader:
        recorded = reader.curves(list(runs["run_id"]))
    curves: dict[str, dict[str, fields.Curve]] = {}
    for run_id, metrics in recorded.items():
        cleaned = curves[run_id] = {}
        for name in filter(fields.is_curve, sorted(metrics)):
            epochs, values = _clean_curve(metrics[name])
            if epochs:
                cleaned[name] = epochs, values
    return curves


@contextmanager
def open_store(source: str | Path) -> Iterator[Reader]:
    """Open the store behind `source`; a URI where there is none yet gives an empty one.

    Raises StoreError when it cannot be read, here or in the block.
    """
    if isinstance(source, Path):
        # Path.is_dir raises for a name that is too long.
        if not os.path.isdir(source):
            raise StoreError(f"cannot read records: there is no folder {str(source)!r}")
        yield RecordReader(source)
        return
    try:
        if source.startswith(DATABASES):
            with open_database(source) as reader:
                yield reader
        elif SERVER.match(source) or Path(re.sub("^file:(//)?", "", source)).exists():
            with open_client(source) as reader:
                yield reader
        else:
            yield RecordReader()
    except (SQLAlchemyError, OSError, ImportError) as error:
        cause = str(error).strip().splitlines() or [type(error).__name__]
        message = f"cannot read the tracking store {source}: {cause[0]}"
        raise StoreError(_hide_passwords(message)) from error


def frame_rows(runs: pd.DataFrame) -> list[dict[Any, Any]]:
    """Return the rows of a frame as dictionaries, by column name."""
    # DataFrame.to_dict takes three times as long.
    names = list(runs.columns)
    columns = [runs[name].tolist() for name in names]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def _to_frame(runs: pd.DataFrame, problems: list[str]) -> pd.DataFrame:
    """Order the runs of a Reader and give them every column that `collect` states."""
    runs = runs.rename(columns=fields.escape_unprintable)
    extra = sorted(set(runs.columns) - set(COLUMNS))
    frame = runs.reindex(columns=[*COLUMNS, *extra])
    _clean_texts(frame)
    metrics = frame.columns[frame.columns.str.startswith(fields.METRIC_PREFIXES)]
    numbers = frame[metrics].apply(pd.to_numeric, errors="coerce").astype(float)
    frame[metrics] = numbers.where(numbers.abs() < MAX_VALUE)
    parts = frame["experiment"].astype(str).str.rsplit("@", n=1)
    frame["suite"], frame["version"] = parts.str[0], parts.str[1].astype(int)
    nameless = (frame["method"] == "") | (frame["dataset"] == "")
    unreadable = frame["flags"].map(fields.parse_json_tag).isna()
    frame.loc[unreadable, "flags"] = ""
    frame = frame[~nameless].sort_values(["start_time", "run_id"], ignore_index=True)
    times = pd.to_datetime(frame["start_time"], unit="ms", utc=True, errors="coerce")
    frame["start_time"] = times.fillna(pd.Timestamp(0, tz="UTC"))
    repeated = frame[["experiment", "spec_id"]].duplicated(keep="last")
    frame["superseded"] = repeated & (frame["spec_id"] != "")
    for affected, problem in (
        (nameless.sum(), "say no method or no data set and are left out"),
        (unreadable.sum(), "have unreadable flags"),
    ):
        if affected:
            problems.append(f"{affected} finished runs {problem}")
    frame.attrs["problems"] = problems
    return frame


def _clean_texts(frame: pd.DataFrame) -> None:
    """Fill absent tags by "" and escape unprintable letters of tags and parameters."""
    tags = list(fields.TAGS)
    frame[tags] = frame[tags].astype(object).where(frame[tags].notna(), "").astype(str)
    for name in frame:
        if name in tags or name.startswith("param/"):
            texts = frame[name].dropna().unique()
            odd = {t: fields.escape_unprintable(t) for t in texts if not t.isprintable()}
            if odd:
                frame[name] = frame[name].replace(odd)


def _clean_curve(curve: fields.Curve) -> fields.Curve:
    """Sort finite values by epoch; the last recorded one of an epoch counts."""
    points = dict(point for point in zip(*curve, strict=True) if abs(point[1]) < MAX_VALUE)
    epochs = sorted(points)
    return epochs, list(map(points.__getitem__, epochs))


def _hide_passwords(message: str) -> str:
    return re.sub(r"//[^@/\s]*@", "//", message)
