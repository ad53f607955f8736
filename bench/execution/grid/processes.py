"""Processes of this machine that work on items: each has its share of the cores, and a device."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Generic, TypeVar

import torch

from bench.system import signals
from bench.system.log import LogSettings, log_in_worker, log_settings
from bench.system.words import check_count

Item = TypeVar("Item")
Result = TypeVar("Result")

VISIBLE_DEVICES = "CUDA_VISIBLE_DEVICES"
STOP_SECONDS = 2 * signals.STOP_SECONDS  # for processes that were told to stop


@dataclass(frozen=True)
class WorkerProcess:
    """A process that works on items; device: the CUDA device that it sees, "" for all."""

    device: str
    process: BaseProcess
    connection: Connection


class Processes(Generic[Item, Result]):
    """Processes that work on items, one each at a time, and are replaced when they die.

    A process calls `prepare` with `arguments` once, and what that returns with each item. `died` is
    the result of an item whose process died.
    """

    def __init__(
        self,
        prepare: Callable[..., Callable[[Item], Result]],
        arguments: tuple[Any, ...],
        devices: Sequence[str],
        died: Result,
    ) -> None:
        """Have a process for each entry of `devices`: the CUDA device that it sees, or ""."""
        threads = max(torch.get_num_threads() // len(devices), 1)
        self.arguments = (prepare, arguments, threads, log_settings())
        self.died = died
        self.free_devices = [*devices]  # those without a process
        self.idle: list[WorkerProcess] = []
        self.busy: dict[Connection, tuple[WorkerProcess, Item]] = {}

    def __enter__(self) -> Processes[Item, Result]:
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
        """Return whether another process may begin with an item."""
        return bool(self.idle or self.free_devices)

    def start(self, item: Item) -> None:
        """Give an item to a process."""
        worker = self.idle.pop() if self.idle else self._start_process(self.free_devices.pop(0))
        self.busy[worker.connection] = worker, item
        # `wait` notices one that died while it was idle.
        with suppress(OSError):
            worker.connection.send(item)

    def wait(self, seconds: float) -> list[tuple[Item, Result]]:
        """Return the items that are done, after at most so long."""
        done = []
        for connection in wait(list(self.busy), seconds):
            assert isinstance(connection, Connection)
            worker, item = self.busy.pop(connection)
            try:
                result = connection.recv()
                self.idle.append(worker)
            except (EOFError, OSError):
                result = self.died
                self.free_devices.append(worker.device)
            done.append((item, result))
        return done

    def _start_process(self, device: str) -> WorkerProcess:
        connection, other_end = multiprocessing.Pipe()
        process = start_process(serve, (other_end, *self.arguments), device)
        # With this copy open the end of the process would not show.
        other_end.close()
        return WorkerProcess(device, process, connection)


def serve(
    connection: Connection,
    prepare: Callable[..., Callable[[Item], Result]],
    arguments: tuple[Any, ...],
    threads: int,
    settings: LogSettings,
) -> None:
    """Work on the items that come through a connection, until None comes."""
    start_worker(threads, settings)
    work = prepare(*arguments)
    while (item := connection.recv()) is not None:
        connection.send(work(item))


def start_worker(threads: int, settings: LogSettings) -> None:
    """Prepare a process of a command, which gets so many threads."""
    signals.prepare_worker()
    torch.set_num_threads(threads)
    log_in_worker(settings)


def check_workers(workers: int | str) -> None:
    """Raise UsageError for a number of processes that is none."""
    if workers != "auto":
        check_count("--workers", int(workers))


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
