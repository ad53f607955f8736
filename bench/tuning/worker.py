"""Processes that run the trials of a study; one that dies is replaced."""

from __future__ import annotations

import shutil
import sys
import time
import traceback
from collections.abc import Iterable
from contextlib import ExitStack
from multiprocessing.process import BaseProcess

import optuna
import torch
from mlflow.exceptions import MlflowException
from optuna.storages import RDBStorage
from optuna.study import Study
from optuna.trial import FrozenTrial

from bench.execution.evaluation import choose_attack_search
from bench.execution.grid.processes import choose_devices, start_process, start_worker
from bench.execution.inputs import cached_loader
from bench.execution.job import RunContext
from bench.system import signals
from bench.system.errors import BenchError, one_line
from bench.system.log import LOGGER, NOTE, LogSettings, log_settings
from bench.tracking.store import TrackingStore
from bench.tuning import storage
from bench.tuning.options import TuneOptions
from bench.tuning.storage import exclusive, mark_begun, requeue_trials, was_retried
from bench.tuning.study import count_over, has_next_trial, load_study, seed_sampler
from bench.tuning.trial import TrialContext, TrialRunner, print_result

POLL_SECONDS = 1.0  # pause between looks when the last trials are in other workers' hands
# Of a process that had been taken for dead, and whose trial is another's now.
LATE_ERRORS = (optuna.exceptions.OptunaError, ValueError, FileNotFoundError)
# Optuna's own, of a result that could not be stored. They hide why.
HIDING_ERRORS = (AssertionError, UnboundLocalError)
MAX_DEATHS = 30  # after this many deaths of workers, more than one of them is at fault


def run_trials(options: TuneOptions, trial_context: TrialContext, run_context: RunContext) -> None:
    """Run trials until the study has its budget. Raises BenchError if a store or the disk fails."""
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    load = cached_loader(options.data_root)
    data = load(trial_context.spec, test=False).to(run_context.device)
    runner = TrialRunner(trial_context, run_context, data)
    backend = storage.connect(trial_context.plan.storage)
    try:
        with storage.storage_errors(trial_context.plan.storage):
            study = load_study(trial_context.plan, backend)
            while count_over(study) < trial_context.budget:
                run_next_trial(study, backend, runner)
    except (MlflowException, OSError) as error:
        raise BenchError(f"{trial_context.plan.name} cannot go on: {one_line(error)}") from error


def run_next_trial(study: Study, backend: RDBStorage, runner: TrialRunner) -> None:
    """Run the next trial, or pause if there is none to begin."""
    trial_context, numbers = runner.trial_context, list[int]()
    stops = list[BaseException]()

    def run_begun_trial(trial: optuna.Trial) -> tuple[float, ...]:
        try:
            mark_begun(backend, trial)
            lock.close()
            numbers.append(trial.number)
            return runner.run_trial(trial)
        except (KeyboardInterrupt, SystemExit) as stop:
            # On SystemExit, Optuna would leave the trial running. After either it asks the
            # database, which fails where a transaction was cut short, and says only that.
            stops.append(stop)
            raise KeyboardInterrupt from None

    def finish_trial(study: Study, trial: FrozenTrial) -> None:
        shutil.rmtree(trial_context.trial_folder(trial.number), ignore_errors=True)
        print_result(study, trial, trial_context.budget)

    # One process at a time looks and begins, so there are never more trials than the budget.
    with ExitStack() as lock:
        lock.enter_context(exclusive(trial_context.plan.storage, "study"))
        requeue_trials(study)
        if not has_next_trial(study, trial_context.budget):
            lock.close()
            time.sleep(POLL_SECONDS)
            return
        seed_sampler(study, trial_context.plan.sampler, trial_context.plan.seed)
        try:
            study.optimize(run_begun_trial, 1, catch=(BenchError,), callbacks=[finish_trial])
        except Exception as error:
            if stops:
                raise KeyboardInterrupt from error
            cause = (isinstance(error, HIDING_ERRORS) and error.__context__) or error
            is_late = isinstance(cause, LATE_ERRORS) and numbers and was_retried(study, numbers[0])
            if not is_late:
                raise cause from cause.__cause__


def run_worker(
    options: TuneOptions,
    trial_context: TrialContext,
    device: torch.device,
    code: dict[str, str],
    threads: int,
    settings: LogSettings,
) -> None:
    """Run trials in one of several processes; exit with 130 if told to stop."""
    start_worker(threads, settings)
    try:
        search = choose_attack_search(options, device)
        context = RunContext(TrackingStore(options.store), device, code, search=search)
        run_trials(options, trial_context, context)
    except (KeyboardInterrupt, SystemExit):
        sys.exit(130)
    except BenchError as error:
        LOGGER.log(NOTE, traceback.format_exc())
        if signals.is_interruption(error):
            sys.exit(130)
        LOGGER.error(f"error: {error}")
        sys.exit(error.exit_code)


def run_workers(options: TuneOptions, trial_context: TrialContext, run_context: RunContext) -> None:
    """Run trials in several processes. Raises BenchError if one fails, or too many die."""
    device, code = run_context.device, run_context.code
    missing, deaths = choose_devices(options.workers, device), 0
    if len(missing) == 1:
        run_trials(options, trial_context, run_context)
        return
    threads = max(torch.get_num_threads() // len(missing), 1)
    arguments = (options, trial_context, device, code, threads, log_settings())
    running: dict[BaseProcess, str] = {}  # process -> the device that it sees
    try:
        while running or missing:
            for visible in missing:
                running[start_process(run_worker, arguments, visible)] = visible
            time.sleep(POLL_SECONDS / 4)
            ended = [process for process in running if not process.is_alive()]
            devices_of = {process: running.pop(process) for process in ended}
            missing = [devices_of[process] for process in dead_workers(ended)]
            deaths += len(missing)
            if deaths > MAX_DEATHS:
                raise BenchError(f"{deaths} workers died")
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.join(signals.STOP_SECONDS)


def dead_workers(ended: Iterable[BaseProcess]) -> list[BaseProcess]:
    """Return and report the workers that were killed. Raises BenchError for one that failed."""
    dead = []
    for process in ended:
        if process.exitcode in (1, 2):
            raise BenchError("a worker failed; the same command continues")
        if process.exitcode:
            dead.append(process)
            LOGGER.warning(f"a worker died ({process.exitcode}) and is replaced")
    return dead
