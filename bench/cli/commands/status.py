"""Show where the runs of a store, or of a grid, are."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from bench.cli.commands import run
from bench.cli.parsing import Command, parse_options, split_run_words
from bench.protocol.options import Json, StoreFolder, Switch, option
from bench.system.errors import UsageError

if TYPE_CHECKING:
    from bench.execution.grid.status import RunStatus
    from bench.execution.plan import PlannedRun

WATCH_SECONDS = 5.0  # between two looks


@dataclass(frozen=True, kw_only=True)
class StatusOptions:
    """Show what is running and where, waiting, failed and why, dead or done.

    Of everything in a store, or of a grid: its words of `run` come after `--`.
    """

    all: Annotated[Switch, option(text="list what is done too")] = False
    watch: Annotated[Switch, option(text="show it again every few seconds, until all is done")] = (
        False
    )
    store: StoreFolder = Path("runs")
    json: Json = False


@dataclass(frozen=True)
class StatusRequest:
    """The options, and the runs of a grid if it is about one."""

    options: StatusOptions
    planned: list[PlannedRun] = field(default_factory=list)


def read_request(argv: Sequence[str]) -> StatusRequest:
    """Return the options of the command, and the runs that the words after `--` ask for."""
    before, words = split_run_words(argv)
    options = parse_options(StatusOptions, before, "status")
    if options.json and options.watch:
        raise UsageError("--json and --watch: one of them")
    if not words:
        return StatusRequest(options)
    from bench.execution.plan import plan_runs

    run_options, hyper = run.read_request(words)
    if "--store" in before and "--store" in words:
        raise UsageError("--store: before `--` or after it")
    options = StatusOptions(
        all=options.all, watch=options.watch, json=options.json,
        store=options.store if "--store" in before else run_options.store)  # fmt: skip
    return StatusRequest(options, plan_runs(run_options, hyper))


def show_status(request: StatusRequest) -> None:
    """Print the states once, or until all is done."""
    from bench.cli.output import print_json
    from bench.execution.grid.status import format_status

    states = look(request)
    if request.options.json:
        print_json([asdict(status) for status in states])
    elif not request.options.watch:
        print(format_status(states, request.options.all) or "no run is recorded")
    else:
        watch(request, states)


def look(request: StatusRequest) -> list[RunStatus]:
    """Return the states as they are now."""
    from bench.execution.grid.status import read_status

    return read_status(request.options.store, request.planned)


def watch(request: StatusRequest, states: list[RunStatus]) -> None:
    """Show the states again and again, until all runs are done or have failed."""
    from rich.live import Live
    from rich.text import Text

    from bench.execution.grid.status import format_status

    with Live(auto_refresh=False) as live:
        while True:
            live.update(Text(format_status(states, request.options.all)), refresh=True)
            if all(status.state in ("done", "failed") for status in states):
                return
            time.sleep(WATCH_SECONDS)
            states = look(request)


COMMAND = Command(StatusOptions, show_status, read_request)
