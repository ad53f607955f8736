"""One trial: a training run under the suite's protocol, measured on validation images alone."""

from __future__ import annotations

import socket
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna
import torch
from mlflow.exceptions import MlflowException
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

import methods
from bench.datasets.data import Data
from bench.execution.job import RunContext, build_training_module
from bench.execution.plan import PlannedRun
from bench.models import checkpoint
from bench.protocol.spec import Spec
from bench.system.errors import BenchError
from bench.tracking.store import FAILED, FINISHED, KILLED, TUNING, RunLogger
from bench.training.trainer import Trainer, clean_and_robust_accuracy, derive_seed
from bench.tuning.space import SearchSpace
from bench.tuning.storage import retry_history, was_retried
from bench.tuning.study import StudyPlan, find_position, rung_epochs
from methods.base import Budget

# Steps of the attack that measures a trial: more than the inner attack's, against masked gradients.
ATTACK_STEPS = 20


@dataclass(frozen=True)
class TrialContext:
    """The plain values that every worker needs to run the trials of a study.

    Attributes:
        spec: The spec of the default configuration.
        study_id: The study's own id, not its name.
        parent_run: The id of the study's MLflow run.
        budget: The number of trials.
        min_clean: The clean accuracy on validation images that a trial must keep, in [0, 1].
        work: The folder of the trials' unfinished work.
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


def run_trial(
    trial: optuna.Trial, context: TrialContext, run: RunContext, data: Data
) -> float | tuple[float, ...]:
    """Run a trial and return its value or values.

    Raises:
        TrialPruned: If the trial does not reach its last rung.
        BenchError: If the trial fails by its own fault; the reason is noted, and it is not retried.
        Exception: For a full disk, a lost storage and the like, as it is; the trial is retried.
    """
    hyper, training = context.space.suggest(trial)
    spec = context.spec
    spec = replace(spec, hyper=hyper, training=replace(spec.training, **training))
    logger = open_run(trial, context, run, hyper | training)
    try:
        values = train_rungs(trial, spec, context, run, data, logger)
    except optuna.TrialPruned as error:
        close_run(logger, "pruned", str(error))
        raise
    except (optuna.exceptions.OptunaError, SQLAlchemyError, MlflowException, OSError):
        # After a retry this process had been taken for dead, and the MLflow run is the retry's.
        if not was_retried(trial.study, trial.number):
            logger.end(KILLED, "interrupted")
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        trial.set_user_attr("reason", reason)
        close_run(logger, "failed", reason)
        raise BenchError(reason) from error
    except BaseException:
        logger.end(KILLED, "interrupted")
        raise
    close_run(logger, "complete")
    return values


def open_run(
    trial: optuna.Trial, context: TrialContext, run: RunContext, values: dict[str, Any]
) -> RunLogger:
    """Open the trial's MLflow run; a retry goes on with that of the first attempt."""
    spec, position = context.spec, str(find_position(trial.study, trial.number))
    tags = {"role": "trial", "study": context.study_id, "trial": position}
    tags |= {"worker": socket.gethostname(), "method": spec.method}
    tags |= {"student": spec.arch, "dataset": spec.dataset}
    name, key = f"{spec.method} trial {position}", ("study", "trial")
    logger = run.store.open(spec.suite + TUNING, name, tags, context.parent_run, key)
    logger.params(values)
    return logger


def close_run(logger: RunLogger, state: str, note: str = "") -> None:
    """Close the MLflow run of a trial that is over: "complete", "pruned" or "failed"."""
    logger.tag("state", state)
    logger.end(FAILED if state == "failed" else FINISHED, note)


def train_rungs(
    trial: optuna.Trial,
    spec: Spec,
    context: TrialContext,
    run: RunContext,
    data: Data,
    logger: RunLogger,
) -> float | tuple[float, ...]:
    """Train one schedule after another; return the accuracies of the last one's best checkpoint."""
    take_over_work(trial, context)
    folder = context.trial_folder(trial.number)
    rungs = rung_epochs(context.plan.pruner, spec.training.epochs)
    epochs_spent = 0
    for epochs in rungs:
        rung_spec = replace(spec, training=replace(spec.training, epochs=epochs))
        accuracy = train_rung(rung_spec, folder / f"{epochs}", run, data, logger, epochs_spent)
        epochs_spent += epochs
        trial.set_user_attr("epochs", epochs_spent)
        # Optuna takes no reports for two objectives; those are searched without pruning.
        if len(context.plan.objectives) == 1:
            trial.report(accuracy["robust"], epochs)
        is_last = epochs == rungs[-1]
        is_pruned = not is_last and trial.should_prune() and "kept" not in trial.user_attrs
        if is_last or is_pruned:
            trial.set_constraint("clean", context.min_clean - accuracy["clean"])
        if is_pruned:
            percent = f"{100 * accuracy['robust']:.1f} %"
            raise optuna.TrialPruned(f"pruned after {epochs} epochs: {percent} robust")
    trial.set_user_attr("clean", accuracy["clean"])
    logger.metrics({f"tune/{name}": value for name, value in accuracy.items()})
    values = tuple(accuracy[name] for name in context.plan.objectives)
    return values if len(values) > 1 else values[0]


def train_rung(
    spec: Spec, folder: Path, run: RunContext, data: Data, logger: RunLogger, epochs_before: int
) -> dict[str, float]:
    """Train one schedule; return the clean and robust validation accuracy of its best checkpoint.

    Args:
        epochs_before: Epochs of the trial's earlier rungs, after which MLflow's curves go on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    method = methods.load(spec.method)(**spec.hyper)
    module = build_training_module(PlannedRun(spec, method, "", ""), run, data)
    trainer = Trainer(module, data, spec, folder)
    state = trainer.fit(
        lambda row, epoch: logger.epoch(row, epochs_before + epoch), lambda *_: None
    )
    logger.metrics({"cost/train_seconds": state.seconds}, epochs_before)
    net = checkpoint.load(folder / "best.pt", spec.arch, data.info).to(run.device)
    torch.manual_seed(derive_seed("judge", spec.seed))
    budget = Budget(spec.eps, spec.eps / 4, ATTACK_STEPS)
    clean, robust = clean_and_robust_accuracy(net, data.val, budget)
    return {"clean": clean, "robust": robust}


def take_over_work(trial: optuna.Trial, context: TrialContext) -> None:
    """Continue in the folder of an earlier attempt.

    An attempt that was taken for dead and goes on finds its folder gone, and gives up.
    """
    attempt = trial.study.get_trials(deepcopy=False)[trial.number]
    for number in reversed(retry_history(attempt)):
        folder = context.trial_folder(number)
        if folder.exists():
            folder.rename(context.trial_folder(trial.number))
            return


def print_result(study: Study, trial: FrozenTrial, budget: int) -> None:
    """Print a line on how a trial ended."""
    position = find_position(study, trial.number) + 1
    values = ", ".join(f"{name} {format_value(value)}" for name, value in trial.params.items())
    line = f"{study.study_name}: trial {position} of {budget}: {describe_end(trial)} ({values})"
    print(line, file=sys.stderr, flush=True)


def describe_end(trial: FrozenTrial) -> str:
    """Say how a trial ended."""
    match trial.state:
        case TrialState.COMPLETE:
            return ", ".join(f"{100 * value:.1f} %" for value in trial.values)
        case TrialState.PRUNED:
            return f"pruned after {trial.user_attrs['epochs']} epochs"
        case _:
            return f"failed: {trial.user_attrs.get('reason', 'interrupted')}"


def format_value(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
