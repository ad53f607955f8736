"""Report device, versions, throughput, data sets and interrupted runs."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench.cli.commands import Command
from bench.protocol.options import CommonOptions, Speed

if TYPE_CHECKING:
    import torch

    from bench.protocol.suites import Suite

PROBE_SECONDS = 0.5
PROBE_BATCH = 4


@dataclass(frozen=True, kw_only=True)
class DoctorOptions(CommonOptions):
    """Report device, versions, a throughput probe, data sets and interrupted runs."""

    speed: Speed = False


def diagnose(options: DoctorOptions) -> int:
    """Print what this machine offers and what it holds; change nothing."""
    from bench.system import environment

    device = environment.resolve_device(options.device)
    for name, value in environment.describe_environment(device).items():
        print(f"{name:14}{value}")
    print_throughput(device, options.speed)
    print_datasets(options.data_root)
    print_unfinished_runs(options.store)
    return 0


def print_throughput(device: torch.device, speed: bool) -> None:
    """Print a line for each suite: a probe, or with `speed` what training costs."""
    from bench.execution.speed import lines
    from bench.protocol import suites

    if speed:
        for line in lines(suites.SUITES.values(), device):
            print(line, flush=True)
        return
    for suite in suites.SUITES.values():
        student = suite.students[0]
        rate = measure_throughput(suite, device)
        print(f"{suite.name:14}{student}: {rate:,.0f} images a second, forward and backward")


def measure_throughput(suite: Suite, device: torch.device) -> float:
    """Return images a second of one forward and one backward pass of the suite's first student."""
    import torch

    from bench import datasets, models

    info = datasets.get(suite.datasets[0])
    net = models.build(suite.students[0], info).to(device)
    x = torch.rand(PROBE_BATCH, *info.shape, device=device)
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < PROBE_SECONDS:
        net(x).sum().backward()
        count += len(x)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return count / (time.perf_counter() - start)


def print_datasets(data_root: Path) -> None:
    """Print what each data set's files hold, or what is wrong with them."""
    from bench import datasets
    from bench.datasets import data
    from bench.system.errors import BenchError

    for name in datasets.DATASETS:
        try:
            print(data.verify(name, data_root))
        except BenchError as error:
            print(f"{name}: {error}")


def print_unfinished_runs(folder: Path) -> None:
    """Print where the record is, and its runs that are interrupted or running."""
    from bench.tracking.store import TrackingStore, store_exists

    if not store_exists(folder):
        print(f"no record yet in {str(folder)!r}")
        return
    store = TrackingStore(folder)
    print(f"record: {store.uri}")
    for run in store.unfinished():
        command = run.data.tags.get("command", "")
        print(f"interrupted or running: {run.info.run_name}: {command}")


COMMAND = Command(DoctorOptions, diagnose)
