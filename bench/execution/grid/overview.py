"""What a grid says before its first run and after its last."""

from __future__ import annotations

import shlex
from collections.abc import Container, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from bench import datasets
from bench.datasets.files.fetching import download_size, is_missing
from bench.execution.cost import Cost, seconds_side_by_side
from bench.execution.grid.processes import choose_devices
from bench.execution.job import SHOWN_ACCURACIES
from bench.execution.plan import PlannedRun
from bench.execution.suite_file import resolve_suite
from bench.protocol import suites
from bench.protocol.options import CommonOptions, ProtocolOptions
from bench.system.environment import describe_environment, device_name
from bench.system.errors import continue_hint
from bench.system.log import log_path
from bench.system.progress import format_duration
from bench.system.tables import format_table
from bench.tracking.run_logger import SHOWN_DIGITS
from bench.tracking.store import TrackingStore, local_artifact
from leaderboards.schema.fields import FINISHED, checkpoint_artifact
from leaderboards.schema.metrics import (
    ATTACK_LABELS,
    EVAL_SECONDS,
    NUM_IMAGES,
    TRAIN_SECONDS,
    accuracy_name,
)

if TYPE_CHECKING:
    from mlflow.entities import Run

LONG_ON_CPU = 24 * 3600  # seconds from which a suite for a GPU is doubtful on a CPU
MOST_MODELS = 4  # models whose files are listed after a grid


def log_head(device: torch.device, code: dict[str, str]) -> str:
    """Return the first lines of a log: the machine, versions and commit."""
    facts = describe_environment(device) | code
    return "\n".join(f"{name}: {value}" for name, value in facts.items())


def count_runs(options: ProtocolOptions, runs: list[PlannedRun], todo: list[PlannedRun]) -> str:
    """Say how many runs there are to do."""
    recorded = len(runs) - len(todo)
    return f"{len(todo)} to do, {recorded} already recorded in {options.store}"


def format_plan(
    options: ProtocolOptions, todo: list[PlannedRun], costs: list[Cost], device: torch.device
) -> str:
    """Return a table of the runs to do, and about how long they take."""
    rows = []
    for number, (run, cost) in enumerate(zip(todo, costs, strict=True), 1):
        duration = "unknown"
        if cost.train:
            duration = format_duration(cost.train + cost.evaluate)
        rows.append((str(number), *describe_run(run), run.spec.teacher, duration))
    columns = ("", "method", "data", "student", "seed", "teacher", "about")
    table = format_table(columns, rows)
    duration = format_duration(total_seconds(options, todo, costs, device))
    return f"{table}\non {device_name(device)}, about {duration} in all"


def describe_run(run: PlannedRun) -> tuple[str, str, str, str]:
    """Return method, data set, student and seed of a run, as tables show them."""
    spec = run.spec
    student = f"{spec.arch} (teacher)" if spec.role == "teacher" else spec.arch
    return f"{spec.method} {run.variant}".strip(), spec.dataset, student, str(spec.seed)


def total_seconds(
    options: ProtocolOptions, todo: list[PlannedRun], costs: list[Cost], device: torch.device
) -> float:
    """Return about how long runs take with the workers asked for."""
    workers = len(choose_devices(options.workers, device))
    return seconds_side_by_side(zip(todo, costs, strict=True), workers)


def cpu_warning(
    options: ProtocolOptions, todo: list[PlannedRun], costs: list[Cost], device: torch.device
) -> str:
    """Warn of a suite for a GPU that would take days on a CPU; "" for all others."""
    seconds = total_seconds(options, todo, costs, device)
    if device.type != "cpu" or resolve_suite(options.suite).cpu_time or seconds < LONG_ON_CPU:
        return ""
    small = [suite for suite in suites.SUITES.values() if suite.cpu_time and not suite.rows]
    others = [f"{suite.name} ({suite.cpu_time})" for suite in small]
    return (
        f"{options.suite} is for a GPU: about {format_duration(seconds)} on this CPU"
        f" (threads: {torch.get_num_threads()}); for a CPU there are {' and '.join(others)}"
    )


def missing_data(options: ProtocolOptions, todo: list[PlannedRun]) -> Iterator[str]:
    """Yield a line for each data set that a run would download."""
    # Parts of one data set come with one download.
    for name in dict.fromkeys(datasets.get(run.spec.dataset).whole.name for run in todo):
        if is_missing(name, options.data_root):
            size = download_size(name)
            yield f"{name} is not under {options.data_root}: a run fetches it, {size}"


def format_results(runs: list[PlannedRun], failed: Container[str], store: TrackingStore) -> str:
    """Return a table of what is recorded of the runs, and where the students are."""
    rows = []
    models = []
    for run in runs:
        record = None if run.identity in failed else store.find_run(run.spec, FINISHED)
        rows.append((*describe_run(run), *describe_record(record)))
        path = record and local_artifact(store.root, record, checkpoint_artifact())
        if path and (run.spec.role == "student" or len(runs) == 1):
            models.append(path)
    labels = [ATTACK_LABELS[name] for name in SHOWN_ACCURACIES]
    columns = ("method", "data", "student", "seed", *labels, "min", "run")
    lines = [format_table(columns, rows, numbers=len(labels) + 2)]
    lines += [f"model   {shorten_path(path)}" for path in models[:MOST_MODELS]]
    if len(models) > MOST_MODELS:
        lines.append(f"        and {len(models) - MOST_MODELS} more beside them")
    return "\n".join(lines)


def describe_record(record: Run | None) -> list[str]:
    """Return accuracies in percent, minutes and the id's first digits; "failed" without a run.

    In brackets is on how many images an accuracy was measured, where that is not all of them.
    """
    if not record:
        return ["failed", *[""] * (len(SHOWN_ACCURACIES) + 1)]
    values = record.data.metrics
    cells = []
    for name in SHOWN_ACCURACIES:
        value = values.get(accuracy_name(name))
        images = values.get(accuracy_name(f"{name}_n"))
        text = "" if value is None else f"{100 * value:.1f}"
        # On fewer images than the others: AutoAttack on a teacher.
        if images and images < values[NUM_IMAGES]:
            text += f" ({images:.0f})"
        cells.append(text)
    seconds = values.get(TRAIN_SECONDS, 0.0) + values.get(EVAL_SECONDS, 0.0)
    return [*cells, f"{seconds / 60:.1f}", record.info.run_id[:SHOWN_DIGITS]]


def shorten_path(path: Path) -> Path:
    """Return a path from the working folder if it lies there."""
    folder = Path.cwd()
    return path.relative_to(folder) if path.is_relative_to(folder) else path


def next_steps(options: ProtocolOptions, failed: Container[str], store: TrackingStore) -> str:
    """Return where the records and the log are, and what to type next."""
    lines = [f"records {shorten_path(store.records)}"]
    if log_path():
        lines.append(f"log     {log_path()}")
    flag = ""
    if options.store != CommonOptions.store:
        flag = f" --store {shlex.quote(str(options.store))}"
    if failed:
        lines.append(f"next    {continue_hint(options.force)} continues what failed")
    lines.append(f"next    python -m bench leaderboard{flag}")
    lines += [f"        python -m bench {words}{flag}" for words in ("show RUN", "ui --open")]
    return "\n".join(lines)
