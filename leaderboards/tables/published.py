"""Results of papers for the task of a row, beside what was measured here and never among it.

published.csv has one published number a line, in percent, with the place where it stands:
AutoAttack ("aa") and clean accuracy on CIFAR-10 and CIFAR-100 of students that the benchmark has,
under its names for method, data and student. A teacher has one name throughout; `note` gives the
other that a paper uses. Where `note` says "second hand" the number was read in a text that quotes
the paper. A number that one paper copies from another stands once, under the paper that measured
it. `igdm` is IGDM on AdaAD and `iad` is IAD-I.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from leaderboards.read.records import frame_rows
from leaderboards.schema.metrics import NUM_ATTACKED, NUM_IMAGES, accuracy_name
from leaderboards.schema.record import Record

HEADING = "Published AA"
EXPLANATION = (
    f"{HEADING}, not measured here and no part of the ranking: the lowest to the highest AutoAttack"
    " accuracy published for the same method, data and student, and by how many points ours lies"
    " outside. Teachers (only those named as ours, where there are any), schedules and checkpoint"
    " rules differ; many checkpoints were chosen on the test set. Where ours lies outside, a cell"
    " says how ours was trained and judged, and how the nearest published number was: a possible"
    " reason."
)
KEYS = ["dataset", "student", "method", "teacher"]
ATTACKS = ("clean", "aa")
# Of every number in the file; of ours AutoAttack may have seen the first ones alone.
TEST_IMAGES, EPS = 10_000, 8 / 255
LEAST_ATTACKED = 1_000


@dataclass(frozen=True)
class Published:
    """The lowest and highest of published accuracies, in [0, 1], and the papers they are from.

    teachers: "this teacher", "any teacher", or "" for a method without one. at_low, at_high: how
    the network of that number was trained and chosen. ours: how that of the row was.
    """

    low: float
    high: float
    teachers: str
    sources: tuple[str, ...]
    at_low: str = ""
    at_high: str = ""
    ours: str = ""

    def difference(self, accuracy: float) -> float:
        """Return how far ours is above `high` or, negative, below `low`; 0 between, NaN for NaN."""
        return accuracy - min(max(accuracy, self.low), self.high)

    @property
    def span(self) -> str:
        """The range such as "40.57 to 52.21", or a lone value, with the decimals of the papers."""
        low, high = f"{100 * self.low:.2f}", f"{100 * self.high:.2f}"
        return low if low == high else f"{low} to {high}"

    def remark(self, accuracy: float) -> str:
        """Say "3 sources, any teacher; ours 1.2 below", and how both were trained and judged.

        Nothing about ours where it is NaN.
        """
        count = len(self.sources)
        text = "1 source" if count == 1 else f"{count} sources"
        if self.teachers:
            text += f", {self.teachers}"
        if math.isnan(accuracy):
            return text
        points = round(100 * self.difference(accuracy), 1)
        if points == 0:
            return f"{text}; ours within"
        text += f"; ours {abs(points):.1f} {'above' if points > 0 else 'below'}"
        terms = {"ours": self.ours, "theirs": self.at_high if points > 0 else self.at_low}
        return "; ".join([text, *(f"{whose}: {how}" for whose, how in terms.items() if how)])


def find_published(seeds: Mapping[Any, Sequence[Any]]) -> Published | None:
    """Return published AutoAttack for the columns of a row; None unless all are `as_published`."""
    if not all(seeds["as_published"]):
        return None
    published = lookup(*(seeds[key][0] for key in KEYS), "aa")
    return published and replace(published, ours=_describe_run(seeds["record"][0]))


def _describe_run(record: Record) -> str:
    """Return how a network was trained and judged."""
    terms = [f"{record.spec.training.epochs} epochs"]
    images = record.metrics.get(NUM_ATTACKED, TEST_IMAGES)
    if images < TEST_IMAGES:
        terms.append(f"AutoAttack on the first {images:,.0f} images")
    return ", ".join(terms)


def cite_sources(values: Iterable[Published | None]) -> str:
    """Return EXPLANATION with the sources of a table's values; "" where all are None."""
    sources = dict.fromkeys(source for value in values if value for source in value.sources)
    return f"{EXPLANATION} Sources: {'; '.join(sources)}." if sources else ""


