"""What there is a page for, task, method and run, and where each page is."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from leaderboards.read.store import frame_rows
from leaderboards.schema.fields import Curves
from leaderboards.schema.method_card import MethodCard
from leaderboards.schema.metrics import ATTACK_LABELS, CHECKPOINT_LABELS, RANK_METRIC
from leaderboards.tables.across_tasks import robustness_kept
from leaderboards.tables.rows import Row, TaskTable
from leaderboards.tables.suite_tables import Section

if TYPE_CHECKING:
    import pandas as pd

Record = Mapping[str, Any]
MADE = re.compile(
    r"-[0-9a-f]{8}$|^(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE
)  # as made here; Windows' devices


@dataclass(frozen=True)
class Task:
    """One dataset and one student under one version of a suite: the rows that compete, and where their page is."""

    section: Section
    group: TaskTable
    path: str

    @property
    def best(self) -> Row | None:
        return next((row for row in self.group.contenders if row[RANK_METRIC].n), None)

    @property
    def winners(self) -> list[Row]:
        """Rows of the first rank; the most accurate alone where there are no ranks."""
        first = [row for row in self.group.ranked if row.ranking.rank == 1]
        return first or [row for row in [self.best] if row]

    @property
    def rows(self) -> tuple[Row, ...]:
        return self.group.rows

    @property
    def runs(self) -> int:
        return sum(row.seeds for row in self.rows)

    @property
    def kept(self) -> float:
        """The most accurate row's share of its teacher's robustness; NaN where that cannot be said."""
        return robustness_kept(self.best, self.section.teachers) if self.best else math.nan


@dataclass(frozen=True)
class Place:
    """A row and where it stands; teachers have no task."""

    section: Section
    task: Task | None
    row: Row

    @property
    def where(self) -> str:
        return (
            f"{self.section.experiment}: {self.task.group.title}"
            if self.task
            else f"{self.section.experiment}: teachers"
        )

    @property
    def kept(self) -> float:
        return robustness_kept(self.row, self.section.teachers)


@dataclass(frozen=True, eq=False)
class Site:
    """All that pages are made of: store.collect's frame, its sections, and what is told of runs and methods beside."""

    collected: pd.DataFrame
    sections: Sequence[Section]
    curves: Mapping[str, Curves] = field(default_factory=dict)
    environment: Callable[[Record], Mapping[str, Any]] = lambda run: {}
    about: Callable[[str], MethodCard | None] = lambda name: None
    suite: str | None = None

    @cached_property
    def problems(self) -> list[str]:
        """What of the store could not be used."""
        return [*self.collected.attrs.get("problems", [])]

    @cached_property
    def records(self) -> dict[str, Record]:
        """The frame's lines by run id, superseded runs left out."""
        current = self.collected[~self.collected["superseded"].astype(bool)]
        return {str(record["run_id"]): record for record in frame_rows(current)}

    @cached_property
    def columns(self) -> dict[str, list[str]]:
        """What was recorded of any run, by what stands before the slash, as "param" or "test"."""
        found: dict[str, list[str]] = {}
        for name in map(str, self.collected.columns):
            found.setdefault(name.partition("/")[0], []).append(name.partition("/")[2])
        return found

    @cached_property
    def attacks(self) -> list[str]:
        """Every attack on any checkpoint of any run, the known ones first."""
        tried = {
            name for kind in ("test", *CHECKPOINT_LABELS) for name in self.columns.get(kind, ())
        }
        others = sorted(
            name for name in tried - ATTACK_LABELS.keys() if name != "n" and not name.endswith("_n")
        )
        return [*filter(tried.__contains__, ATTACK_LABELS), *others]

    @cached_property
    def tasks(self) -> list[Task]:
        keys = [
            (section.experiment, *_two(group))
            for section in self.sections
            for group in section.tables
        ]
        paths = files(keys)
        groups = ((section, group) for section in self.sections for group in section.tables)
        return [
            Task(section, group, f"tasks/{paths[key]}.html")
            for (section, group), key in zip(groups, keys, strict=True)
        ]

    @cached_property
    def places(self) -> list[Place]:
        """Every row of the site, tasks first."""
        students = [Place(task.section, task, row) for task in self.tasks for row in task.rows]
        taught = [
            Place(section, None, row)
            for section in self.sections
            if section.teachers
            for row in section.teachers.rows
        ]
        return students + taught

    @cached_property
    def methods(self) -> dict[str, list[Place]]:
        """Rows by the name of their method."""
        found: dict[str, list[Place]] = {}
        for place in self.places:
            found.setdefault(place.row.method, []).append(place)
        return dict(sorted(found.items()))

    @cached_property
    def method_paths(self) -> dict[str, str]:
        names = files([(name,) for name in self.methods])
        return {name: f"methods/{names[name,]}.html" for name in self.methods}

    @cached_property
    def run_paths(self) -> dict[str, str]:
        names = files([(run,) for run in self.records])
        return {run: f"runs/{names[run,]}.html" for run in self.records}


def files(keys: Iterable[tuple[str, ...]]) -> dict[tuple[str, ...], str]:
    """A file name without its end for each key: readable, safe in any file system and in a link, never twice the same."""
    plain = {key: _safe("-".join(key)) for key in keys}
    count = Counter(name.lower() for name in plain.values())
    return {
        key: name
        if name == "-".join(key) and count[name.lower()] == 1 and not MADE.search(name)
        else f"{name}-{_digest(key)}"
        for key, name in plain.items()
    }


def _safe(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9@._-]+", "_", text).strip("._")[:80] or "page"


def _digest(key: tuple[str, ...]) -> str:
    return hashlib.sha256(json.dumps(key).encode()).hexdigest()[:8]


def _two(group: TaskTable) -> tuple[str, str]:
    """Dataset and student, which all rows of a task share."""
    row = group.rows[0]
    return row.dataset, row.student
