"""What a command says: on standard error, and with times in a file of its store.

Everything is logged to `LOGGER`. The terminal shows results and errors, progress unless the command
is quiet, and details if it is verbose. The file has all of it, and tracebacks.
"""

from __future__ import annotations

import logging
import multiprocessing
import shlex
import sys
import traceback
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from bench.system.database import redact_password
from bench.system.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

LOGGER = logging.getLogger("bench")
WARNINGS = logging.getLogger("py.warnings")  # warnings of libraries, once they are captured
RESULT = 35  # above warnings: what a command was asked for
NOTE = 5  # below details: for the file alone
logging.addLevelName(RESULT, "RESULT")
logging.addLevelName(NOTE, "NOTE")
LOGGER.setLevel(NOTE)
# A library that gives the root logger a handler would have everything printed twice.
LOGGER.propagate = False


@cache
def console() -> Console:
    """Return the console of standard error, which live lines and records share."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, emoji=False)


class TerminalHandler(logging.Handler):
    """Print records on standard error.

    command: the one that logs them. line: how it was called.
    """

    def __init__(self, command: str, level: int, line: str = "") -> None:
        super().__init__(level)
        self.command, self.line = command, line

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record, above the live line if there is one."""
        console().print(self.format(record), markup=False, soft_wrap=True)


class LogFile(logging.FileHandler):
    """Append records to a file, without passwords, until that fails."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, encoding="utf-8", errors="backslashreplace")
        self.path = path
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))

    def format(self, record: logging.LogRecord) -> str:
        """Return the text of a record."""
        return redact_password(super().format(record))

    def handleError(self, record: logging.LogRecord) -> None:
        """Warn once and write no more. The disk may be full: the command goes on."""
        self.setLevel(sys.maxsize)
        LOGGER.warning(f"warning: the log {self.path} cannot be written: {sys.exception()}")

    def close(self) -> None:
        """Close the file, whether or not its last lines can be written."""
        with suppress(OSError):
            super().close()


class LibraryHandler(logging.Handler):
    """Log what a library logs, with tracebacks, to the file alone."""

    def emit(self, record: logging.LogRecord) -> None:
        """Pass one record on."""
        LOGGER.log(NOTE, f"{record.name}: {self.format(record)}")


LIBRARY_HANDLER = LibraryHandler()
OWN_HANDLERS = (TerminalHandler, LogFile)


def log_to_file_alone(libraries: Iterable[str]) -> None:
    """Keep warnings and errors that libraries log from the terminal.

    They are of what fails, which a line of this program says already.
    """
    for name in list(logging.root.manager.loggerDict):
        if name.partition(".")[0] in libraries:
            # Children have their parent's handlers.
            logger = logging.getLogger(name)
            logger.handlers, logger.propagate = [], True
    for name in libraries:
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [LIBRARY_HANDLER], False
        logger.setLevel(logging.WARNING)


@contextmanager
def command_log(command: str, level: int = logging.INFO, line: str = "") -> Iterator[None]:
    """Print what `command` logs from a level on, and close its log file in the end.

    line: how it was called; "" for the command line of the process.
    """
    line = line or f"python -m bench {shlex.join(sys.argv[1:])}"
    shown = warnings.showwarning
    LOGGER.addHandler(TerminalHandler(command, level, line))
    try:
        yield
    except Exception:
        LOGGER.log(NOTE, traceback.format_exc())
        raise
    except (KeyboardInterrupt, SystemExit):
        LOGGER.log(NOTE, "interrupted")
        raise
    finally:
        logging.captureWarnings(False)
        # The program that calls the API has captured them itself.
        if warnings.showwarning is not shown:
            logging.captureWarnings(True)
        # A program may have handlers of its own.
        for handler in [entry for entry in LOGGER.handlers if isinstance(entry, OWN_HANDLERS)]:
            for logger in (WARNINGS, LOGGER):
                logger.removeHandler(handler)
            handler.close()


def terminal_handler() -> TerminalHandler | None:
    """Return the handler of this process's command, None in a worker and in a library's use."""
    return next((entry for entry in LOGGER.handlers if isinstance(entry, TerminalHandler)), None)


def has_live_line() -> bool:
    """Return whether progress is a live line: on a terminal, and where no worker prints beside."""
    handler = terminal_handler()
    if not handler or handler.level > logging.INFO or multiprocessing.parent_process():
        return False
    return console().is_terminal


def log_path() -> Path | None:
    """Return the file of the running command, if it has one."""
    return next((entry.path for entry in LOGGER.handlers if isinstance(entry, LogFile)), None)


def set_verbosity(quiet: bool, verbose: bool) -> None:
    """Choose how much the terminal shows. Raise UsageError for both at once."""
    if quiet and verbose:
        raise UsageError("--quiet and --verbose: one of them")
    # Those of libraries go to the file, and to the terminal with all other details.
    logging.captureWarnings(True)
    handler = terminal_handler()
    if handler and quiet:
        handler.setLevel(RESULT)
    if handler and verbose:
        handler.setLevel(logging.DEBUG)
        WARNINGS.addHandler(handler)


def open_log_file(store: Path, head: str) -> None:
    """Open the log file of the running command, unless it is open.

    Its first record is the command's line and `head`. Where that fails, a warning says so.
    """
    terminal = terminal_handler()
    if log_path() or not terminal:
        return
    now = datetime.now()
    start = f"{now:%Y%m%d-%H%M%S}.{now.microsecond // 1000:03}"
    path = store / "logs" / f"{start}-{terminal.command.replace(' ', '-')}.log"
    try:
        path.parent.mkdir(exist_ok=True)
        add_file(path)
    except OSError as error:
        LOGGER.warning(f"warning: the log {path} cannot be written: {error.strerror}")
        return
    LOGGER.log(NOTE, f"{terminal.line}\n{head}")


def add_file(path: Path) -> None:
    """Log to a file from now on. Raise OSError if it cannot be opened."""
    handler = LogFile(path)
    LOGGER.addHandler(handler)
    WARNINGS.addHandler(handler)


@dataclass(frozen=True)
class LogSettings:
    """Where a command logs to, for its worker processes."""

    command: str
    level: int
    path: Path | None


def log_settings() -> LogSettings:
    """Return the settings of this process."""
    handler = terminal_handler()
    if not handler:
        return LogSettings("", logging.WARNING, None)
    return LogSettings(handler.command, handler.level, log_path())


def log_in_worker(settings: LogSettings) -> None:
    """Log from a worker process to the terminal and the file of its parent.

    Each process appends whole records, so a killed one harms no other.
    """
    LOGGER.addHandler(TerminalHandler(settings.command, settings.level))
    set_verbosity(quiet=False, verbose=settings.level == logging.DEBUG)
    if settings.path:
        with suppress(OSError):
            add_file(settings.path)
