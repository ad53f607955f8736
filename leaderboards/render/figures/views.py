"""What there is to see in a task or a run, as plain numbers: drawn for the screen by charts.py, for papers by figure.py."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median_low
from typing import TYPE_CHECKING, Any

from leaderboards.schema.metrics import ATTACK_LABELS, CHECKPOINT_LABELS, RANK_METRIC, TRAIN_SECONDS
from leaderboards.tables.rows import Row, SeedSummary, TaskTable

if TYPE_CHECKING:
    from leaderboards.tables.across_tasks import AcrossTasksRow

CLEAN = "test/clean"
ROBUST = "AutoAttack accuracy, %"
LONGEST = 34  # characters of a label
NEAR = 0.85  # of the best AutoAttack accuracy: rows of the lower half below it may lie outside the frame
LEAST = 1e-3  # seconds of training that a logarithmic scale can show
MOST = 40  # rows in a figure; more names could not be placed
Records = Mapping[str, Mapping[str, Any]]  # store.collect's lines by run id
Span = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """Points that share a colour; `low` and `high` are the ends of error bars, NaN where there are none."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: tuple[Sequence[float], Sequence[float]] | None = None  # of x, of y
    high: tuple[Sequence[float], Sequence[float]] | None = None
    names: Sequence[str] = ()  # a point's name
    shown: Sequence[bool] = ()  # whether it is written beside the point, on a screen
    line: bool = False
    quiet: bool = False  # behind the others


@dataclass(frozen=True)
class View:
    """One figure. With `rows`, y counts from 0 down these names; else it is a number."""

    name: str
    title: str
    caption: str
    x_title: str
    y_title: str
    series: tuple[Series, ...]
    rows: tuple[str, ...] = ()
    frame: tuple[Span | None, Span | None] = (None, None)  # of x, of y; None: what the points need
    log_x: bool = False


def of_task(group: TaskTable, records: Records) -> list[View]:
    """Every view of a task for which something was measured; accuracies in percent."""
    made = [
        scatter(group),
        seeds(group, records),
        attacks(group),
        overfitting(group, records),
        cost(group),
    ]
    return [view for view in (*made, radii(group, records)) if view]


def scatter(group: TaskTable) -> View | None:
    """Robust against clean accuracy, with the Pareto front."""
    rows = [row for row in group.contenders if row[CLEAN].n and row[RANK_METRIC].n]
    if not rows:
        return None
    first = front(rows)
    near = _near(rows)
    said = "Up and to the right is better; bars are one standard deviation over seeds. "
    said += f"On the Pareto front, which no row beats in both: {_listed(labels(first))}."
    points = _points(rows, CLEAN, set(map(id, first)))
    line = (
        [percent(row[CLEAN].mean) for row in first],
        [percent(row[RANK_METRIC].mean) for row in first],
    )
    frame = (
        limits(percent(row[CLEAN].mean) for row in near),
        limits(percent(row[RANK_METRIC].mean) for row in near),
    )
    series = (Series("Pareto front", *line, line=True, quiet=True), points)
    said += _below(rows, frame[1])
    return View(
        "scatter", "Robust and clean", said, "Clean accuracy, %", ROBUST, series, frame=frame
    )


def seeds(group: TaskTable, records: Records) -> View | None:
    """Every row at its AutoAttack accuracy with its interval, and its seeds as dots."""
    rows = _some(group)
    if not rows:
        return None
    dots = [
        (percent(float(value)), place)
        for place, row in enumerate(rows)
        for run in row.run_ids
        if row.seeds > 1 and (value := records[run].get(RANK_METRIC, math.nan)) == value
    ]
    ends = [row.ranking.interval or (math.nan, math.nan) for row in rows]
    none = [math.nan] * len(rows)
    means = Series(
        "Mean",
        [percent(row[RANK_METRIC].mean) for row in rows],
        range(len(rows)),
        ([percent(low) for low, _ in ends], none),
        ([percent(high) for _, high in ends], none),
    )
    single = (
        [Series("Seeds", [x for x, _ in dots], [y for _, y in dots], quiet=True)] if dots else []
    )
    said = f"Bars are each row's own 95 % interval{', dots are seeds' if dots else ''}. Rows whose bars overlap may still "
    said += "differ: they are compared on the same images, and the rank says what came of it."
    series = (*single, means)
    return View(
        "seeds", "Intervals and seeds", said + _cut(group), ROBUST, "", series, tuple(labels(rows))
    )


