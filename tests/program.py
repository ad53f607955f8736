"""The program as tests use it: in this process, or started in one of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import pytest

from bench.cli.main import main

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


class Ended(NamedTuple):
    """How a command ended: exit code, standard output, standard error."""

    code: int
    out: str
    err: str


def bench(words: str, folder: Path) -> Ended:
    """Give a command in this process, in a folder of its own.

    A process of its own would import everything once more, five seconds each.
    """
    with redirected_output() as read, pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        # The log begins with it.
        patch.setattr(sys, "argv", ["bench", *words.split()])
        with pytest.raises(SystemExit) as end:
            main()
        out, err = read()
    assert isinstance(end.value.code, int)
    return Ended(end.value.code, out, err)


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
