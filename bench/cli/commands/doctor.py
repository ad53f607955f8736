"""Report device, versions, throughput, data sets and interrupted runs."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from bench.cli.parsing import Command
from bench.protocol.options import CommonOptions, Switch, option
from bench.system.errors import BenchError

if TYPE_CHECKING:
    import torch

    from bench.protocol.suites import Suite

PROBE_SECONDS = 0.5


@dataclass(frozen=True, kw_only=True)
class DoctorOptions(CommonOptions):
    """Report device, versions, a throughput probe, data sets and interrupted runs."""

    speed: Annotated[Switch, option(text="measure what training costs here, suite by suite")] = (
        False
    )


def diagnose(options: DoctorOptions) -> int:
    """Print what this machine offers and what it holds; change nothing."""
    from bench import datasets
    from bench.datasets import fetching
    from bench.execution.speed import speed_report
    from bench.protocol.suites import SUITES
    from bench.system import environment
    from bench.tracking.store import TrackingStore, store_exists

    device = environment.resolve_device(options.device)
    for name, value in environment.describe_environment(device).items():
        print(f"{name:14}{value}")
    if options.speed:
        for line in speed_report(SUITES.values(), device):
            print(line, flush=True)
    else:
        for suite in SUITES.values():
            print(f"{suite.name:14}{measure_throughput(suite, device)}")
    for name in datasets.DATASETS:
        try:
            print(fetching.verify_data(name, options.data_root))
        except BenchError as error:
            print(f"{name}: {error}")
    if not store_exists(options.store):
        print(f"no record yet in {str(options.store)!r}")
        return 0
    store = TrackingStore(options.store)
    print(f"record: {store.uri}")
    for run in store.running_runs():
        command = run.data.tags.get("command", "")
        print(f"interrupted or running: {run.info.run_name}: {command}")
    return 0


def measure_throughput(suite: Suite, device: torch.device) -> str:
    """Time a forward and a backward pass of the suite's first student; return the line to print."""
    import torch

    from bench import datasets, models

    info, student = datasets.get(suite.datasets[0]), suite.students[0]
    net = models.build(student, info).to(device)
    x = torch.rand(4, *info.shape, device=device)
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < PROBE_SECONDS:
        net(x).sum().backward()
        count += len(x)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    rate = count / (time.perf_counter() - start)
    return f"{student}: {rate:,.0f} images a second, forward and backward"


COMMAND = Command(DoctorOptions, diagnose)
