"""The charts of the analysis: of a task, of a run, of correlations, of pairs of models."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from leaderboards.render.figures.task_views import (
    ROBUST,
    FamilyOf,
    family_points,
    frame_limits,
    joined_labels,
    note_below,
    pareto_front,
)
from leaderboards.render.figures.views import MAX_ROWS, Series, View, row_labels, shorten_name
from leaderboards.schema import analysis
from leaderboards.schema.analysis import GROUPS, Analysis
from leaderboards.schema.metrics import CLEAN, RANK_METRIC, accuracy_name
from leaderboards.schema.record import Record
from leaderboards.stats.correlation import Correlation, rank_correlation
from leaderboards.tables.analysis_tables import AnalysisTable, Runs
from leaderboards.tables.model_pairs import ModelComparison
from leaderboards.tables.rows import Row
from leaderboards.tables.what_teaches import MeasureCorrelation

Line = list[tuple[float, float]]
RADIUS = "Radius, as a share of the suite's"
COLOURS = 8  # of a page, and as many symbols; the classes behind them are hollow
# The measure that the chart of a group shows against AutoAttack.
CHARTED = {analysis.STRUCTURE: "cka", analysis.FEATURES: "cosine"}
READINGS = {
    analysis.STRUCTURE: "To the right a student's features are more like its teacher's.",
    analysis.FEATURES: "To the right features move less under attack.",
}
PGD20 = accuracy_name("pgd20")
PLAIN_TRAINING = "natural"


def group_views(
    table: AnalysisTable, teacher: Row | None, runs: Runs, family_of: FamilyOf
) -> list[View]:
    """Return the chart of a group of measures over the rows of a task; [] without its numbers."""
    name = table.group.name
    if name == analysis.GRADIENTS:
        return [*filter(None, [radius_view(table, teacher, runs)])]
    if name == analysis.TASKS:
        return [*probe_views(table, family_of)]
    metrics = [metric for metric in table.main if _is_measure(metric, CHARTED.get(name))]
    return [*filter(None, (measure_view(table, metric, runs, family_of) for metric in metrics))]


def _is_measure(metric: str, name: str | None) -> bool:
    parts = analysis.split_name(metric)
    return parts is not None and parts[1].name == name


def measure_view(table: AnalysisTable, metric: str, runs: Runs, family_of: FamilyOf) -> View | None:
    """Chart AutoAttack accuracy against a measure, a point a row."""
    rows = [row for row in table.table.ranked if row[metric].n and row.is_scored]
    if not rows:
        return None
    front = pareto_front(rows, lambda row: row[metric].mean)
    frame = frame_limits(rows, metric), frame_limits(rows, RANK_METRIC)
    caption = (
        f"{READINGS[table.group.name]} Bars are one standard deviation over seeds. Named are the "
        f"rows that none beats in both: {joined_labels(front)}.{note_below(rows, frame[1])}"
        f"{_correlation_text(rows, metric, runs)}"
    )
    label = analysis.measure_label(metric)
    series = (*family_points(table.table, rows, metric, front, family_of),)
    return View(table.group.name, label, caption, label, ROBUST, series, frame=frame)


def _correlation_text(rows: Sequence[Row], metric: str, runs: Runs) -> str:
    records = [(row.method, runs[run_id]["record"]) for row in rows for run_id in row.run_ids]
    x, y = (
        np.array([record.metrics.get(name, math.nan) for _, record in records])
        for name in (metric, RANK_METRIC)
    )
    correlation = rank_correlation(x, y, [method for method, _ in records])
    if correlation is None:
        return ""
    return (
        f" Spearman's rank correlation over {correlation.methods} methods is "
        f"{correlation.value:.2f} [{correlation.low:.2f}, {correlation.high:.2f}]; "
        "that is no proof of a cause."
    )


def probe_views(table: AnalysisTable, family_of: FamilyOf) -> Iterator[View]:
    """Chart the robust against the clean accuracy of linear probes, a chart a data set."""
    columns = [column.metric for column in table.table.columns]
    for dataset, clean, robust in analysis.probe_pairs(columns):
        rows = [row for row in table.table.ranked if row[clean].n and row[robust].n]
        if rows:
            yield _probe_view(table, dataset, rows, (clean, robust), family_of)


def _probe_view(
    table: AnalysisTable,
    dataset: str,
    rows: Sequence[Row],
    probe: tuple[str, str],
    family_of: FamilyOf,
) -> View:
    clean, robust = probe
    front = pareto_front(rows, lambda row: row[clean].mean, lambda row: row[robust].mean)
    points = family_points(table.table, rows, clean, front, family_of, robust)
    caption = (
        f"The student is frozen, a linear classifier is fitted to its features on {dataset}, and "
        "both are attacked end to end. Bars are one standard deviation over seeds. Named are the "
        f"rows that none beats in both: {joined_labels(front)}."
    )
    x_title, y_title = f"Clean accuracy on {dataset}, %", f"PGD-20 accuracy on {dataset}, %"
    frame = frame_limits(rows, clean), frame_limits(rows, robust)
    return View(f"probe-{dataset}", dataset, caption, x_title, y_title, (*points,), frame=frame)


def radius_view(table: AnalysisTable, teacher: Row | None, runs: Runs) -> View | None:
    """Chart accuracy against the radius: best row, plain training and teacher before the others.

    The teacher has two points, from its own evaluation: unattacked and at the suite's radius.
    """
    rows = table.table.ranked
    lines = dict(zip(row_labels(rows), (_mean_line(row, runs) for row in rows), strict=True))
    measured = {label: line for label, line in lines.items() if line}
    if not measured:
        return None
    best = next(iter(measured))
    plain = [
        label
        for row, label in zip(rows, lines, strict=True)
        if row.method == PLAIN_TRAINING and label in measured
    ]
    strong = {best: measured[best]} | {label: measured[label] for label in plain[:1]}
    others = {label: line for label, line in measured.items() if label not in strong}
    series = [_joined_lines(others)] if others else []
    for name, line in strong.items():
        series.append(Series(name, [x for x, _ in line], [100 * y for _, y in line], line=True))
    if teacher and teacher[PGD20].n:
        accuracies = [100 * teacher[name].mean for name in (CLEAN, PGD20)]
        series.append(Series("teacher", [0, 1], accuracies))
    caption = (
        f"PGD-20 at radii from 0 to twice the suite's, mean over seeds; {best} has the highest "
        f"AutoAttack accuracy{', natural trains on clean images alone' if plain else ''}. Dotted "
        "lines are the other rows; the teacher's points are of its own evaluation."
    )
    title = "Accuracy over the radius"
    return View("radius", title, caption, RADIUS, "PGD-20 accuracy, %", tuple(series))


def _mean_line(row: Row, runs: Runs) -> Line:
    """Average a row's accuracies by radius over the runs that have them."""
    values: defaultdict[float, list[float]] = defaultdict(list)
    for run_id in row.run_ids:
        kept = runs[run_id]["record"].analysis
        for x, y in kept.lines.get(analysis.BY_EPS, ()) if kept else ():
            values[x].append(y)
    most = max(map(len, values.values()), default=0)
    return [(x, sum(ys) / most) for x, ys in sorted(values.items()) if len(ys) == most]


