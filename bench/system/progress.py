"""Progress of a grid and the time left: a live line on a terminal, else a line now and then."""

from __future__ import annotations

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar

LINE_INTERVAL = 20.0  # seconds between lines where there is no terminal


class Progress:
    """Progress of runs in order; `estimates` are seconds of training and of evaluation of each."""

    def __init__(self, estimates: list[tuple[float, float]]) -> None:
        self.estimates = estimates
        self.console = Console(file=sys.stderr, highlight=False)
        columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[left]}")
        hidden = not self.console.is_terminal
        self.bar = Bar(*columns, console=self.console, transient=True, disable=hidden)
        self.task = self.bar.add_task("", total=1.0, left="")
        self.index = -1
        self.measured_seconds = self.estimated_seconds = 0.0  # of the finished runs
        self.last_print = time.monotonic()

    def __enter__(self) -> Progress:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def start(self, label: str) -> None:
        """Begin the next run."""
        self.index += 1
        self.label = f"[{self.index + 1}/{len(self.estimates)}] {label}"
        self.run_start = self.stage_start = time.monotonic()
        self.stage, self.start_share = "", 0.0

    def finish(self, result: str) -> None:
        """Print the result of the run."""
        seconds = time.monotonic() - self.run_start
        self.measured_seconds += seconds
        self.estimated_seconds += sum(self.estimates[self.index])
        self._print(f"{self.label}: {result} ({format_duration(seconds)})")

    def tick(self, stage: str, done: int, total: int) -> None:
        """Show how much of a stage is done: of "train", or of the attack of that name."""
        now, share = time.monotonic(), done / max(total, 1)
        # The estimate of the evaluation is one for all attacks.
        if stage != self.stage and self.stage in ("", "train"):
            self.stage_start, self.start_share = now, share
        self.stage = stage
        left = f"about {format_duration(self._seconds_left(now, share))} left"
        self.bar.update(self.task, description=f"{self.label}: {stage}", completed=share, left=left)
        if not self.console.is_terminal and now - self.last_print > LINE_INTERVAL:
            self._print(f"{self.label}: {stage} {share:.0%}, {left}")

    def _print(self, line: str) -> None:
        self.last_print = time.monotonic()
        self.console.print(line, markup=False, soft_wrap=True)

    def _seconds_left(self, now: float, share: float) -> float:
        """Estimate the rest of the grid: training by its own pace, all else by finished runs."""
        scale = self.measured_seconds / self.estimated_seconds if self.estimated_seconds else 1.0
        train, evaluate = self.estimates[self.index]
        later = scale * sum(sum(pair) for pair in self.estimates[self.index + 1 :])
        elapsed, gained = now - self.stage_start, share - self.start_share
        if self.stage != "train":
            return later + max(scale * evaluate - elapsed, 0.0)
        train_seconds = elapsed / gained if gained > 0 else scale * train
        return later + train_seconds * (1 - share) + scale * evaluate


class ParallelProgress:
    """Progress of runs side by side: a line for each that is over."""

    def __init__(self, total: int) -> None:
        self.total, self.finished = total, 0
        self.start_time = time.monotonic()

    def add(self, label: str, result: str) -> None:
        """Print a result; the time left is scaled by the number of runs."""
        self.finished += 1
        seconds, remaining = time.monotonic() - self.start_time, self.total - self.finished
        rest = f"{format_duration(seconds)} in all"
        if remaining:
            rest = f"about {format_duration(seconds * remaining / self.finished)} left"
        line = f"[{self.finished}/{self.total}] {label}: {result} ({rest})"
        console = Console(file=sys.stderr, highlight=False)
        console.print(line, markup=False, soft_wrap=True)


def format_duration(seconds: float) -> str:
    """Format a duration as "42 s", "7 min" or "3.4 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
