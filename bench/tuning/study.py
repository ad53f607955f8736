"""One study: created once, recognised again, its sampler and pruner, and how many of its trials are done."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.pruners import BasePruner, HyperbandPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.storages import BaseStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from bench.system.errors import BenchError
from bench.training.trainer import derive_seed
from bench.tuning import storage

SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {
    "tpe": lambda seed: TPESampler(seed=seed),
    "gp": lambda seed: GPSampler(seed=seed),
    "nsga2": lambda seed: NSGAIISampler(seed=seed, population_size=20),
    "random": lambda seed: RandomSampler(seed=seed),
}
OVER = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
SHORT = 4  # the first of two rungs is a schedule of the epochs divided by this
KEEP = 5  # halving lets about one in so many trials go on; among fewer trials than that, none


class PerTrial(BaseSampler):
    """A sampler seeded anew for each trial, from its place in the study: the finished trials decide what it proposes.

    So a study that goes on after a stop proposes what it would have, and two workers never propose the same.
    """

    def __init__(self, kind: str, seed: int) -> None:
        self.make, self.seed = SAMPLERS[kind], seed
        self.inner = self.make(seed)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        whole = study._storage.get_all_trials(
            study._study_id, deepcopy=False
        )  # Hyperband shows a part alone
        place = sum(not storage.history(each) for each in whole if each.number < trial.number)
        self.inner = self.make(derive_seed(self.seed, place) % 2**32)
        self.inner.before_trial(study, trial)

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return self.inner.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self.inner.sample_relative(study, trial, search_space)

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        return self.inner.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        self.inner.after_trial(study, trial, state, values)


def rungs(kind: str, epochs: int) -> tuple[int, ...]:
    """The lengths, in epochs, of the schedules that a trial goes through, unless it is pruned between them.

    Each is a whole schedule, learning rate falling to its end: in the middle of one, the robust accuracies of trials
    order them the wrong way round (docs/tuning.md).
    """
    return (epochs // SHORT, epochs) if kind != "none" and epochs >= SHORT else (epochs,)


def pruner(kind: str, epochs: int) -> BasePruner:
    """The pruner over rungs; `kind`: halving, hyperband or none."""
    first = rungs(kind, epochs)[0]
    if kind == "halving":
        return SuccessiveHalvingPruner(
            min_resource=first, reduction_factor=KEEP, bootstrap_count=KEEP - 1
        )
    if kind == "hyperband":
        return HyperbandPruner(min_resource=first, max_resource=epochs, reduction_factor=SHORT)
    return NopPruner()


@dataclass(frozen=True)
class Plan:
    """What makes a study, as plain values that every worker gets."""

    name: str
    place: str  # the storage
    objectives: tuple[str, ...]  # "robust", or "clean" and "robust"
    sampler: str
    pruner: str
    seed: int
    epochs: int
    identity: dict[str, Any]  # whatever makes its trials comparable


def establish(plan: Plan, first: list[dict[str, Any]], floor: float, given: bool) -> Study:
    """The study, created with its first trials if it is new. Raises BenchError where it is another one's.

    floor: the clean accuracy to keep, which a study takes from whoever creates it; another one is an error if it is
    `given`. The attribute `id` tells this study from others of its name. Whoever dies half-way, the next completes it.
    """
    store = storage.connect(plan.place)
    with (
        storage.told(plan.place, OSError, ValueError, KeyError),
        storage.guard(plan.place, "study"),
    ):
        found = optuna.create_study(
            storage=store,
            study_name=plan.name,
            directions=["maximize"] * len(plan.objectives),
            load_if_exists=True,
        )
        if "identity" not in found.user_attrs:
            for values in first:
                found.enqueue_trial(values, user_attrs={"kept": True}, skip_if_exists=True)
            found.set_user_attr("id", uuid.uuid4().hex[:16])
            found.set_user_attr("floor", floor)
            found.set_user_attr("identity", json.dumps(plan.identity))
    kept = {"clean accuracy to keep": floor if given else found.user_attrs["floor"]}
    recorded = json.loads(found.user_attrs["identity"]) | {
        "clean accuracy to keep": found.user_attrs["floor"]
    }
    if wrong := difference(recorded, json.loads(json.dumps(plan.identity)) | kept):
        raise BenchError(
            f"study {plan.name!r} in {storage.public(plan.place)} was made with another {wrong}: "
            "use another --storage, or the old options"
        )
    return attach(plan, store)


def attach(plan: Plan, store: BaseStorage) -> Study:
    """A study that exists, with the sampler and the pruner, which no storage keeps."""
    return optuna.load_study(
        study_name=plan.name,
        storage=store,
        sampler=PerTrial(plan.sampler, plan.seed),
        pruner=pruner(plan.pruner, plan.epochs),
    )


def difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    """The first entry that differs, with both values; "" if none does."""
    for key in sorted({*old, *new}):
        if old.get(key) != new.get(key):
            if isinstance(old.get(key), dict) and isinstance(new.get(key), dict):
                return f"{key}: {difference(old[key], new[key])}"
            return f"{key} ({old.get(key)}, now {new.get(key)})"
    return ""


def attempts(study: Study) -> dict[int, list[FrozenTrial]]:
    """The trials by the number of their first attempt; what came after the last place of the budget is left out."""
    found: dict[int, list[FrozenTrial]] = {}
    for trial in study.get_trials(deepcopy=False):
        if "surplus" not in trial.user_attrs:
            found.setdefault((storage.history(trial) or [trial.number])[0], []).append(trial)
    return found


def over(tries: list[FrozenTrial]) -> bool:
    """Whether a trial has its result, however often it was begun."""
    last = tries[-1]
    given_up = storage.abandoned(last) and len(storage.history(last)) >= storage.RETRIES
    return given_up or any(trial.state in OVER and not storage.abandoned(trial) for trial in tries)


def done(study: Study) -> int:
    """How many trials have their result."""
    return sum(over(tries) for tries in attempts(study).values())


def waiting(study: Study, budget: int) -> bool:
    """Whether there is a trial to begin: one that waits, or a free place."""
    found = attempts(study)
    return len(found) < budget or any(
        trial.state == TrialState.WAITING for tries in found.values() for trial in tries
    )
