"""The grid: what is still to do, what it will take, said before it is done."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from bench import datasets, teachers
from bench.datasets.data import Data
from bench.execution import executors
from bench.execution.cost import Cost, measure
from bench.execution.job import RunContext, is_recorded
from bench.execution.plan import PlannedRun
from bench.protocol.options import ProtocolOptions
from bench.system import environment
from bench.system.errors import UsageError
from bench.system.progress import format_duration
from bench.tracking.store import TrackingStore, store_exists
from bench.training import distributed


def run_grid(options: ProtocolOptions, cells: list[PlannedRun], dry_run: bool = False) -> int:
    """Carries out the cells that are not recorded yet, in order; 1 if one of them failed."""
    if options.workers < 1:
        raise UsageError(f"--workers {options.workers}: at least 1")
    group, device = distributed.join(
        environment.resolve_device(options.device), options.sync_batchnorm
    )
    if group.size > 1 and options.workers > 1:
        raise UsageError(
            "--workers under torchrun: a run has either several devices or the company of others"
        )
    try:
        if dry_run and not store_exists(options.store):  # and looking makes none
            if group.leads:
                foresee(
                    options,
                    cells,
                    0,
                    device,
                    functools.cache(executors.dataset_loader(options.data_root)),
                )
            return 0
        shop = RunContext(TrackingStore(options.store), device, environment.source_state(), group)
        if not group.leads:
            return executors.assist(options, shop)
        code = led(options, cells, dry_run, shop)
        group.tell(
            None
        )  # not after an error: the others may be in the middle of a step, and torchrun ends them
        return code
    finally:
        distributed.leave()


def led(options: ProtocolOptions, cells: list[PlannedRun], dry_run: bool, shop: RunContext) -> int:
    """`grid` in the process that decides."""
    load = functools.cache(executors.dataset_loader(options.data_root))
    todo = [cell for cell in cells if not done(cell, cells, shop, options.force)]
    costs = foresee(options, todo, len(cells) - len(todo), shop.device, load)
    return 0 if dry_run or not todo else executors.carry_out(options, shop, todo, costs, load)


def foresee(
    options: ProtocolOptions,
    todo: list[PlannedRun],
    known: int,
    device: torch.device,
    load: Callable[..., Data],
) -> list[Cost]:
    """Says what there is to do beside the `known` cells, which are recorded, and what it will take; returns the costs."""
    console = Console(file=sys.stderr, highlight=False)
    console.print(f"{len(todo)} to do, {known} already recorded in {options.store}")
    if not todo:
        return []
    for cell in todo:
        check(cell, load(*executors.data_arguments(cell.spec)))
    costs = estimate(todo, load, options.store, device)
    console.print(overview(todo, costs))
    total = sum(cost.train + cost.evaluate for cost in costs)
    console.print(
        f"on {environment.device_name(device)}, about {format_duration(total / options.workers)} in all"
    )
    return costs


def done(cell: PlannedRun, cells: list[PlannedRun], shop: RunContext, force: bool) -> bool:
    """Whether a cell needs no work. `force` repeats what was asked for, not the teachers that it needs."""
    needed = any(cell.identity in other.spec.teachers.values() for other in cells)
    return (needed or not force) and is_recorded(cell, shop)


def check(cell: PlannedRun, data: Data) -> None:
    """Raises UsageError for what can be seen before anything is started."""
    if cell.spec.training.batch > len(data.train):
        raise UsageError(
            f"a batch of {cell.spec.training.batch} is larger than the {len(data.train)} training images: "
            f"raise --limit-train"
        )


def estimate(
    todo: list[PlannedRun], load: Callable[..., Data], store: Path, device: torch.device
) -> list[Cost]:
    """The cost of each cell; cells that differ in seed or data only are probed once."""
    made = {cell.identity: cell.spec.arch for cell in todo if cell.spec.role == "teacher"}
    known: dict[tuple[object, ...], Cost] = {}
    costs = []
    for cell in todo:
        spec = cell.spec
        archs = {
            role: made.get(identity) or teachers.find(store, identity).arch
            for role, identity in spec.teachers.items()
        }
        data = load(*executors.data_arguments(spec))
        key = (spec.role, spec.dataset, spec.arch, spec.method, tuple(archs.items()))
        if key not in known:
            known[key] = measure(cell, archs, (len(data.train), len(data.test)), device)
        costs.append(known[key])
    return costs


def overview(todo: list[PlannedRun], costs: list[Cost]) -> Table:
    """What is about to be done, a line for each cell."""
    table = Table(
        "", "data", "model", "method", "seed", "teacher", "about", box=None, pad_edge=False
    )
    for number, (cell, cost) in enumerate(zip(todo, costs, strict=True), 1):
        spec = cell.spec
        model = f"{spec.arch} (teacher)" if spec.role == "teacher" else spec.arch
        method = f"{spec.method} {cell.variant}".strip()
        seconds = format_duration(cost.train + cost.evaluate)
        images = datasets.get(spec.dataset).name
        table.add_row(str(number), images, model, method, str(spec.seed), spec.teacher, seconds)
    return table
