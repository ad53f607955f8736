"""Code of others, imported and called so that it takes nothing else with it."""

import os
import select
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib.metadata import EntryPoint

IMPORT_SECONDS = 30.0  # how long a package may take to be imported
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


class OutsideError(Exception):
    """Code of others would have ended the program; the message is one line."""


@contextmanager
def contained() -> Iterator[None]:
    """Turn what is meant to end the program into an OutsideError: SystemExit, for example.

    KeyboardInterrupt passes, and so does a class derived from SystemExit, which a signal may raise.
    """
    try:
        yield
    except (Exception, KeyboardInterrupt):
        raise
    except BaseException as error:
        if isinstance(error, SystemExit) and type(error) is not SystemExit:
            raise
        line = " ".join(str(error).split())[:300]
        raise OutsideError(f"{type(error).__name__}: {line}") from error


def load(point: EntryPoint) -> object:
    """Import what an entry point names. Raise OutsideError, or whatever the package raises.

    It is imported in a copy of this process first. Signals that stop the program stay as they are.
    """
    fault = import_fault(point)
    if fault:
        raise OutsideError(fault)
    with contained(), kept_signals():
        return point.load()


@contextmanager
def kept_signals() -> Iterator[None]:
    """Restore the handlers of stop signals when the block ends."""
    # Python sets them in the main thread alone.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            # None: not set from Python, so nothing can restore it.
            if handler is not None:
                signal.signal(number, handler)


@cache
def import_fault(point: EntryPoint) -> str:
    """Import a package in a copy of this process and return what it does to that, "" if nothing.

    What it raises there it raises here too, so that is no fault.
    """
    read, write = os.pipe()
    child = os.fork()
    if not child:
        import_and_exit(point, write)
    os.close(write)
    try:
        marks, in_time = read_marks(read)
    finally:
        os.close(read)
        # With whatever the package has started.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(child, signal.SIGKILL)
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    if len(marks) > 1:
        return "forks the program while it is imported"
    if not in_time:
        return f"takes more than {IMPORT_SECONDS:.0f} s to be imported"
    return "" if marks else "ends the program while it is imported"


def import_and_exit(point: EntryPoint, write: int) -> None:
    """Import a package, write a mark to a pipe and end; each process that gets so far does."""
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    try:
        with suppress(BaseException):
            point.load()
        os.write(write, b".")
    finally:
        os._exit(0)


def read_marks(read: int) -> tuple[bytes, bool]:
    """Return what is written to a pipe until all its writers have ended, and whether in time."""
    marks, deadline = b"", time.monotonic() + IMPORT_SECONDS
    while (left := deadline - time.monotonic()) > 0:
        ready, _, _ = select.select([read], [], [], left)
        if ready:
            content = os.read(read, 16)
            if not content:
                return marks, True
            marks += content
    return marks, False
