"""One trial: a training run as the suite says it, judged on validation images; the test set is not even loaded."""

from __future__ import annotations

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
from bench.datasets.splits import Data
from bench.execution import job as cell_module
from bench.execution.job import RunContext
from bench.execution.plan import PlannedRun
from bench.models import checkpoint
from bench.protocol.spec import Spec
from bench.system.errors import BenchError
from bench.tracking.run_logger import FAILED, FINISHED, KILLED, RunLogger
from bench.tracking.store import TUNING
from bench.training.trainer import Trainer, clean_and_robust_accuracy, derive_seed
from bench.tuning import storage
from bench.tuning import study as study_module
from bench.tuning.space import Space
from bench.tuning.study import Plan, attempts
from methods.base import Budget

STEPS = (
    20  # of the attack that judges a trial: more than the inner attack's, against masked gradients
)


@dataclass(frozen=True)
class Task:
    """What every worker needs to carry out trials of one study."""

    plan: Plan
    space: Space
    spec: Spec  # of the default configuration
    study: str  # its id
    parent: str  # its MLflow run
    budget: int  # trials
    floor: float  # clean accuracy on the validation images that a trial must reach
    work: Path


def objective(
    trial: optuna.Trial, study: Study, task: Task, shop: RunContext, data: Data
) -> float | tuple[float, ...]:
    """The trial's value or values. Raises TrialPruned; BenchError for one that failed, its reason noted.

    What is no fault of the trial's, such as a full disk or a storage that is gone, is raised as it is: such a trial is
    queued again.
    """
    storage.sign(trial)
    if surplus(trial, study, task.budget):
        trial.set_user_attr("surplus", True)
        trial.set_user_attr("reason", "the study had its trials already")
        raise BenchError("surplus")
    hyper, training = task.space.suggest(trial)
    spec = replace(task.spec, hyper=hyper, training=replace(task.spec.training, **training))
    record = begin(trial, study, task, shop, hyper | training)
    try:
        values = train(trial, spec, task, shop, data, record)
    except optuna.TrialPruned as error:
        end(record, "pruned", str(error))
        raise
    except (optuna.exceptions.OptunaError, SQLAlchemyError, MlflowException, OSError):
        # with a successor, this process had been taken for dead, and the record is another's
        if not storage.followed(study, trial.number):
            record.finish(KILLED, "interrupted")
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        trial.set_user_attr("reason", reason)
        end(record, "failed", reason)
        raise BenchError(reason) from error
    except BaseException:
        record.finish(KILLED, "interrupted")
        raise
    end(record, "complete")
    return values


def end(record: RunLogger, state: str, note: str = "") -> None:
    """Marks the record of a trial that will not be taken up again."""
    record.set_tags({"state": state})
    record.finish(FAILED if state == "failed" else FINISHED, note)


def surplus(trial: optuna.Trial, study: Study, budget: int) -> bool:
    """Whether workers that looked at the same time began more trials than there are places."""
    return place(trial.number, study) >= budget and not trial.user_attrs.get("kept")


def place(number: int, study: Study) -> int:
    """Which trial of the study an attempt belongs to, from 0."""
    tries = attempts(study)
    first = next(
        (first for first, own in tries.items() if any(trial.number == number for trial in own)),
        number,
    )
    return sorted({*tries, first}).index(first)


def begin(
    trial: optuna.Trial, study: Study, task: Task, shop: RunContext, values: dict[str, Any]
) -> RunLogger:
    """The trial's MLflow run: that of its first attempt if there was one."""
    number = str(place(trial.number, study))
    tags = {"role": "trial", "study": task.study, "trial": number, "worker": storage.HERE}
    spec = task.spec
    tags |= {"method": spec.method, "student": spec.arch, "dataset": spec.dataset}
    name = f"{spec.method} trial {number}"
    record = shop.store.open_run(spec.suite + TUNING, name, tags, task.parent, ("study", "trial"))
    record.log_params(values)
    return record


