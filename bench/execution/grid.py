"""A grid of runs: find what is left to do, estimate it, hand it to an executor."""

from __future__ import annotations

import sys

import torch
from rich.console import Console
from rich.table import Table

from bench import datasets
from bench.execution.cost import Cost, estimate_costs
from bench.execution.executors import execute_runs, follow_leader
from bench.execution.inputs import LoadData, cached_loader
from bench.execution.job import RunContext, is_recorded
from bench.execution.plan import PlannedRun
from bench.protocol.options import ProtocolOptions
from bench.system.environment import device_name, resolve_device, source_state
from bench.system.errors import UsageError
from bench.system.progress import format_duration
from bench.tracking.store import TrackingStore, store_exists
from bench.training.distributed import join_process_group, leave_process_group
from bench.training.trainer import check_batch_size


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
                print_counts(options, runs, 0)
                load = cached_loader(options.data_root)
                costs = check_and_estimate(options, runs, device, load)
                print_overview(options, runs, costs, device)
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
    load = cached_loader(options.data_root)
    todo = [run for run in runs if not can_skip(run, runs, context, options.force)]
    print_counts(options, todo, len(runs) - len(todo))
    if not todo:
        return 0
    costs = check_and_estimate(options, todo, context.device, load)
    print_overview(options, todo, costs, context.device)
    if dry_run:
        return 0
    return execute_runs(options, context, todo, costs, load)


def can_skip(run: PlannedRun, runs: list[PlannedRun], context: RunContext, force: bool) -> bool:
    """Return whether a run needs no work.

    `force` repeats runs, but not the teachers that others need.
    """
    is_needed = any(run.identity in student.spec.teachers.values() for student in runs)
    if force and not is_needed:
        return False
    return is_recorded(run, context)


def check_and_estimate(
    options: ProtocolOptions, todo: list[PlannedRun], device: torch.device, load: LoadData
) -> list[Cost]:
    """Return the costs of runs. Raise UsageError, before any starts, for too large a batch."""
    for run in todo:
        check_batch_size(run.spec.training.batch, len(load(run.spec).train))
    return estimate_costs(todo, load, options.store, device)


def print_counts(options: ProtocolOptions, todo: list[PlannedRun], num_recorded: int) -> None:
    """Print how many runs there are to do."""
    console = Console(file=sys.stderr, highlight=False)
    console.print(f"{len(todo)} to do, {num_recorded} already recorded in {options.store}")


def print_overview(
    options: ProtocolOptions, todo: list[PlannedRun], costs: list[Cost], device: torch.device
) -> None:
    """Print the runs to do and about how long they take."""
    console = Console(file=sys.stderr, highlight=False)
    console.print(overview_table(todo, costs))
    total = sum(cost.train + cost.evaluate for cost in costs)
    duration = format_duration(total / options.workers)
    console.print(f"on {device_name(device)}, about {duration} in all")


def overview_table(todo: list[PlannedRun], costs: list[Cost]) -> Table:
    """Return a table of the runs to do, a line for each."""
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
