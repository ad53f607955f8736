"""Outages of the tracking store: short ones are waited for, longer ones stop a grid."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from typing import TypeVar

from bench.system.database import redact_password
from bench.system.errors import DISK_FULL, BenchError, causes, one_line
from bench.system.log import LOGGER

Result = TypeVar("Result")

OUTAGE_SECONDS = 180.0  # to wait for a store that is away, in all
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 5.0  # seconds between two attempts
CODE = "TEMPORARILY_UNAVAILABLE"
NO_ANSWER = "API request to"  # how MLflow's message begins when no server answers
FULL = "disk is full"


class GridStopError(BenchError):
    """What would stop every other run too: the store is away, or the disk is full."""


def patiently(step: Callable[[], Result]) -> Result:
    """Return what a step returns, which is repeated while the tracking store is away.

    The step must be one that may be repeated. Raise GridStopError after OUTAGE_SECONDS, and at once
    for a full disk; other errors as they are.
    """
    start, pause = time.monotonic(), FIRST_PAUSE
    while True:
        try:
            return step()
        except Exception as error:
            if is_full_disk(error):
                raise GridStopError("no space is left on the disk of the store") from error
            if not is_outage(error):
                raise
            if time.monotonic() - start > OUTAGE_SECONDS:
                away = f"the tracking store has been away for {OUTAGE_SECONDS / 60:.0f} min"
                message = f"{away}, and what is trained waits on this disk: {one_line(error, 120)}"
                raise GridStopError(redact_password(message)) from error
            if pause == FIRST_PAUSE:
                LOGGER.warning("warning: the tracking store does not answer: waiting for it")
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)


def is_outage(error: Exception) -> bool:
    """Return whether an error says that the tracking store is away for now."""
    import requests
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import OperationalError

    if isinstance(error, (requests.ConnectionError, requests.Timeout)):
        return True
    # Of a database that is read without MLflow, which has CODE for the same.
    if isinstance(error, OperationalError):
        return FULL not in str(error)
    if not isinstance(error, MlflowException):
        return False
    message = str(error)
    is_silent = message.startswith(NO_ANSWER) and "exception" in message
    return is_silent or (error.error_code == CODE and FULL not in message)


def is_full_disk(error: Exception) -> bool:
    """Return whether an error, or its cause, says that no space is left."""
    if any(isinstance(cause, OSError) and cause.errno in DISK_FULL for cause in causes(error)):
        return True
    return FULL in str(error) or f"[Errno {errno.ENOSPC}]" in str(error)
