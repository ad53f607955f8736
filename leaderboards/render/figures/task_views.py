"""The charts of a task, accuracies in percent."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from operator import attrgetter
from statistics import median_low
from typing import Any, TypeAlias

from leaderboards.render.figures.views import (
    MAX_ROWS,
    Bars,
    Series,
    Span,
    View,
    row_labels,
    shorten_name,
)
from leaderboards.schema.metrics import (
    ATTACK_LABELS,
    CHECKPOINT_LABELS,
    CLEAN,
    RANK_METRIC,
    TEST_PREFIXES,
    TRAIN_SECONDS,
    WORST,
    accuracy_name,
    describe_metric,
)
from leaderboards.tables.protocol_changes import without_eps_change
from leaderboards.tables.rows import Row, TaskTable

ROBUST = "AutoAttack accuracy, %"
NEAR_BEST = 0.85  # of the best AutoAttack accuracy; the frame may cut off rows below it
MIN_SECONDS = 1e-3  # of training that a logarithmic scale can show
FAMILIES = ("distiller", "control", "teacher-free")  # in the order of colours
FamilyOf: TypeAlias = Callable[[str], str]
Runs: TypeAlias = Mapping[str, Mapping[str, Any]]  # rows of `collect`'s frame by run id


def no_family(method: str) -> str:
    """Return "": points then have one colour."""
    return ""


def task_views(table: TaskTable, runs: Runs, family_of: FamilyOf = no_family) -> list[View]:
    """Return every chart of a task for which something was measured.

    family_of: the family of a method by its name, which its points are coloured by.
    """
    views = [accuracy_view(table, family_of), seeds_view(table, runs), attacks_view(table)]
    views += [checkpoints_view(table, runs), cost_view(table, family_of), eps_view(table, runs)]
    return [*filter(None, views)]


def accuracy_view(table: TaskTable, family_of: FamilyOf = no_family) -> View | None:
    """Chart robust against clean accuracy, with the Pareto front."""
    rows = _measured(table.contenders, CLEAN)
    if not rows:
        return None
    front = pareto_front(rows, lambda row: row[CLEAN].mean)
    frame = _limits(_near_best(rows), CLEAN), _limits(_near_best(rows), RANK_METRIC)
    caption = (
        "Up and to the right is better; bars are one standard deviation over seeds. On the Pareto "
        f"front, which no row beats in both: {_joined_labels(front)}.{_note_below(rows, frame[1])}"
    )
    x, y = _means(front, CLEAN), _means(front, RANK_METRIC)
    line = Series("Pareto front", x, y, line=True, muted=True)
    series = (line, *_family_points(table, rows, CLEAN, front, family_of))
    title, x_title = "Robust and clean", "Clean accuracy, %"
    return View("scatter", title, caption, x_title, ROBUST, series, frame=frame)


def seeds_view(table: TaskTable, runs: Runs) -> View | None:
    """Chart each row's AutoAttack accuracy with its interval, and its seeds as dots."""
    rows = _shown_rows(table)
    dots = _seed_dots(rows, runs)
    lows, highs = [], []
    for row in rows:
        low, high = row.ranking.interval or (math.nan, math.nan)
        lows.append(100 * low)
        highs.append(100 * high)
    no_bars = [math.nan] * len(rows)
    y = range(len(rows))
    means = Series("Mean", _means(rows, RANK_METRIC), y, (lows, highs), (no_bars, no_bars))
    caption = (
        f"Bars are each row's own 95 % interval{', dots are seeds' if dots.x else ''}. "
        "Rows whose bars overlap may still differ: they are compared on the same images, and the "
        "rank says what came of it."
    )
    series = [dots, means] if dots.x else [means]
    return _rows_view(table, "seeds", "Intervals and seeds", caption, ROBUST, series)


def attacks_view(table: TaskTable) -> View | None:
    """Chart the accuracy of every row under each attack."""
    columns = [column for column in table.columns if column.metric.startswith(TEST_PREFIXES[0])]
    if len(columns) < 2:
        return None
    rows = _shown_rows(table)
    series = []
    for column in columns:
        if column.metric != WORST:
            series.append(_dots(rows, column.metric, column.label))
    caption = "A long way from PGD-20 to AutoAttack hints at gradients that mislead attacks."
    return _rows_view(table, "attacks", "Attacks", caption, "Accuracy, %", series)


