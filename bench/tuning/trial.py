"""One trial: a training run under the suite's protocol, measured on validation images alone."""

from __future__ import annotations

import socket
import traceback
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna
import torch
from mlflow.exceptions import MlflowException
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.exc import SQLAlchemyError

import methods
from bench.datasets.splits import Data
from bench.execution.job import RunContext, build_training_module
from bench.execution.plan import PlannedRun
from bench.models import checkpoint
from bench.system.errors import BenchError, one_line
from bench.system.log import LOGGER, NOTE
from bench.system.progress import Progress
from bench.tracking.run_logger import RunLogger
from bench.tracking.store import TUNING_SUFFIX
from bench.training.trainer import Trainer, clean_and_robust_accuracy, derive_seed
from bench.tuning.space import SearchSpace
from bench.tuning.storage import retry_history, was_retried
from bench.tuning.study import StudyPlan, find_position, rung_epochs
from leaderboards.schema.fields import FAILED, FINISHED, KILLED
from leaderboards.schema.metrics import TRAIN_SECONDS
from leaderboards.schema.spec import Spec
from methods.base import Budget

# Steps of the attack that measures a trial: more than the inner attack's, against masked gradients.
ATTACK_STEPS = 20
# Ends of a trial by no fault of its own: a signal, a full disk, a lost database.
STORAGE_ERRORS = (optuna.exceptions.OptunaError, SQLAlchemyError, MlflowException)
INTERRUPTIONS = (KeyboardInterrupt, SystemExit, OSError, *STORAGE_ERRORS)


@dataclass(frozen=True)
class TrialContext:
    """The plain values that every worker needs to run the trials of a study.

    `spec` is the default configuration's, `parent_run` the id of the study's MLflow run,
    `min_clean` the clean validation accuracy to keep, `work` the folder of unfinished trials.
    """

    plan: StudyPlan
    space: SearchSpace
    spec: Spec
    study_id: str
    parent_run: str
    budget: int
    min_clean: float
    work: Path

    def trial_folder(self, number: int) -> Path:
        return self.work / f"trial-{number}"


