"""What was measured at each epoch: details.curves' frame, cut once instead of searched for every page, and its views."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from leaderboards.views import Series, View

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

    Curve = tuple[NDArray[np.int64], NDArray[np.float64]]  # epochs, values

COURSES = {
    "val/": ("Validation", "Accuracy, %", 100.0),
    "train/": ("Loss terms", "Mean over the epoch", 1.0),
    "lr": ("Learning rate", "Learning rate", 1.0),
}


@dataclass(frozen=True)
class Curves:
    """The curves of many runs."""

    cut: Mapping[str, Mapping[str, Curve]]

    @classmethod
    def of_frame(cls, frame: pd.DataFrame) -> Curves:
        """From columns run_id, metric, step, value, the lines of a curve together and in order."""
        import numpy as np

        run, metric = frame["run_id"].cat.codes.to_numpy(), frame["metric"].cat.codes.to_numpy()
        steps, values = frame["step"].to_numpy(), frame["value"].to_numpy()
        breaks = np.flatnonzero((run[1:] != run[:-1]) | (metric[1:] != metric[:-1])) + 1
        starts, ends = [0, *breaks][: len(frame)], [*breaks, len(frame)][: len(frame)]
        runs, metrics = frame["run_id"].cat.categories, frame["metric"].cat.categories
        found: dict[str, dict[str, Curve]] = {}
        for start, end in zip(starts, ends, strict=True):
            curves = found.setdefault(str(runs[run[start]]), {})
            curves[str(metrics[metric[start]])] = steps[start:end], values[start:end]
        return cls(found)

    def of(self, run: str) -> Mapping[str, Curve]:
        """Metric -> curve; empty for a run without any."""
        return self.cut.get(run, {})


def mean(runs: Sequence[Mapping[str, Curve]]) -> dict[str, Curve]:
    """Metric -> the mean over the runs that have it, at the epochs that all of these have."""
    import numpy as np

    found = {}
    for metric in dict.fromkeys(metric for run in runs for metric in run):
        curves = [run[metric] for run in runs if metric in run]
        steps = curves[0][0]
        if any(len(other) != len(steps) or (other != steps).any() for other, _ in curves[1:]):
            steps = np.array(sorted(set.intersection(*({*other.tolist()} for other, _ in curves))), dtype=np.int64)
            curves = [(steps, values[np.isin(other, steps)]) for other, values in curves]
        found[metric] = steps, np.mean([values for _, values in curves], axis=0)
    return {metric: curve for metric, curve in found.items() if len(curve[0])}


def of_run(curves: Mapping[str, Curve]) -> list[View]:
    """Metric -> (epochs, values), as training recorded them; accuracies become percent."""
    views = []
    for prefix, (title, y_title, scale) in COURSES.items():
        series = tuple(
            Series(name.removeprefix(prefix) or name, _epochs(x), (scale * y).tolist(), line=True)
            for name, (x, y) in curves.items()
            if name.startswith(prefix)
        )
        if series:
            said = "; ".join(_course(line, highest=prefix == "val/") for line in series)
            views.append(View(prefix.strip("/"), title, f"{said}.", "Epoch", y_title, series))
    return views


def of_method(rows: Sequence[tuple[str, Mapping[str, Curve]]]) -> list[View]:
    """A line a row, given by name and mean curves, in a figure a metric: validation first, then every loss term."""
    metrics = {metric for _, curves in rows for metric in curves if metric != "lr"}
    first = [name for name in ("val/robust", "val/clean") if name in metrics]
    titles = {"val/robust": "Robust validation accuracy", "val/clean": "Clean validation accuracy"}
    views = []
    for metric in (*first, *sorted(metrics - {*first})):
        _, y_title, scale = COURSES[f"{metric.partition('/')[0]}/"]
        lines = tuple(
            Series(name, _epochs(curves[metric][0]), (scale * curves[metric][1]).tolist(), line=True)
            for name, curves in rows
            if metric in curves
        )
        title = titles.get(metric, f"Loss: {metric.partition('/')[2]}")
        views.append(View(metric, title, "A line a row, averaged over its seeds.", "Epoch", y_title, lines))
    return views


def _epochs(steps: NDArray[np.int64]) -> Sequence[int]:
    """As a range where none is left out."""
    first, last = int(steps[0]), int(steps[-1])
    return range(first, last + 1) if last - first + 1 == len(steps) else steps.tolist()


def _course(line: Series, highest: bool) -> str:
    """Where a line begins and ends, and where it is highest."""
    said = f"{line.name} from {line.y[0]:.4g} to {line.y[-1]:.4g}"
    top = max(range(len(line.y)), key=line.y.__getitem__)
    return f"{said}, highest {line.y[top]:.4g} at epoch {line.x[top]:.0f}" if highest else said
