"""What the ablation of GACD says: docs/lab/gacd.md, from the records of its two suites.

`python -m bench.cli.generated_files` writes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from bench.execution.plan import PlannedRun, plan_runs
from bench.protocol import suites
from bench.protocol.options import RunOptions
from bench.protocol.suites import Suite
from leaderboards.read.records import collect
from leaderboards.render.numbers import format_count
from leaderboards.schema.metrics import MONITOR
from leaderboards.schema.packing import Verdicts
from leaderboards.schema.record import Record
from leaderboards.stats.ranks import difference_intervals

RECORDS = Path("leaderboards", "results")
INTRO = Path(__file__).with_name("gacd_intro.md")
SUITES = (suites.GACD_ABLATION, suites.GACD_ABLATION_CIFAR)
CONTROL = "gacd"
# By the label of a row: what it changes of the figure's form.
CHANGES = {
    CONTROL: "nothing: the figure's form",
    "gacd symmetric=True": "both directions of the contrast",
    "gacd teacher_input=clean": "the teacher embeds the clean image",
    "gacd weight=none": "no sample weights",
    "gacd weight=indicator": "weight 1 where the teacher is right, else 0",
    "gacd weigh=positive": "weights on the positive pairs alone",
    "gacd bank=1024": "negatives from a queue of 1,024",
    "gacd bank=4096": "negatives from a queue of 4,096",
    "gacd tau=0.1": "temperature 0.1 for 0.07",
    "gacd tau=0.5": "temperature 0.5 for 0.07",
    "gacd two_stage=True": "contrast alone, then the classifier on frozen features",
    "gacd inner=feature": "the attack is on the features",
    "gacd symmetric=True, teacher_input=clean": "both of these: the former default",
    "crd_adv": "the former default without weights",
}
MONITORED = ("weight_mean", "weight_spread", "similarity")

Interval: TypeAlias = tuple[float, float, float]  # difference, low end, high end
RunsByRow: TypeAlias = Mapping[str, Sequence[Record]]


@dataclass(frozen=True)
class Comparison:
    """The rows of a suite that have a record of every seed that the control has.

    missing: labels of the other rows. robust, clean: the difference to the control by label, but
    for the control itself.
    """

    rows: RunsByRow
    missing: tuple[str, ...]
    robust: Mapping[str, Interval]
    clean: Mapping[str, Interval]


def render_page() -> str:
    """Return the page."""
    records = {str(record.spec_id): record for record in collect(RECORDS)["record"]}
    return render(records)


def render(records: Mapping[str, Record]) -> str:
    """Return the page from records by the id of their specs."""
    sections = [render_suite(suite, records) for suite in SUITES]
    return INTRO.read_text(encoding="utf-8") + "".join(sections)


def render_suite(suite: Suite, records: Mapping[str, Record]) -> str:
    """Return the section of a suite: its table, what it decides, what was logged."""
    planned = [run for run in plan_runs(RunOptions(suite=suite.name), {}) if is_student(run)]
    title = f"\n## {suite.id}\n\n"
    compared = compare_rows(planned, records)
    if compared is None:
        command = f"python -m bench run --suite {suite.name}"
        return f"{title}No records yet of the figure's form: `{command}` makes them.\n"
    seeds = [record.spec.seed for record in compared.rows[CONTROL]]
    images = compared.rows[CONTROL][0].survived.size
    parts = [describe_evidence(compared, seeds, images)]
    parts.append(render_differences(compared))
    if compared.robust:
        parts.append(describe_decisions("AutoAttack", compared.robust, len(seeds)))
    if compared.clean:
        parts.append(describe_decisions("Clean accuracy", compared.clean, len(seeds)))
    parts.append(render_monitored(compared.rows))
    return title + "\n\n".join(filter(None, parts)) + "\n"


def is_student(run: PlannedRun) -> bool:
    """Return whether a planned run is a student's."""
    return run.spec.role == "student"


def compare_rows(planned: Iterable[PlannedRun], records: Mapping[str, Record]) -> Comparison | None:
    """Compare the rows that are recorded with the control; None if that has no record."""
    by_row: dict[str, dict[int, Record | None]] = {}
    for run in planned:
        row = by_row.setdefault(f"{run.spec.method} {run.variant}".strip(), {})
        record = records.get(run.spec.id)
        row[run.spec.seed] = record if record and record.verdicts else None
    seeds = [seed for seed, record in by_row[CONTROL].items() if record]
    if not seeds:
        return None
    rows = {}
    for label, row in by_row.items():
        kept = [record for seed in seeds if (record := row[seed])]
        if len(kept) == len(seeds):
            rows[label] = kept
    missing = tuple(label for label in by_row if label not in rows)
    return Comparison(
        rows, missing, differences(rows, lambda record: record.survived), differences(rows, correct)
    )


