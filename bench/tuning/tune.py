"""The verb `tune`: a study for each method, data set and student; then the best configuration, trained anew, tested once."""

from __future__ import annotations

import dataclasses
import hashlib
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench import environment, execute, plan, run, teachers
from bench.cell import Workshop
from bench.data import Data
from bench.errors import BenchError, UsageError
from bench.options import Run, Tune
from bench.plan import Cell
from bench.progress import duration
from bench.track import Store
from bench.train import accuracy
from bench.tuning import outcome, storage, worker
from bench.tuning import space as space_module
from bench.tuning import study as study_module
from bench.tuning import trial as trial_module
from bench.tuning.space import Space
from bench.tuning.trial import Task
from methods.base import Budget

ALLOWANCE = 0.1  # how far below the robust teacher's clean accuracy a configuration may fall


def tune(options: Tune) -> int:
    """Returns the exit code: 1 if the search of one method failed."""
    check(options)
    cells = plan.plan(search(options), {})
    students = [cell for cell in cells if cell.spec.role == "student"]
    suite = plan.resolve(options)
    spaces = {
        cell.spec.method: space_module.space(type(cell.method), cell.spec.training, options.range) for cell in students
    }
    space_module.check(spaces, options.range)
    if options.dry_run:
        return foresee(options, cells, spaces)
    storage.connect(place(options))  # what cannot be reached is told before anything is trained
    judges = {} if options.min_clean is not None else guards(options, students)
    needed = {cell.identity: cell for cell in [*judges.values(), *cells] if cell.spec.role == "teacher"}
    if needed and (code := run.grid(teaching(options), list(needed.values()))):
        return code
    shop = Workshop(Store(options.store), environment.device(options.device), environment.code())
    load = execute.loader(options.data_root)
    failed = 0
    for cell in students:
        try:
            floor = options.min_clean
            if floor is None:
                floor = clean(judges[cell.spec.dataset], shop, load) - ALLOWANCE
            failed |= one(options, cell, spaces[cell.spec.method], floor, shop)
        except BenchError as error:
            print(f"error: {error}", file=sys.stderr)
            failed = max(failed, error.exit_code)
    print(f"tuned under {suite.id}: `python -m bench leaderboard` shows the rows", file=sys.stderr)
    return failed


def check(options: Tune) -> None:
    """Raises UsageError for what can be seen at once."""
    if options.force:
        raise UsageError("--force: a search is not repeated; begin another with another --storage")
    if options.trials < 1 or options.workers < 1:
        raise UsageError(f"--trials {options.trials} --workers {options.workers}: at least 1")
    if options.min_clean is not None and not 0 <= options.min_clean <= 1:
        raise UsageError(f"--min-clean {options.min_clean}: between 0 and 1")
    if options.search_seed in (plan.numbers(options.seeds) or plan.resolve(options).seeds):
        raise UsageError(f"--search-seed {options.search_seed}: not one of the final runs', which must be fresh")


def search(options: Tune) -> Run:
    """The runs whose values are searched: one for each study."""
    return Run(
        **shared(options), method=options.method, student=options.student, teacher=options.teacher,
        epochs=options.epochs, seeds=str(options.search_seed),
    )  # fmt: skip


def shared(options: Tune) -> dict[str, Any]:
    """The options that every verb which trains has."""
    from bench.options import Protocol

    return {field.name: getattr(options, field.name) for field in dataclasses.fields(Protocol)}


def teaching(options: Tune) -> Run:
    return replace(search(options), force=False)


def place(options: Tune) -> str:
    """The storage of the studies."""
    return options.storage or str(options.store / "tuning.journal")


def pruning(options: Tune) -> str:
    """The pruner; Optuna has none for two objectives."""
    return options.pruner if options.objectives == "robust" else "none"


def guards(options: Tune, students: list[Cell]) -> dict[str, Cell]:
    """The robust teacher of each data set, whose clean accuracy sets the floor for every method alike."""
    suite = plan.resolve(options)
    return {cell.spec.dataset: plan.teacher(options, suite, cell.spec.dataset, "robust") for cell in students}


def clean(guard: Cell, shop: Workshop, load: Callable[..., Data]) -> float:
    """A teacher's clean accuracy on the validation images."""
    spec = guard.spec
    data = load(*execute.place(spec), test=False).to(shop.device)
    net = teachers.load(shop.root, teachers.find(shop.root, guard.identity, spec.dataset), data.info).to(shop.device)
    return accuracy(net, data.val, Budget(0.0, 0.0, 0))[0]


