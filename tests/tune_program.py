"""The command `tune` as a program, and what it leaves behind."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import optuna
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from optuna.study import Study
from optuna.trial import TrialState

from bench.cli.main import main
from bench.tuning import storage
from bench.tuning.study import group_attempts

NAME = "digits/digits/resnet8-w4/pgd_at"
SMALL = "--suite digits --student resnet8-w4 --limit-train 128 --limit-test 8"
FEW = f"{SMALL} --method pgd_at --epochs 4 --min-clean 0"
PROGRAM = ("-m", "bench")


def start(
    words: str, folder: Path, program: tuple[str, ...] = PROGRAM, **variables: str
) -> subprocess.Popen[str]:
    """Start the program in a folder of its own."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    return subprocess.Popen(
        [sys.executable, *program, *words.split()],
        cwd=folder,
        env=environment | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def bench(words: str, folder: Path) -> tuple[int, str, str]:
    """Give a command in this process; return exit code, standard output and standard error.

    A process of its own would import everything once more, five seconds each.
    """
    with redirected_output() as read, pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        with pytest.raises(SystemExit) as end:
            main(words.split())
        out, err = read()
    assert isinstance(end.value.code, int)
    return end.value.code, out, err


@contextmanager
def redirected_output() -> Iterator[Callable[[], list[str]]]:
    """Redirect output and errors, also those of worker processes; give what reads them."""
    with ExitStack() as stack:
        files = [stack.enter_context(tempfile.TemporaryFile("w+", buffering=1)) for _ in range(2)]
        for number, file in enumerate(files, 1):
            copy = os.dup(number)
            stack.callback(os.close, copy)
            stack.callback(os.dup2, copy, number)
            os.dup2(file.fileno(), number)
        stack.enter_context(redirect_stdout(files[0]))
        stack.enter_context(redirect_stderr(files[1]))

        def read() -> list[str]:
            for file in files:
                file.seek(0)
            return [file.read() for file in files]

        yield read


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
