"""What was measured at each epoch, as there is to see."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from leaderboards.render.figures.views import Series, View
from leaderboards.schema.fields import Curve, Curves

POINTS = 64  # of a line; with more, a site of 100 runs of 200 epochs would be larger than 2 MB
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
            found[metric] = (
                steps,
                [*map(fmean, zip(*(values for _, values in curves), strict=True))],
            )
    return found


def of_run(curves: Curves) -> list[View]:
    """Metric -> (epochs, values), as training recorded them; accuracies become percent."""
    views = []
    for prefix, (title, y_title, scale) in COURSES.items():
        found = {
            name.removeprefix(prefix) or name: (steps, [scale * value for value in values])
            for name, (steps, values) in curves.items()
            if name.startswith(prefix)
        }
        if found:
            said = "; ".join(
                _course(name, curve, highest=prefix == "val/") for name, curve in found.items()
            )
            lines = tuple(_line(name, curve) for name, curve in found.items())
            views.append(View(prefix.strip("/"), title, f"{said}.", "Epoch", y_title, lines))
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
            _line(name, (curves[metric][0], [scale * value for value in curves[metric][1]]))
            for name, curves in rows
            if metric in curves
        )
        title = titles.get(metric, f"Loss: {metric.partition('/')[2]}")
        views.append(
            View(metric, title, "A line a row, averaged over its seeds.", "Epoch", y_title, lines)
        )
    return views


def _line(name: str, curve: Curve) -> Series:
    """Every epoch, every second of more than POINTS, and so on, the last among them."""
    steps, values = curve
    every = -(-len(steps) // POINTS)
    first = (len(steps) - 1) % every
    return Series(name, _epochs(steps[first::every]), values[first::every], line=True)


def _epochs(steps: Sequence[int]) -> Sequence[int]:
    """As a range where they lie equally far apart."""
    apart = steps[1] - steps[0] if len(steps) > 1 else 1
    regular = range(steps[0], steps[-1] + 1, apart)
    return regular if [*regular] == [*steps] else steps


def _course(name: str, curve: Curve, highest: bool) -> str:
    """Where a line begins and ends, and where it is highest."""
    steps, values = curve
    said = f"{name} from {values[0]:.4g} to {values[-1]:.4g}"
    top = max(range(len(values)), key=values.__getitem__)
    return f"{said}, highest {values[top]:.4g} at epoch {steps[top]}" if highest else said
