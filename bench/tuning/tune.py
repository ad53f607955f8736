"""The verb `tune`: a study for each method, data set and student; then the best configuration, trained anew, tested once."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
from mlflow.exceptions import MlflowException
from optuna.study import Study
from rich.console import Console
from rich.table import Table

from bench.datasets.splits import Data
from bench.execution import cost, grid, inputs, plan
from bench.execution.job import RunContext
from bench.execution.plan import PlannedRun
from bench.protocol import suites
from bench.protocol.options import ProtocolOptions, RunOptions
from bench.system import environment
from bench.system.errors import BenchError, UsageError
from bench.system.progress import format_duration
from bench.teachers import cards
from bench.tracking.run_logger import FAILED, KILLED, RunLogger
from bench.tracking.store import TUNING, TrackingStore
from bench.training.trainer import clean_and_robust_accuracy
from bench.tuning import outcome, storage, worker
from bench.tuning import space as space_module
from bench.tuning import study as study_module
from bench.tuning import trial as trial_module
from bench.tuning.options import TuneOptions
from bench.tuning.space import Space
from bench.tuning.trial import Task
from methods.base import Budget

UNSEEN = (
    "hyper",
    "limit_test",
    "limit_aa",
    "attacks",
    "full_checkpoints",
    "tuned",
)  # of a spec, by a search
ALLOWANCE = 0.1  # how far below the robust teacher's clean accuracy a configuration may fall


def tune(options: TuneOptions, dry_run: bool = False) -> int:
    """Returns the exit code: 1 if the search of one method failed."""
    check(options)
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    cells = plan.plan_runs(search(options), {})
    students = [cell for cell in cells if cell.spec.role == "student"]
    forms = {cell.spec.method: type(cell.method) for cell in students}
    spaces = {
        name: space_module.space(form, students[0].spec.training, options.range)
        for name, form in forms.items()
    }
    space_module.check(forms, spaces, options.range)
    if dry_run:
        return foresee(options, cells, spaces)
    storage.connect(place(options))  # what cannot be reached is told before anything is trained
    judges = {} if options.min_clean is not None else guards(options, students)
    needed = {
        cell.identity: cell for cell in [*judges.values(), *cells] if cell.spec.role == "teacher"
    }
    with storage.guard(place(options), "teachers"):  # others that join wait for them
        if needed and (code := grid.run_grid(search(options), list(needed.values()))):
            return code
    shop = RunContext(
        TrackingStore(options.store),
        environment.resolve_device(options.device),
        environment.source_state(),
    )
    load = inputs.data_loader(options.data_root)
    failed = 0
    for cell in students:
        try:
            floor = options.min_clean
            if floor is None:
                floor = clean(judges[cell.spec.dataset], shop, load) - ALLOWANCE
            with storage.told(place(options)):
                failed = max(failed, one(options, cell, spaces[cell.spec.method], floor, shop))
        except (BenchError, MlflowException) as error:
            print(f"error: {' '.join(str(error).split())[:300]}", file=sys.stderr)
            failed = max(failed, error.exit_code if isinstance(error, BenchError) else 1)
    return failed


def check(options: TuneOptions) -> None:
    """Raises UsageError for what can be seen at once."""
    if options.force:
        raise UsageError("--force: a search is not repeated; begin another with another --storage")
    if options.trials < 1 or options.workers < 1:
        raise UsageError(f"--trials {options.trials} --workers {options.workers}: at least 1")
    if options.min_clean is not None and not 0 <= options.min_clean <= 1:
        raise UsageError(f"--min-clean {options.min_clean}: between 0 and 1")
    if (
        not 0 <= options.search_seed < 2**32
    ):  # what numpy's generators, which the samplers use, can take
        raise UsageError(f"--search-seed {options.search_seed}: not negative and below 2^32")
    if options.search_seed in (plan.parse_seeds(options.seeds) or suites.get(options.suite).seeds):
        raise UsageError(
            f"--search-seed {options.search_seed}: not one of the final runs', which must be fresh"
        )


def search(options: TuneOptions) -> RunOptions:
    """The runs whose values are searched: one for each study."""
    return RunOptions(
        **shared(options), method=options.method, student=options.student, teacher=options.teacher,
        epochs=options.epochs, seeds=str(options.search_seed),
    )  # fmt: skip


def shared(options: TuneOptions) -> dict[str, Any]:
    """The options that every verb which trains has."""
    return {
        field.name: getattr(options, field.name) for field in dataclasses.fields(ProtocolOptions)
    }


def place(options: TuneOptions) -> str:
    """The storage of the studies."""
    return options.storage or str(options.store / "tuning.journal")


def pruning(options: TuneOptions) -> str:
    """The pruner; Optuna has none for two objectives."""
    return options.pruner if options.objectives == "robust" else "none"


def guards(options: TuneOptions, students: list[PlannedRun]) -> dict[str, PlannedRun]:
    """The robust teacher of each data set, whose clean accuracy sets the floor for every method alike."""
    suite = suites.get(options.suite)
    return {
        cell.spec.dataset: plan.plan_teacher(options, suite, cell.spec.dataset, "robust")
        for cell in students
    }


def clean(guard: PlannedRun, shop: RunContext, load: Callable[..., Data]) -> float:
    """A teacher's clean accuracy on the validation images."""
    spec = guard.spec
    data = load(spec, test=False).to(shop.device)
    net = cards.load_teacher(
        shop.root, cards.find_card(shop.root, guard.identity, spec.dataset), data.info
    ).to(shop.device)
    return clean_and_robust_accuracy(net, data.val, Budget(0.0, 0.0, 0))[0]


