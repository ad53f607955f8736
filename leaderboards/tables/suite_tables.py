"""The tables of each suite: means and spread over seeds, by AutoAttack, with shared ranks."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import TypeAlias

import numpy as np
import pandas as pd

from leaderboards.read.store import frame_rows
from leaderboards.schema.fields import parse_json_tag
from leaderboards.schema.metrics import ATTACK_LABELS, CHECKPOINT_LABELS, RANK_METRIC, TRAIN_SECONDS
from leaderboards.tables.across_tasks import AcrossTasks, compare_across_tasks
from leaderboards.tables.protocol_changes import describe_changes
from leaderboards.tables.published import find_published, is_published_task
from leaderboards.tables.ranking import caption, rank_rows
from leaderboards.tables.rows import Column, Row, RunRow, SeedSummary, TaskTable

Protocol: TypeAlias = Callable[[str], Mapping[str, str]]
# Before a role: the parameter with the teacher's identity.
TEACHER_PREFIX = "param/teachers."
# In training_path.
NO_BF16 = "no bf16 here"
# What makes a row. Runs that agree in it are its seeds.
ROW_KEYS = ["dataset", "student", "method", "variant", "changed", "teacher"]
RUN_COLUMNS = ["run_id", "seed", "artifact_uri", "sets", "status_note", "flags", "code_dirty"]
RUN_COLUMNS += ["command", "sha256.best", "teacher_sha256", "training_path"]


@dataclass(frozen=True)
class Section:
    """One version of one suite; `outdated` where there is a newer version."""

    experiment: str
    suite: str
    tables: tuple[TaskTable, ...]
    teachers: TaskTable | None
    runs: pd.DataFrame
    across_tasks: AcrossTasks | None
    outdated: bool = False

    @property
    def rows(self) -> Iterator[Row]:
        """Rows of all tables, the teachers' last."""
        for table in (*self.tables, self.teachers):
            if table:
                yield from table.rows


def build_sections(runs: pd.DataFrame, protocol: Protocol = lambda experiment: {}) -> list[Section]:
    """Build sections by suite name, newest version first, from store.collect's frame.

    Superseded runs do not count. `protocol`: as leaderboards.write takes it.
    """
    current = runs[~runs["superseded"].astype(bool)]
    current = current.assign(age=-current["version"])
    newest: dict[str, str] = {}
    sections = []
    for (suite, _, experiment), part in current.groupby(["suite", "age", "experiment"]):
        section = _build_section(experiment, suite, part.drop(columns="age"), protocol(experiment))
        outdated = newest.setdefault(suite, experiment) != experiment
        sections.append(replace(section, outdated=outdated))
    return sections


def _build_section(
    experiment: str, suite: str, runs: pd.DataFrame, protocol: Mapping[str, str]
) -> Section:
    is_teacher = runs["role"] == "teacher"
    tables = []
    for (dataset, student), part in runs[~is_teacher].groupby(["dataset", "student"]):
        tables.append(_build_table(f"{dataset}, {student}", part, protocol))
    teachers = None
    if is_teacher.any():
        teachers = _build_table("Teachers", runs[is_teacher], {}, of_teachers=True)
    across_tasks = compare_across_tasks(tables, teachers)
    return Section(experiment, suite, tuple(tables), teachers, runs, across_tasks)


def _build_table(
    title: str, runs: pd.DataFrame, protocol: Mapping[str, str], of_teachers: bool = False
) -> TaskTable:
    columns = _choose_columns(runs)
    seeds_of_rows = _split_rows(runs, columns, protocol)
    rows = [_build_row(columns, seeds) for seeds in seeds_of_rows]
    _add_rankings(rows, seeds_of_rows, compete=not of_teachers)
    rows.sort(key=_sort_key)
    ranked, incomplete = rows, []
    if not of_teachers:
        ranked = [row for row in rows if row[RANK_METRIC].n]
        incomplete = [row for row in rows if not row[RANK_METRIC].n]
    text = caption(runs, ranked, not of_teachers)
    return TaskTable(title, columns, tuple(ranked), tuple(incomplete), text, of_teachers)


