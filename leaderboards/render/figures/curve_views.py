"""The charts of what was measured at each epoch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean

from leaderboards.render.figures.views import Series, View
from leaderboards.schema import metrics
from leaderboards.schema.metrics import LEARNING_RATE, MONITOR, TRAIN, VAL, Curve, Curves

MAX_POINTS = 64  # of a line: with more, a site of 100 runs of 200 epochs would exceed 2 MB
# The beginning of a metric's name: title, title of the y axis, factor.
CHARTS = {
    VAL: ("Validation", "Accuracy, %", 100.0),
    TRAIN: ("Loss terms", "Mean over the epoch", 1.0),
    MONITOR: ("Beside the loss", "Mean over the epoch", 1.0),
    LEARNING_RATE: ("Learning rate", "Learning rate", 1.0),
}
TITLES = {
    metrics.VAL_ROBUST: "Robust validation accuracy",
    metrics.VAL_CLEAN: "Clean validation accuracy",
}


def mean_curves(runs: Sequence[Curves]) -> dict[str, Curve]:
    """Average each metric over the runs that have it, at the epochs that all of these have."""
    curves = defaultdict(list)
    for run in runs:
        for metric, curve in run.items():
            if curve[0]:
                curves[metric].append(dict(zip(*curve, strict=True)))
    means: dict[str, Curve] = {}
    for metric, lines in curves.items():
        if shared := sorted(set(lines[0]).intersection(*lines)):
            means[metric] = shared, [fmean([line[step] for line in lines]) for step in shared]
    return means


def run_views(curves: Curves) -> list[View]:
    """Return the charts of a run: accuracies in percent, what training logs, the learning rate."""
    views = []
    for prefix, (title, y_title, scale) in CHARTS.items():
        lines, sentences = [], []
        for metric, curve in sorted(curves.items()):
            if curve[0] and metric.startswith(prefix):
                name = metric.removeprefix(prefix) or metric
                scaled = _scale_curve(curve, scale)
                lines.append(_thin_line(name, scaled))
                sentences.append(_describe_curve(name, scaled, with_highest=prefix == VAL))
        if lines:
            name, caption = prefix.strip("/"), f"{'; '.join(sentences)}."
            views.append(View(name, title, caption, "Epoch", y_title, tuple(lines)))
    return views


def method_views(rows: Sequence[tuple[str, Curves]]) -> list[View]:
    """Return a chart a metric with a line a row (name, mean curves): validation, then others."""
    names = {name for _, curves in rows for name in curves} - {LEARNING_RATE}
    first = [metric for metric in TITLES if metric in names]
    views = []
    for metric in (*first, *sorted(names.difference(first))):
        kind, _, term = metric.partition("/")
        _, y_title, scale = CHARTS[f"{kind}/"]
        lines = []
        for name, curves in rows:
            if metric in curves:
                lines.append(_thin_line(name, _scale_curve(curves[metric], scale)))
        kind_title = "Loss" if metric.startswith(TRAIN) else "Beside the loss"
        title = TITLES.get(metric, f"{kind_title}: {term.replace('_', ' ')}")
        caption = "A line a row, averaged over its seeds."
        views.append(View(metric, title, caption, "Epoch", y_title, tuple(lines)))
    return views


def _scale_curve(curve: Curve, scale: float) -> Curve:
    return curve[0], [scale * value for value in curve[1]]


def _thin_line(name: str, curve: Curve) -> Series:
    """Keep every n-th epoch and the last one, at most MAX_POINTS."""
    steps, values = curve
    every = -(-len(steps) // MAX_POINTS)
    first = (len(steps) - 1) % every
    return Series(name, _as_range(steps[first::every]), values[first::every], line=True)


def _as_range(steps: Sequence[int]) -> Sequence[int]:
    # A page stores a range as two numbers.
    if len(steps) == 1:
        return range(steps[0], steps[0] + 1)
    regular = range(steps[0], steps[-1] + 1, steps[1] - steps[0])
    return regular if [*regular] == [*steps] else steps


def _describe_curve(name: str, curve: Curve, with_highest: bool) -> str:
    """Say where a line begins and ends, and where it is highest."""
    steps, values = curve
    sentence = f"{name} from {values[0]:.4g} to {values[-1]:.4g}"
    if not with_highest:
        return sentence
    highest = max(values)
    return f"{sentence}, highest {highest:.4g} at epoch {steps[values.index(highest)]}"