def train(
    trial: optuna.Trial, spec: Spec, task: Task, shop: RunContext, data: Data, record: RunLogger
) -> float | tuple[float, ...]:
    """Goes through the rungs, each a schedule of its own; the value is that of the last one's best checkpoint."""
    inherit(trial, task)
    folder = folder_of(task, trial.number)
    spent, rungs = 0, study_module.rungs(task.plan.pruner, spec.training.epochs)
    for epochs in rungs:
        short = replace(spec, training=replace(spec.training, epochs=epochs))
        found = rung(short, folder / f"{epochs}", shop, data, record, spent)
        spent += epochs
        trial.set_user_attr("epochs", spent)
        if len(task.plan.objectives) == 1:
            trial.report(found["robust"], epochs)
            if epochs < rungs[-1] and trial.should_prune() and not trial.user_attrs.get("kept"):
                trial.set_constraint("clean", task.floor - found["clean"])
                raise optuna.TrialPruned(
                    f"pruned after {epochs} epochs: {100 * found['robust']:.1f} % robust"
                )
    trial.set_user_attr("clean", found["clean"])
    trial.set_constraint("clean", task.floor - found["clean"])
    record.log_metrics({f"tune/{name}": value for name, value in found.items()})
    values = tuple(found[name] for name in task.plan.objectives)
    return values if len(values) > 1 else values[0]


def rung(
    spec: Spec, folder: Path, shop: RunContext, data: Data, record: RunLogger, before: int
) -> dict[str, float]:
    """One schedule; accuracies of its best checkpoint on validation images. `before`: epochs of the trial so far."""
    folder.mkdir(parents=True, exist_ok=True)
    method = methods.load(spec.method)(**spec.hyper)
    trainer = Trainer(
        cell_module.build_training_module(PlannedRun(spec, method, "", ""), shop, data),
        data,
        spec,
        folder,
    )
    state = trainer.fit(lambda row, epoch: record.log_epoch(row, before + epoch), lambda *_: None)
    record.log_metrics({"cost/train_seconds": state.seconds}, before)
    net = checkpoint.load(folder / "best.pt", spec.arch, data.info).to(shop.device)
    torch.manual_seed(derive_seed("judge", spec.seed))
    clean, robust = clean_and_robust_accuracy(net, data.val, Budget(spec.eps, spec.eps / 4, STEPS))
    return {"clean": clean, "robust": robust}


def folder_of(task: Task, number: int) -> Path:
    return task.work / f"trial-{number}"


def inherit(trial: optuna.Trial, task: Task) -> None:
    """Takes over what an earlier attempt left; one that is not dead after all finds its folder gone, and gives up."""
    for number in reversed(storage.history(trial.study.get_trials(deepcopy=False)[trial.number])):
        if folder_of(task, number).exists():
            folder_of(task, number).rename(folder_of(task, trial.number))
            return


def say(study: Study, number: int, budget: int) -> None:
    """Prints a line on how a trial ended."""
    trial = study.get_trials(deepcopy=False)[number]
    if "surplus" in trial.user_attrs:
        return
    settings = ", ".join(f"{name} {shown(value)}" for name, value in trial.params.items())
    line = f"{study.study_name}: trial {place(number, study) + 1} of {budget}: {ending(trial)} ({settings})"
    print(line, file=sys.stderr, flush=True)


def ending(trial: FrozenTrial) -> str:
    """How a trial ended, for people."""
    match trial.state:
        case TrialState.COMPLETE:
            return ", ".join(f"{100 * value:.1f} %" for value in trial.values)
        case TrialState.PRUNED:
            return f"pruned after {trial.user_attrs['epochs']} epochs"
        case _:
            return f"failed: {trial.user_attrs.get('reason', 'interrupted')}"


def shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def quiet(spec: Spec) -> Spec:
    """A trial's spec: no averages, which nothing here looks at."""
    return replace(spec, training=replace(spec.training, averaging=()))
