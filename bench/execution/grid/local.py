"""Executors on this machine: in the process of the command, or in several that share its cores."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from bench.execution.grid.work import QueuedRun, RunOutcome, Worker, execute_beside_others
from bench.protocol.options import ProtocolOptions
from bench.system import signals
from bench.system.log import LogSettings, log_in_worker, log_settings
from bench.system.progress import Progress

VISIBLE_DEVICES = "CUDA_VISIBLE_DEVICES"
STOP_SECONDS = 2 * signals.STOP_SECONDS  # for processes that were told to stop


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


@dataclass(frozen=True)
class WorkerProcess:
    """A process that carries out runs; device: the CUDA device that it sees, "" for all."""

    device: str
    process: BaseProcess
    connection: Connection


class InProcesses:
    """Carries out runs in processes of their own, which are replaced when they die."""

    def __init__(
        self,
        options: ProtocolOptions,
        device: torch.device,
        code: dict[str, str],
        total: int,
        devices: Sequence[str],
    ) -> None:
        """Prepare a process for each entry of `devices`: the CUDA device that it sees, or ""."""
        threads = max(torch.get_num_threads() // len(devices), 1)
        self.arguments = (options, device, code, total, threads, log_settings())
        self.free_devices = [*devices]  # those without a process
        self.idle: list[WorkerProcess] = []
        self.busy: dict[Connection, tuple[WorkerProcess, QueuedRun]] = {}

    def __enter__(self) -> InProcesses:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        workers = [*self.idle, *(worker for worker, _ in self.busy.values())]
        for worker in workers:
            with suppress(OSError):
                worker.connection.send(None)
            if kind:
                worker.process.terminate()
        for worker in workers:
            worker.process.join(STOP_SECONDS if kind else None)

    def has_room(self) -> bool:
        """Return whether another process may begin a run."""
        return bool(self.idle or self.free_devices)

    def start(self, item: QueuedRun) -> None:
        """Give a run to a process."""
        worker = self.idle.pop() if self.idle else self._start_process(self.free_devices.pop(0))
        self.busy[worker.connection] = worker, item
        # `wait` notices one that died while it was idle.
        with suppress(OSError):
            worker.connection.send(item)

    def wait(self, seconds: float) -> list[tuple[QueuedRun, RunOutcome]]:
        """Return the runs that ended, after at most so long."""
        ended = []
        for connection in wait(list(self.busy), seconds):
            assert isinstance(connection, Connection)
            worker, item = self.busy.pop(connection)
            try:
                outcome = connection.recv()
                self.idle.append(worker)
            except (EOFError, OSError):
                outcome = RunOutcome("died")
                self.free_devices.append(worker.device)
            ended.append((item, outcome))
        return ended

    def _start_process(self, device: str) -> WorkerProcess:
        connection, other_end = multiprocessing.Pipe()
        process = start_process(serve, (other_end, *self.arguments), device)
        # With this copy open the end of the process would not show.
        other_end.close()
        return WorkerProcess(device, process, connection)


def serve(
    connection: Connection,
    options: ProtocolOptions,
    device: torch.device,
    code: dict[str, str],
    total: int,
    threads: int,
    settings: LogSettings,
) -> None:
    """Carry out the runs that come through a connection, until None comes."""
    start_worker(threads, settings)
    open_worker = cache(lambda: Worker.open(options, device, code))
    while (item := connection.recv()) is not None:
        connection.send(execute_beside_others(open_worker, item, total))


def start_worker(threads: int, settings: LogSettings) -> None:
    """Prepare a process of a command, which gets so many threads."""
    signals.prepare_worker()
    torch.set_num_threads(threads)
    log_in_worker(settings)


def choose_devices(workers: int | str, device: torch.device) -> list[str]:
    """Return the CUDA device that each process sees, "" for that of the command.

    "auto" is a process for each visible device. More processes than devices share them in turn.
    """
    visible: list[str] = []
    # One that was named is the only one.
    if device.type == "cuda" and device.index is None:
        listed = os.environ.get(VISIBLE_DEVICES, "")
        visible = listed.split(",") if listed else [*map(str, range(torch.cuda.device_count()))]
    count = max(len(visible), 1) if workers == "auto" else int(workers)
    return [visible[number % len(visible)] if visible else "" for number in range(count)]


def start_process(
    target: Callable[..., None], arguments: tuple[Any, ...], device: str
) -> BaseProcess:
    """Start a process that sees one CUDA device, with "" those of this one."""
    process = multiprocessing.get_context("spawn").Process(
        target=target, args=arguments, daemon=True
    )
    before = os.environ.get(VISIBLE_DEVICES)
    # torch reads the variable when it is imported, by the new process.
    if device:
        os.environ[VISIBLE_DEVICES] = device
    try:
        process.start()
    finally:
        if device:
            del os.environ[VISIBLE_DEVICES]
        if before is not None:
            os.environ[VISIBLE_DEVICES] = before
    return process