def checkpoints_view(table: TaskTable, runs: Runs) -> View | None:
    """Chart the best checkpoint beside the last one and the averages: robust overfitting."""
    rows = _shown_rows(table)
    attack = _attack_on_last(rows)
    if not attack:
        return None
    series = []
    for prefix, checkpoint in CHECKPOINT_LABELS.items():
        dots = _dots(rows, f"{prefix}/{attack}", checkpoint)
        if dots.x:
            series.append(dots)
    drops = []
    for row, name in zip(rows, row_labels(rows), strict=True):
        drop = _mean_drop(row, attack, runs)
        if not math.isnan(drop):
            drops.append((drop, name))
    worst, name = max(drops, default=(0.0, ""))
    loser = f"{name} loses most: {100 * worst:.1f} points" if worst > 0 else "no row loses"
    caption = (
        "The checkpoint that validation chose (best) beside that of the last epoch and averages of "
        f"the weights. From best to last, {loser}."
    )
    x_title = f"{ATTACK_LABELS[attack]} accuracy, %"
    return _rows_view(table, "last", "Best and last", caption, x_title, series)


def cost_view(table: TaskTable, family_of: FamilyOf = no_family) -> View | None:
    """Chart robust accuracy against minutes of training."""
    rows = []
    for row in table.contenders:
        if row[TRAIN_SECONDS].mean > MIN_SECONDS:
            rows.append(row)
    if not rows:
        return None
    front = pareto_front(rows, lambda row: -row[TRAIN_SECONDS].mean)
    frame = None, _limits(_near_best(rows), RANK_METRIC)
    caption = (
        "Up and to the left is better. No row is both cheaper and more robust than: "
        f"{_joined_labels(front)}. Times compare only where the machine was the same and idle."
        f"{_note_below(rows, frame[1])}"
    )
    series = (*_family_points(table, rows, TRAIN_SECONDS, front, family_of),)
    x_title = "Training, minutes (logarithmic)"
    return View("cost", "Cost", caption, x_title, ROBUST, series, frame=frame, log_x=True)


def eps_view(table: TaskTable, runs: Runs) -> View | None:
    """Chart robust accuracy against eps, for settings that were recorded at several."""
    lines: dict[tuple[str, ...], dict[float, float]] = {}
    for row in _measured(table.ranked, RANK_METRIC):
        eps = _to_float(runs[row.run_ids[0]].get("param/eps"))
        if not math.isnan(eps):
            points = lines.setdefault(_setting_without_eps(row), {})
            points.setdefault(eps, 100 * row[RANK_METRIC].mean)
    series = []
    for setting, points in lines.items():
        if len(points) > 1:
            name = shorten_name(", ".join(filter(None, setting)))
            x, y = zip(*sorted(points.items()), strict=True)
            series.append(Series(name, x, y, line=True))
    if not series:
        return None
    caption = "Each network was trained and attacked at the eps below it."
    return View("eps", "Radius", caption, "eps, in pixels of [0, 1]", ROBUST, tuple(series))


def _rows_view(
    table: TaskTable, name: str, title: str, caption: str, x_title: str, series: Sequence[Series]
) -> View | None:
    """Chart series over the first rows of a table, which count from 0 down."""
    rows = _shown_rows(table)
    if not rows:
        return None
    if len(rows) < len(table.contenders):
        caption += f" The first {MAX_ROWS} of {len(table.contenders)} rows."
    return View(name, title, caption, x_title, "", tuple(series), tuple(row_labels(rows)))


def _shown_rows(table: TaskTable) -> tuple[Row, ...]:
    return table.contenders[:MAX_ROWS]


def pareto_front(rows: Iterable[Row], value: Callable[[Row], float]) -> list[Row]:
    """Return the rows that none beats in both `value` and AutoAttack, the most robust first."""
    front: list[Row] = []
    for row in sorted(rows, key=lambda row: (-row[RANK_METRIC].mean, -value(row))):
        if not front or value(row) > value(front[-1]):
            front.append(row)
    return front


def _measured(rows: Iterable[Row], *metrics: str) -> list[Row]:
    rows = [*rows]
    for metric in metrics:
        rows = [row for row in rows if row[metric].n]
    return rows


def _means(rows: Iterable[Row], metric: str, scale: float = 100) -> list[float]:
    return [scale * row[metric].mean for row in rows]


def _limits(rows: Iterable[Row], metric: str) -> Span:
    # Names need room, and in a narrow frame small differences would look large.
    values = _means(rows, metric)
    low, high = min(values), max(values)
    middle = (low + high) / 2
    half = max(3.0, 0.62 * (high - low))
    return middle - half, min(middle + half, 100.5)


