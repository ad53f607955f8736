"""Signals that stop the program. They interrupt it as Ctrl-C does, but no write to the store."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from bench.system.errors import causes

STOP_SECONDS = 5.0  # time to mark a run after a stop signal
# Schedulers send SIGUSR1 some time before they end a job, if they are asked to.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


class StopWorker(SystemExit):
    """Ends a worker process; unlike SystemExit no code of others raises it."""


def interrupt_on_stop_signals() -> None:
    """Turn all stop signals into KeyboardInterrupt."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.default_int_handler)


def is_interruption(error: BaseException) -> bool:
    """Return whether an error is a stop signal's, or came of one.

    What is cut short can raise an error of its own: SQLAlchemy does so in a transaction.
    """
    return any(isinstance(cause, (KeyboardInterrupt, StopWorker)) for cause in causes(error))


def prepare_worker() -> None:
    """Make a worker process stop when its parent says so or dies."""
    # The parent gets them too.
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _exit_worker)
    threading.Thread(target=_follow_parent, daemon=True).start()


@contextmanager
def deferred_signals() -> Iterator[None]:
    """Hold stop signals back until the block ends."""
    # Python handles signals in the main thread alone.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []
    handlers = {}
    for number in STOP_SIGNALS:
        handlers[number] = signal.signal(number, lambda caught, _: received.append(caught))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler or signal.SIG_DFL)
        if received:
            signal.raise_signal(received[0])


def _follow_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(STOP_SECONDS)
        # The loop of a pool's worker would swallow SystemExit and wait for work for ever.
        os._exit(1)


def _exit_worker(*_: object) -> None:
    # A pool repeats the signal when its first worker has exited.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # Not KeyboardInterrupt: multiprocessing prints its traceback.
    raise StopWorker(1)
