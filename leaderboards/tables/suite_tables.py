"""The tables of each suite: means and spread over seeds, by AutoAttack, with ranges of ranks."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import itemgetter
from statistics import fmean
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from leaderboards.read.records import frame_rows
from leaderboards.schema import metrics
from leaderboards.schema.checkpoints import BEST, CHECKPOINTS
from leaderboards.schema.fields import NO_BF16, NORM_LABELS, Tag, checksum_tag
from leaderboards.schema.metrics import RANK_METRIC, accuracy_name, describe_metric
from leaderboards.schema.record import Record
from leaderboards.tables.across_tasks import AcrossTasks, compare_across_tasks
from leaderboards.tables.protocol_changes import (
    TEACHER_PREFIX,
    describe_changes,
    most_common_values,
)
from leaderboards.tables.published import find_published, is_published_task
from leaderboards.tables.ranking import describe_evidence, explain_ranking, rank_rows
from leaderboards.tables.rows import Column, Ranking, Row, SeedColumns, SeedSummary, TaskTable

# Of the suites known here: experiment name -> recorded parameter -> value.
Protocols: TypeAlias = Mapping[str, Mapping[str, str]]
# What makes a row. Runs that agree in it are its seeds.
ROW_KEYS = ["dataset", "student", "method", "variant", "changed", "teacher"]
RUN_COLUMNS = [
    *("run_id", "record", checksum_tag()),
    *(
        Tag.SEED,
        Tag.SETS,
        Tag.STATUS_NOTE,
        Tag.CODE_DIRTY,
        Tag.COMMAND,
        Tag.TRAINING_PATH,
        Tag.ATTACK_SEARCH,
    ),
]


@dataclass(frozen=True)
class Section:
    """One version of one suite; `outdated` where a newer one is known or has records.

    stated: the parameters that the suite states, {} for one that is not known here.
    """

    experiment: str
    tables: tuple[TaskTable, ...]
    teachers: TaskTable | None
    runs: pd.DataFrame
    across_tasks: AcrossTasks | None
    outdated: bool
    stated: Mapping[str, str]

    @property
    def all_tables(self) -> tuple[TaskTable, ...]:
        """The tables of tasks and, if there is one, that of the teachers."""
        return (*self.tables, self.teachers) if self.teachers else self.tables

    @property
    def rows(self) -> Iterator[Row]:
        """Rows of all tables, the teachers' last."""
        return chain.from_iterable(table.rows for table in self.all_tables)


def build_sections(
    runs: pd.DataFrame, protocols: Protocols = MappingProxyType({})
) -> list[Section]:
    """Build sections by suite name, newest version first, from `collect`'s frame.

    `protocols`: as leaderboards.write takes it.
    """
    current = {suite: int(version) for suite, version in (name.split("@") for name in protocols)}
    sections = []
    for suite, versions in runs.groupby("suite"):
        newest = max(versions["version"].max(), current.get(suite, 0))
        for version, part in sorted(versions.groupby("version"), reverse=True):
            sections.append(_build_section(part, protocols, outdated=bool(version < newest)))
    return sections


def _build_section(runs: pd.DataFrame, protocols: Protocols, outdated: bool) -> Section:
    experiment = str(runs["experiment"].iloc[0])
    stated = protocols.get(experiment, {})
    is_teacher = runs["role"] == "teacher"
    threat = _describe_threat(runs)
    tables = [
        _build_table(f"{dataset}, {student}{threat}", part, stated)
        for (dataset, student), part in runs[~is_teacher].groupby(["dataset", "student"])
    ]
    teachers = None
    if is_teacher.any():
        teachers = _build_table(f"Teachers{threat}", runs[is_teacher], {}, of_teachers=True)
    across_tasks = compare_across_tasks(tables, teachers)
    return Section(experiment, tuple(tables), teachers, runs, across_tasks, outdated, stated)


def _describe_threat(runs: pd.DataFrame) -> str:
    """Return norm and radius of most runs for the titles of tables; "" in l-inf, the usual norm."""
    usual = most_common_values(runs, ("param/norm", "param/eps"))
    norm = usual.get("param/norm", "Linf")
    if norm == "Linf":
        return ""
    return f", {NORM_LABELS[norm]}, eps {float(usual['param/eps']):.4g}"


