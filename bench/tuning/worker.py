"""Processes that carry out the trials of a study until it has its budget; one that dies is replaced."""

from __future__ import annotations

import multiprocessing
import shutil
import sys
import time

import optuna
import torch
from mlflow.exceptions import MlflowException

from bench.datasets.splits import Data
from bench.execution import inputs
from bench.execution.job import RunContext
from bench.system import signals
from bench.system.errors import BenchError
from bench.tracking.store import TrackingStore
from bench.tuning import storage, trial
from bench.tuning import study as study_module
from bench.tuning.options import TuneOptions
from bench.tuning.trial import Task

PAUSE = 1.0  # seconds between looks when other workers have the last trials
GRACE_SECONDS = 5.0  # for a trial to be marked
DEATHS = 30  # of workers after which something is wrong with more than one of them


def work(options: TuneOptions, task: Task, shop: RunContext) -> None:
    """Carries out trials one after another until the study has its budget.

    Raises BenchError where the storage or the record fails, or the disk: no trial is lost by that.
    """
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    data = inputs.data_loader(options.data_root)(task.spec, test=False).to(shop.device)
    place = task.plan.place
    store = storage.connect(place)
    try:
        with storage.told(place):
            study = study_module.attach(task.plan, store)
            while study_module.done(study) < task.budget:
                storage.release(study, place)
                if study_module.waiting(study, task.budget):
                    attempt(study, task, shop, data)
                else:
                    time.sleep(PAUSE)
    except (MlflowException, OSError) as error:
        said = " ".join(str(error).split())[:300] or type(error).__name__
        raise BenchError(f"{task.plan.name} cannot go on: {said}") from error


def attempt(study: optuna.Study, task: Task, shop: RunContext, data: Data) -> None:
    """One trial. An interrupted one is told as failed without a reason, so that it is queued again."""
    number: list[int] = []

    def objective(found: optuna.Trial) -> float | tuple[float, ...]:
        number.append(found.number)
        try:
            return trial.objective(found, study, task, shop, data)
        except SystemExit:
            raise KeyboardInterrupt from None  # which Optuna knows

    try:
        study.optimize(objective, n_trials=1, catch=(BenchError,))
    except (optuna.exceptions.OptunaError, ValueError, FileNotFoundError):
        if not number or not storage.followed(study, number[0]):
            raise
        return  # this process had been taken for dead, and the trial is another's now
    shutil.rmtree(trial.folder_of(task, number[0]), ignore_errors=True)
    trial.say(study, number[0], task.budget)


def process(
    options: TuneOptions, task: Task, device: torch.device, code: dict[str, str], threads: int
) -> None:
    """`work` in a process of its own."""
    signals.prepare_worker()
    torch.set_num_threads(threads)
    try:
        work(options, task, RunContext(TrackingStore(options.store), device, code))
    except BenchError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, SystemExit):
        sys.exit(130)


def together(options: TuneOptions, task: Task, shop: RunContext) -> None:
    """`options.workers` processes until the study has its budget. Raises BenchError if they fail again and again."""
    if options.workers == 1:
        return work(options, task, shop)
    context = multiprocessing.get_context("spawn")
    threads = max(torch.get_num_threads() // options.workers, 1)
    arguments = (options, task, shop.device, shop.code, threads)
    running: list[multiprocessing.process.BaseProcess] = []
    deaths, begun = 0, 0
    try:
        while running or begun < options.workers + deaths:
            while len(running) < options.workers and begun < options.workers + deaths:
                running.append(context.Process(target=process, args=arguments))
                running[-1].start()
                begun += 1
            time.sleep(PAUSE / 4)
            ended = [each for each in running if not each.is_alive()]
            running = [each for each in running if each.is_alive()]
            for each in ended:
                if each.exitcode in (1, 2):
                    raise BenchError("a worker failed; the same command continues")
                if each.exitcode:
                    deaths += 1
                    print(f"a worker died ({each.exitcode}) and is replaced", file=sys.stderr)
            if deaths > DEATHS:
                raise BenchError(f"{deaths} workers died")
    finally:
        for each in running:
            each.terminate()
        for each in running:
            each.join(GRACE_SECONDS)
    return None
