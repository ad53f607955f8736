"""The charts of a task, accuracies in percent."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from statistics import median_low
from typing import Any, TypeAlias

from leaderboards.render.figures.views import MAX_ROWS, Bars, Series, View, row_labels, shorten_name
from leaderboards.schema import metrics
from leaderboards.schema.metrics import CLEAN, RANK_METRIC, TRAIN_SECONDS, accuracy_name
from leaderboards.stats.ranks import Array
from leaderboards.tables.protocol_changes import without_eps_change
from leaderboards.tables.rows import Row, TaskTable

ROBUST = "AutoAttack accuracy, %"
NEAR_BEST = 0.85  # of the best AutoAttack accuracy; the frame may cut off rows below it
MIN_SECONDS = 1e-3  # of training that a logarithmic scale can show
FAMILIES = ("distiller", "control", "teacher-free")  # in the order of colours
FamilyOf: TypeAlias = Callable[[str], str]
Runs: TypeAlias = Mapping[str, Mapping[str, Any]]  # rows of `collect`'s frame by run id


def task_views(table: TaskTable, runs: Runs, family_of: FamilyOf = lambda method: "") -> list[View]:
    """Return every chart of a task for which something was measured.

    family_of: the family of a method by its name, which its points are coloured by; "" for none.
    """
    charts = [accuracy_view(table, family_of), seeds_view(table, runs), attacks_view(table)]
    charts += [checkpoints_view(table, runs), cost_view(table, family_of), eps_view(table, runs)]
    return [*filter(None, charts)]


def win_matrix(table: TaskTable) -> tuple[list[str], Array] | None:
    """Return the names of the compared rows, best first, and how likely each beats each other.

    None unless 2 to MAX_ROWS rows are compared.
    """
    if table.comparison is None or not 2 <= len(table.contenders) <= MAX_ROWS:
        return None
    return row_labels(table.contenders), table.comparison.win_probabilities


def accuracy_view(table: TaskTable, family_of: FamilyOf = lambda method: "") -> View | None:
    """Chart robust against clean accuracy, with the Pareto front."""
    rows = [row for row in table.contenders if row[CLEAN].n]
    if not rows:
        return None
    front = pareto_front(rows, lambda row: row[CLEAN].mean)
    frame = frame_limits(rows, CLEAN), frame_limits(rows, RANK_METRIC)
    caption = (
        "Up and to the right is better; bars are one standard deviation over seeds. On the Pareto "
        f"front, which no row beats in both: {joined_labels(front)}.{note_below(rows, frame[1])}"
    )
    x, y = _means(front, CLEAN), _means(front, RANK_METRIC)
    line = Series("Pareto front", x, y, line=True, muted=True)
    series = (line, *family_points(table, rows, CLEAN, front, family_of))
    title, x_title = "Robust and clean", "Clean accuracy, %"
    return View("scatter", title, caption, x_title, ROBUST, series, frame=frame)


def seeds_view(table: TaskTable, runs: Runs) -> View | None:
    """Chart each row's AutoAttack accuracy with its interval, and its seeds as dots."""
    rows = table.contenders[:MAX_ROWS]
    dots = _seed_dots(rows, runs)
    intervals = [row.ranking.interval or (math.nan, math.nan) for row in rows]
    bars = [100 * low for low, _ in intervals], [100 * high for _, high in intervals]
    no_bars = [math.nan] * len(rows)
    y = range(len(rows))
    means = Series("Mean", _means(rows, RANK_METRIC), y, bars, (no_bars, no_bars))
    caption = (
        f"Bars are each row's own 95 % interval{', dots are seeds' if dots.x else ''}. "
        "Rows whose bars overlap may still differ: they are compared on the same images, and the "
        "rank says what came of it."
    )
    series = [dots, means] if dots.x else [means]
    return _rows_view(table, "seeds", "Intervals and seeds", caption, ROBUST, series)