def _build_table(
    title: str, runs: pd.DataFrame, protocol: Mapping[str, str], of_teachers: bool = False
) -> TaskTable:
    columns = _choose_columns(runs)
    seeds_by_row = _split_rows(runs, columns, protocol)
    rankings, comparison = rank_rows(seeds_by_row, compete=not of_teachers)
    pairs = zip(seeds_by_row, rankings, strict=True)
    rows = [_build_row(columns, seeds, ranking) for seeds, ranking in pairs]
    rows.sort(key=lambda row: row.ranking.ranks is None)
    # Rows without a score are last: all are by accuracy, and none of these has a rank.
    shown = len(rows) if of_teachers else sum(row.is_scored for row in rows)
    ranked, incomplete = tuple(rows[:shown]), tuple(rows[shown:])
    evidence = describe_evidence(runs, ranked, comparison)
    explanation = explain_ranking(ranked, not of_teachers)
    return TaskTable(
        title, columns, ranked, incomplete, evidence, explanation, of_teachers, comparison
    )


def _split_rows(
    runs: pd.DataFrame, columns: Iterable[Column], protocol: Mapping[str, str]
) -> list[SeedColumns]:
    """Return the runs of each row, best first, then by ROW_KEYS, with the columns it needs."""
    names = [*ROW_KEYS, *RUN_COLUMNS, RANK_METRIC, *(column.metric for column in columns)]
    names.extend(runs.columns[runs.columns.str.startswith(TEACHER_PREFIX)])
    needed = runs.reindex(columns=list(dict.fromkeys(names))).assign(
        changed=describe_changes(runs, protocol), as_published=is_published_task(runs)
    )
    run_rows = frame_rows(needed)
    _add_teacher_keys(run_rows)
    run_rows.sort(key=lambda run: (len(run["seed"]), run["seed"]))
    by_key: defaultdict[tuple[str, ...], SeedColumns] = defaultdict(lambda: defaultdict(list))
    for run in run_rows:
        seeds = by_key[itemgetter(*ROW_KEYS)(run)]
        for name, value in run.items():
            seeds[name].append(value)
    rows = [by_key[key] for key in sorted(by_key)]
    # NaN has no order.
    rows.sort(key=lambda seeds: -np.nan_to_num(_summarise(RANK_METRIC, seeds).mean, nan=-1))
    return rows


def _add_teacher_keys(runs: list[dict[str, Any]]) -> None:
    """Add to each run `teachers`, `teacher_checkpoints` and `other_teachers`.

    `other_teachers` holds a note per teacher whose weights differ from most runs'. Machines and
    versions round differently, and a teacher trained again by the same spec is another network.
    """
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for run in runs:
        recorded = run["record"].teacher_sha256
        run["teacher_checkpoints"] = frozenset(recorded.values())
        run["teachers"] = []
        for role, sha256 in recorded.items():
            identity = str(run.get(TEACHER_PREFIX + role))
            run["teachers"].append((identity, sha256))
            counts[identity][sha256] += 1
    for run in runs:
        run["other_teachers"] = []
        for identity, sha256 in run["teachers"]:
            (usual, most), *others = counts[identity].most_common(2)
            is_tied = bool(others) and others[0][1] == most
            if sha256 != usual or is_tied:
                share = f"{counts[identity][sha256]} of {counts[identity].total()} runs"
                note = f"taught by checkpoint {sha256[:8]} of {identity}, as {share} here"
                run["other_teachers"].append(note)


def _choose_columns(runs: pd.DataFrame) -> tuple[Column, ...]:
    """Choose accuracies that some run has, then other checkpoints, then cost."""
    present = set(runs.columns[runs.notna().any()])
    best = accuracy_name("")
    attacks = [name.removeprefix(best) for name in present if name.startswith(best)]
    chosen = [accuracy_name(attack) for attack in metrics.sort_attacks(attacks)]
    for checkpoint in [name for name in CHECKPOINTS if name != BEST]:
        names = [accuracy_name(attack, checkpoint) for attack in ("aa", "pgd20")]
        chosen += [name for name in names if name in present][:1]
    others = *metrics.CLASS_METRICS, metrics.TRAIN_SECONDS
    chosen += [name for name in others if name in present]
    return tuple(Column(metric, describe_metric(metric).label) for metric in chosen)