def _joined_lines(lines: Mapping[str, Line]) -> Series:
    """Join lines to one series, in percent, with a gap between each two."""
    x: list[float] = []
    y: list[float] = []
    names: list[str] = []
    for name, line in lines.items():
        x += [*(radius for radius, _ in line), math.nan]
        y += [*(100 * accuracy for _, accuracy in line), math.nan]
        names += [name] * (len(line) + 1)
    return Series("Others", x, y, names=names, line=True, muted=True)


def run_views(kept: Analysis) -> list[View]:
    """Return the lines of a run as charts: accuracy by radius and by steps, loss by direction."""
    views = []
    for name, title, x_title in (
        (analysis.BY_EPS, "Accuracy over the radius", RADIUS),
        (analysis.BY_STEPS, "Accuracy over steps", "Steps of PGD (logarithmic)"),
    ):
        line = kept.lines.get(name, [])
        if line:
            x, y = [x for x, _ in line], [100 * y for _, y in line]
            caption = f"From {y[0]:.1f} to {y[-1]:.1f} %, on the first {kept.images:,} test images."
            log_x = name == analysis.BY_STEPS and min(x) > 0
            drawn = (Series("", x, y, line=True),)
            views.append(View(name, title, caption, x_title, "Accuracy, %", drawn, log_x=log_x))
    directions = {"along the attack": analysis.LOSS_ATTACK, "along noise": analysis.LOSS_RANDOM}
    lines = {label: kept.lines.get(name, []) for label, name in directions.items()}
    series = tuple(
        Series(label, [x for x, _ in line], [y for _, y in line], line=True)
        for label, line in lines.items()
        if line
    )
    if series:
        caption = (
            "Mean cross-entropy on the way from an image, 0, to its adversarial example, 1, and to "
            "a random corner of the same ball. Noise that raises the loss as the attack does hints "
            "at gradients that lead nowhere."
        )
        x_title, y_title = "Share of the way", "Cross-entropy"
        views.append(View("loss", "Loss surface", caption, x_title, y_title, series))
    return views