def attacks_view(table: TaskTable) -> View | None:
    """Chart the accuracy of every row under each attack."""
    prefix = metrics.TEST_PREFIXES[0]
    columns = [column for column in table.columns if column.metric.startswith(prefix)]
    if len(columns) < 2:
        return None
    attacks = [column for column in columns if column.metric != metrics.WORST]
    series = [_dots(table, column.metric, column.label) for column in attacks]
    caption = "A long way from PGD-20 to AutoAttack hints at gradients that mislead attacks."
    return _rows_view(table, "attacks", "Attacks", caption, "Accuracy, %", series)


def checkpoints_view(table: TaskTable, runs: Runs) -> View | None:
    """Chart the best checkpoint beside the last one and the averages: robust overfitting."""
    rows = table.contenders[:MAX_ROWS]
    attack = _attack_on_last(rows)
    if not attack:
        return None
    labels = metrics.CHECKPOINT_LABELS.items()
    series = [_dots(table, f"{prefix}/{attack}", label) for prefix, label in labels]
    series = [dots for dots in series if dots.x]
    drops = [_mean_drop(row, attack, runs) for row in rows]
    named_drops = zip(drops, row_labels(rows), strict=True)
    worst, name = max((drop for drop in named_drops if drop[0] > 0), default=(0.0, ""))
    loser = f"{name} loses most: {100 * worst:.1f} points" if worst > 0 else "no row loses"
    caption = (
        "The checkpoint that validation chose (best) beside that of the last epoch and averages of "
        f"the weights. From best to last, on the same images, {loser}."
    )
    x_title = f"{metrics.ATTACK_LABELS[attack]} accuracy, %"
    return _rows_view(table, "last", "Best and last", caption, x_title, series)


def cost_view(table: TaskTable, family_of: FamilyOf = lambda method: "") -> View | None:
    """Chart robust accuracy against minutes of training."""
    rows = [row for row in table.contenders if row[TRAIN_SECONDS].mean > MIN_SECONDS]
    if not rows:
        return None
    front = pareto_front(rows, lambda row: -row[TRAIN_SECONDS].mean)
    frame = None, frame_limits(rows, RANK_METRIC)
    caption = (
        "Up and to the left is better. No row is both cheaper and more robust than: "
        f"{joined_labels(front)}. Times compare only where the machine was the same and idle."
        f"{note_below(rows, frame[1])}"
    )
    series = (*family_points(table, rows, TRAIN_SECONDS, front, family_of),)
    x_title = "Training, minutes (logarithmic)"
    return View("cost", "Cost", caption, x_title, ROBUST, series, frame=frame, log_x=True)


def eps_view(table: TaskTable, runs: Runs) -> View | None:
    """Chart robust accuracy against eps, for settings that were recorded at several."""
    lines: defaultdict[tuple[str, ...], dict[float, float]] = defaultdict(dict)
    for row in table.ranked:
        eps = float(runs[row.run_ids[0]].get("param/eps", math.nan))
        if row.is_scored and not math.isnan(eps):
            changed = without_eps_change(row.changed)
            points = lines[row.method, row.variant, row.teacher, changed]
            points.setdefault(eps, 100 * row.score)
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
    rows = table.contenders[:MAX_ROWS]
    if not rows:
        return None
    if len(rows) < len(table.contenders):
        caption += f" The first {MAX_ROWS} of {len(table.contenders)} rows."
    return View(name, title, caption, x_title, "", tuple(series), tuple(row_labels(rows)))


def pareto_front(
    rows: Iterable[Row],
    value: Callable[[Row], float],
    robust: Callable[[Row], float] = lambda row: row.score,
) -> list[Row]:
    """Return the rows that none beats in both `value` and `robust`, the most robust first."""
    front: list[Row] = []
    for row in sorted(rows, key=lambda row: (-robust(row), -value(row))):
        if not front or value(row) > value(front[-1]):
            front.append(row)
    return front


