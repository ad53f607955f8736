"""Being told to stop is an interruption, as Ctrl-C is: the record says so and the state stays on disk."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading


def catch() -> None:
    """Turns SIGTERM and SIGHUP of this process into KeyboardInterrupt."""
    for stop in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(stop, _interrupt)


def catch_in_worker() -> None:
    """`catch`, and the death of the parent process, however sudden, counts as SIGTERM."""
    catch()
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    if parent := multiprocessing.parent_process():
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
