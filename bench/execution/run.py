"""The grid: what is still to do, what it will take, said before it is done."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from bench import datasets
from bench.cli.options import Run, TeacherTrain
from bench.datasets.splits import Data
from bench.execution import execute, plan, probe
from bench.execution.cell import Workshop, recorded
from bench.execution.plan import Cell
from bench.execution.probe import Cost
from bench.protocol.arguments import Protocol
from bench.system import environment
from bench.system.errors import UsageError
from bench.system.progress import duration
from bench.teachers import cards
from bench.tracking.track import Store, begun
from bench.training import devices


def run(options: Run, hyper: dict[str, Any]) -> int:
    """The verb `run`; returns the exit code."""
    return grid(options, plan.plan(options, hyper), dry_run=options.dry_run)


def train_teacher(options: TeacherTrain) -> int:
    """The verb `teacher train`."""
    suite = plan.resolve(options)
    return grid(
        options,
        [plan.teacher(options, suite, name, options.role) for name in plan.chosen(options, suite)],
    )


def grid(options: Protocol, cells: list[Cell], dry_run: bool = False) -> int:
    """Carries out the cells that are not recorded yet, in order; 1 if one of them failed."""
    if options.workers < 1:
        raise UsageError(f"--workers {options.workers}: at least 1")
    group, device = devices.join(environment.device(options.device), options.sync_batchnorm)
    if group.size > 1 and options.workers > 1:
        raise UsageError(
            "--workers under torchrun: a run has either several devices or the company of others"
        )
    try:
        if dry_run and not begun(options.store):  # and looking makes none
            if group.leads:
                foresee(
                    options, cells, 0, device, functools.cache(execute.loader(options.data_root))
                )
            return 0
        shop = Workshop(Store(options.store), device, environment.code(), group)
        if not group.leads:
            return execute.assist(options, shop)
        code = led(options, cells, dry_run, shop)
        group.tell(
            None
        )  # not after an error: the others may be in the middle of a step, and torchrun ends them
        return code
    finally:
        devices.leave()


def led(options: Protocol, cells: list[Cell], dry_run: bool, shop: Workshop) -> int:
    """`grid` in the process that decides."""
    load = functools.cache(execute.loader(options.data_root))
    todo = [cell for cell in cells if not done(cell, cells, shop, options.force)]
    costs = foresee(options, todo, len(cells) - len(todo), shop.device, load)
    return 0 if dry_run or not todo else execute.carry_out(options, shop, todo, costs, load)


def foresee(
    options: Protocol, todo: list[Cell], known: int, device: torch.device, load: Callable[..., Data]
) -> list[Cost]:
    """Says what there is to do beside the `known` cells, which are recorded, and what it will take; returns the costs."""
    console = Console(file=sys.stderr, highlight=False)
    console.print(f"{len(todo)} to do, {known} already recorded in {options.store}")
    if not todo:
        return []
    for cell in todo:
        check(cell, load(*execute.place(cell.spec)))
    costs = estimate(todo, load, options.store, device)
    console.print(overview(todo, costs))
    total = sum(cost.train + cost.evaluate for cost in costs)
    console.print(
        f"on {environment.device_name(device)}, about {duration(total / options.workers)} in all"
    )
    return costs


def done(cell: Cell, cells: list[Cell], shop: Workshop, force: bool) -> bool:
    """Whether a cell needs no work. `force` repeats what was asked for, not the teachers that it needs."""
    needed = any(cell.identity in other.spec.teachers.values() for other in cells)
    return (needed or not force) and recorded(cell, shop)


def check(cell: Cell, data: Data) -> None:
    """Raises UsageError for what can be seen before anything is started."""
    if cell.spec.training.batch > len(data.train):
        raise UsageError(
            f"a batch of {cell.spec.training.batch} is larger than the {len(data.train)} training images: "
            f"raise --limit-train"
        )


def estimate(
    todo: list[Cell], load: Callable[..., Data], store: Path, device: torch.device
) -> list[Cost]:
    """The cost of each cell; cells that differ in seed or data only are probed once."""
    made = {cell.identity: cell.spec.arch for cell in todo if cell.spec.role == "teacher"}
    known: dict[tuple[object, ...], Cost] = {}
    costs = []
    for cell in todo:
        spec = cell.spec
        archs = {
            role: made.get(identity) or cards.find_card(store, identity).arch
            for role, identity in spec.teachers.items()
        }
        data = load(*execute.place(spec))
        key = (spec.role, spec.dataset, spec.arch, spec.method, tuple(archs.items()))
        if key not in known:
            known[key] = probe.measure(cell, archs, (len(data.train), len(data.test)), device)
        costs.append(known[key])
    return costs


def overview(todo: list[Cell], costs: list[Cost]) -> Table:
    """What is about to be done, a line for each cell."""
    table = Table(
        "", "data", "model", "method", "seed", "teacher", "about", box=None, pad_edge=False
    )
    for number, (cell, cost) in enumerate(zip(todo, costs, strict=True), 1):
        spec = cell.spec
        model = f"{spec.arch} (teacher)" if spec.role == "teacher" else spec.arch
        method = f"{spec.method} {cell.variant}".strip()
        seconds = duration(cost.train + cost.evaluate)
        images = datasets.get(spec.dataset).name
        table.add_row(str(number), images, model, method, str(spec.seed), spec.teacher, seconds)
    return table