def one(
    options: TuneOptions, cell: PlannedRun, space: Space, floor: float, shop: RunContext
) -> int:
    """One study from where it stands to its end, and the final runs; returns the exit code."""
    studied = describe(options, cell, space)
    first = space.first(type(cell.method))
    study = study_module.establish(studied, first, round(floor, 6), options.min_clean is not None)
    task = prepare(options, cell, space, studied, study, shop)
    record = RunLogger(shop.store.client, task.parent)
    try:
        if study_module.done(study) < task.budget:
            worker.together(options, task, shop)
            study = study_module.attach(studied, storage.connect(studied.place))
        print(outcome.summary(study, task), file=sys.stderr)
        with storage.guard(
            studied.place, "outcome"
        ):  # on a server two that write one tag at once would collide
            paths = outcome.write(study, task, shop, teacher(options, cell), record)
    except BenchError as error:
        record.finish(FAILED, str(error))
        raise
    except BaseException:
        record.finish(KILLED, "interrupted")
        raise
    for path in paths:
        print(path)
    if options.search_only or len(studied.objectives) > 1:
        return 0
    with storage.guard(
        studied.place, "final"
    ):  # others that have joined wait, and find them recorded
        return final(options, cell, paths[0])


def teacher(options: TuneOptions, cell: PlannedRun) -> str:
    """The teacher that is asked for, unless the method has none."""
    return options.teacher if cell.method.teacher_roles else "robust"


def describe(options: TuneOptions, cell: PlannedRun, space: Space) -> study_module.Plan:
    """The study as plain values; what its trials do not see, such as the attacks on test images, is left out."""
    spec = trial_module.quiet(cell.spec)
    objectives = tuple(options.objectives.split(","))
    name = "/".join([options.suite, spec.dataset, spec.arch, spec.method])
    name += f"/{options.teacher}" if teacher(options, cell) != "robust" else ""
    name += "/pareto" if len(objectives) > 1 else ""
    settled = {key: value for key, value in dataclasses.asdict(spec).items() if key not in UNSEEN}
    settled["training"] = {
        k: v for k, v in settled["training"].items() if k not in space_module.TRAINING
    }
    identity = {
        "objectives": options.objectives,
        "search space": space.describe(),
        "protocol": settled,
    }
    return study_module.Plan(
        name, place(options), objectives, options.sampler, pruning(options), options.search_seed, spec.training.epochs,
        identity,
    )  # fmt: skip


def prepare(
    options: TuneOptions,
    cell: PlannedRun,
    space: Space,
    studied: study_module.Plan,
    study: Study,
    shop: RunContext,
) -> Task:
    """What the workers need, with the study's MLflow run."""
    spec, number = trial_module.quiet(cell.spec), study.user_attrs["id"]
    tags = {
        "role": "study",
        "study": number,
        "method": spec.method,
        "student": spec.arch,
        "dataset": spec.dataset,
    }
    tags |= {"sampler": options.sampler, "pruner": studied.pruner}
    record = shop.store.open_run(
        spec.suite + TUNING, f"tune {studied.name}", tags, "", ("role", "study")
    )
    record.log_params({f"range.{name}": text for name, text in space.describe().items()})
    budget = max(options.trials, len(space.first(type(cell.method))))
    work = options.store / "work" / "tuning" / number
    return Task(
        studied, space, spec, number, record.run_id, budget, study.user_attrs["floor"], work
    )


def final(options: TuneOptions, cell: PlannedRun, path: Path) -> int:
    """Trains default and best configuration with fresh seeds and tests each once, as `run` would."""
    spec = cell.spec
    words = {
        "dataset": spec.dataset,
        "method": spec.method,
        "student": spec.arch,
        "teacher": teacher(options, cell),
    }
    given = RunOptions(**shared(options) | words | {"seeds": options.seeds})
    found = plan.plan_runs(replace(given, config=path), {})
    code = grid.run_grid(
        given,
        [*plan.plan_runs(given, {}), *[cell for cell in found if cell.spec.role == "student"]],
    )
    print("`python -m bench leaderboard` shows the rows", file=sys.stderr)
    return code


def foresee(options: TuneOptions, cells: list[PlannedRun], spaces: dict[str, Space]) -> int:
    """Prints what would be searched and what it would take."""
    console = Console(file=sys.stderr, highlight=False)
    load = inputs.data_loader(options.data_root)
    device = environment.resolve_device(options.device)
    for name, space in spaces.items():
        table = Table(name, "default", "range", box=None, pad_edge=False)
        for found in (*space.hyper, *space.training):
            table.add_row(found.name, trial_module.shown(found.default), found.words)
        console.print(table)
    costs = zip(cells, cost.estimate_costs(cells, load, options.store, device), strict=True)
    each = [cost.train for cell, cost in costs if cell.spec.role == "student"]
    epochs = next(cell.spec.training.epochs for cell in cells if cell.spec.role == "student")
    rungs = study_module.rungs(pruning(options), epochs)
    seconds = options.trials * sum(each) * sum(rungs) / epochs / options.workers
    console.print(
        f"{options.trials} trials of {' and '.join(map(str, rungs))} epochs for each of {len(each)} searches "
        f"with {options.sampler}: at most about {format_duration(seconds)} on {environment.device_name(device)}, "
        "then the final runs",
        soft_wrap=True,
    )
    return 0