def add_published_columns(runs: pd.DataFrame) -> pd.DataFrame:
    """Append columns "published/..." to `collect`'s frame, if anything is published."""
    rows = frame_rows(runs.reindex(columns=[*KEYS, *map(accuracy_name, ATTACKS)]))
    pairs = zip(rows, is_published_task(runs), strict=True)
    columns = [_columns_of(row) if as_published else {} for row, as_published in pairs]
    return pd.concat([runs, pd.DataFrame(columns, index=runs.index)], axis="columns")


def _columns_of(run: dict[Any, Any]) -> dict[str, Any]:
    """Return the columns "published/..." of one run, accuracies in [0, 1]."""
    columns: dict[str, Any] = {}
    for attack in ATTACKS:
        published = lookup(*(run[key] for key in KEYS), attack)
        if published:
            prefix = f"published/{attack}_"
            columns[f"{prefix}low"] = published.low
            columns[f"{prefix}high"] = published.high
            difference = published.difference(run[accuracy_name(attack)])
            columns[f"{prefix}difference"] = round(difference, 6)
            columns[f"{prefix}teachers"] = published.teachers
            columns[f"{prefix}sources"] = "; ".join(published.sources)
    return columns


@cache
def lookup(dataset: str, student: str, method: str, teacher: str, attack: str) -> Published | None:
    """Return the values published with a teacher of this name, or with any where there are none."""
    rows = _numbers_by_key().get((dataset, student, method, attack))
    if rows is None:
        return None
    same_teacher = rows[rows["teacher"].map(_normalise) == _normalise(teacher)]
    teachers = "this teacher" if teacher != "none" else ""
    if same_teacher.empty:
        teachers = "any teacher"
    else:
        rows = same_teacher
    ordered = rows.sort_values("accuracy_percent", kind="stable")
    low, high = frame_rows(ordered.iloc[[0, -1]])
    return Published(
        low=round(low["accuracy_percent"] / 100, 4),
        high=round(high["accuracy_percent"] / 100, 4),
        teachers=teachers,
        sources=tuple(rows["source"].unique()),
        at_low=_describe_number(low),
        at_high=_describe_number(high),
    )


def _describe_number(row: dict[Any, Any]) -> str:
    """Return how the network of a published number was trained and chosen."""
    terms = [] if row["teacher"] == "none" else [f"teacher {row['teacher']}"]
    if row["checkpoint"] != "not stated":
        is_chosen = row["checkpoint"] == "best" and "test set" in row["note"]
        rule = " on the test set" if is_chosen else ""
        terms.append(f"{row['checkpoint']} checkpoint{rule}")
    return ", ".join(terms)


def is_published_task(runs: pd.DataFrame) -> pd.Series[bool]:
    """Return which runs had the method as published, all images and the papers' budget.

    AutoAttack may have seen the first LEAST_ATTACKED images alone. A run that did not record these
    did not have them.
    """
    names = ["param/eps", "param/limit_train", NUM_IMAGES, NUM_ATTACKED]
    facts = runs.reindex(columns=names).apply(pd.to_numeric, errors="coerce").astype(float)
    attacked = facts[NUM_ATTACKED].fillna(facts[NUM_IMAGES])
    all_tested = facts[NUM_IMAGES].eq(TEST_IMAGES) & attacked.ge(LEAST_ATTACKED)
    all_trained = facts["param/limit_train"].isna()
    same_norm = runs.reindex(columns=["param/norm"])["param/norm"].eq("Linf")
    same_budget = same_norm & facts["param/eps"].sub(EPS).abs().lt(1e-6)
    return runs["variant"].isin(["", "official"]) & all_tested & all_trained & same_budget


@cache
def _numbers_by_key() -> dict[Any, pd.DataFrame]:
    return dict(iter(_read_numbers().groupby(["dataset", "student", "method", "attack"])))


@cache
def _read_numbers() -> pd.DataFrame:
    return pd.read_csv(Path(__file__).with_suffix(".csv"), keep_default_na=False)


def _normalise(name: str) -> str:
    """Reduce a network's name so that "LTD WRN-34-10" and "wrn34_10-ltd" are the same."""
    return " ".join(sorted(re.findall(r"[a-z]+|\d+", name.lower())))
