"""A grid of runs: find what is left to do, estimate it, hand it to an executor."""

from __future__ import annotations

import logging

import torch

from bench.datasets.loading import split_sizes
from bench.execution import overview
from bench.execution.cost import Cost, estimate_costs
from bench.execution.evaluation import choose_attack_search
from bench.execution.executors import Failures, execute_runs, follow_leader
from bench.execution.inputs import cached_loader
from bench.execution.job import RunContext, is_recorded
from bench.execution.plan import PlannedRun
from bench.protocol.options import ProtocolOptions
from bench.system.environment import resolve_device, source_state
from bench.system.errors import UsageError
from bench.system.log import LOGGER, RESULT, open_log_file
from bench.tracking.store import TrackingStore, store_exists
from bench.training.distributed import join_process_group, leave_process_group
from bench.training.trainer import check_batch_size


def run_grid(
    options: ProtocolOptions,
    runs: list[PlannedRun],
    dry_run: bool = False,
    show_results: bool = True,
) -> dict[str, str]:
    """Carry out the runs that are not recorded yet, in order. Return why some failed, by label.

    show_results: log what is recorded of all of them in the end.
    """
    if options.workers < 1:
        raise UsageError(f"--workers {options.workers}: at least 1")
    device = resolve_device(options.device)
    group, device = join_process_group(device, options.sync_batchnorm)
    try:
        if group.size > 1 and options.workers > 1:
            raise UsageError(
                "--workers under torchrun: a run has either several devices or other runs beside it"
            )
        if dry_run:
            if group.is_leader:
                show_dry_run(options, runs, device)
            return {}
        search = choose_attack_search(options, device)
        store = TrackingStore(options.store)
        context = RunContext(store, device, source_state(), group, search)
        if not group.is_leader:
            follow_leader(options, context)
            return {}
        failed = run_unrecorded(options, runs, context)
        # Not after an error: the others may be in the middle of a step, and torchrun ends them.
        group.send(None)
        if show_results:
            LOGGER.log(RESULT, overview.format_results(runs, failed, context.store))
            LOGGER.log(RESULT, overview.next_steps(options, failed, context.store))
        return {run.label: failed[run.identity] for run in runs if run.identity in failed}
    finally:
        leave_process_group()


def show_dry_run(options: ProtocolOptions, runs: list[PlannedRun], device: torch.device) -> None:
    """Log what there is to do and about how long it takes; make no store and fetch no data."""
    todo = runs
    if store_exists(options.store):
        context = RunContext(TrackingStore(options.store), device, {})
        todo = unrecorded_runs(options, runs, context)
    LOGGER.log(RESULT, overview.count_runs(options, runs, todo))
    for line in overview.missing_data(options, todo):
        LOGGER.log(RESULT, line)
    if todo:
        estimate_and_show(options, todo, device, RESULT)


def run_unrecorded(
    options: ProtocolOptions, runs: list[PlannedRun], context: RunContext
) -> Failures:
    """Carry out what is left of a grid; return the identities that failed, and why."""
    todo = unrecorded_runs(options, runs, context)
    if todo:
        open_log_file(context.root, overview.log_head(context.device, context.code))
    LOGGER.info(overview.count_runs(options, runs, todo))
    if not todo:
        return {}
    load = cached_loader(options.data_root)
    for run in todo:
        load(run.spec)
    costs = estimate_and_show(options, todo, context.device, logging.INFO)
    return execute_runs(options, context, todo, costs, load)


def unrecorded_runs(
    options: ProtocolOptions, runs: list[PlannedRun], context: RunContext
) -> list[PlannedRun]:
    """Return the runs that need work: those that are not recorded, with `force` all.

    `force` does not repeat the teachers that others need.
    """
    needed = {identity for run in runs for identity in run.spec.teachers.values()}
    todo = []
    for run in runs:
        is_forced = options.force and run.identity not in needed
        if is_forced or not is_recorded(run, context):
            todo.append(run)
    return todo


def estimate_and_show(
    options: ProtocolOptions, todo: list[PlannedRun], device: torch.device, level: int
) -> list[Cost]:
    """Log the runs to do with an estimate; return their costs.

    Raise UsageError, before any starts, for a batch or a limit that does not fit the data.
    """
    for run in todo:
        spec = run.spec
        num_train, _ = split_sizes(spec.dataset, spec.limit_train, spec.limit_test)
        check_batch_size(spec.training.batch, num_train)
    # On a CPU this may take a minute for a suite that is for a GPU.
    LOGGER.info("timing training steps for an estimate")
    costs = estimate_costs(todo, options.store, device)
    LOGGER.log(level, overview.format_plan(options, todo, costs, device))
    if warning := overview.cpu_warning(options, costs, device):
        LOGGER.warning(warning)
    return costs