def attacks(group: TaskTable) -> View | None:
    """Accuracy of every row under each attack."""
    columns = [column for column in group.columns if column.metric.startswith("test/")]
    rows = _some(group)
    if not rows or len(columns) < 2:
        return None
    series = tuple(
        _dots(rows, column.metric, column.label)
        for column in columns
        if column.metric != "test/worst"
    )
    said = "A long way from PGD-20 to AutoAttack hints at gradients that mislead attacks."
    return View(
        "attacks", "Attacks", said + _cut(group), "Accuracy, %", "", series, tuple(labels(rows))
    )


def overfitting(group: TaskTable, records: Records) -> View | None:
    """The checkpoint that validation chose beside the last one and the averages: robust overfitting."""
    rows = _some(group)
    attack = _both(rows)
    if not attack:
        return None
    kinds = {"test": "best", **CHECKPOINT_LABELS}
    series = [_dots(rows, f"{prefix}/{attack}", word) for prefix, word in kinds.items()]
    lost = [
        (_drop(row, attack, records), name) for row, name in zip(rows, labels(rows), strict=True)
    ]
    worst, name = max((pair for pair in lost if pair[0] == pair[0]), default=(0.0, ""))
    said = "The checkpoint that validation chose (best) beside that of the last epoch and averages of the weights. "
    most = f"{name} loses most: {percent(worst):.1f} points" if worst > 0 else "no row loses"
    said += f"From best to last, {most}."
    label = f"{ATTACK_LABELS[attack]} accuracy, %"
    kept = tuple(one for one in series if one.x)
    return View("last", "Best and last", said + _cut(group), label, "", kept, tuple(labels(rows)))


def cost(group: TaskTable) -> View | None:
    """Robust accuracy against minutes of training."""
    rows = [
        row for row in group.contenders if row[TRAIN_SECONDS].mean > LEAST and row[RANK_METRIC].n
    ]
    if not rows:
        return None
    first = front(rows, lambda row: -row[TRAIN_SECONDS].mean)
    said = f"Up and to the left is better. No row is both cheaper and more robust than: {_listed(labels(first))}. "
    said += "Times compare only where the machine was the same and idle."
    points = _points(rows, TRAIN_SECONDS, set(map(id, first)))
    near = _near(rows)
    frame = (None, limits(percent(row[RANK_METRIC].mean) for row in near))
    title = "Training, minutes (logarithmic)"
    return View(
        "cost",
        "Cost",
        said + _below(rows, frame[1]),
        title,
        ROBUST,
        (points,),
        frame=frame,
        log_x=True,
    )


def radii(group: TaskTable, records: Records) -> View | None:
    """Robust accuracy against eps, for settings that were recorded at several."""
    lines: dict[tuple[str, ...], dict[float, float]] = {}
    for row in (row for row in group.ranked if row[RANK_METRIC].n):
        eps = _number(records[row.run_ids[0]].get("param/eps"))
        rest = ", ".join(
            part for part in row.changed.split(", ") if not part.startswith(("eps=", "inner_"))
        )
        if not math.isnan(eps):
            lines.setdefault((row.method, row.variant, row.teacher, rest), {}).setdefault(
                eps, percent(row[RANK_METRIC].mean)
            )
    several = {
        key: dict(sorted(points.items())) for key, points in lines.items() if len(points) > 1
    }
    if not several:
        return None
    series = tuple(
        Series(short(", ".join(filter(None, key))), [*points], [*points.values()], line=True)
        for key, points in several.items()
    )
    said = "Each network was trained and attacked at the eps below it."
    return View("eps", "Radius", said, "eps, in pixels of [0, 1]", ROBUST, series)


