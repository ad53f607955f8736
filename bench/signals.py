"""Being told to stop is an interruption, as Ctrl-C is: the record says so and the state stays on disk."""

from __future__ import annotations

import signal


def catch() -> None:
    """Turns SIGTERM and SIGHUP of this process into KeyboardInterrupt."""
    for stop in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(stop, _interrupt)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