def _means(rows: Iterable[Row], metric: str, scale: float = 100) -> list[float]:
    return [scale * row[metric].mean for row in rows]


def frame_limits(rows: Sequence[Row], metric: str) -> tuple[float, float]:
    """Frame the rows near the best and at least the better half."""
    scale = metrics.describe_metric(metric).scale
    scores = [row.score for row in rows]
    threshold = min(NEAR_BEST * max(scores), median_low(scores))
    values = _means([row for row in rows if row.score >= threshold], metric, scale)
    low, high = min(values), max(values)
    # Names need room, and in a narrow frame small differences would look large.
    middle = (low + high) / 2
    half = max(0.03 * scale, 0.62 * (high - low))
    return middle - half, min(middle + half, 1.005 * scale)


def note_below(rows: Iterable[Row], frame: tuple[float, float]) -> str:
    """Return how many rows have less AutoAttack accuracy than a frame shows, or ""."""
    below = sum(accuracy < frame[0] for accuracy in _means(rows, RANK_METRIC))
    if not below:
        return ""
    return f" {'1 row lies' if below == 1 else f'{below} rows lie'} below the frame."


def joined_labels(rows: Sequence[Row]) -> str:
    """Return the labels of rows as a list in a sentence."""
    *names, last = row_labels(rows)
    return f"{', '.join(names)} and {last}" if names else last


def _attack_on_last(rows: Sequence[Row]) -> str:
    """Return the attack that was run on best and last checkpoints; "" if none was."""
    for attack in ("aa", "pgd20"):
        names = accuracy_name(attack), accuracy_name(attack, "last")
        if any(all(row[name].n for name in names) for row in rows):
            return attack
    return ""


def _mean_drop(row: Row, attack: str, runs: Runs) -> float:
    """Return the mean loss from best to last, over runs that have both; NaN for none."""
    drops = [runs[run_id]["record"].drop(attack) for run_id in row.run_ids]
    drops = [drop for drop in drops if not math.isnan(drop)]
    return sum(drops) / len(drops) if drops else math.nan


def _seed_dots(rows: Sequence[Row], runs: Runs) -> Series:
    x, y = [], []
    for position, row in enumerate(rows):
        for run_id in row.run_ids:
            accuracy = float(runs[run_id].get(RANK_METRIC, math.nan))
            if row.seeds > 1 and not math.isnan(accuracy):
                x.append(100 * accuracy)
                y.append(position)
    return Series("Seeds", x, y, muted=True)


def _dots(table: TaskTable, metric: str, name: str) -> Series:
    rows = table.contenders[:MAX_ROWS]
    y = [position for position, row in enumerate(rows) if row[metric].n]
    return Series(name, _means([rows[position] for position in y], metric), y)


def family_points(
    table: TaskTable,
    rows: Sequence[Row],
    metric: str,
    front: Iterable[Row],
    family_of: FamilyOf,
    y_metric: str = RANK_METRIC,
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
    scale, y_scale = (metrics.describe_metric(name).scale for name in (metric, y_metric))
    for (family, teacher), members in sorted(groups.items()):
        keys = [*map(id, members)]
        look = None
        if family:
            look = (FAMILIES.index(family), teachers.index(teacher), family == "control")
        has_choice = len(teachers) > 2 and teacher != "none"
        yield Series(
            shorten_name(f"{family}, {teacher}") if has_choice and family else family,
            _means(members, metric, scale),
            _means(members, y_metric, y_scale),
            _spread(members, metric, scale),
            _spread(members, y_metric, y_scale),
            [labels[key] for key in keys],
            [key in front_ids for key in keys],
            ids=[row_ids[key] for key in keys],
            look=look,
        )


def _spread(rows: Iterable[Row], metric: str, scale: float = 100) -> Bars:
    summaries = [row[metric] for row in rows]
    lows = [scale * (summary.mean - summary.sd) for summary in summaries]
    return lows, [scale * (summary.mean + summary.sd) for summary in summaries]
