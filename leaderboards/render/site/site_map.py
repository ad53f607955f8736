"""The tasks, methods and runs that have a page, and the path of each page."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter
from typing import TYPE_CHECKING

from leaderboards.read.records import frame_rows
from leaderboards.render.protocol_text import Run, shared_settings
from leaderboards.schema.method_card import MethodCard
from leaderboards.schema.metrics import is_accuracy, sort_attacks
from leaderboards.tables.across_tasks import robustness_kept
from leaderboards.tables.analysis_tables import AnalysisTable, build_analysis, is_analysed
from leaderboards.tables.class_accuracy import ClassTable, build_class_table
from leaderboards.tables.model_pairs import ModelComparison, compare_models
from leaderboards.tables.rows import Row, TaskTable
from leaderboards.tables.suite_tables import Section
from leaderboards.tables.what_teaches import MeasureCorrelation, correlate_measures

if TYPE_CHECKING:
    import pandas as pd

UNSAFE = re.compile(r"[^A-Za-z0-9@._-]+")
# Names of devices on Windows, and names that end like those that file_names makes unique.
RESERVED = re.compile(r"-[0-9a-f]{8}$|^(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)


@dataclass(frozen=True)
class Task:
    """One dataset and one student under one version of a suite: rows that compete, on a page."""

    section: Section
    table: TaskTable
    path: str

    @property
    def best(self) -> Row | None:
        """The most accurate row under AutoAttack."""
        return next(iter(self.table.contenders), None)

    @property
    def runs(self) -> int:
        return sum(map(attrgetter("seeds"), self.table.rows))

    @property
    def dataset(self) -> str:
        return self.table.rows[0].dataset

    @property
    def student(self) -> str:
        return self.table.rows[0].student

    @property
    def images(self) -> int:
        """Images that the best row was judged on under AutoAttack."""
        judged = self.best.ranking.image_accuracy if self.best else None
        return 0 if judged is None else judged.size

    def analysis_stem(self, page: str) -> str:
        """Return the stem of the files of a page of the analysis: a group of measures."""
        return f"{self.path.removeprefix('tasks/').removesuffix('.html')}-{page}"

    def analysis_path(self, page: str) -> str:
        return f"analysis/{self.analysis_stem(page)}.html"

    @cached_property
    def kept(self) -> float:
        """The best row's share of its teacher's robustness; NaN where that cannot be said."""
        return robustness_kept(self.best, self.section.teachers) if self.best else math.nan


@dataclass(frozen=True)
class SiteRow:
    """A row with its section and, unless it is a teacher's, its task."""

    section: Section
    task: Task | None
    row: Row

    @cached_property
    def kept(self) -> float:
        return robustness_kept(self.row, self.section.teachers)