def _sort_key(row: Row) -> tuple[bool, float, str]:
    summary = row[RANK_METRIC]
    return row.ranking.rank is None, -summary.mean if summary.n else 1, row.label


def _split_rows(
    runs: pd.DataFrame, columns: Iterable[Column], protocol: Mapping[str, str]
) -> list[list[RunRow]]:
    """Return the runs of each row, by ROW_KEYS and seed, with the columns that a row needs."""
    names = [*ROW_KEYS, *RUN_COLUMNS, RANK_METRIC, *(column.metric for column in columns)]
    names += [name for name in runs if name.startswith(TEACHER_PREFIX)]
    needed = runs.reindex(columns=list(dict.fromkeys(names))).assign(
        changed=describe_changes(runs, protocol), as_published=is_published_task(runs)
    )
    by_key: defaultdict[tuple[str, ...], list[RunRow]] = defaultdict(list)
    run_rows = frame_rows(needed)
    _note_other_teachers(run_rows)
    for run in run_rows:
        by_key[tuple(run[key] for key in ROW_KEYS)].append(run)
    seeds_of_rows = []
    for _, seeds in sorted(by_key.items()):
        seeds_of_rows.append(sorted(seeds, key=lambda run: (len(run["seed"]), run["seed"])))
    return seeds_of_rows


def _note_other_teachers(runs: list[RunRow]) -> None:
    """Set `other_teachers`: a line for each teacher of which most runs here had other weights.

    Machines and versions round differently, and a teacher trained again by the same spec is another
    network.
    """
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for run in runs:
        for identity, sha256 in _teacher_checkpoints(run):
            counts[identity][sha256] += 1
    for run in runs:
        run["other_teachers"] = []
        for identity, sha256 in _teacher_checkpoints(run):
            count, (most, *others) = counts[identity][sha256], counts[identity].most_common(2)
            tied = others and others[0][1] == most[1]
            if sha256 != most[0] or tied:
                share = f"as {count} of {counts[identity].total()} runs here"
                line = f"taught by checkpoint {sha256[:8]} of {identity}, {share}"
                run["other_teachers"].append(line)


def _teacher_checkpoints(run: RunRow) -> list[tuple[str, str]]:
    """Return (identity, sha256) of each teacher whose checkpoint was recorded."""
    recorded = parse_json_tag(run["teacher_sha256"]) or {}
    return [(str(run.get(TEACHER_PREFIX + role)), sha256) for role, sha256 in recorded.items()]


def _add_rankings(rows: list[Row], seeds_of_rows: list[list[RunRow]], compete: bool) -> None:
    """Set the ranking of the rows that have an AutoAttack accuracy."""
    scored = [index for index, row in enumerate(rows) if row[RANK_METRIC].n]
    rankings = rank_rows([seeds_of_rows[index] for index in scored], RANK_METRIC, compete)
    for index, ranking in zip(scored, rankings, strict=True):
        notes = rows[index].notes
        if ranking.unranked_reason and compete:
            notes += (f"no rank: {ranking.unranked_reason}",)
        rows[index] = replace(rows[index], ranking=ranking, notes=notes)


def _choose_columns(runs: pd.DataFrame) -> tuple[Column, ...]:
    """Choose accuracies that some run has, then other checkpoints, then cost.

    The ranking number comes behind the clean accuracy.
    """
    present = [str(name) for name in runs.columns if runs[name].notna().any()]
    columns = []
    for name, label in ATTACK_LABELS.items():
        if f"test/{name}" in present:
            columns.append(Column(f"test/{name}", label))
    for metric in present:
        prefix, _, name = metric.partition("/")
        if prefix == "test" and name not in (*ATTACK_LABELS, "n") and not name.endswith("_n"):
            columns.append(Column(metric, name))
    for checkpoint, label in CHECKPOINT_LABELS.items():
        for attack in ("aa", "pgd20"):
            if f"{checkpoint}/{attack}" in present:
                heading = f"{ATTACK_LABELS[attack]}, {label}"
                columns.append(Column(f"{checkpoint}/{attack}", heading))
                break
    if TRAIN_SECONDS in present:
        columns.append(Column(TRAIN_SECONDS, "Train min"))
    return tuple(columns)