def front(
    rows: Sequence[Row], value: Callable[[Row], float] = lambda row: row[CLEAN].mean
) -> list[Row]:
    """Rows that none surpasses in both `value` and AutoAttack accuracy, the most robust first."""
    found: list[Row] = []
    for row in sorted(rows, key=lambda row: (-row[RANK_METRIC].mean, -value(row))):
        if not found or value(row) > value(found[-1]):
            found.append(row)
    return found


def limits(values: Iterable[float]) -> Span:
    """Room for labels around the points, and at least six points wide: small differences should look small."""
    values = list(values)
    middle, half = (min(values) + max(values)) / 2, max(3.0, 0.62 * (max(values) - min(values)))
    return middle - half, min(middle + half, 100.5)


def labels(rows: Sequence[Row | AcrossTasksRow]) -> list[str]:
    """A short name for each, with the teacher where two would have the same."""
    plain = Counter(row.label for row in rows)
    return [
        short(row.label if plain[row.label] == 1 else f"{row.label}, {row.teacher}") for row in rows
    ]


def short(name: str) -> str:
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"


def percent(value: float) -> float:
    return 100 * value


def _some(group: TaskTable) -> list[Row]:
    return [row for row in group.contenders if row[RANK_METRIC].n][:MOST]


def _near(rows: Sequence[Row]) -> list[Row]:
    """Rows not so far behind the most robust that the others could not be told apart; half of them at least."""
    scores = [row[RANK_METRIC].mean for row in rows]
    least = min(NEAR * max(scores), median_low(scores))
    return [row for row in rows if row[RANK_METRIC].mean >= least]


def _below(rows: Sequence[Row], frame: Span) -> str:
    far = sum(percent(row[RANK_METRIC].mean) < frame[0] for row in rows)
    lie = "1 row lies" if far == 1 else f"{far} rows lie"
    return f" {lie} below the frame." if far else ""


def _cut(group: TaskTable) -> str:
    count = sum(bool(row[RANK_METRIC].n) for row in group.contenders)
    return f" The first {MOST} of {count} rows." if count > MOST else ""


def _both(rows: Sequence[Row]) -> str:
    """The attack that judged both best and last checkpoints; "" where none did."""
    for name in ("aa", "pgd20"):
        if any(row[f"test_last/{name}"].n and row[f"test/{name}"].n for row in rows):
            return name
    return ""


def _drop(row: Row, attack: str, records: Records) -> float:
    """Mean loss of accuracy from the best checkpoint to the last, over the runs that have both; NaN for none."""
    runs = [records[run] for run in row.run_ids]
    drops = [
        run.get(f"test/{attack}", math.nan) - run.get(f"test_last/{attack}", math.nan)
        for run in runs
    ]
    known = [drop for drop in drops if drop == drop]
    return sum(known) / len(known) if known else math.nan


def _dots(rows: Sequence[Row], metric: str, name: str) -> Series:
    found = [(percent(row[metric].mean), place) for place, row in enumerate(rows) if row[metric].n]
    return Series(name, [x for x, _ in found], [y for _, y in found])


def _points(rows: Sequence[Row], metric: str, shown: set[int]) -> Series:
    """A point a row: a metric, accuracy in percent or time in minutes, and AutoAttack accuracy, with their spread."""
    scale = 1 / 60 if metric == TRAIN_SECONDS else 100
    x, y = [row[metric] for row in rows], [row[RANK_METRIC] for row in rows]
    return Series(
        "",
        [scale * cell.mean for cell in x],
        [percent(cell.mean) for cell in y],
        (_end(x, scale, -1), _end(y, 100, -1)),
        (_end(x, scale, 1), _end(y, 100, 1)),
        labels(rows),
        [id(row) in shown for row in rows],
    )


def _end(cells: Iterable[SeedSummary], scale: float, sign: int) -> list[float]:
    return [scale * (cell.mean + sign * cell.sd) for cell in cells]


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else "".join(names)


def _number(text: Any) -> float:
    try:
        return float(text)
    except (TypeError, ValueError):
        return math.nan