def one(options: Tune, cell: Cell, space: Space, floor: float, shop: Workshop) -> int:
    """One study from where it stands to its end, and the final runs; returns the exit code."""
    task = prepare(options, cell, space, floor, shop)
    study = study_module.establish(task.plan, space.first(type(cell.method)), worker.lock(options.store))
    if study_module.done(study) < options.trials:
        worker.together(options, task, shop)
        with storage.told(task.plan.place):
            study = study_module.attach(task.plan, storage.connect(task.plan.place))
    print(outcome.summary(study, task), file=sys.stderr)
    paths = outcome.write(study, task, shop, options.teacher)
    for path in paths:
        print(path)
    if options.search_only or len(options.objectives.split(",")) > 1:
        return 0
    return final(options, cell, paths[0])


def prepare(options: Tune, cell: Cell, space: Space, floor: float, shop: Workshop) -> Task:
    """The study's description, with its MLflow run."""
    spec = trial_module.quiet(cell.spec)
    objectives = tuple(options.objectives.split(","))
    name = "/".join([options.suite, spec.dataset, spec.arch, spec.method])
    name += f"/{options.teacher}" if spec.teachers and options.teacher != "robust" else ""
    name += "/pareto" if len(objectives) > 1 else ""
    pruner = pruning(options)
    settled = {key: value for key, value in dataclasses.asdict(spec).items() if key not in ("hyper", "training")}
    settled["training"] = {k: v for k, v in dataclasses.asdict(spec.training).items() if k not in space_module.TRAINING}
    identity = {
        "objectives": options.objectives,
        "clean accuracy to keep": round(floor, 6),
        "suite": spec.suite,
        "search space": space.describe(),
        "protocol": settled,
    }
    study = study_module.Plan(
        name, place(options), objectives, options.sampler, pruner, options.search_seed, spec.training.epochs, identity
    )
    work = options.store / "work" / "tuning" / hashlib.sha256(f"{name} {study.place}".encode()).hexdigest()[:16]
    tags = {"role": "study", "study": name, "method": spec.method, "student": spec.arch, "dataset": spec.dataset}
    record = shop.store.open(spec.suite + " tuning", f"tune {name}", tags, "", ("role", "study"))
    record.params(
        {"sampler": options.sampler, "pruner": pruner} | {f"range.{k}": v for k, v in space.describe().items()}
    )
    return Task(study, space, spec, record.run_id, options.trials, floor, work)


def final(options: Tune, cell: Cell, path: Path) -> int:
    """Trains default and best configuration with fresh seeds and tests each once, as `run` would."""
    spec = cell.spec
    words = {"dataset": spec.dataset, "method": spec.method, "student": spec.arch}
    given = Run(**shared(options) | words | {"teacher": options.teacher, "seeds": options.seeds})
    found = plan.plan(replace(given, config=path), {})
    return run.grid(given, [*plan.plan(given, {}), *[cell for cell in found if cell.spec.role == "student"]])


def foresee(options: Tune, cells: list[Cell], spaces: dict[str, Space]) -> int:
    """Prints what would be searched and what it would take."""
    console = Console(file=sys.stderr, highlight=False)
    load = execute.loader(options.data_root)
    device = environment.device(options.device)
    for name, space in spaces.items():
        table = Table(name, "default", "range", box=None, pad_edge=False)
        for found in (*space.hyper, *space.training):
            table.add_row(found.name, trial_module.shown(found.default), found.words)
        console.print(table)
    costs = zip(cells, run.estimate(cells, load, options.store, device), strict=True)
    each = [cost.train for cell, cost in costs if cell.spec.role == "student"]
    epochs = next(cell.spec.training.epochs for cell in cells if cell.spec.role == "student")
    rungs = " and ".join(map(str, study_module.rungs(pruning(options), epochs)))
    seconds = options.trials * sum(each) / options.workers
    console.print(
        f"{options.trials} trials of {rungs} epochs for each of {len(each)} searches with {options.sampler}: "
        f"about {duration(seconds)} without pruning on {environment.device_name(device)}, then the final runs",
        soft_wrap=True,
    )
    return 0
