"""Executors carry out runs one by one, or in processes that share the cores.

A run that fails stops no other, except the students of a teacher that failed.
"""

from __future__ import annotations

import multiprocessing
import os
import traceback
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import NamedTuple, TypeAlias

import torch

from bench.execution.cost import Cost
from bench.execution.evaluation import choose_attack_search
from bench.execution.inputs import LoadData, cached_loader
from bench.execution.job import RunContext, build_training_module, mark_for_repeat, run_job
from bench.execution.plan import PlannedRun, work_folder
from bench.protocol.options import ProtocolOptions
from bench.system import signals
from bench.system.errors import BenchError, continue_hint, one_line
from bench.system.log import NOTE, LogSettings, log_in_worker, log_settings
from bench.system.progress import ParallelProgress, Progress
from bench.tracking.store import TrackingStore
from bench.training.trainer import STATE, Trainer
from leaderboards.schema.spec import Spec

# The last lines of runs that failed, by identity.
Failures: TypeAlias = dict[str, str]


class RunOutcome(NamedTuple):
    """The last line of a run, and whether it succeeded."""

    message: str
    succeeded: bool


class QueuedRun(NamedTuple):
    """A run that waits for a worker, its number in the overview and its cost."""

    number: int
    run: PlannedRun
    cost: Cost


def execute_runs(
    options: ProtocolOptions,
    context: RunContext,
    todo: list[PlannedRun],
    costs: list[Cost],
    load: LoadData,
) -> Failures:
    """Carry out runs, each teacher before its students; return the failures."""
    if options.force:
        # All are marked before the first begins: an interruption leaves none of them out.
        for run in todo:
            mark_for_repeat(run, context)
    if options.workers > 1:
        return run_in_processes(options, context, todo, costs)
    return run_one_after_another(context, todo, costs, load)


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


def run_one_after_another(
    context: RunContext, todo: list[PlannedRun], costs: list[Cost], load: LoadData
) -> Failures:
    """Carry out runs in order; return the failures."""
    failed: Failures = {}
    with Progress([(cost.train, cost.evaluate) for cost in costs]) as progress:
        for run, cost in zip(todo, costs, strict=True):
            progress.start(run.label, run.spec.training.epochs)
            result = result_without_teacher(run, failed)
            if result is None:
                result = run_and_report(run, context, load, cost, progress)
            if not result.succeeded:
                failed[run.identity] = result.message
            progress.finish(*result)
    return failed


def run_in_processes(
    options: ProtocolOptions, context: RunContext, todo: list[PlannedRun], costs: list[Cost]
) -> Failures:
    """Carry out runs in `options.workers` processes; return the failures."""
    failed: Failures = {}
    tally = ParallelProgress(len(todo))
    queued = [*map(QueuedRun, range(1, len(todo) + 1), todo, costs)]
    ids = {run.spec.id for run in todo}
    waves: tuple[list[QueuedRun], ...] = ([], [], [])
    for item in queued:
        waves[wave_number(item.run.spec, ids)].append(item)
    for wave in waves:
        run_wave(options, context, wave, failed, tally)
    return failed


def wave_number(spec: Spec, ids: set[str]) -> int:
    """Return when a run may begin: teachers, students that may need any of them, then copies.

    A tuned run may be a copy of the one with the same values, whose id is among `ids`.
    """
    if spec.role == "teacher":
        return 0
    return 2 if spec.tuned and replace(spec, tuned=0).id in ids else 1


def run_wave(
    options: ProtocolOptions,
    context: RunContext,
    wave: list[QueuedRun],
    failed: Failures,
    tally: ParallelProgress,
) -> None:
    """Carry out runs that need not wait for each other; add those that failed to `failed`."""
    threads = max(torch.get_num_threads() // options.workers, 1)
    spawn, arguments = multiprocessing.get_context("spawn"), (threads, log_settings())
    pool = ProcessPoolExecutor(options.workers, spawn, start_worker, arguments)
    with pool, terminated_on_error(pool):
        futures = {}
        for item in wave:
            result = result_without_teacher(item.run, failed)
            if result is not None:
                failed[item.run.identity] = result.message
                tally.finish(item.number, item.run.label, *result)
                continue
            inputs = (options, context.device, context.code, item, tally.total)
            futures[pool.submit(run_in_worker, *inputs)] = item
        for future in as_completed(futures):
            item = futures[future]
            result = worker_result(future, options.force)
            if not result.succeeded:
                failed[item.run.identity] = result.message
            tally.finish(item.number, item.run.label, *result)


@contextmanager
def terminated_on_error(pool: ProcessPoolExecutor) -> Iterator[None]:
    """Terminate the processes of a pool if the block is left by an exception."""
    others = multiprocessing.active_children()
    try:
        yield
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():
            if process not in others:
                process.terminate()
        raise


def start_worker(threads: int, settings: LogSettings) -> None:
    """Prepare a process of a pool, which gets so many threads."""
    signals.prepare_worker()
    torch.set_num_threads(threads)
    log_in_worker(settings)


def run_in_worker(
    options: ProtocolOptions,
    device: torch.device,
    code: dict[str, str],
    item: QueuedRun,
    total: int,
) -> RunOutcome:
    """Carry out one of `total` runs in a process of a pool."""
    run, cost = item.run, item.cost
    try:
        store, search = TrackingStore(options.store), choose_attack_search(options, device)
        context = RunContext(store, device, code, search=search)
        progress = Progress([(cost.train, cost.evaluate)], item.number, total)
        progress.start(run.label, run.spec.training.epochs)
        return run_and_report(run, context, cached_loader(options.data_root), cost, progress)
    except SystemExit:
        # Told to stop: the pool would keep that to itself and take up the next run.
        os._exit(1)


def worker_result(future: Future[RunOutcome], force: bool) -> RunOutcome:
    """Return what a worker returned, or a failure if its process died."""
    try:
        return future.result()
    except BrokenProcessPool:
        message = f"failed: a worker process died; {continue_hint(force)} continues"
        return RunOutcome(message, False)


def result_without_teacher(run: PlannedRun, failed: Failures) -> RunOutcome | None:
    """Return the result of a run whose teacher failed, None for other runs."""
    missing = failed.keys() & set(run.spec.teachers.values())
    if not missing:
        return None
    return RunOutcome(f"not run, its teacher {missing.pop()} failed", False)


def run_and_report(
    run: PlannedRun, context: RunContext, load: LoadData, cost: Cost, progress: Progress
) -> RunOutcome:
    """Carry out one run; return a line with its result or the cause of its failure."""
    has_state = (work_folder(context.root, run.spec) / STATE).exists()
    progress.log(f"{run.label}: {'continues' if has_state else 'starts'}")
    try:
        data = load(run.spec)
        return RunOutcome(run_job(run, context, data, cost.student_passes, progress), True)
    except Exception as error:
        progress.log(traceback.format_exc(), NOTE)
        if isinstance(error, BenchError):
            return RunOutcome(f"failed: {error}", False)
        # The tracking store, for one, may have gone away since it was opened.
        return RunOutcome(f"failed: {type(error).__name__}: {one_line(error)}", False)
