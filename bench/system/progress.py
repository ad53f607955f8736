"""Progress of a grid with an estimate of the time left: a live line on a terminal, else a line now and then."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar

QUIET = 20.0  # seconds between lines where there is no terminal


@dataclass
class Progress:
    """`estimates`: seconds of training and of evaluation for each cell, in order."""

    estimates: list[tuple[float, float]]
    console: Console = field(default_factory=lambda: Console(file=sys.stderr, highlight=False))

    def __post_init__(self) -> None:
        columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[left]}")
        self.bar = Bar(
            *columns, console=self.console, transient=True, disable=not self.console.is_terminal
        )
        self.task = self.bar.add_task("", total=1.0, left="")
        self.cell = -1
        self.spent = self.foreseen = 0.0  # of the finished cells
        self.said = time.monotonic()

    def __enter__(self) -> Progress:
        self.bar.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.bar.stop()

    def start(self, label: str) -> None:
        """The next cell begins."""
        self.cell += 1
        self.label = f"[{self.cell + 1}/{len(self.estimates)}] {label}"
        self.began = time.monotonic()
        self.stage, self.since, self.first = "", self.began, 0.0

    def finish(self, result: str) -> None:
        """The cell is over; `result` is printed beside its name."""
        seconds = time.monotonic() - self.began
        self.spent += seconds
        self.foreseen += sum(self.estimates[self.cell])
        self.console.print(
            f"{self.label}: {result} ({format_duration(seconds)})", markup=False, soft_wrap=True
        )
        self.said = time.monotonic()

    def tick(self, stage: str, done: int, total: int) -> None:
        """`done` of `total` units of a stage ("train", or the name of an attack) are over."""
        now, share = time.monotonic(), done / max(total, 1)
        if stage != self.stage:
            if self.stage in ("", "train"):
                self.since, self.first = now, share
            self.stage = stage
        left = f"about {format_duration(self.left(now, share))} left"
        self.bar.update(self.task, description=f"{self.label}: {stage}", completed=share, left=left)
        if not self.console.is_terminal and now - self.said > QUIET:
            self.said = now
            self.console.print(
                f"{self.label}: {stage} {share:.0%}, {left}", markup=False, soft_wrap=True
            )

    def left(self, now: float, share: float) -> float:
        """Seconds to the end of the grid: training by its own pace, the rest by the probe, corrected by what was."""
        pace = self.spent / self.foreseen if self.foreseen else 1.0
        train, evaluate = self.estimates[self.cell]
        rest = pace * sum(sum(pair) for pair in self.estimates[self.cell + 1 :])
        if self.stage != "train":
            return rest + max(pace * evaluate - (now - self.since), 0.0)
        gained = share - self.first
        own = (
            (now - self.since) * (1 - share) / gained if gained > 0 else pace * train * (1 - share)
        )
        return rest + own + pace * evaluate


@dataclass
class Tally:
    """Cells that run side by side: a line for each that is over."""

    total: int
    console: Console = field(default_factory=lambda: Console(file=sys.stderr, highlight=False))
    over: int = 0

    def __post_init__(self) -> None:
        self.began = time.monotonic()

    def add(self, label: str, result: str) -> None:
        """One more is over; the time left is scaled from the time taken by the number of cells."""
        self.over += 1
        spent = time.monotonic() - self.began
        left = self.total - self.over
        rest = (
            f"about {format_duration(spent * left / self.over)} left"
            if left
            else f"{format_duration(spent)} in all"
        )
        self.console.print(
            f"[{self.over}/{self.total}] {label}: {result} ({rest})", markup=False, soft_wrap=True
        )


def format_duration(seconds: float) -> str:
    """ "42 s", "7 min", "3.4 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
