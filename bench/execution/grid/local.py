"""Executors on this machine: in the process of the command, or in several that share its cores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial

import torch

from bench.execution.grid.processes import Processes
from bench.execution.grid.work import QueuedRun, RunOutcome, Worker, execute_beside_others
from bench.protocol.options import ProtocolOptions
from bench.system.progress import Progress


class InProcess:
    """Carries out runs in this process, one after another."""

    def __init__(self, worker: Worker, progress: Progress) -> None:
        self.worker, self.progress = worker, progress
        self.ended: list[tuple[QueuedRun, RunOutcome]] = []

    def has_room(self) -> bool:
        """Return whether no result waits."""
        return not self.ended

    def start(self, item: QueuedRun) -> None:
        """Carry out a run to its end."""
        self.ended.append((item, self.worker.execute_run(item, self.progress)))

    def wait(self, seconds: float) -> list[tuple[QueuedRun, RunOutcome]]:
        """Return the run that ended."""
        ended, self.ended = self.ended, []
        return ended


def run_processes(
    options: ProtocolOptions,
    device: torch.device,
    code: dict[str, str],
    total: int,
    devices: Sequence[str],
) -> Processes[QueuedRun, RunOutcome]:
    """Return processes that carry out `total` runs, one for each of `devices`."""
    return Processes(prepare, (options, device, code, total), devices, RunOutcome("died"))


def prepare(
    options: ProtocolOptions, device: torch.device, code: dict[str, str], total: int
) -> Callable[[QueuedRun], RunOutcome]:
    """Return what carries out a run in one of several processes."""
    open_worker = cache(lambda: Worker.open(options, device, code))
    return partial(execute_beside_others, open_worker, total=total)
