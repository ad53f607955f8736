"""What the command `tune` leaves behind."""

from __future__ import annotations

from pathlib import Path

import optuna
from mlflow import MlflowClient
from mlflow.entities import Run
from optuna.study import Study
from optuna.trial import TrialState

from bench.tuning import storage
from bench.tuning.study import group_attempts

NAME = "digits/digits/resnet8-w4/pgd_at"
SMALL = "--suite digits --student resnet8-w4 --limit-train 128 --limit-test 8"
FEW = f"{SMALL} --method pgd_at --epochs 4 --min-clean 0"


def load_study(folder: Path, url: str = "", name: str = NAME) -> Study:
    url = url or f"sqlite:///{folder / 'runs/tuning.db'}"
    return optuna.load_study(study_name=name, storage=storage.connect(url))


def mlflow_uri(folder: Path) -> str:
    return f"sqlite:///{folder / 'runs/mlflow.db'}"


def find_runs(uri: str, role: str) -> list[Run]:
    client = MlflowClient(uri)
    ids = [experiment.experiment_id for experiment in client.search_experiments()]
    return list(client.search_runs(ids, f"tags.role = '{role}'", order_by=["start_time"]))


def assert_budget(study: Study, budget: int) -> None:
    """Assert that there are as many trials as the budget says, each with one result."""
    groups = group_attempts(study)
    assert len(groups) == budget
    for attempts in groups.values():
        states = [trial.state for trial in attempts]
        assert states.count(TrialState.COMPLETE) + states.count(TrialState.PRUNED) == 1
