"""What the halves of the classes say of transfer: docs/lab/transfer.md, from their records.

`python -m bench.cli.generated_files` writes it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from statistics import fmean, stdev
from typing import TypeAlias

import methods
from bench.protocol import suites
from bench.protocol.suites import Suite
from leaderboards.read.records import collect
from leaderboards.render.numbers import format_count
from leaderboards.schema.analysis import TASK_MODES, TASK_VIEWS, split_name
from leaderboards.schema.fields import Tag
from leaderboards.schema.record import Record

RECORDS = Path("leaderboards", "results")
INTRO = Path(__file__).with_name("transfer_intro.md")
SUITES = (suites.DIGITS_HALVES, suites.CIFAR_MINI_HALVES)
GROUP = "tasks"
LEVEL = 0.95
MIN_METHODS = 3  # of each kind, for an interval

Column: TypeAlias = tuple[str, str]  # mode, view
COLUMNS: tuple[Column, ...] = tuple(product(TASK_MODES, TASK_VIEWS))


@dataclass
class MethodRow:
    """Accuracies on the other classes of one method, by column, a value for each seed."""

    method: str
    adversarial: bool
    values: dict[Column, list[float]] = field(default_factory=lambda: defaultdict(list))

    def mean(self, column: Column) -> float:
        """Return the mean over seeds, NaN where nothing was measured."""
        return fmean(self.values[column]) if self.values[column] else math.nan


@dataclass(frozen=True)
class Contrast:
    """Methods that train on adversarial examples against the others; means, in [0, 1].

    low, high: of the difference, NaN for too few methods.
    """

    adversarial: float
    others: float
    low: float
    high: float

    @property
    def difference(self) -> float:
        return self.adversarial - self.others


def render_page() -> str:
    """Return the page."""
    return render([*collect(RECORDS)["record"]])


def render(records: Iterable[Record]) -> str:
    """Return the page from records."""
    by_suite: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        by_suite[record.spec.suite].append(record)
    sections = [render_suite(suite, by_suite[suite.id]) for suite in SUITES]
    return INTRO.read_text(encoding="utf-8") + "".join(sections)


def render_suite(suite: Suite, records: Sequence[Record]) -> str:
    """Return the section of a suite: what the methods say together, then each of them."""
    title = f"\n## {suite.id}\n\n"
    rows = read_rows(records)
    if not rows:
        return f"{title}No analysed records yet.\n"
    contrasts = {column: contrast(rows, column) for column in COLUMNS}
    parts = [describe_evidence(rows), render_contrasts(contrasts), describe_answer(contrasts)]
    parts.append(render_rows(rows))
    return title + "\n\n".join(parts) + "\n"


def read_rows(records: Iterable[Record]) -> list[MethodRow]:
    """Return the methods at their defaults that were put to another task, best probe first."""
    rows: dict[str, MethodRow] = {}
    for record in records:
        spec = record.spec
        measured = measured_columns(record.metrics)
        if spec.role != "student" or record.tags.get(Tag.VARIANT) or not measured:
            continue
        method = methods.load(spec.method)
        row = rows.setdefault(spec.method, MethodRow(spec.method, method(**spec.hyper).adversarial))
        for column, value in measured.items():
            row.values[column].append(value)
    best = COLUMNS[1]
    return sorted(rows.values(), key=lambda row: -row.mean(best))


def measured_columns(metrics: Mapping[str, float]) -> dict[Column, float]:
    """Return the accuracies on another task by mode and view."""
    values = {}
    for name, value in metrics.items():
        parts = split_name(name)
        if parts and parts[0].name == GROUP:
            _, mode, view = parts[2]
            values[mode, view] = value
    return values


def contrast(rows: Sequence[MethodRow], column: Column) -> Contrast:
    """Compare both kinds of methods in a column."""
    from scipy.stats import ttest_ind

    kinds: dict[bool, list[float]] = {True: [], False: []}
    for row in rows:
        if not math.isnan(value := row.mean(column)):
            kinds[row.adversarial].append(value)
    adversarial, others = (
        fmean(kinds[kind]) if kinds[kind] else math.nan for kind in (True, False)
    )
    low = high = math.nan
    if min(map(len, kinds.values())) >= MIN_METHODS:
        level = 1 - (1 - LEVEL) / len(COLUMNS)
        result = ttest_ind(kinds[True], kinds[False], equal_var=False)
        low, high = map(float, result.confidence_interval(level))
    return Contrast(adversarial, others, low, high)


def describe_evidence(rows: Sequence[MethodRow]) -> str:
    """Say how many methods of each kind there are, and seeds."""
    adversarial = sum(row.adversarial for row in rows)
    seeds = max(len(values) for row in rows for values in row.values.values())
    kinds = f"{adversarial} train on adversarial examples, {len(rows) - adversarial} do not"
    return f"{format_count(len(rows), 'method')}, {format_count(seeds, 'seed')}; {kinds}."


def column_label(column: Column) -> str:
    """Return how the page calls a column."""
    return f"{TASK_MODES[column[0]]}, {TASK_VIEWS[column[1]]}"


def render_contrasts(contrasts: Mapping[Column, Contrast]) -> str:
    """Return the table of both kinds of methods."""
    lines = ["| | Adversarial | Others | Difference |", "| --- | ---: | ---: | ---: |"]
    for column, pair in contrasts.items():
        means = " | ".join(map(format_percent, (pair.adversarial, pair.others)))
        lines.append(f"| {column_label(column)} | {means} | {format_difference(pair)} |")
    return "\n".join(lines)


def format_percent(value: float) -> str:
    """Return a mean in percent; "-" for NaN."""
    return "-" if math.isnan(value) else f"{100 * value:.1f}"


def format_difference(pair: Contrast) -> str:
    """Return a difference in points with its interval, if it has one; "-" for no difference."""
    if math.isnan(pair.difference):
        return "-"
    text = f"{100 * pair.difference:+.1f}"
    if math.isnan(pair.low):
        return text
    return f"{text} [{100 * pair.low:+.1f}, {100 * pair.high:+.1f}]"


def describe_answer(contrasts: Mapping[Column, Contrast]) -> str:
    """Say where one kind transfers better, and where the evidence cannot tell."""
    kinds: dict[str, list[str]] = {"better": [], "worse": [], "undecided": []}
    for column, pair in contrasts.items():
        verdict = "undecided"
        if pair.low > 0 or pair.high < 0:
            verdict = "better" if pair.low > 0 else "worse"
        kinds[verdict].append(column_label(column))
    lines = []
    for verdict, text in (
        ("better", "Features trained on adversarial examples transfer **better**"),
        ("worse", "They transfer **worse**"),
        ("undecided", "**Undecided**"),
    ):
        if kinds[verdict]:
            lines.append(f"- {text}: {'; '.join(kinds[verdict])}.")
    return "\n".join(lines)


def render_rows(rows: Sequence[MethodRow]) -> str:
    """Return the table of all methods: mean and standard deviation over seeds, in percent."""
    heads = [column_label(column) for column in COLUMNS]
    lines = [f"| Method | Adversarial | {' | '.join(heads)} |"]
    lines.append("| --- | --- |" + " ---: |" * len(COLUMNS))
    for row in rows:
        cells = [format_values(row.values[column]) for column in COLUMNS]
        kind = "yes" if row.adversarial else "no"
        lines.append(f"| `{row.method}` | {kind} | {' | '.join(cells)} |")
    return "\n".join(lines)


def format_values(values: Sequence[float]) -> str:
    """Return mean ± standard deviation in percent; "-" for none."""
    if not values:
        return "-"
    mean = f"{100 * fmean(values):.1f}"
    return f"{mean} ± {100 * stdev(values):.1f}" if len(values) > 1 else mean
