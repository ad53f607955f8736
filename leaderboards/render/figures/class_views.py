"""The charts of the accuracies by class of a task, in percent."""

from __future__ import annotations

import math
from collections.abc import Sequence

from leaderboards.render.figures.views import MAX_ROWS, Series, View, row_labels
from leaderboards.schema.metrics import CLEAN, RANK_METRIC, describe_metric
from leaderboards.tables.class_accuracy import ClassRow, ClassTable

NAMES = {RANK_METRIC: "worst-class", CLEAN: "worst-class-clean"}


def class_views(table: ClassTable) -> list[View]:
    """Return a chart of the worst class under AutoAttack, and one on clean images."""
    return [view for metric in NAMES if (view := class_view(table, metric))]


def class_view(table: ClassTable, metric: str) -> View | None:
    """Chart the worst class of each row with its interval, over all its classes as dots."""
    rows = [*enumerate(table.rows[:MAX_ROWS])]
    measured = [(y, row) for y, row in rows if row.get(metric)]
    if not measured:
        return None
    label = describe_metric(metric).label
    claimed = [entry for entry in measured if entry[1].claims_fairness]
    plain = [entry for entry in measured if not entry[1].claims_fairness]
    series = [_class_dots(measured, metric), _means(measured, metric)]
    series.append(_worst(plain, metric, "Worst class"))
    series.append(_worst(claimed, metric, "Worst class, claims fairness"))
    caption = (
        "Small dots are the classes, the mean over seeds. The bar of the lowest is its 95 % "
        "interval over the images of that class and over seeds. Rows are by the worst class under "
        "AutoAttack. The fairer of two rows with one mean has its dots closer together."
    )
    if len(table.rows) > MAX_ROWS:
        caption += f" The first {MAX_ROWS} of {len(table.rows)} rows."
    labels = row_labels([row.row for _, row in rows])
    shown = tuple(item for item in series if item.x)
    x_title = f"{label} accuracy, %"
    return View(NAMES[metric], label, caption, x_title, "", shown, tuple(labels))


Entries = Sequence[tuple[int, ClassRow]]


def _class_dots(entries: Entries, metric: str) -> Series:
    x, y = [], []
    for position, row in entries:
        accuracies = row.summaries[metric].accuracies.values()
        x += [100 * accuracy for accuracy in accuracies]
        y += [position] * len(accuracies)
    return Series("Classes", x, y, muted=True)


def _means(entries: Entries, metric: str) -> Series:
    """Return the mean over images, which is the accuracy of the table."""
    measured = [(y, row.row[metric].mean) for y, row in entries if row.row[metric].n]
    return Series("All images", [100 * mean for _, mean in measured], [y for y, _ in measured])


def _worst(entries: Entries, metric: str, name: str) -> Series:
    summaries = [row.summaries[metric] for _, row in entries]
    lows = [100 * summary.interval[0] for summary in summaries]
    highs = [100 * summary.interval[1] for summary in summaries]
    no_bars = [math.nan] * len(summaries)
    x = [100 * summary.lowest for summary in summaries]
    return Series(name, x, [y for y, _ in entries], (lows, highs), (no_bars, no_bars))
