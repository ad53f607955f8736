"""Report device, versions, throughput, data sets and interrupted runs."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from bench.cli.parsing import Command
from bench.protocol.options import CommonOptions, Json, Switch, option
from bench.protocol.suites import SUITES
from bench.system.errors import BenchError

if TYPE_CHECKING:
    import torch

# Prints a line at once, or drops it where a document is asked for.
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class DoctorOptions(CommonOptions):
    """Report device, versions, a throughput probe, data sets and interrupted runs."""

    speed: Annotated[Switch, option(text="measure what training costs here, suite by suite")] = (
        False
    )
    json: Json = False


def diagnose(options: DoctorOptions) -> None:
    """Print what this machine offers and what it holds; change nothing."""
    from bench.cli.output import print_json
    from bench.execution.speed import busy_warning
    from bench.system import environment
    from bench.tracking.store import tracking_uri

    def say(line: str) -> None:
        if not options.json:
            print(line, flush=True)

    device = environment.resolve_device(options.device)
    # Whether it can be a store is said before minutes of measurements.
    tracking_uri(options.store)
    # Before this process itself makes the machine busy.
    warning = busy_warning()
    if warning:
        print(warning, file=sys.stderr)
    description = environment.describe_environment(device)
    for name, value in description.items():
        say(f"{name:18}{value}")
    measure = measure_training if options.speed else measure_throughput
    document = {
        "environment": description,
        "speed": measure(device, say),
        "warnings": [warning] if warning else [],
        "datasets": check_data(options.data_root, say),
        "store": describe_store(options.store, say),
    }
    if options.json:
        print_json(document)


def measure_throughput(device: torch.device, say: Say) -> dict[str, Any]:
    """Time convolutions, and a forward and a backward pass of each suite's first student."""
    from bench.execution.speed import peak_rates, precision_advice, probe_speed

    rates = peak_rates(device)
    say(f"{'precision':18}{precision_advice(rates)}")
    speeds: dict[str, Any] = {"convolutions": rates}
    probe = cache(partial(probe_speed, device=device))
    for suite in SUITES.values():
        student = suite.students[0]
        # Suites share networks and data.
        rate = probe(student, suite.datasets[0])
        say(f"{suite.name:18}{student}: {rate:,.0f} images a second, forward and backward")
        speeds[suite.name] = {"student": student, "images_per_second": rate}
    return speeds


def measure_training(device: torch.device, say: Say) -> dict[str, Any]:
    """Measure the best rate of convolutions in FLOP/s, then each suite's training step."""
    from bench.execution.speed import peak_rates, training_speed

    rates = peak_rates(device)
    line = f"{'convolutions':18}{rates['fp32'] / 1e9:,.0f} GFLOP/s in single precision"
    if "bf16" in rates:
        line += f", {rates['bf16'] / 1e9:,.0f} with --precision bf16"
    say(line)
    speeds: dict[str, Any] = {"convolutions": rates}
    for suite in SUITES.values():
        speed = training_speed(suite, device, rates["fp32"])
        say(str(speed))
        speeds[suite.name] = dataclasses.asdict(speed)
    return speeds


def check_data(root: Path, say: Say) -> dict[str, Any]:
    """Check the files of every data set."""
    from bench.datasets import REGISTRY
    from bench.datasets.files import fetching

    checks = {}
    for name in REGISTRY.names():
        try:
            line, ready = fetching.verify_data(name, root), True
        except BenchError as error:
            line, ready = f"{name}: {error}", False
        say(line)
        checks[name] = {"ready": ready, "message": line}
    return checks


def describe_store(folder: Path, say: Say) -> dict[str, Any]:
    """Name the store and its runs that have not ended."""
    from bench.system.database import redact_password
    from bench.tracking.store import TrackingStore, store_exists

    if not store_exists(folder):
        say(f"no record yet in {str(folder)!r}")
        return {"uri": None, "unfinished": []}
    store = TrackingStore(folder)
    uri = redact_password(store.uri)
    say(f"record: {uri}")
    unfinished = []
    for run in store.unfinished_runs():
        command = run.data.tags.get("command", "")
        say(f"interrupted or running: {run.info.run_name}: {command}")
        unfinished.append(
            {"run_id": run.info.run_id, "name": run.info.run_name, "command": command}
        )
    return {"uri": uri, "unfinished": unfinished}


COMMAND = Command(DoctorOptions, diagnose)
