"""Studies in a database, SQLite's or PostgreSQL's: its locks, errors, and retries of trials."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import wraps
from typing import Any, TypeVar

import optuna
import sqlalchemy
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from bench.system import database
from bench.system.database import redact_password
from bench.system.errors import BenchError
from bench.system.files import check_regular, check_writable
from bench.system.signals import deferred_signals

# Heartbeats, retries, Hyperband and GPSampler are marked so. pyproject.toml bounds the versions.
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)

Result = TypeVar("Result")

HEARTBEAT_SECONDS = 10
GRACE_SECONDS = 60  # a worker without a heartbeat for this long counts as dead
BUSY_SECONDS = 30  # how long to wait for a locked database or a silent server
MAX_RETRIES = 20  # retries of one trial whose workers die or are interrupted


def complete(write: Callable[..., Result]) -> Callable[..., Result]:
    """Return a method that stop signals do not interrupt."""

    @wraps(write)
    def write_all(*args: Any, **options: Any) -> Result:
        with deferred_signals():
            return write(*args, **options)

    return write_all


class Storage(RDBStorage):
    """Optuna's storage. Its writes are whole, and a heartbeat may fail.

    An interrupted write would leave a SQLite database locked by this very process.
    """

    create_new_study = complete(RDBStorage.create_new_study)
    create_new_trial = complete(RDBStorage.create_new_trial)
    set_study_user_attr = complete(RDBStorage.set_study_user_attr)
    set_study_system_attr = complete(RDBStorage.set_study_system_attr)
    set_trial_param = complete(RDBStorage.set_trial_param)
    set_trial_state_values = complete(RDBStorage.set_trial_state_values)
    set_trial_intermediate_value = complete(RDBStorage.set_trial_intermediate_value)
    set_trial_user_attr = complete(RDBStorage.set_trial_user_attr)
    set_trial_system_attr = complete(RDBStorage.set_trial_system_attr)

    def record_heartbeat(self, trial_id: int) -> None:
        """Say that the worker of a trial lives.

        Optuna's thread would print a traceback and send no more; the next one may succeed.
        """
        with deferred_signals(), suppress(StorageInternalError, SQLAlchemyError):
            super().record_heartbeat(trial_id)


@contextmanager
def storage_errors(url: str, *kinds: type[Exception]) -> Iterator[None]:
    """Turn the errors of a storage, and further ones that only it can raise, into a BenchError."""
    expected: tuple[type[Exception], ...] = (StorageInternalError, SQLAlchemyError, *kinds)
    try:
        yield
    except ModuleNotFoundError as error:
        remedy = "write sqlite:///FILE or postgresql://..."
        if url.startswith("postgresql"):
            remedy = "pip install 'robust-distill-bench[postgresql]'"
        need = f"needs {error.name}, which is not installed: {remedy}"
        raise BenchError(f"the storage {redact_password(url)} {need}") from error
    except expected as error:
        cause = error.__cause__ or error
        line = f"{cause}".strip().partition("\n")[0][:200] or type(cause).__name__
        message = redact_password(f"the storage {url} cannot be used: {line}")
        raise BenchError(message) from error


def exclusive(url: str, purpose: str) -> AbstractContextManager[None]:
    """Hold off all other processes, on any host, that use the storage for the same purpose.

    Some train under it: waiting has no limit.
    """
    return database.lock_database(url, purpose, seconds=None)


def connect(url: str) -> RDBStorage:
    """Open a storage, with new tables if it is empty. Raises BenchError."""
    with storage_errors(url, OSError, ValueError, KeyError):
        # Before the lock, which is a file beside the database: is this an address, and of what?
        sqlalchemy.create_engine(url).dispose()
        if file := database.sqlite_file(url):
            check_regular(file)
            # A lock on a file that cannot be made would be waited for without end.
            check_writable(file.parent)
        # Two processes that find an empty database at once would both create its tables.
        with exclusive(url, "open"):
            return open_tables(url)


def open_tables(url: str) -> RDBStorage:
    """Open a database, with tables of Optuna or none. Raises BenchError if it has other tables."""
    is_sqlite = url.startswith("sqlite")
    options = {"connect_args": {"timeout" if is_sqlite else "connect_timeout": BUSY_SECONDS}}
    try:
        storage = Storage(
            url, options, heartbeat_interval=HEARTBEAT_SECONDS, grace_period=GRACE_SECONDS
        )
    except RuntimeError as error:
        fault = "holds tables of another Optuna, or of MLflow, which needs a database of its own"
        raise BenchError(f"{redact_password(url)} {fault}") from error
    if is_sqlite:
        # SQLite has no SELECT ... FOR UPDATE: two workers would read one state and both change it.
        begin = "BEGIN IMMEDIATE"
        sqlalchemy.event.listen(storage.engine, "begin", lambda db: db.exec_driver_sql(begin))
    return storage


def mark_begun(storage: RDBStorage, trial: Trial) -> None:
    """Give a trial its first heartbeat, then a mark; call under the study's lock."""
    storage.record_heartbeat(trial._trial_id)
    trial.set_user_attr("begun", True)


def requeue_trials(study: Study) -> None:
    """Queue again the trials of dead and interrupted workers; call under the study's lock."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        # Its worker died holding the lock. Without a heartbeat, Optuna never finds it stale.
        if "begun" not in trial.user_attrs:
            study.tell(trial.number, state=TrialState.FAIL)
    optuna.storages.fail_stale_trials(study)
    trials = study.get_trials(deepcopy=False)
    retried = set[int]()
    for trial in trials:
        retried.update(retry_history(trial))
    # Optuna alone retries no interrupted trial, and loses a stale one if the process ends between
    # failing and queueing it.
    for trial in trials:
        if is_interrupted(trial) and trial.number not in retried:
            retry_trial(study, trial)


def retry_trial(study: Study, trial: FrozenTrial) -> None:
    """Queue a trial once more, with its values, unless it had all its retries."""
    # Optuna appends to the list of earlier attempts that the trial itself holds.
    retry = copy.deepcopy(trial)
    # The rungs of the failed attempt would spare the retry its pruning.
    for key in trial.system_attrs:
        if key.startswith(("completed_rung_", "constraints")):
            del retry.system_attrs[key]
    # A part of the values would make the others different from what they were to be.
    if "drawn" not in trial.user_attrs:
        retry.params, retry.distributions = {}, {}
    retry.user_attrs = {"kept": True} if "kept" in trial.user_attrs else {}
    RetryHeartbeatStaleTrialCallback(MAX_RETRIES)(study, retry)


def retry_history(trial: FrozenTrial) -> list[int]:
    """Return the numbers of the earlier attempts at a trial, the oldest first."""
    return RetryHeartbeatStaleTrialCallback.retry_history(trial)


def was_retried(study: Study, number: int) -> bool:
    """Return whether a trial has been queued again."""
    return any(number in retry_history(trial) for trial in study.get_trials(deepcopy=False))


def is_interrupted(trial: FrozenTrial) -> bool:
    """Return whether a trial ended by no fault of its own."""
    return trial.state == TrialState.FAIL and "reason" not in trial.user_attrs
