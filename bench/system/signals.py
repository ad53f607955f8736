"""Being told to stop is an interruption, as Ctrl-C is: the record says so and the state stays on disk."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
GRACE = 5.0  # seconds for the record to be marked


def catch() -> None:
    """Turns SIGTERM and SIGHUP of this process into KeyboardInterrupt."""
    for stop in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(stop, _interrupt)


def catch_in_worker() -> None:
    """For a process of a pool: its parent decides when to stop, and the parent's death, however sudden, stops it too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _leave)
    threading.Thread(target=_follow_parent, daemon=True).start()


@contextmanager
def held() -> Iterator[None]:
    """An interruption inside comes at the end, as soon as what is inside is done."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    waiting: list[int] = []
    before = {stop: signal.signal(stop, lambda number, _: waiting.append(number)) for stop in STOPS}
    try:
        yield
    finally:
        for stop, handler in before.items():
            signal.signal(stop, signal.SIG_DFL if handler is None else handler)
        for number in waiting[:1]:
            signal.raise_signal(number)


def _follow_parent() -> None:
    if parent := multiprocessing.parent_process():
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE)
        os._exit(1)  # the pool's own loop would wait for work for ever


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _leave(*_: object) -> None:
    signal.signal(
        signal.SIGTERM, signal.SIG_IGN
    )  # a pool says it again when the first worker has left
    raise SystemExit(1)  # not KeyboardInterrupt, of which multiprocessing prints a traceback
