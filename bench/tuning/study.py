"""A study: created once, recognised again, its samplers and pruners, its count of trials."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.pruners import BasePruner, HyperbandPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.storages import RDBStorage
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from bench.system.database import redact_password
from bench.system.errors import BenchError
from bench.training.trainer import derive_seed
from bench.tuning import storage

SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {
    "tpe": lambda seed: TPESampler(seed=seed),
    "gp": lambda seed: GPSampler(seed=seed),
    "nsga2": lambda seed: NSGAIISampler(seed=seed, population_size=20),
    "random": lambda seed: RandomSampler(seed=seed),
}
# Of fewer trials most are drawn at random: the first 10 by tpe and gp, the first 20 by nsga2.
FEWEST_TRIALS = 15
SHORT_DIVISOR = 4  # the first of two rungs is a schedule of the epochs divided by this
REDUCTION_FACTOR = 5  # halving lets about one trial in this many go on; among fewer trials, none


@dataclass(frozen=True)
class StudyPlan:
    """The plain values that make a study.

    `storage` is a database's address, `identity` holds everything that makes trials comparable.
    """

    name: str
    storage: str
    objectives: tuple[str, ...]
    sampler: str
    pruner: str
    seed: int
    epochs: int
    identity: dict[str, Any]


def seed_sampler(study: Study, kind: str, seed: int) -> None:
    """Give the study a sampler for its next trial, seeded from the trial's position.

    A study that goes on after a stop proposes what it would have, and two workers never propose the
    same. Call under the study's lock, and hold it until the trial has begun.
    """
    trials = study.get_trials(deepcopy=False)
    waiting = (trial for trial in trials if trial.state == TrialState.WAITING)
    # A retry has the position of its first attempt, which may have ended before it had values.
    number = next(map(first_attempt, waiting), len(trials))
    position = sum(not storage.retry_history(trial) for trial in trials[:number])
    study.sampler = SAMPLERS[kind](derive_seed(seed, position) % 2**32)


def rung_epochs(pruner: str, epochs: int) -> tuple[int, ...]:
    """Return the lengths, in epochs, of a trial's schedules; it may be pruned between them."""
    # In the middle of a schedule, before the learning rate has fallen, robust accuracies order the
    # trials the wrong way round (docs/lab/log.md).
    if pruner == "none" or epochs < SHORT_DIVISOR:
        return (epochs,)
    return (epochs // SHORT_DIVISOR, epochs)


def build_pruner(kind: str, epochs: int) -> BasePruner:
    """Build the pruner between rungs: halving, hyperband or none."""
    shortest = rung_epochs(kind, epochs)[0]
    if kind == "halving":
        bootstrap = REDUCTION_FACTOR - 1
        return SuccessiveHalvingPruner(shortest, REDUCTION_FACTOR, bootstrap_count=bootstrap)
    if kind == "hyperband":
        return HyperbandPruner(shortest, epochs, SHORT_DIVISOR)
    return NopPruner()


def open_study(
    plan: StudyPlan, first_trials: list[dict[str, Any]], min_clean: float, is_explicit: bool
) -> Study:
    """Open a study, created with its first trials, which are never pruned, if it is new.

    A study keeps the `min_clean`, in [0, 1], of its creation. Raises BenchError if that is not the
    explicit one, or if the study has another identity.
    """
    backend = storage.connect(plan.storage)
    directions = [StudyDirection.MAXIMIZE] * len(plan.objectives)
    with (
        storage.storage_errors(plan.storage, OSError, ValueError, KeyError),
        storage.exclusive(plan.storage, "study"),
    ):
        study = optuna.create_study(
            storage=backend, study_name=plan.name, directions=directions, load_if_exists=True
        )
        # A study without an identity is new, or its creator died halfway.
        if "identity" not in study.user_attrs:
            for values in first_trials:
                study.enqueue_trial(values, user_attrs={"kept": True}, skip_if_exists=True)
            # The id tells this study from others of its name.
            study.set_user_attr("id", uuid.uuid4().hex[:16])
            study.set_user_attr("floor", min_clean)
            study.set_user_attr("identity", json.dumps(plan.identity))
    recorded = json.loads(study.user_attrs["identity"])
    # Tuples come back from JSON as lists.
    expected = json.loads(json.dumps(plan.identity))
    if is_explicit:
        recorded["clean accuracy to keep"] = study.user_attrs["floor"]
        expected["clean accuracy to keep"] = min_clean
    if difference := first_difference(recorded, expected):
        raise BenchError(
            f"study {plan.name!r} in {redact_password(plan.storage)} was made with "
            f"another {difference}: use another --storage, or the old options"
        )
    return load_study(plan, backend)


def load_study(plan: StudyPlan, backend: RDBStorage) -> Study:
    """Load a study that exists, with its pruner, which no storage keeps."""
    pruner = build_pruner(plan.pruner, plan.epochs)
    return optuna.load_study(study_name=plan.name, storage=backend, pruner=pruner)


def first_difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    """Return the first entry that differs, with both values, or ""."""
    for key in sorted({*old, *new}):
        before, now = old.get(key), new.get(key)
        if before != now and isinstance(before, dict) and isinstance(now, dict):
            return f"{key}: {first_difference(before, now)}"
        if before != now:
            return f"{key} ({before}, now {now})"
    return ""


def first_attempt(trial: FrozenTrial) -> int:
    """Return the number of the first attempt at a trial."""
    return [*storage.retry_history(trial), trial.number][0]


def group_attempts(study: Study) -> dict[int, list[FrozenTrial]]:
    """Return the attempts at each trial, by the number of the first one."""
    groups: dict[int, list[FrozenTrial]] = {}
    for trial in study.get_trials(deepcopy=False):
        groups.setdefault(first_attempt(trial), []).append(trial)
    return groups


def find_position(study: Study, number: int) -> int:
    """Return the position, from 0, of the trial that an attempt belongs to."""
    attempt = study.get_trials(deepcopy=False)[number]
    return list(group_attempts(study)).index(first_attempt(attempt))


def is_over(attempts: list[FrozenTrial]) -> bool:
    """Return whether a trial has its result or has used up its retries."""
    last = attempts[-1]
    if storage.is_interrupted(last):
        return len(storage.retry_history(last)) >= storage.MAX_RETRIES
    return last.state.is_finished()


def count_over(study: Study) -> int:
    """Return the number of trials that are over, each counted once."""
    return sum(map(is_over, group_attempts(study).values()))


def has_next_trial(study: Study, budget: int) -> bool:
    """Return whether there is a trial to begin: one that waits, or one more of the budget."""
    waiting = study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
    return bool(waiting) or len(group_attempts(study)) < budget
