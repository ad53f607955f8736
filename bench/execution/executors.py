"""Cells carried out one by one, or side by side in processes that share the cores; one that fails stops no other."""

from __future__ import annotations

import concurrent.futures
import concurrent.futures.process
import multiprocessing
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

from bench.datasets import data as data_module
from bench.datasets.data import Data
from bench.execution import job as cell_module
from bench.execution.cost import Cost
from bench.execution.job import RunContext
from bench.execution.plan import PlannedRun
from bench.protocol.options import ProtocolOptions
from bench.protocol.spec import Spec
from bench.system import signals
from bench.system.errors import BenchError, continue_hint
from bench.system.progress import ParallelProgress, Progress
from bench.tracking.store import TrackingStore
from bench.training.trainer import Trainer


def carry_out(
    options: ProtocolOptions,
    shop: RunContext,
    todo: list[PlannedRun],
    costs: list[Cost],
    load: Callable[..., Data],
) -> int:
    """Executes the cells and returns the exit code; teachers come before the students that need them.

    Those that are forced are all marked first: an interruption leaves none of them out.
    """
    for cell in todo if options.force else []:
        cell_module.begin_again(cell, shop)
    if options.workers > 1:
        return side_by_side(options, shop, todo, costs)
    return one_by_one(options, shop, todo, costs, load)


def assist(options: ProtocolOptions, shop: RunContext) -> int:
    """Trains what rank 0 of the group trains, until it has nothing more; what stops a cell stops it there too."""
    load = dataset_loader(options.data_root)
    while (said := shop.group.hear()) is not None:
        cell, folder = said
        data = load(*data_arguments(cell.spec))
        with suppress(BenchError):
            made = cell_module.build_training_module(cell, shop, data)
            Trainer(made, data.to(shop.device), cell.spec, folder, shop.group).fit(
                lambda *_: None, lambda *_: None
            )
    return 0


def one_by_one(
    options: ProtocolOptions,
    shop: RunContext,
    todo: list[PlannedRun],
    costs: list[Cost],
    load: Callable[..., Data],
) -> int:
    """Executes the cells in order; one that fails is named and the others go on."""
    failed: set[str] = set()
    with Progress([(cost.train, cost.evaluate) for cost in costs]) as progress:
        for cell, cost in zip(todo, costs, strict=True):
            progress.start(cell.label)
            result, good = lost(cell, failed) or attempt(cell, shop, load, cost, progress.tick)
            failed |= set() if good else {cell.identity}
            progress.finish(result)
    return 1 if failed else 0


def side_by_side(
    options: ProtocolOptions, shop: RunContext, todo: list[PlannedRun], costs: list[Cost]
) -> int:
    """Executes the cells in processes that share the cores, all teachers first."""
    failed: set[str] = set()
    threads = max(torch.get_num_threads() // options.workers, 1)
    tally = ParallelProgress(len(todo))
    context = multiprocessing.get_context("spawn")
    for role in ("teacher", "student"):
        wave = [pair for pair in zip(todo, costs, strict=True) if pair[0].spec.role == role]
        with concurrent.futures.ProcessPoolExecutor(
            options.workers, context, signals.prepare_worker
        ) as pool:
            try:
                running = {}
                for cell, cost in wave:
                    if result := lost(cell, failed):
                        failed.add(cell.identity)
                        tally.add(cell.label, result[0])
                    else:
                        running[
                            pool.submit(alone, options, shop.device, shop.code, cell, cost, threads)
                        ] = cell
                for future in concurrent.futures.as_completed(running):
                    result = outcome(future, options.force)
                    failed |= set() if result[1] else {running[future].identity}
                    tally.add(running[future].label, result[0])
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                for process in multiprocessing.active_children():
                    process.terminate()
                raise
    return 1 if failed else 0


def alone(
    options: ProtocolOptions,
    device: torch.device,
    code: dict[str, str],
    cell: PlannedRun,
    cost: Cost,
    threads: int,
) -> tuple[str, bool]:
    """`attempt` in a process of its own."""
    try:
        torch.set_num_threads(threads)
        shop = RunContext(TrackingStore(options.store), device, code)
        return attempt(cell, shop, dataset_loader(options.data_root), cost, lambda *_: None)
    except SystemExit:
        os._exit(1)  # told to stop: the pool would keep this to itself and take up the next cell


def outcome(future: concurrent.futures.Future[tuple[str, bool]], force: bool) -> tuple[str, bool]:
    try:
        return future.result()
    except concurrent.futures.process.BrokenProcessPool:
        return f"failed: a worker process died; {continue_hint(force)} continues", False


def lost(cell: PlannedRun, failed: set[str]) -> tuple[str, bool] | None:
    """The result of a cell whose teacher failed; None for others. `failed`: identities."""
    missing = failed & set(cell.spec.teachers.values())
    return (f"not run, its teacher {missing.pop()} failed", False) if missing else None


def attempt(
    cell: PlannedRun,
    shop: RunContext,
    load: Callable[..., Data],
    cost: Cost,
    tick: cell_module.Tick,
) -> tuple[str, bool]:
    """A line with the cell's result or the cause of its failure, and whether all went well."""
    try:
        data = load(*data_arguments(cell.spec))
        return cell_module.run_job(cell, shop, data, cost.student_passes, tick), True
    except BenchError as error:
        return f"failed: {error}", False
    except Exception as error:  # the store, say, that has gone away since it was opened
        return f"failed: {type(error).__name__}: {' '.join(str(error).split())[:300]}", False


def dataset_loader(root: Path) -> Callable[..., Data]:
    """Loads a data set with limits, fetching it first where it is missing."""

    def load(name: str, *limits: int | None, test: bool = True) -> Data:
        if data_module.missing(name, root):
            print(f"{name} is not under {root}: fetching it", file=sys.stderr)
            data_module.fetch(name, root)
        return data_module.load(name, root, *limits, test=test)

    return load


def data_arguments(spec: Spec) -> tuple[str, int | None, int | None, int | None]:
    """What `data.load` needs to know."""
    return spec.dataset, spec.limit_train, spec.limit_test, spec.limit_val
