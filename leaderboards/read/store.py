"""A store of runs as one DataFrame: a line per finished run, whatever the store holds besides."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from leaderboards.read import client, database
from leaderboards.schema import fields, record

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = (
    "experiment",
    "suite",
    "version",
    *fields.TAGS,
    "run_id",
    "artifact_uri",
    "start_time",
    "superseded",
)
DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
SERVER = re.compile("(?!file:)[a-z0-9+-]+:")
LARGEST = 1e300  # MLflow stores infinity as about 1.8e308


class StoreError(ConnectionError):
    """The store cannot be read; the message is one line."""


class Reader(Protocol):
    """One kind of store."""

    def runs(self, suite: str | None) -> tuple[pd.DataFrame, list[str]]:
        """Finished runs: fields.PLACE (start_time in ms), fields.TAGS, metrics, "param/..."; and what was left out."""

    def curves(self, runs: Sequence[str]) -> Mapping[str, fields.Curves]:
        """Run -> metric -> curve, as recorded, of those of `runs` (ids) that have any."""


def collect(source: str | Path, suite: str | None = None) -> pd.DataFrame:
    """Finished runs of every experiment named <suite>@<version>, oldest first; `suite` picks one ("digits", "digits@1").

    `source`: a tracking URI, or as a Path a folder of record files (record.py). Columns: COLUMNS (text, "" where absent;
    version int, start_time in UTC, superseded bool: a newer run has the same spec_id), metrics under their own names
    (fractions, seconds or counts; NaN where absent or not finite) and params as "param/<name>" (text). What could not be
    used is said in attrs["problems"], a list of lines. A store that does not exist yet is an empty one. Raises
    StoreError when it cannot be read.
    """
    with opened(source) as reader:
        found, problems = reader.runs(suite)
    return _frame(found, problems)


@contextmanager
def opened(source: str | Path) -> Iterator[Reader]:
    """The store behind `source`; an empty one if there is none yet, which is not made by looking.

    Raises StoreError when it cannot be read, here or in the block.
    """
    from sqlalchemy.exc import SQLAlchemyError

    if isinstance(source, Path):
        if not os.path.isdir(source):  # False for a name that is too long, too
            raise StoreError(f"cannot read records: there is no folder {str(source)!r}")
        yield record.Folder(source)
        return
    of_database = source.startswith(DATABASES)
    local = None if of_database or SERVER.match(source) else Path(re.sub("^file:(//)?", "", source))
    try:
        if local and not local.exists():
            yield record.Folder()
        else:
            with database.connect(source) if of_database else client.connect(source) as reader:
                yield reader
    except (SQLAlchemyError, OSError, ImportError) as error:
        cause = str(error).strip().splitlines() or [type(error).__name__]
        raise StoreError(_public(f"cannot read the tracking store {source}: {cause[0]}")) from error


def _frame(found: pd.DataFrame, problems: list[str]) -> pd.DataFrame:
    """The runs of a Reader in order, with every column that `collect` states."""
    import pandas as pd

    found = found.rename(columns=fields.visible)
    frame = found.reindex(columns=[*COLUMNS, *sorted({*found.columns} - {*COLUMNS})])
    tags, metrics = list(fields.TAGS), [name for name in frame if name.startswith(fields.METRICS)]
    frame[tags] = frame[tags].astype(object).where(frame[tags].notna(), "").astype(str)
    for name in (name for name in frame if name in tags or name.startswith("param/")):
        odd = {
            text: fields.visible(text)
            for text in frame[name].dropna().unique()
            if not text.isprintable()
        }
        frame[name] = frame[name].replace(odd) if odd else frame[name]
    numbers = frame[metrics].apply(pd.to_numeric, errors="coerce").astype(float)
    frame[metrics] = numbers.where(numbers.abs() < LARGEST)
    parts = frame["experiment"].astype(str).str.rsplit("@", n=1)
    frame["suite"], frame["version"] = parts.str[0], parts.str[1].astype(int)
    nameless = (frame["method"] == "") | (frame["dataset"] == "")
    damaged = frame["flags"].map(fields.texts).isna()
    frame.loc[damaged, "flags"] = ""
    frame = frame[~nameless].sort_values(["start_time", "run_id"], ignore_index=True)
    times = pd.to_datetime(frame["start_time"], unit="ms", utc=True, errors="coerce")
    frame["start_time"] = times.fillna(pd.Timestamp(0, tz="UTC"))
    same = frame[["experiment", "spec_id"]].duplicated(keep="last")
    frame["superseded"] = same & (frame["spec_id"] != "")
    for wrong, what in (
        (nameless, "say no method or no data set and are left out"),
        (damaged, "have unreadable flags"),
    ):
        problems += [f"{int(wrong.sum())} finished runs {what}"] if wrong.any() else []
    frame.attrs["problems"] = problems
    return frame


def _public(message: str) -> str:
    """The message with no password in its addresses."""
    return re.sub(r"//[^@/\s]*@", "//", message)