def _build_row(columns: Sequence[Column], seeds: SeedColumns, ranking: Ranking) -> Row:
    summaries = {column.metric: _summarise(column.metric, seeds) for column in columns}
    best = [column for column in columns if column.metric.startswith(accuracy_name(""))]
    missing = [column.label for column in best if not summaries[column.metric].n]
    if RANK_METRIC not in summaries:
        missing.append(metrics.ATTACK_LABELS["aa"])
    scored = summaries.get(RANK_METRIC, SeedSummary()).n
    flags = _collect_flags(seeds)
    return Row(
        **{key: seeds[key][0] for key in ROW_KEYS},
        seeds=len(seeds["run_id"]),
        summaries=summaries,
        commands=tuple(filter(None, dict.fromkeys(seeds["command"]))),
        notes=tuple(_collect_notes(seeds, scored, ranking.unranked_reason)),
        missing=tuple(missing),
        flags=flags,
        published=find_published(seeds),
        marks=tuple(_collect_marks(seeds, bool(flags))),
        run_ids=tuple(seeds["run_id"]),
        checkpoints=frozenset(filter(None, seeds[checksum_tag()])),
        teacher_checkpoints=tuple(seeds["teacher_checkpoints"]),
        ranking=ranking,
        drop=_mean_drop(seeds["record"]),
    )


def _mean_drop(records: Sequence[Record]) -> float:
    """Return the accuracy lost from the best checkpoint to the last; NaN where not measured.

    Under AutoAttack, else PGD-20: the first that all seeds faced on both.
    """
    means = [fmean(record.drop(attack) for record in records) for attack in ("aa", "pgd20")]
    return next((mean for mean in means if not math.isnan(mean)), math.nan)


def _collect_marks(seeds: SeedColumns, is_flagged: bool) -> Iterator[str]:
    if is_flagged:
        yield "sanity flag"
    if "true" in seeds[Tag.CODE_DIRTY]:
        yield "uncommitted code"
    if any(seeds["changed"]) or any(seeds["sets"]):
        yield "another protocol"


def _collect_notes(seeds: SeedColumns, scored: int, unranked_reason: str) -> Iterator[str]:
    """Yield what a reader should know before trusting the row; `scored` seeds have AutoAttack."""
    total = len(seeds["run_id"])
    yield from sorted(filter(None, set(seeds[Tag.STATUS_NOTE])))
    dirty = seeds[Tag.CODE_DIRTY].count("true")
    if dirty:
        yield f"uncommitted code in {dirty} of {total} runs"
    yield from sorted(set(chain.from_iterable(seeds["other_teachers"])))
    no_bf16 = sum(NO_BF16 in path for path in seeds[Tag.TRAINING_PATH])
    if no_bf16:
        yield f"in fp32 for want of bf16 in {no_bf16} of {total} runs"
    if 0 < scored < total:
        yield f"AutoAttack on {scored} of {total} seeds"
    if unranked_reason:
        yield f"no rank: {unranked_reason}"


def _collect_flags(seeds: SeedColumns) -> tuple[tuple[str, str], ...]:
    """Return the sanity flags of the runs, each with the evidence of the first run that has it."""
    evidence: defaultdict[str, list[str]] = defaultdict(list)
    for record in seeds["record"]:
        for name, text in record.flags.items():
            evidence[name].append(text)
    total = len(seeds["record"])
    return tuple(
        (name, f"in {len(texts)} of {total} runs: {texts[0]}")
        for name, texts in sorted(evidence.items())
    )


def _summarise(metric: str, seeds: SeedColumns) -> SeedSummary:
    """Return mean, deviation and count over the seeds.

    Values outside the metric's range do not count, and NaN is outside of every range.
    """
    values = np.array(seeds[metric], dtype=float)
    values = values[values >= 0]
    if describe_metric(metric).unit == "%":
        values = values[values <= 1]
    return SeedSummary.from_values(values)
