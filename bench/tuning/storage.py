"""Where studies live, opened without races, and which running trials nobody is working on any more.

A path is a journal file, for the processes of one host or a shared folder; sqlite:/// a database file of one host;
postgresql:// a server for many. Workers show life by Optuna's heartbeats, for which journal files get the same here.
"""

from __future__ import annotations

import datetime
import os
import re
import socket
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import optuna
import sqlalchemy
from filelock import FileLock
from optuna.storages import (
    BaseStorage,
    JournalStorage,
    RDBStorage,
    RetryHeartbeatStaleTrialCallback,
)
from optuna.storages._heartbeat import BaseHeartbeat
from optuna.storages.journal import JournalFileBackend
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from bench.system import database
from bench.system.errors import BenchError

# Heartbeats, retries, Hyperband and GPSampler are so marked; the versions that may be used are in
# pyproject.toml.
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)

BEAT, GRACE = (
    10,
    60,
)  # seconds between signs of life, and after how many without one a worker counts as dead
PATIENCE = 30  # seconds to wait for a locked database
RETRIES = 20  # of one trial whose workers die or are interrupted
HERE = socket.gethostname()


class Journal(JournalStorage, BaseHeartbeat):
    """A journal file whose running trials show life: each touches a file beside it."""

    def __init__(self, path: Path) -> None:
        super().__init__(JournalFileBackend(str(path)))
        self.beats = path.with_name(f"{path.name}.alive")

    def record_heartbeat(self, trial_id: int) -> None:
        self.beats.mkdir(exist_ok=True)
        (self.beats / str(trial_id)).touch()

    def _get_stale_trial_ids(self, study_id: int) -> list[int]:
        running = self.get_all_trials(study_id, deepcopy=False, states=(TrialState.RUNNING,))
        files = {trial._trial_id: self.beats / str(trial._trial_id) for trial in running}
        return [
            number
            for number, file in files.items()
            if file.exists() and time.time() - file.stat().st_mtime > GRACE
        ]

    def get_heartbeat_interval(self) -> int:
        return BEAT

    def get_heartbeat_stale_trial_callback(self) -> Callable[[Study, FrozenTrial], None] | None:
        return None  # see `release`


def public(place: str) -> str:
    """The storage's name without a password."""
    return re.sub(r"(password=)[^&\s]*", r"\1***", re.sub(r"//[^@/\s]*@", "//", place))


@contextmanager
def told(place: str, *more: type[Exception]) -> Iterator[None]:
    """Turns what a storage raises into one line; `more`: kinds of errors that only a storage can have raised here."""
    kinds: tuple[type[Exception], ...] = (
        optuna.exceptions.StorageInternalError,
        sqlalchemy.exc.SQLAlchemyError,
        *more,
    )
    try:
        yield
    except ModuleNotFoundError as error:
        hint = "pip install 'robust-distill-bench[postgresql]'"
        raise BenchError(f"the storage {public(place)} needs {error.name}: {hint}") from error
    except kinds as error:
        cause = error.__cause__ or error
        line = (str(cause).strip().splitlines() or [type(cause).__name__])[0][:200]
        raise BenchError(f"the storage {public(place)} cannot be used: {public(line)}") from error


def file_of(place: str) -> str:
    """The file of a journal or of a sqlite database; "" for a server. Raises BenchError for sqlite without a file."""
    return str(database.sqlite_file(place) or "") if "://" in place else place


@contextmanager
def guard(place: str, purpose: str) -> Iterator[None]:
    """Holds off every other process that uses the storage for the same purpose, on whatever machine."""
    file = file_of(place)
    with FileLock(f"{file}.{purpose}.lock") if file else database.lock_database(place, purpose):
        yield


def connect(place: str) -> BaseStorage:
    """The storage, made ready if it is new, one process at a time. Raises BenchError."""
    with told(place, OSError, ValueError, KeyError):
        file = file_of(place)
        if file:
            Path(file).parent.mkdir(parents=True, exist_ok=True)
        with guard(place, "open"):
            if file == place:
                return Journal(Path(place))
            return tables(place, {"timeout": PATIENCE} if file else {"connect_timeout": PATIENCE})


def tables(place: str, options: dict[str, int]) -> RDBStorage:
    try:
        return RDBStorage(
            place, {"connect_args": options}, heartbeat_interval=BEAT, grace_period=GRACE
        )
    except RuntimeError as error:  # of Optuna, about the version of the tables
        raise BenchError(
            f"{public(place)} holds tables of another Optuna, or of MLflow, which needs a database of its own"
        ) from error


def sign(trial: optuna.Trial) -> None:
    """Says who works on a trial."""
    trial.set_user_attr("worker", [HERE, os.getpid(), trial.number])


def dead(trial: FrozenTrial) -> bool:
    """Whether a running trial's process is known to be gone, without waiting for its heartbeat to stop."""
    host, pid, number = trial.user_attrs.get("worker", ["", 0, -1])
    if number != trial.number:  # not signed yet, or only by the one it is a copy of
        age = datetime.datetime.now() - (trial.datetime_start or datetime.datetime.min)
        return age.total_seconds() > GRACE
    return host == HERE and not alive(pid)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def release(study: Study, place: str) -> None:
    """Ends the running trials whose workers are dead, and queues each trial so ended, or interrupted, once again.

    In this order, so that whoever dies in between loses nothing: a failed trial that gives no reason and has no
    successor gets one from the next process that looks.
    """
    with guard(place, "study"):
        with suppress(optuna.exceptions.UpdateFinishedTrialError):
            optuna.storages.fail_stale_trials(study)
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if dead(trial):
                study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
        trials = study.get_trials(deepcopy=False)
        followed = {number for trial in trials for number in history(trial)}
        for trial in trials:
            if abandoned(trial) and trial.number not in followed and len(history(trial)) < RETRIES:
                study.add_trial(successor(trial))


def successor(trial: FrozenTrial) -> FrozenTrial:
    """The trial once more, as Optuna's RetryHeartbeatStaleTrialCallback writes it.

    But without its rungs, which would spare it the pruner, and with a list of its own: that callback appends to the
    failed trial's.
    """
    kept = {
        key: value
        for key, value in trial.system_attrs.items()
        if not key.startswith(("completed_rung_", "constraints"))
    }
    attempts = [*history(trial), trial.number]
    return optuna.create_trial(
        state=TrialState.WAITING,
        params=trial.params,
        distributions=trial.distributions,
        user_attrs={"kept": True} if trial.user_attrs.get("kept") else {},
        system_attrs=kept | {"failed_trial": attempts[0], "retry_history": attempts},
    )


def history(trial: FrozenTrial) -> list[int]:
    """The numbers of the earlier attempts at a trial, the oldest first."""
    return RetryHeartbeatStaleTrialCallback.retry_history(trial)


def followed(study: Study, number: int) -> bool:
    """Whether a trial has been queued again."""
    return any(number in history(trial) for trial in study.get_trials(deepcopy=False))


def abandoned(trial: FrozenTrial) -> bool:
    """Whether a trial ended by no fault of its own."""
    return trial.state == TrialState.FAIL and "reason" not in trial.user_attrs