def differences(
    rows: RunsByRow, verdicts_of: Callable[[Record], Verdicts | None]
) -> dict[str, Interval]:
    """Return each row less the control by label; {} where a record has no verdicts."""
    stacked = []
    for records in rows.values():
        verdicts = [verdicts_of(record) for record in records]
        kept = [array for array in verdicts if array is not None]
        if len(kept) < len(verdicts):
            return {}
        stacked.append(np.stack(kept))
    if len(stacked) == 1:
        return {}
    others = [label for label in rows if label != CONTROL]
    return dict(zip(others, difference_intervals(stacked), strict=True))


def correct(record: Record) -> Verdicts | None:
    """Return whether each test image is classified rightly, unattacked; None if not recorded."""
    predictions = record.classes.unpack_predictions() if record.classes else None
    if record.classes is None or predictions is None:
        return None
    right: NDArray[np.bool_] = predictions == record.classes.unpack_labels()
    return right


def describe_evidence(compared: Comparison, seeds: Sequence[int], images: int) -> str:
    """Say how many rows, seeds and images there are, and which rows are missing."""
    counts = format_count(len(compared.rows), "row"), format_count(len(seeds), "seed")
    text = f"{', '.join(counts)}, AutoAttack on {images:,} test images."
    if len(seeds) == 1:
        text += " With one seed networks are compared, not methods: another seed moves them too."
    if compared.missing:
        text += f" Not recorded yet: {', '.join(f'`{label}`' for label in compared.missing)}."
    return text


def render_differences(compared: Comparison) -> str:
    """Return the table: each row's accuracies, and their differences to the control."""
    lines = ["| Row | Changes | AutoAttack, % | Difference | Clean, % | Difference |"]
    lines.append("| --- | --- | ---: | ---: | ---: | ---: |")
    for label, records in compared.rows.items():
        robust = mean_percent([record.survived.mean() for record in records])
        clean = [verdicts.mean() for record in records if (verdicts := correct(record)) is not None]
        columns = [f"`{label}`", CHANGES.get(label, ""), robust]
        columns.append(format_interval(compared.robust.get(label)))
        columns += [mean_percent(clean), format_interval(compared.clean.get(label))]
        lines.append(f"| {' | '.join(columns)} |")
    return "\n".join(lines)


def mean_percent(values: Sequence[float]) -> str:
    """Return the mean in percent; "-" for none."""
    return f"{100 * np.mean(values):.1f}" if values else "-"


def format_interval(interval: Interval | None) -> str:
    """Return a difference in points with its interval; "" for none."""
    if interval is None:
        return ""
    gap, low, high = (100 * value for value in interval)
    return f"{gap:+.1f} [{low:+.1f}, {high:+.1f}]"


def describe_decisions(measure: str, intervals: Mapping[str, Interval], seeds: int) -> str:
    """Say which rows differ from the control, by how much, and what stays open."""
    title, verbs = "What matters", ("costs", "gains")
    if seeds == 1:
        title, verbs = "Networks that differ from the figure's form", ("is below it", "is above it")
    decided = [label for label, (_, low, high) in intervals.items() if low > 0 or high < 0]
    decided.sort(key=lambda label: -abs(intervals[label][0]))
    lines = []
    for label in decided:
        verb = verbs[intervals[label][0] > 0]
        points = format_interval(intervals[label])
        lines.append(f"- `{label}` {verb}: {points} points ({CHANGES.get(label, '')})")
    if lines:
        head = f"**{measure}.** {title}:\n\n" + "\n".join(lines) + "\n\n"
    else:
        head = f"**{measure}.** No row can be told from the figure's form. "
    return head + describe_undecided(intervals, decided)


def describe_undecided(intervals: Mapping[str, Interval], decided: Sequence[str]) -> str:
    """Say which rows stay undecided, and from which difference on they would not have."""
    halves = {label: (high - low) / 2 for label, (_, low, high) in intervals.items()}
    names = [f"`{k}` ({100 * half:.1f})" for k, half in halves.items() if k not in decided]
    if not names:
        return "Nothing stays undecided."
    # A decided row may have the shortest interval.
    least = 100 * min(halves.values())
    return (
        f"Undecided, in brackets the smallest difference in points that would have been"
        f" significant: {', '.join(names)}. No difference below {least:.1f} points could be told."
    )


def render_monitored(rows: RunsByRow) -> str:
    """Return the table of what training logged in its last epoch; "" if nothing."""
    lines = []
    for label, records in rows.items():
        columns = []
        for name in MONITORED:
            curves = [record.curves.get(f"{MONITOR}{name}", ((), ())) for record in records]
            last = [values[-1] for _, values in curves if values]
            columns.append(f"{np.mean(last):.3f}" if last else "-")
        if set(columns) != {"-"}:
            lines.append(f"| `{label}` | {' | '.join(columns)} |")
    if not lines:
        return ""
    head = (
        "In the last epoch, the means over its steps and the seeds: the sample weight before its"
        " scaling to mean 1, its standard deviation after it, and the mean cosine between the"
        " student's embeddings of different images.\n\n"
        "| Row | Mean weight | Spread of the weight | Similarity |\n| --- | ---: | ---: | ---: |\n"
    )
    return head + "\n".join(lines)
