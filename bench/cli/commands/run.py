"""Train students with one or more methods, evaluate them, record everything."""

from __future__ import annotations

from collections.abc import Sequence

from bench.api import runs
from bench.api.runs import RunCommandOptions, RunRequest
from bench.cli.parsing import Command, FlagReader
from bench.system.log import set_verbosity


def read_request(argv: Sequence[str]) -> RunRequest:
    """Return the options of a run and the hyper-parameters of its method."""
    return runs.read_request(FlagReader(argv, "run"))


def run(request: RunRequest) -> int:
    """Plan and carry out the runs; return the exit code."""
    options, hyper = request
    set_verbosity(options.quiet, options.verbose)
    _, failures = runs.run_all(options, hyper)
    return 1 if failures else 0


COMMAND = Command(RunCommandOptions, run, read_request)