def tsne_views(kept: Analysis) -> list[View]:
    """Return the t-SNE of features, clean and adversarial, a colour and a symbol a class."""
    views = []
    for view, label in analysis.VIEWS.items():
        points = kept.points.get(f"{analysis.TSNE}/{view}", [])
        if points:
            caption = f"Features of {len(points)} {label} images, by class."
            name = f"tsne-{view}"
            title = f"t-SNE, {label}"
            views.append(View(name, title, caption, "", "", (*_class_points(points),)))
    return views


def _class_points(points: Iterable[tuple[float, float, int]]) -> Iterator[Series]:
    by_class: defaultdict[int, Line] = defaultdict(list)
    for x, y, label in points:
        by_class[label].append((x, y))
    for label, members in sorted(by_class.items()):
        look = label % COLOURS, label % COLOURS, label // COLOURS % 2 == 1
        yield Series(str(label), [x for x, _ in members], [y for _, y in members], look=look)


def correlation_view(entries: Sequence[MeasureCorrelation]) -> View | None:
    """Chart the correlations of main metrics with AutoAttack accuracy, with their intervals."""
    metrics = [entry.metric for entry in entries]
    main = {name for group in GROUPS for name in analysis.main_metrics(metrics, group)}
    shown = [(each, each.distilled) for each in entries if each.distilled and each.metric in main]
    if not shown:
        return None
    names = tuple(entry.label for entry, _ in shown)
    values = [correlation for _, correlation in shown]
    zero = Series("", [0, 0], [-0.6, len(shown) - 0.4], line=True, muted=True)
    caption = (
        "Spearman's rank correlation with AutoAttack accuracy over the runs that have a teacher, "
        "and its 95 % interval; one across 0 decides nothing. Of each measure the form under "
        "attack, before the classifier, is here; the others are in the table."
    )
    series = (zero, _correlation_dots(values))
    x_title = "Rank correlation"
    frame = (-1.02, 1.02), None
    return View("correlations", "Correlations", caption, x_title, "", series, names, frame)


def _correlation_dots(values: Sequence[Correlation]) -> Series:
    bars = [value.low for value in values], [value.high for value in values]
    no_bars = [math.nan] * len(values)
    x = [value.value for value in values]
    return Series("", x, range(len(values)), bars, (no_bars, no_bars))


def models_view(comparison: ModelComparison) -> View:
    """Chart AutoAttack accuracy by teacher and student, a series a method."""
    architectures = comparison.architectures[:MAX_ROWS]
    position = {pair: row for row, pair in enumerate(architectures)}
    dots: defaultdict[str, Line] = defaultdict(list)
    for pair in comparison.pairs:
        row = position.get((pair.teacher, pair.row.student))
        if row is not None:
            dots[pair.row.label].append((100 * pair.row.score, row))
    series = []
    for label, points in dots.items():
        x, y = zip(*points, strict=True)
        series.append(Series(shorten_name(label), x, y))
    names = tuple(shorten_name(f"{teacher} > {student}") for teacher, student in architectures)
    caption = "A line is a teacher and its student, a point the mean of a method over seeds."
    title = comparison.title
    return View("models", title, caption, ROBUST, "", tuple(series), names)


def correlation_maps(record: Record) -> list[tuple[str, list[tuple[str, list[list[float]]]]]]:
    """Return (view, (network, matrix) pairs) of a run: student, teacher and their difference."""
    kept = record.analysis
    maps = []
    for view, label in analysis.VIEWS.items():
        pair = []
        for network in ("student", "teacher"):
            matrix = kept.matrices.get(f"{analysis.CORRELATION}/{network}/{view}") if kept else None
            if matrix:
                pair.append((network, matrix))
        if len(pair) == 2:
            difference = np.subtract(pair[0][1], pair[1][1])
            pair.append(("difference", difference.tolist()))
        if pair:
            maps.append((label, pair))
    return maps
