"""Runs -> groups of rows: means and spread over seeds, sorted by AutoAttack, with the ranks that can be told apart."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from leaderboards.schema.fields import lines, texts
from leaderboards.stats import across
from leaderboards.stats.across import Across
from leaderboards.tables import published, settings, standing
from leaderboards.tables.rows import (
    CHECKPOINTS,
    LABELS,
    RANK,
    SECONDS,
    Cell,
    Column,
    Group,
    Row,
    Run,
)

if TYPE_CHECKING:
    import pandas as pd

Protocol: TypeAlias = Callable[[str], Mapping[str, str]]
NONE: Mapping[str, str] = {}
TEACHERS = "param/teachers."  # and a role: the teacher's identity
NO_BF16 = "no bf16 here"  # in training_path
KEYS = (
    "dataset",
    "student",
    "method",
    "variant",
    "changed",
    "teacher",
)  # what makes a row; runs in it are seeds
TOLD = (
    *KEYS,
    "sets",
    "status_note",
    "flags",
    "code_dirty",
    "command",
    "run_id",
    "seed",
    "artifact_uri",
    "sha256.best",
    "teacher_sha256",
    "training_path",
)  # of a run, by its row


@dataclass(frozen=True)
class Section:
    """One version of one suite."""

    experiment: str
    suite: str
    groups: tuple[Group, ...]
    teachers: Group | None
    runs: pd.DataFrame
    across: Across | None
    outdated: bool = False  # there is a newer version

    @property
    def rows(self) -> Iterator[Row]:
        """Of all groups, the teachers' last."""
        return chain.from_iterable(group.rows for group in (*self.groups, self.teachers) if group)


def sections(runs: pd.DataFrame, protocol: Protocol = lambda experiment: {}) -> list[Section]:
    """Sections by suite name, newest version first, from store.collect's frame; superseded runs do not count.

    `protocol`: as leaderboards.write takes it.
    """
    current = runs[~runs["superseded"].astype(bool)]
    found = []
    for (_, _, experiment), part in current.groupby(["suite", "version", "experiment"]):
        found.append(_section(str(experiment), part, protocol(str(experiment))))
    found.sort(key=lambda section: (section.suite, -int(section.runs["version"].iloc[0])))
    newest = {section.suite: section.experiment for section in reversed(found)}
    return [
        replace(section, outdated=newest[section.suite] != section.experiment) for section in found
    ]


def _section(experiment: str, runs: pd.DataFrame, protocol: Mapping[str, str]) -> Section:
    teachers = runs[runs["role"] == "teacher"]
    groups = [
        _group(f"{dataset}, {student}", part, protocol)
        for (dataset, student), part in runs[runs["role"] != "teacher"].groupby(
            ["dataset", "student"]
        )
    ]
    table = _group("Teachers", teachers, of_teachers=True) if len(teachers) else None
    suite = str(runs["suite"].iloc[0])
    return Section(experiment, suite, tuple(groups), table, runs, across.across(groups, table))


def _group(
    title: str, runs: pd.DataFrame, protocol: Mapping[str, str] = NONE, of_teachers: bool = False
) -> Group:
    columns = _columns(runs)
    told = [*TOLD, *(name for name in runs if name.startswith(TEACHERS))]
    told += dict.fromkeys([RANK, *(column.metric for column in columns)])
    known = runs.reindex(columns=told).assign(
        changed=settings.changed(runs, protocol), as_published=published.same_task(runs)
    )
    by_key: defaultdict[tuple[str, ...], list[Run]] = defaultdict(list)
    for run in _compared(lines(known)):
        by_key[tuple(run[key] for key in KEYS)].append(run)
    parts = [
        sorted(part, key=lambda run: (len(run["seed"]), run["seed"]))
        for _, part in sorted(by_key.items())
    ]
    rows = _stand([_row(columns, part) for part in parts], parts, not of_teachers)
    rows.sort(
        key=lambda row: (
            row.standing.rank is None,
            -row[RANK].mean if row[RANK].n else 1,
            row.label,
        )
    )
    ranked = tuple(row for row in rows if row[RANK].n or of_teachers)
    incomplete = () if of_teachers else tuple(row for row in rows if not row[RANK].n)
    caption = standing.caption(runs, ranked, not of_teachers)
    return Group(title, columns, ranked, incomplete, caption, of_teachers)


def _compared(runs: list[Run]) -> list[Run]:
    """The runs of a task, each with `other_weights`: a line for a teacher of which most runs here had another checkpoint.

    Machines and versions round differently, and a teacher trained anew by the same spec is another network.
    """
    taught = [_taught(run) for run in runs]
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for name, sha256 in chain.from_iterable(taught):
        counts[name][sha256] += 1
    return [
        run | {"other_weights": [*_others(some, counts)]}
        for run, some in zip(runs, taught, strict=True)
    ]


def _taught(run: Run) -> list[tuple[str, str]]:
    """(identity, sha256) of each teacher whose checkpoint was recorded."""
    known = texts(run["teacher_sha256"]) or {}
    return [(str(run.get(TEACHERS + role)), sha256) for role, sha256 in known.items()]


