"""A grid of runs: find what is left to do, estimate it, hand it to an executor."""

from __future__ import annotations

import sys

import torch
from rich.console import Console
from rich.table import Table

from bench import datasets
from bench.datasets.splits import Data
from bench.execution.cost import Cost, estimate_costs
from bench.execution.executors import execute_runs, follow_leader
from bench.execution.inputs import DataLoader, data_loader
from bench.execution.job import RunContext, is_recorded
from bench.execution.plan import PlannedRun
from bench.protocol.options import ProtocolOptions
from bench.system.environment import device_name, resolve_device, source_state
from bench.system.errors import UsageError
from bench.system.progress import format_duration
from bench.tracking.store import TrackingStore, store_exists
from bench.training.distributed import join_process_group, leave_process_group


def run_grid(options: ProtocolOptions, runs: list[PlannedRun], dry_run: bool = False) -> int:
    """Carry out the runs that are not recorded yet, in order. Return 1 if one of them failed."""
    if options.workers < 1:
        raise UsageError(f"--workers {options.workers}: at least 1")
    device = resolve_device(options.device)
    group, device = join_process_group(device, options.sync_batchnorm)
    try:
        if group.size > 1 and options.workers > 1:
            raise UsageError(
                "--workers under torchrun: a run has either several devices or other runs beside it"
            )
        if dry_run and not store_exists(options.store):
            # Looking makes no store.
            if group.is_leader:
                load = data_loader(options.data_root)
                announce_runs(options, runs, 0, device, load)
            return 0
        context = RunContext(TrackingStore(options.store), device, source_state(), group)
        if not group.is_leader:
            return follow_leader(options, context)
        exit_code = run_unrecorded(options, runs, dry_run, context)
        # Not after an error: the others may be in the middle of a step, and torchrun ends them.
        group.send(None)
        return exit_code
    finally:
        leave_process_group()


def run_unrecorded(
    options: ProtocolOptions, runs: list[PlannedRun], dry_run: bool, context: RunContext
) -> int:
    """Carry out what is left of a grid on the leading process; return the exit code."""
    load = data_loader(options.data_root)
    todo = [run for run in runs if not is_done(run, runs, context, options.force)]
    costs = announce_runs(options, todo, len(runs) - len(todo), context.device, load)
    if dry_run or not todo:
        return 0
    return execute_runs(options, context, todo, costs, load)


def is_done(run: PlannedRun, runs: list[PlannedRun], context: RunContext, force: bool) -> bool:
    """Whether a run needs no work.

    `force` repeats the runs that were asked for, not the teachers that they need.
    """
    teaches = any(run.identity in student.spec.teachers.values() for student in runs)
    if force and not teaches:
        return False
    return is_recorded(run, context)


def announce_runs(
    options: ProtocolOptions,
    todo: list[PlannedRun],
    num_recorded: int,
    device: torch.device,
    load: DataLoader,
) -> list[Cost]:
    """Print what there is to do and about how long it takes; return the costs."""
    console = Console(file=sys.stderr, highlight=False)
    console.print(f"{len(todo)} to do, {num_recorded} already recorded in {options.store}")
    if not todo:
        return []
    for run in todo:
        check_batch_size(run, load(run.spec))
    costs = estimate_costs(todo, load, options.store, device)
    console.print(overview_table(todo, costs))
    total = sum(cost.train + cost.evaluate for cost in costs)
    duration = format_duration(total / options.workers)
    console.print(f"on {device_name(device)}, about {duration} in all")
    return costs


def check_batch_size(run: PlannedRun, data: Data) -> None:
    """Raise UsageError, before anything starts, for a batch that training could not fill."""
    batch = run.spec.training.batch
    if batch > len(data.train):
        raise UsageError(
            f"a batch of {batch} is larger than the {len(data.train)} training images: "
            "raise --limit-train"
        )


def overview_table(todo: list[PlannedRun], costs: list[Cost]) -> Table:
    """Return a table of what is about to be done, a line for each run."""
    columns = ("", "data", "model", "method", "seed", "teacher", "about")
    table = Table(*columns, box=None, pad_edge=False)
    for number, (run, cost) in enumerate(zip(todo, costs, strict=True), 1):
        spec = run.spec
        model = f"{spec.arch} (teacher)" if spec.role == "teacher" else spec.arch
        method = f"{spec.method} {run.variant}".strip()
        duration = format_duration(cost.train + cost.evaluate)
        dataset = datasets.get(spec.dataset).name
        table.add_row(str(number), dataset, model, method, str(spec.seed), spec.teacher, duration)
    return table
