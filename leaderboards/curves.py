"""What was measured at each epoch, as there is to see."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from leaderboards.fields import Curve, Curves
from leaderboards.views import Series, View

COURSES = {
    "val/": ("Validation", "Accuracy, %", 100.0),
    "train/": ("Loss terms", "Mean over the epoch", 1.0),
    "lr": ("Learning rate", "Learning rate", 1.0),
}


def mean(runs: Sequence[Curves]) -> dict[str, Curve]:
    """Metric -> the mean over the runs that have it, at the epochs that all of these have."""
    found: dict[str, Curve] = {}
    for metric in dict.fromkeys(metric for run in runs for metric in run):
        curves = [run[metric] for run in runs if metric in run]
        steps = curves[0][0]
        if any(other != steps for other, _ in curves):
            every = [dict(zip(*curve, strict=True)) for curve in curves]
            steps = [step for step in steps if all(step in curve for curve in every)]
            curves = [(steps, [curve[step] for step in steps]) for curve in every]
        if steps:
            found[metric] = steps, [*map(fmean, zip(*(values for _, values in curves), strict=True))]
    return found


def of_run(curves: Curves) -> list[View]:
    """Metric -> (epochs, values), as training recorded them; accuracies become percent."""
    views = []
    for prefix, (title, y_title, scale) in COURSES.items():
        series = tuple(
            Series(name.removeprefix(prefix) or name, _epochs(x), [scale * value for value in y], line=True)
            for name, (x, y) in curves.items()
            if name.startswith(prefix)
        )
        if series:
            said = "; ".join(_course(line, highest=prefix == "val/") for line in series)
            views.append(View(prefix.strip("/"), title, f"{said}.", "Epoch", y_title, series))
    return views


def of_method(rows: Sequence[tuple[str, Curves]]) -> list[View]:
    """A line a row, given by name and mean curves, in a figure a metric: validation first, then every loss term."""
    metrics = {metric for _, curves in rows for metric in curves if metric != "lr"}
    first = [name for name in ("val/robust", "val/clean") if name in metrics]
    titles = {"val/robust": "Robust validation accuracy", "val/clean": "Clean validation accuracy"}
    views = []
    for metric in (*first, *sorted(metrics - {*first})):
        _, y_title, scale = COURSES[f"{metric.partition('/')[0]}/"]
        lines = tuple(
            Series(name, _epochs(curves[metric][0]), [scale * value for value in curves[metric][1]], line=True)
            for name, curves in rows
            if metric in curves
        )
        title = titles.get(metric, f"Loss: {metric.partition('/')[2]}")
        views.append(View(metric, title, "A line a row, averaged over its seeds.", "Epoch", y_title, lines))
    return views


def _epochs(steps: Sequence[int]) -> Sequence[int]:
    """As a range where none is left out."""
    first, last = steps[0], steps[-1]
    return range(first, last + 1) if last - first + 1 == len(steps) else steps


def _course(line: Series, highest: bool) -> str:
    """Where a line begins and ends, and where it is highest."""
    said = f"{line.name} from {line.y[0]:.4g} to {line.y[-1]:.4g}"
    top = max(range(len(line.y)), key=line.y.__getitem__)
    return f"{said}, highest {line.y[top]:.4g} at epoch {line.x[top]:.0f}" if highest else said
