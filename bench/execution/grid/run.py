"""A grid of runs: find what is left to do, estimate it, hand it to an executor."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection
from contextlib import suppress
from functools import partial

import torch

from bench.execution.cost import Cost, estimate_costs, seconds_side_by_side
from bench.execution.evaluation import choose_attack_search
from bench.execution.grid import overview
from bench.execution.grid.drain import Drain, Failures
from bench.execution.grid.local import InProcess, run_processes
from bench.execution.grid.processes import check_workers, choose_devices
from bench.execution.grid.ray_cluster import OnRay, check_cluster
from bench.execution.grid.work import QueuedRun, Worker
from bench.execution.inputs import LoadData, cached_loader
from bench.execution.job import (
    RunContext,
    build_training_module,
    clear_work,
    is_recorded,
    mark_for_repeat,
)
from bench.execution.plan import PlannedRun
from bench.protocol.options import ProtocolOptions
from bench.system.environment import resolve_device, source_state
from bench.system.errors import BenchError, UsageError
from bench.system.log import LOGGER, RESULT, open_log_file
from bench.system.progress import ParallelProgress, Progress
from bench.tracking.outage import patiently
from bench.tracking.store import TrackingStore, store_exists
from bench.training.distributed import ProcessGroup, join_process_group, leave_process_group
from bench.training.trainer import Trainer
from leaderboards.schema.fields import FINISHED, Tag


def run_grid(
    options: ProtocolOptions,
    runs: list[PlannedRun],
    dry_run: bool = False,
    show_results: bool = True,
) -> dict[str, str]:
    """Carry out the runs that are not recorded yet, in order. Return why some failed, by label.

    show_results: log what is recorded of all of them in the end.
    """
    check_workers(options.workers)
    device = resolve_device(options.device)
    group, device = join_process_group(device, options.sync_batchnorm)
    try:
        check_executor(options, group)
        if dry_run:
            if group.is_leader:
                show_dry_run(options, runs, device)
            return {}
        if options.ray:
            check_cluster(options)
        search = choose_attack_search(options, device)
        load = cached_loader(options.data_root)
        if group.is_leader:
            check_data(options, runs, load)
        store = TrackingStore(options.store)
        context = RunContext(store, device, source_state(), group, search)
        if not group.is_leader:
            follow_leader(options, context)
            return {}
        failed = run_unrecorded(options, runs, context, load)
        # Not after an error: the others may be in the middle of a step, and torchrun ends them.
        group.send(None)
        if show_results:
            results = patiently(lambda: overview.format_results(runs, failed, context.store))
            LOGGER.log(RESULT, results)
            LOGGER.log(RESULT, overview.next_steps(options, failed, context.store))
        return {run.label: failed[run.identity] for run in runs if run.identity in failed}
    finally:
        leave_process_group()


def check_executor(options: ProtocolOptions, group: ProcessGroup) -> None:
    """Raise UsageError for two ways to carry out runs at once."""
    if group.size > 1 and (options.workers != 1 or options.ray):
        flag = "--ray" if options.ray else "--workers"
        raise UsageError(
            f"{flag} under torchrun: a run has either several devices or other runs beside it"
        )
    if options.ray and options.workers != 1:
        raise UsageError("--ray and --workers: one of them")
    if options.gpus_per_run is not None and not options.ray:
        raise UsageError("--gpus-per-run: of tasks on Ray, with --ray")
    if options.gpus_per_run is not None and not options.gpus_per_run >= 0:
        raise UsageError(f"--gpus-per-run {options.gpus_per_run}: not negative")


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
        estimate_and_show(options, runs, todo, device, RESULT)


def check_data(options: ProtocolOptions, runs: list[PlannedRun], load: LoadData) -> None:
    """Load the data of all runs where nothing is recorded: what is missing is said first."""
    if not store_exists(options.store):
        for run in runs:
            load(run.spec)


def run_unrecorded(
    options: ProtocolOptions, runs: list[PlannedRun], context: RunContext, load: LoadData
) -> Failures:
    """Carry out what is left of a grid; return the identities that failed, and why."""
    todo = patiently(lambda: unrecorded_runs(options, runs, context))
    patiently(lambda: clear_leftovers(runs, todo, context))
    if todo:
        patiently(lambda: check_code_versions(options, runs, context))
        open_log_file(context.root, overview.log_head(context.device, context.code))
    LOGGER.info(overview.count_runs(options, runs, todo))
    if not todo:
        return {}
    for run in todo:
        load(run.spec)
    costs = estimate_and_show(options, runs, todo, context.device, logging.INFO)
    if options.force:
        # All are marked before the first begins: an interruption leaves none of them out.
        for run in todo:
            patiently(partial(mark_for_repeat, run, context))
    items = [*map(QueuedRun, range(1, len(todo) + 1), todo, costs)]
    return execute_runs(options, context, items, load)


def clear_leftovers(runs: list[PlannedRun], todo: list[PlannedRun], context: RunContext) -> None:
    """Remove what processes that were killed left of runs that are recorded."""
    left = {run.identity for run in todo}
    for run in runs:
        if run.identity not in left:
            clear_work(run, context)
    context.claims(runs[0]).clear_dead()


def check_code_versions(
    options: ProtocolOptions, runs: list[PlannedRun], context: RunContext
) -> None:
    """Warn of runs that another version of the code made or is at; with `strict` refuse the grid.

    Raise UsageError.
    """
    ids, suite = {run.spec.id for run in runs}, runs[0].spec.suite
    recorded = context.store.runs_with_status(suite, FINISHED)
    commits = Counter(
        run.tags.get(Tag.CODE_COMMIT, "unknown") for run in recorded if run.tags[Tag.SPEC_ID] in ids
    )
    commits.update(claim.code for claim in context.claims(runs[0]).read() if claim.name in ids)
    commits.pop(context.code.get(Tag.CODE_COMMIT, ""), None)
    if not commits:
        return
    counts = ", ".join(f"{count} of {commit[:10]}" for commit, count in commits.most_common())
    message = f"runs of this grid were made with other versions of the code: {counts}"
    if options.strict:
        raise UsageError(f"--strict: {message}")
    LOGGER.warning(f"warning: {message}; `status` names them, --strict refuses them")


def execute_runs(
    options: ProtocolOptions, context: RunContext, items: list[QueuedRun], load: LoadData
) -> Failures:
    """Carry out runs, each teacher before its students; return the failures."""
    if options.ray:
        with OnRay(options, len(items)) as cluster:
            return Drain(items, context, parallel_progress(items, cluster.slots)).run(cluster)
    devices = choose_devices(options.workers, context.device)
    if len(devices) == 1:
        estimates = {item.number: (item.cost.train, item.cost.evaluate) for item in items}
        with Progress(estimates, len(items)) as progress:
            drain = Drain(items, context, progress)
            return drain.run(InProcess(Worker(context, load), progress))
    drain = Drain(items, context, parallel_progress(items, len(devices)))
    with run_processes(options, context.device, context.code, len(items), devices) as executor:
        return drain.run(executor)


def parallel_progress(items: list[QueuedRun], workers: int) -> ParallelProgress:
    """Return the progress of runs on so many workers."""
    runs = {item.number: (item.run, item.cost) for item in items}

    def estimate(numbers: Collection[int]) -> float:
        return seconds_side_by_side((runs[number] for number in numbers), workers)

    return ParallelProgress(runs, estimate)


def follow_leader(options: ProtocolOptions, context: RunContext) -> None:
    """Train what rank 0 of the process group trains until it has nothing more."""
    load = cached_loader(options.data_root)
    while (message := context.group.receive()) is not None:
        run, folder = message
        data = load(run.spec)
        # What stops the run here stops it on rank 0 too, which reports it.
        with suppress(BenchError):
            module = build_training_module(run, context, data)
            data = data.to(context.device)
            trainer = Trainer(module, data, run.spec, folder, context.group)
            trainer.fit(lambda *_: None, lambda *_: None)


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
    options: ProtocolOptions,
    runs: list[PlannedRun],
    todo: list[PlannedRun],
    device: torch.device,
    level: int,
) -> list[Cost]:
    """Log the runs to do, of all `runs`, with an estimate; return their costs."""
    # On a CPU this may take a minute for a suite that is for a GPU.
    LOGGER.info("timing training steps for an estimate")
    costs = estimate_costs(todo, runs, options.store, device)
    LOGGER.log(level, overview.format_plan(options, todo, costs, device))
    if warning := overview.cpu_warning(options, todo, costs, device):
        LOGGER.warning(warning)
    return costs