def _others(taught: Iterable[tuple[str, str]], counts: Mapping[str, Counter[str]]) -> Iterator[str]:
    for name, sha256 in taught:
        (usual, most), *others = counts[name].most_common(2)
        if others and (sha256 != usual or most == others[0][1]):
            part = f"{counts[name][sha256]} of {counts[name].total()} runs"
            yield f"taught by checkpoint {sha256[:8]} of {name}, as {part} here"


def _stand(rows: list[Row], parts: list[list[Run]], compete: bool) -> list[Row]:
    """The rows with their standing, those that have an AutoAttack accuracy."""
    scored = [index for index, row in enumerate(rows) if row[RANK].n]
    found = standing.place([parts[index] for index in scored], RANK, compete)
    for index, place in zip(scored, found, strict=True):
        notes = (*rows[index].notes, *([f"no rank: {place.why}"] if place.why and compete else []))
        rows[index] = replace(rows[index], standing=place, notes=notes)
    return rows


def _columns(runs: pd.DataFrame) -> tuple[Column, ...]:
    """Accuracies that some run has, the ranking number behind the clean one, then other checkpoints, then cost."""
    present = [str(name) for name in runs.columns if runs[name].notna().any()]
    names = [
        name[5:]
        for name in present
        if name.startswith("test/") and name != "test/n" and not name.endswith("_n")
    ]
    others = [name for name in names if name not in LABELS]
    columns = [
        Column(f"test/{name}", LABELS.get(name, name))
        for name in (*filter(names.count, LABELS), *others)
    ]
    for checkpoint, word in CHECKPOINTS.items():
        attack = next((name for name in ("aa", "pgd20") if f"{checkpoint}/{name}" in present), None)
        columns += [Column(f"{checkpoint}/{attack}", f"{LABELS[attack]}, {word}")] if attack else []
    return (*columns, *([Column(SECONDS, "Train min")] if SECONDS in present else []))


def _row(columns: Iterable[Column], runs: list[Run]) -> Row:
    """The runs of one setting, a seed each, as a row."""
    cells = {column.metric: _cell(column.metric, runs) for column in columns}
    missing = [
        column.label
        for column in columns
        if not cells[column.metric].n and column.metric.startswith("test/")
    ]
    missing += [] if RANK in cells else [LABELS["aa"]]
    flags = [texts(run["flags"]) or {} for run in runs]
    return Row(
        **{key: runs[0][key] for key in KEYS},
        seeds=len(runs),
        cells=cells,
        commands=tuple(dict.fromkeys(run["command"] for run in runs if run["command"])),
        notes=tuple(_notes(runs, cells[RANK].n if RANK in cells else 0)),
        missing=tuple(missing),
        flags=tuple(_flags(flags)),
        published=published.find(runs),
        marks=tuple(_marks(runs, flags)),
        run_ids=tuple(run["run_id"] for run in runs),
        weights=frozenset(run["sha256.best"] for run in runs if run["sha256.best"]),
        taught=tuple(frozenset(sha256 for _, sha256 in _taught(run)) for run in runs),
    )


def _marks(runs: list[Run], flags: list[dict[str, str]]) -> list[str]:
    doubts = {
        "sanity flag": any(flags),
        "uncommitted code": any(run["code_dirty"] == "true" for run in runs),
        "another protocol": any(run["changed"] or run["sets"] for run in runs),
    }
    return [name for name, found in doubts.items() if found]


def _notes(runs: list[Run], scored: int) -> list[str]:
    """What a reader should know before trusting the row."""
    notes = sorted({run["status_note"] for run in runs if run["status_note"]})
    dirty = sum(run["code_dirty"] == "true" for run in runs)
    notes += [f"uncommitted code in {dirty} of {len(runs)} runs"] if dirty else []
    notes += sorted({line for run in runs for line in run["other_weights"]})
    single = sum(NO_BF16 in run["training_path"] for run in runs)
    notes += [f"in fp32 for want of bf16 in {single} of {len(runs)} runs"] if single else []
    return notes + (
        [f"AutoAttack on {scored} of {len(runs)} seeds"] if 0 < scored < len(runs) else []
    )


def _flags(found: list[dict[str, str]]) -> list[tuple[str, str]]:
    """The sanity flags of the runs, each with the evidence of the first run that has it."""
    evidence = {name: text for flags in reversed(found) for name, text in flags.items()}
    counts = Counter(name for flags in found for name in flags)
    return [
        (name, f"in {counts[name]} of {len(found)} runs: {evidence[name]}")
        for name in sorted(counts)
    ]


def _cell(metric: str, runs: list[Run]) -> Cell:
    """Of the values that can be: accuracies lie between 0 and 1; NaN lies nowhere."""
    values = [
        run[metric] for run in runs if 0 <= run[metric] <= (math.inf if metric == SECONDS else 1)
    ]
    if not values:
        return Cell(math.nan, math.nan, 0)
    return Cell(
        float(np.mean(values)),
        float(np.std(values, ddof=1)) if len(values) > 1 else math.nan,
        len(values),
    )