def _near_best(rows: Sequence[Row]) -> list[Row]:
    """Return the rows near the best and at least the better half, which a frame can separate."""
    scores = [*map(attrgetter("score"), rows)]
    threshold = min(NEAR_BEST * max(scores), median_low(scores))
    return [row for row in rows if row.score >= threshold]


def _note_below(rows: Iterable[Row], frame: Span) -> str:
    below = sum(accuracy < frame[0] for accuracy in _means(rows, RANK_METRIC))
    if not below:
        return ""
    return f" {'1 row lies' if below == 1 else f'{below} rows lie'} below the frame."


def _joined_labels(rows: Sequence[Row]) -> str:
    *names, last = row_labels(rows)
    if not names:
        return last
    return f"{', '.join(names)} and {last}"


def _attack_on_last(rows: Sequence[Row]) -> str:
    """Return the attack that was run on best and last checkpoints; "" if none was."""
    for attack in ("aa", "pgd20"):
        if _measured(rows, accuracy_name(attack, "last"), accuracy_name(attack)):
            return attack
    return ""


def _mean_drop(row: Row, attack: str, runs: Runs) -> float:
    """Return the mean loss from best to last, over runs that have both; NaN for none."""
    drops: list[float] = []
    for run_id in row.run_ids:
        run = runs[run_id]
        best = run.get(accuracy_name(attack), math.nan)
        drop = best - run.get(accuracy_name(attack, "last"), math.nan)
        if not math.isnan(drop):
            drops.append(drop)
    if not drops:
        return math.nan
    return sum(drops) / len(drops)


def _seed_dots(rows: Sequence[Row], runs: Runs) -> Series:
    x, y = [], []
    for position, row in enumerate(rows):
        for run_id in row.run_ids:
            accuracy = float(runs[run_id].get(RANK_METRIC, math.nan))
            if row.seeds > 1 and not math.isnan(accuracy):
                x.append(100 * accuracy)
                y.append(position)
    return Series("Seeds", x, y, muted=True)


def _dots(rows: Sequence[Row], metric: str, name: str) -> Series:
    x, y = [], []
    for position, row in enumerate(rows):
        if row[metric].n:
            x.append(100 * row[metric].mean)
            y.append(position)
    return Series(name, x, y)


def _family_points(
    table: TaskTable, rows: Sequence[Row], metric: str, front: Iterable[Row], family_of: FamilyOf
) -> Iterator[Series]:
    """Yield a point a row, one series for rows of no family and one for each family and teacher."""
    # Rows hold dictionaries, so they cannot be elements of a set.
    front_ids = {*map(id, front)}
    row_ids = {id(row): f"r{position}" for position, row in enumerate(table.ranked)}
    labels = dict(zip(map(id, rows), row_labels(rows), strict=True))
    # Symbol 0 is for no teacher.
    teachers = ["none", *sorted({row.teacher for row in rows} - {"none"})]
    groups = defaultdict(list)
    for row in rows:
        family = family_of(row.method)
        groups[family, row.teacher if family else ""].append(row)
    scale = describe_metric(metric).scale
    for (family, teacher), members in sorted(groups.items()):
        keys = [*map(id, members)]
        look = None
        if family:
            look = (FAMILIES.index(family), teachers.index(teacher), family == "control")
        has_choice = len(teachers) > 2 and teacher != "none"
        yield Series(
            shorten_name(f"{family}, {teacher}") if has_choice and family else family,
            _means(members, metric, scale),
            _means(members, RANK_METRIC),
            _spread(members, metric, scale),
            _spread(members, RANK_METRIC),
            [labels[key] for key in keys],
            [key in front_ids for key in keys],
            ids=[row_ids[key] for key in keys],
            look=look,
        )


def _spread(rows: Iterable[Row], metric: str, scale: float = 100) -> Bars:
    lows, highs = [], []
    for row in rows:
        summary = row[metric]
        lows.append(scale * (summary.mean - summary.sd))
        highs.append(scale * (summary.mean + summary.sd))
    return lows, highs


def _setting_without_eps(row: Row) -> tuple[str, ...]:
    return row.method, row.variant, row.teacher, without_eps_change(row.changed)


def _to_float(text: Any) -> float:
    try:
        return float(text)
    except (TypeError, ValueError):
        return math.nan