@dataclass(frozen=True)
class TrialRunner:
    """Run the trials of a study in one process."""

    trial_context: TrialContext
    run_context: RunContext
    data: Data

    def run_trial(self, trial: Trial) -> tuple[float, ...]:
        """Run a trial and return its values, one for each objective.

        Raises TrialPruned, or BenchError for a failure of the trial's own, which gets a reason and
        no retry. Interruptions are raised as they are; such a trial is retried.
        """
        hyper, training = self.trial_context.space.suggest(trial)
        trial.set_user_attr("drawn", True)
        spec = replace(self.trial_context.spec, hyper=hyper)
        spec = replace(spec, training=replace(spec.training, **training))
        logger = self.open_run(trial, hyper | training)
        try:
            values = self.train_rungs(trial, spec, logger)
        except optuna.TrialPruned as error:
            close_run(logger, "pruned", str(error))
            raise
        except INTERRUPTIONS:
            # After a retry this process had been taken for dead, and the MLflow run is the retry's.
            if not was_retried(trial.study, trial.number):
                logger.finish(KILLED, "interrupted")
            raise
        except Exception as error:
            reason = one_line(error)
            LOGGER.log(NOTE, traceback.format_exc())
            trial.set_user_attr("reason", reason)
            close_run(logger, "failed", reason)
            raise BenchError(reason) from error
        close_run(logger, "complete")
        return values

    def open_run(self, trial: Trial, values: dict[str, Any]) -> RunLogger:
        """Open the trial's MLflow run; a retry goes on with that of the first attempt."""
        spec, position = self.trial_context.spec, str(find_position(trial.study, trial.number))
        tags = {"role": "trial", "study": self.trial_context.study_id, "trial": position}
        tags |= {"worker": socket.gethostname(), "method": spec.method}
        tags |= {"student": spec.arch, "dataset": spec.dataset}
        name, parent = f"{spec.method} trial {position}", self.trial_context.parent_run
        logger = self.run_context.store.open_run(
            spec.suite + TUNING_SUFFIX, name, tags, parent, ("study", "trial")
        )
        logger.log_params(values)
        return logger

    def train_rungs(self, trial: Trial, spec: Spec, logger: RunLogger) -> tuple[float, ...]:
        """Train one schedule after another; return the objectives' values after the last."""
        self.take_over_work(trial)
        plan, folder = self.trial_context.plan, self.trial_context.trial_folder(trial.number)
        rungs = rung_epochs(plan.pruner, spec.training.epochs)
        position = find_position(trial.study, trial.number) + 1
        epochs_spent = 0
        for epochs in rungs:
            rung_spec = replace(spec, training=replace(spec.training, epochs=epochs))
            accuracy = self.train_rung(
                rung_spec, folder / f"{epochs}", logger, epochs_spent, position
            )
            epochs_spent += epochs
            trial.set_user_attr("epochs", epochs_spent)
            # Optuna takes no reports for two objectives; those are searched without pruning.
            if len(plan.objectives) == 1:
                trial.report(accuracy["robust"], epochs)
            is_last = epochs == rungs[-1]
            is_pruned = not is_last and trial.should_prune() and "kept" not in trial.user_attrs
            if is_last or is_pruned:
                trial.set_constraint("clean", self.trial_context.min_clean - accuracy["clean"])
            if is_pruned:
                robust = format_percent(accuracy["robust"])
                raise optuna.TrialPruned(f"pruned after {epochs} epochs: {robust} robust")
        trial.set_user_attr("clean", accuracy["clean"])
        logger.log_results({f"tune/{name}": value for name, value in accuracy.items()})
        return tuple(accuracy[name] for name in plan.objectives)

    def train_rung(
        self, spec: Spec, folder: Path, logger: RunLogger, epochs_before: int, position: int
    ) -> dict[str, float]:
        """Train one schedule of the trial at a position of the study.

        Returns: its best checkpoint's clean and robust validation accuracy.
        """
        folder.mkdir(parents=True, exist_ok=True)
        method = methods.load(spec.method)(**spec.hyper)
        run = PlannedRun(spec, method, "", "")
        module = build_training_module(run, self.run_context, self.data)
        trainer = Trainer(module, self.data, spec, folder)

        def log_epoch(row: dict[str, float], epoch: int) -> None:
            progress.end_epoch(row)
            logger.log_epoch(row, epochs_before + epoch)

        with Progress({position: (0.0, 0.0)}, self.trial_context.budget) as progress:
            progress.start(position, spec.method, spec.training.epochs)
            state = trainer.fit(log_epoch, progress.tick)
        logger.log_metrics({TRAIN_SECONDS: state.seconds}, epochs_before)
        net = checkpoint.load(folder / "best.pt", spec.arch, self.data.info)
        net = net.to(self.run_context.device)
        torch.manual_seed(derive_seed("judge", spec.seed))
        budget = Budget(spec.eps, spec.eps / 4, ATTACK_STEPS, spec.norm)
        clean, robust = clean_and_robust_accuracy(net, self.data.val, budget)
        return {"clean": clean, "robust": robust}

    def take_over_work(self, trial: Trial) -> None:
        """Continue in the folder of an earlier attempt, which gives up if it is not dead at all."""
        attempt = trial.study.get_trials(deepcopy=False)[trial.number]
        for number in reversed(retry_history(attempt)):
            folder = self.trial_context.trial_folder(number)
            if folder.exists():
                folder.rename(self.trial_context.trial_folder(trial.number))
                return


def close_run(logger: RunLogger, state: str, note: str = "") -> None:
    """Close the MLflow run of a trial that is over: "complete", "pruned" or "failed"."""
    logger.set_tags({"state": state})
    logger.finish(FAILED if state == "failed" else FINISHED, note)


def print_result(study: Study, trial: FrozenTrial, budget: int) -> None:
    """Print a line on how a trial ended."""
    position = find_position(study, trial.number) + 1
    values = ", ".join(f"{name} {format_value(value)}" for name, value in trial.params.items())
    line = f"{study.study_name}: trial {position} of {budget}: {describe_end(trial)} ({values})"
    LOGGER.info(line)


def describe_end(trial: FrozenTrial) -> str:
    """Say how a trial ended."""
    if trial.state == TrialState.COMPLETE:
        return ", ".join(map(format_percent, trial.values))
    if trial.state == TrialState.PRUNED:
        return f"pruned after {trial.user_attrs['epochs']} epochs"
    return f"failed: {trial.user_attrs.get('reason', 'interrupted')}"


def format_percent(value: float) -> str:
    """Format a fraction in percent."""
    return f"{100 * value:.1f} %"


def format_value(value: Any) -> str:
    """Format a value, a float with three digits."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
