"""The grid: says what it is about to do, does it cell by cell, survives a cell that fails."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from bench import cell as cell_module
from bench import data as data_module
from bench import datasets, environment, plan, probe, teachers
from bench.cell import Workshop
from bench.data import Data
from bench.errors import BenchError, UsageError
from bench.options import Protocol, Run, TeacherTrain
from bench.plan import Cell
from bench.probe import Cost
from bench.progress import Progress, duration
from bench.spec import Spec
from bench.track import FINISHED, Store


def run(options: Run, hyper: dict[str, Any]) -> int:
    """The verb `run`; returns the exit code."""
    return grid(options, plan.plan(options, hyper), dry_run=options.dry_run)


def train_teacher(options: TeacherTrain) -> int:
    """The verb `teacher train`."""
    suite = plan.resolve(options)
    return grid(options, [plan.teacher(options, suite, name, options.role) for name in plan.chosen(options, suite)])


def grid(options: Protocol, cells: list[Cell], dry_run: bool = False) -> int:
    """Carries out the cells that are not recorded yet, in order; 1 if one of them failed."""
    console = Console(file=sys.stderr, highlight=False)
    device = environment.device(options.device)
    load = functools.cache(loader(options.data_root))
    shop = Workshop(Store(options.store), device, environment.code())
    todo = [cell for cell in cells if not done(cell, cells, shop, options.force)]
    console.print(f"{len(todo)} to do, {len(cells) - len(todo)} already recorded in {options.store}")
    if not todo:
        return 0
    for cell in todo:
        check(cell, load(*place(cell.spec)))
    costs = estimate(todo, load, options.store, device)
    console.print(overview(todo, costs))
    total = sum(cost.train + cost.evaluate for cost in costs)
    console.print(f"on {environment.device_name(device)}, about {duration(total)} in all")
    return 0 if dry_run else carry_out(options, shop, todo, costs, load)


def carry_out(options: Protocol, shop: Workshop, todo: list[Cell], costs: list[Cost], load: Callable[..., Data]) -> int:
    """Executes the cells; one that fails is named and the others go on."""
    failed: set[str] = set()
    with Progress([(cost.train, cost.evaluate) for cost in costs]) as progress:
        for cell, cost in zip(todo, costs, strict=True):
            progress.start(label(cell))
            if lost := failed & set(cell.spec.teachers.values()):
                failed.add(cell.spec.id)
                progress.finish(f"not run, its teacher {lost.pop()} failed")
                continue
            try:
                data, force = load(*place(cell.spec)), options.force
                result = cell_module.execute(cell, shop, data, cost.student_passes, progress.tick, force)
            except BenchError as error:
                failed |= {cell.spec.id, cell.identity}
                result = f"failed: {error}"
            progress.finish(result)
    return 1 if failed else 0


def done(cell: Cell, cells: list[Cell], shop: Workshop, force: bool) -> bool:
    """Whether a cell needs no work. `force` repeats what was asked for, not the teachers that it needs."""
    needed = any(cell.identity in other.spec.teachers.values() for other in cells)
    if force and not needed:
        return False
    if cell.spec.role == "teacher" and not teachers.exists(shop.root, cell.identity):
        return False
    return shop.store.find(cell.spec, FINISHED) is not None


def loader(root: Path) -> Callable[..., Data]:
    """Loads a data set with limits, fetching it first where it is missing."""

    def load(name: str, *limits: int | None) -> Data:
        if data_module.missing(name, root):
            print(f"{name} is not under {root}: fetching it", file=sys.stderr)
            data_module.fetch(name, root)
        return data_module.load(name, root, *limits)

    return load


def place(spec: Spec) -> tuple[str, int | None, int | None, int | None]:
    """What `data.load` needs to know."""
    return spec.dataset, spec.limit_train, spec.limit_test, spec.limit_val


def check(cell: Cell, data: Data) -> None:
    """Raises UsageError for what can be seen before anything is started."""
    if cell.spec.training.batch > len(data.train):
        raise UsageError(
            f"a batch of {cell.spec.training.batch} is larger than the {len(data.train)} training images: "
            f"raise --limit-train"
        )


def estimate(todo: list[Cell], load: Callable[..., Data], store: Path, device: torch.device) -> list[Cost]:
    """The cost of each cell; cells that differ in seed or data only are probed once."""
    made = {cell.identity: cell.spec.arch for cell in todo if cell.spec.role == "teacher"}
    known: dict[tuple[object, ...], Cost] = {}
    costs = []
    for cell in todo:
        spec = cell.spec
        archs = {
            role: made.get(identity) or teachers.find(store, identity).arch for role, identity in spec.teachers.items()
        }
        data = load(*place(spec))
        key = (spec.role, spec.dataset, spec.arch, spec.method, tuple(archs.items()))
        if key not in known:
            known[key] = probe.measure(cell, archs, (len(data.train), len(data.test)), device)
        costs.append(known[key])
    return costs


def label(cell: Cell) -> str:
    return f"{cell.spec.label}{f' ({cell.variant})' if cell.variant else ''}"


def overview(todo: list[Cell], costs: list[Cost]) -> Table:
    """What is about to be done, a line for each cell."""
    table = Table("", "data", "model", "method", "seed", "teacher", "about", box=None, pad_edge=False)
    for number, (cell, cost) in enumerate(zip(todo, costs, strict=True), 1):
        spec = cell.spec
        model = f"{spec.arch} (teacher)" if spec.role == "teacher" else spec.arch
        method = f"{spec.method} {cell.variant}".strip()
        seconds = duration(cost.train + cost.evaluate)
        images = datasets.get(spec.dataset).name
        table.add_row(str(number), images, model, method, str(spec.seed), spec.teacher, seconds)
    return table