def _build_row(columns: Iterable[Column], seeds: list[RunRow]) -> Row:
    summaries, missing = {}, []
    for column in columns:
        summary = _summarise(column.metric, seeds)
        summaries[column.metric] = summary
        if not summary.n and column.metric.startswith("test/"):
            missing.append(column.label)
    if RANK_METRIC not in summaries:
        missing.append(ATTACK_LABELS["aa"])
    first = seeds[0]
    flags = _collect_flags(seeds)
    checkpoints = {run["sha256.best"] for run in seeds}
    commands = dict.fromkeys(run["command"] for run in seeds)
    return Row(
        **{key: first[key] for key in ROW_KEYS},
        seeds=len(seeds),
        summaries=summaries,
        commands=tuple(filter(None, commands)),
        notes=tuple(_collect_notes(seeds)),
        missing=tuple(missing),
        flags=flags,
        published=find_published(seeds),
        marks=_collect_marks(seeds, flags),
        run_ids=tuple(run["run_id"] for run in seeds),
        checkpoints=frozenset(filter(None, checkpoints)),
        teacher_checkpoints=tuple(
            frozenset(sha256 for _, sha256 in _teacher_checkpoints(run)) for run in seeds
        ),
    )


def _collect_marks(seeds: list[RunRow], flags: Sequence[object]) -> tuple[str, ...]:
    marks = []
    if flags:
        marks.append("sanity flag")
    if any(run["code_dirty"] == "true" for run in seeds):
        marks.append("uncommitted code")
    if any(run["changed"] or run["sets"] for run in seeds):
        marks.append("another protocol")
    return tuple(marks)


def _collect_notes(seeds: list[RunRow]) -> list[str]:
    """Return what a reader should know before trusting the row."""
    total = len(seeds)
    status_notes = {run["status_note"] for run in seeds}
    notes = sorted(filter(None, status_notes))
    dirty = sum(run["code_dirty"] == "true" for run in seeds)
    if dirty:
        notes.append(f"uncommitted code in {dirty} of {total} runs")
    notes += sorted(set(chain.from_iterable(run["other_teachers"] for run in seeds)))
    no_bf16 = sum(NO_BF16 in run["training_path"] for run in seeds)
    if no_bf16:
        notes.append(f"in fp32 for want of bf16 in {no_bf16} of {total} runs")
    scored = _summarise(RANK_METRIC, seeds).n
    if 0 < scored < total:
        notes.append(f"AutoAttack on {scored} of {total} seeds")
    return notes


def _collect_flags(seeds: list[RunRow]) -> tuple[tuple[str, str], ...]:
    """Return the sanity flags of the runs, each with the evidence of the first run that has it."""
    evidence: defaultdict[str, list[str]] = defaultdict(list)
    for run in seeds:
        for name, text in (parse_json_tag(run["flags"]) or {}).items():
            evidence[name].append(text)
    flags = []
    for name, texts in sorted(evidence.items()):
        flags.append((name, f"in {len(texts)} of {len(seeds)} runs: {texts[0]}"))
    return tuple(flags)


def _summarise(metric: str, seeds: list[RunRow]) -> SeedSummary:
    """Summarise the possible values: accuracies lie between 0 and 1, NaN lies nowhere."""
    highest = math.inf if metric == TRAIN_SECONDS else 1
    values = [run[metric] for run in seeds if 0 <= run[metric] <= highest]
    if not values:
        return SeedSummary()
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
    return SeedSummary(float(np.mean(values)), sd, len(values))