@dataclass(frozen=True, eq=False)
class Site:
    """The frame of `collect`, its sections, and what else is known of methods and suites."""

    collected: pd.DataFrame
    sections: list[Section]
    about: Callable[[str], MethodCard | None] = lambda method: None
    suite: str | None = None

    @cached_property
    def runs(self) -> dict[str, Run]:
        """The lines of the frame by run id."""
        return dict(zip(self.collected["run_id"], frame_rows(self.collected), strict=True))

    @cached_property
    def digests(self) -> dict[str, bytes]:
        """The sha256 of each record by run id; several citations need it."""
        digests = {}
        for run_id, run in self.runs.items():
            content = run["record"].model_dump_json(by_alias=True).encode()
            digests[run_id] = hashlib.sha256(content).digest()
        return digests

    @cached_property
    def attacks(self) -> list[str]:
        """The attacks on any checkpoint of any run, those of ATTACK_LABELS first, in its order."""
        columns = filter(is_accuracy, self.collected.columns)
        return sort_attacks(column.partition("/")[2] for column in columns)

    @cached_property
    def tasks(self) -> list[Task]:
        tables = {}
        for section in self.sections:
            for table in section.tables:
                # All rows of a table share dataset and student.
                key = section.experiment, table.rows[0].dataset, table.rows[0].student
                tables[key] = section, table
        names = file_names(tables)
        return [Task(*tables[key], f"tasks/{names[key]}.html") for key in tables]

    @cached_property
    def rows(self) -> list[SiteRow]:
        """Every row of the site, those of tasks first."""
        rows = [SiteRow(task.section, task, row) for task in self.tasks for row in task.table.rows]
        for section in self.sections:
            if section.teachers:
                rows += [SiteRow(section, None, row) for row in section.teachers.rows]
        return rows

    @cached_property
    def methods(self) -> dict[str, list[SiteRow]]:
        """The rows by the name of their method."""
        methods = defaultdict(list)
        for site_row in self.rows:
            methods[site_row.row.method].append(site_row)
        return dict(sorted(methods.items()))

    @cached_property
    def method_paths(self) -> dict[str, str]:
        return _page_paths("methods", self.methods)

    @cached_property
    def run_paths(self) -> dict[str, str]:
        return _page_paths("runs", self.runs)

    @cached_property
    def shared(self) -> dict[str, dict[str, str]]:
        """The recorded settings that have one value in all runs of a section, by experiment."""
        return {
            section.experiment: dict(shared_settings(self.runs_of(section.runs["run_id"])))
            for section in self.sections
        }

    @cached_property
    def varying(self) -> dict[str, list[str]]:
        """The parameters but the seed that have several values in a section, by experiment."""
        columns = self.collected.columns
        names = columns[columns.str.startswith("param/")].str.removeprefix("param/")
        return {
            experiment: [name for name in names if name != "seed" and name not in shared]
            for experiment, shared in self.shared.items()
        }

    @cached_property
    def analyses(self) -> dict[str, dict[str, AnalysisTable]]:
        """The tables of the analysed tasks: by the path of the task's page, then by group."""
        tables = {}
        for task in self.tasks:
            if is_analysed(task.table.rows, self.runs):
                tables[task.path] = build_analysis(task.table, self.runs)
        return tables

    @cached_property
    def correlations(self) -> dict[str, list[MeasureCorrelation]]:
        """How the measures of each analysed task go with robustness, by the path of its page."""
        return {
            task.path: correlate_measures(task.table, self.runs) for task in self.analysed_tasks
        }

    @cached_property
    def class_tables(self) -> dict[str, ClassTable]:
        """The accuracies by class of each task that has some, by the path of its page."""
        tables = {task.path: build_class_table(task.table, self.runs) for task in self.tasks}
        return {path: table for path, table in tables.items() if table}

    @property
    def analysed_tasks(self) -> list[Task]:
        return [task for task in self.tasks if task.path in self.analyses]

    @property
    def examined_tasks(self) -> list[Task]:
        """The tasks with a page of the analysis: of measures, or of classes."""
        pages = self.analyses.keys() | self.class_tables.keys()
        return [task for task in self.tasks if task.path in pages]

    @cached_property
    def model_comparisons(self) -> list[ModelComparison]:
        return compare_models(self.sections)

    def family(self, method: str) -> str:
        """Return the family of a method, "" for one that is not known here."""
        card = self.about(method)
        return card.family if card else ""

    def families(self, methods: Iterable[str]) -> list[str]:
        return [*map(self.family, methods)]

    def runs_of(self, run_ids: Iterable[str]) -> list[Run]:
        return [*map(self.runs.__getitem__, run_ids)]


def file_names(keys: Iterable[tuple[str, ...]]) -> dict[tuple[str, ...], str]:
    """Return a file name without suffix for each key: readable, unique, safe in any file system."""
    names = {}
    for key in keys:
        names[key] = UNSAFE.sub("_", "-".join(key)).strip("._")[:80] or "page"
    # Some file systems take "A" and "a" for the same name.
    counts = Counter(map(str.lower, names.values()))
    for key, name in names.items():
        if name != "-".join(key) or counts[name.lower()] > 1 or RESERVED.search(name):
            digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()
            names[key] = f"{name}-{digest[:8]}"
    return names


def _page_paths(folder: str, names: Iterable[str]) -> dict[str, str]:
    stems = file_names(zip(names, strict=True))
    return {name: f"{folder}/{stem}.html" for (name,), stem in stems.items()}
