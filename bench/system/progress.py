"""Progress of a grid and the time left: a live line on a terminal, else a line now and then."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection

from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar

from bench.system import log
from bench.system.log import LOGGER
from leaderboards.schema.metrics import TRAIN, VAL, VAL_CLEAN, VAL_ROBUST

LINE_INTERVAL = 20.0  # seconds between lines where there is no live line
BAR_WIDTH = 8  # a live line fits into 80 columns


class Progress:
    """Progress of runs one after another.

    estimates: seconds of training and of evaluation, by the number of the run. total: how many
    runs there are, with others beside these.
    """

    def __init__(self, estimates: dict[int, tuple[float, float]], total: int) -> None:
        self.estimates, self.total = dict(estimates), total
        self.is_live = log.has_live_line()
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(BAR_WIDTH),
            TextColumn("{task.fields[left]}"),
        )
        self.bar = Bar(*columns, console=log.console(), transient=True, disable=not self.is_live)
        self.task = self.bar.add_task("", total=1.0, left="")
        self.current = 0  # the number of the run
        self.measured_seconds = self.estimated_seconds = 0.0  # of the finished runs
        self.scale = 1.0  # measured to estimated time, of finished runs or the first's training
        self.last_line = time.monotonic()

    def __enter__(self) -> Progress:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    @property
    def number(self) -> str:
        """The current run's number of all, such as "[2/7]"."""
        return f"[{self.current}/{self.total}]"

    def start(self, number: int, label: str, epochs: int = 0) -> None:
        """Begin a run, of so many epochs."""
        self.current, self.label, self.epochs = number, label, epochs
        self.run_start = self.stage_start = time.monotonic()
        self.stage, self.start_share = "", 0.0
        # What the last epochs measured, and the checkpoint that is evaluated.
        self.metrics: dict[str, float] = {}
        self.checkpoint = "the network"

    def finish(self, number: int, label: str, result: str, succeeded: bool = True) -> None:
        """Log the result of a run: of the current one, or of one that ended elsewhere."""
        estimate = sum(self.estimates.pop(number))
        duration = ""
        if number == self.current:
            seconds = time.monotonic() - self.run_start
            duration = f" ({format_duration(seconds)})"
            self.measured_seconds += seconds
            self.estimated_seconds += estimate
        if self.estimated_seconds:
            self.scale = self.measured_seconds / self.estimated_seconds
        self.last_line = time.monotonic()
        level = logging.INFO if succeeded else logging.ERROR
        LOGGER.log(level, f"[{number}/{self.total}] {label}: {result}{duration}")

    def log(self, message: str, level: int = logging.INFO) -> None:
        """Log a message about the current run."""
        self.last_line = time.monotonic()
        LOGGER.log(level, f"{self.number} {message}")

    def end_epoch(self, metrics: dict[str, float]) -> None:
        """Show the metrics of an epoch from now on; those that it lacks stay."""
        self.metrics |= metrics
        values = []
        for name, value in metrics.items():
            if name.startswith(VAL):
                values.append(f"{name.replace('/', ' ')} {100 * value:.1f} %")
            elif name != "epoch":
                values.append(f"{name} {value:.4g}")
        # People count from 1, records from 0.
        LOGGER.debug(f"{self.number} epoch {metrics['epoch'] + 1:.0f} ends: {', '.join(values)}")

    def tick(self, stage: str, done: int, total: int) -> None:
        """Show how much of a stage is done: of "train", or of the attack of that name."""
        now, share = time.monotonic(), done / max(total, 1)
        # The estimate of the evaluation is one for all attacks.
        if stage != self.stage and self.stage in ("", "train"):
            self.stage_start, self.start_share = now, share
        self.stage = stage
        is_due = not self.is_live and now - self.last_line > LINE_INTERVAL
        if not self.is_live and not is_due:
            return
        text = self.describe(stage, done, total)
        left = self._seconds_left(share)
        remaining = f"{format_duration(left)} left" if left > 0 else ""
        self.bar.update(
            self.task, description=f"{self.number} {text}", completed=share, left=remaining
        )
        if is_due:
            self.log(f"{text}, {remaining}" if remaining else text)

    def describe(self, stage: str, done: int, total: int) -> str:
        """Say how much of a stage is done, with what the last epochs measured."""
        if stage != "train":
            share = f"{100 * done / max(total, 1):.0f} %"
            return f"evaluating {self.checkpoint}: {stage} {share}"
        epoch = max(done - 1, 0) * self.epochs // max(total, 1) + 1
        text = f"epoch {epoch} of {self.epochs}"
        losses = [value for name, value in self.metrics.items() if name.startswith(TRAIN)]
        if losses:
            text += f", loss {sum(losses):.3g}"
        if VAL_CLEAN in self.metrics:
            clean, robust = (100 * self.metrics[name] for name in (VAL_CLEAN, VAL_ROBUST))
            text += f", val clean {clean:.1f}, robust {robust:.1f}"
        return text

    def summary(self, stage: str, done: int, total: int) -> str:
        """Say how much of a stage is done, and how long the run still takes."""
        text, left = self.describe(stage, done, total), self._run_seconds_left(done / max(total, 1))
        return f"{text}, {format_duration(left)} left" if left > 0 else text

    def _seconds_left(self, share: float) -> float:
        """Estimate the rest of the grid: training by its own pace, all else by what was measured.

        0 if more time has passed than was estimated.
        """
        left = self._run_seconds_left(share)
        others = (sum(pair) for number, pair in self.estimates.items() if number != self.current)
        return left + self.scale * sum(others)

    def _run_seconds_left(self, share: float) -> float:
        train, evaluate = self.estimates[self.current]
        elapsed, gained = time.monotonic() - self.stage_start, share - self.start_share
        if self.stage != "train":
            return max(self.scale * evaluate - elapsed, 0.0)
        if gained > 0:
            pace = elapsed / gained
            if not self.measured_seconds and train:
                self.scale = pace / train
            train = pace
        return train * (1 - share) + self.scale * evaluate


class ParallelProgress:
    """Progress of runs side by side: a line for each that is over.

    numbers: of the runs. estimate: how long some of them take together, in any unit.
    """

    def __init__(
        self, numbers: Collection[int], estimate: Callable[[Collection[int]], float] = len
    ) -> None:
        self.left, self.total = set(numbers), len(numbers)
        self.estimate, self.estimated_all = estimate, estimate(numbers)
        self.start_time = time.monotonic()

    def finish(self, number: int, label: str, result: str, succeeded: bool) -> None:
        """Log the result of a run, and the time left: as estimated, scaled by what was measured."""
        self.left.discard(number)
        seconds = time.monotonic() - self.start_time
        rest = f"all done in {format_duration(seconds)}"
        if self.left:
            rest = f"{self.total - len(self.left)} of {self.total} done"
            estimated_left = self.estimate(self.left)
            done = self.estimated_all - estimated_left
            if done > 0:
                left = format_duration(seconds * estimated_left / done)
                rest += f", about {left} left in all"
        level = logging.INFO if succeeded else logging.ERROR
        LOGGER.log(level, f"[{number}/{self.total}] {label}: {result} ({rest})")


def format_duration(seconds: float) -> str:
    """Format a duration as "42 s", "7 min", "3.4 h" or "2.6 days"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.1f} h"
    days = seconds / 86400
    return f"{days:.1f} days" if days < 10 else f"{days:,.0f} days"
