"""The command `tune`: search each method, then train the best configuration and test it once."""

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

from bench import teachers
from bench.datasets.data import Data
from bench.execution import executors, grid
from bench.execution.job import RunContext
from bench.execution.plan import PlannedRun, parse_seeds, plan_runs, plan_teacher, resolve
from bench.protocol.options import ProtocolOptions, RunOptions
from bench.protocol.spec import Spec
from bench.system import environment
from bench.system.errors import BenchError, UsageError
from bench.system.progress import format_duration
from bench.tracking.store import FAILED, KILLED, TUNING, RunLogger, TrackingStore
from bench.training.trainer import clean_and_robust_accuracy
from bench.tuning.options import TuneOptions
from bench.tuning.results import summarize_study, write_results
from bench.tuning.space import TRAINING_FACTORS, SearchSpace, build_space, check_ranges
from bench.tuning.storage import connect, exclusive, storage_errors
from bench.tuning.study import StudyPlan, count_over, load_study, open_study, rung_epochs
from bench.tuning.trial import TrialContext, format_value
from bench.tuning.worker import run_workers
from methods.base import Budget

# Fields of a spec that a trial does not depend on.
UNUSED_FIELDS = ("hyper", "limit_test", "limit_aa", "attacks", "full_checkpoints", "tuned")
# How far below the robust teacher's clean accuracy a configuration may fall.
CLEAN_ALLOWANCE = 0.1


def tune(options: TuneOptions, dry_run: bool = False) -> int:
    """Search and test; return the exit code, 1 if one method's search failed."""
    check_options(options)
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    runs = plan_runs(search_options(options), {})
    students = [run for run in runs if run.spec.role == "student"]
    spaces = {}
    for student in students:
        training = students[0].spec.training
        spaces[student.spec.method] = build_space(type(student.method), training, options.range)
    check_ranges(spaces, options.range)
    if dry_run:
        return show_plan(options, runs, spaces)
    # A storage that cannot be reached is reported before anything is trained.
    connect(storage_url(options))
    if code := train_teachers(options, runs):
        return code
    device, source = environment.resolve_device(options.device), environment.source_state()
    context = RunContext(TrackingStore(options.store), device, source)
    code = 0
    for student in students:
        code = max(code, try_search(options, student, spaces[student.spec.method], context))
    return code


def check_options(options: TuneOptions) -> None:
    """Raise UsageError for options that are wrong whatever the method."""
    if options.force:
        raise UsageError("--force: a search is not repeated; begin another with another --storage")
    if options.trials < 1 or options.workers < 1:
        raise UsageError(f"--trials {options.trials} --workers {options.workers}: at least 1")
    if options.min_clean is not None and not 0 <= options.min_clean <= 1:
        raise UsageError(f"--min-clean {options.min_clean}: between 0 and 1")
    # The samplers seed numpy's generators.
    if not 0 <= options.search_seed < 2**32:
        raise UsageError(f"--search-seed {options.search_seed}: not negative and below 2^32")
    if options.search_seed in (parse_seeds(options.seeds) or resolve(options).seeds):
        raise UsageError(
            f"--search-seed {options.search_seed}: not one of the final runs', which must be fresh"
        )
    if options.storage and "://" not in options.storage:
        url = f"sqlite:///{Path(options.storage).with_suffix('.db')}"
        raise UsageError(
            f"--storage {options.storage}: journal files are no longer used; give {url}"
        )


def search_options(options: TuneOptions) -> RunOptions:
    """Return the options of the runs whose values are searched, one for each study."""
    return RunOptions(
        **protocol_options(options),
        method=options.method,
        student=options.student,
        teacher=options.teacher,
        epochs=options.epochs,
        seeds=str(options.search_seed),
    )


def protocol_options(options: TuneOptions) -> dict[str, Any]:
    """Return the options that `tune` and `run` share."""
    names = [field.name for field in dataclasses.fields(ProtocolOptions)]
    return {name: getattr(options, name) for name in names}


def storage_url(options: TuneOptions) -> str:
    """Return the address of the studies' database."""
    return options.storage or f"sqlite:///{options.store / 'tuning.db'}"


def pruner_name(options: TuneOptions) -> str:
    """Return the pruner; Optuna has none for two objectives."""
    return options.pruner if options.objectives == "robust" else "none"


def teacher_name(options: TuneOptions, student: PlannedRun) -> str:
    """Return the teacher asked for, unless the method has none."""
    return options.teacher if student.method.requires else "robust"


def train_teachers(options: TuneOptions, runs: list[PlannedRun]) -> int:
    """Train the teachers of the students and those that set the clean accuracy to keep."""
    needed: dict[str, PlannedRun] = {}
    for run in runs:
        if run.spec.role == "student" and options.min_clean is None:
            reference = reference_teacher(options, run)
            needed[reference.identity] = reference
    for run in runs:
        if run.spec.role == "teacher":
            needed[run.identity] = run
    # Other processes that join wait for the teachers.
    with exclusive(storage_url(options), "teachers"):
        return grid.run_grid(search_options(options), list(needed.values())) if needed else 0


def reference_teacher(options: TuneOptions, student: PlannedRun) -> PlannedRun:
    """Return the robust teacher of a data set, which sets one clean accuracy for all methods."""
    return plan_teacher(options, resolve(options), student.spec.dataset, "robust")


def clean_accuracy(teacher: PlannedRun, context: RunContext, load: Callable[..., Data]) -> float:
    """Measure a teacher's clean accuracy on the validation images."""
    spec = teacher.spec
    data = load(*executors.data_arguments(spec), test=False).to(context.device)
    card = teachers.find(context.root, teacher.identity, spec.dataset)
    net = teachers.load(context.root, card, data.info).to(context.device)
    return clean_and_robust_accuracy(net, data.val, Budget(0.0, 0.0, 0))[0]


def try_search(
    options: TuneOptions, student: PlannedRun, space: SearchSpace, context: RunContext
) -> int:
    """Search one method; report its errors and return the exit code."""
    try:
        min_clean = options.min_clean
        if min_clean is None:
            load = executors.dataset_loader(options.data_root)
            reference = reference_teacher(options, student)
            min_clean = clean_accuracy(reference, context, load) - CLEAN_ALLOWANCE
        with storage_errors(storage_url(options)):
            return run_search(options, student, space, min_clean, context)
    except (BenchError, MlflowException) as error:
        print(f"error: {' '.join(str(error).split())[:300]}", file=sys.stderr)
        return error.exit_code if isinstance(error, BenchError) else 1


def run_search(
    options: TuneOptions,
    student: PlannedRun,
    space: SearchSpace,
    min_clean: float,
    context: RunContext,
) -> int:
    """Continue a study to its end and make the final runs; return the exit code."""
    plan = plan_study(options, student, space)
    explicit = options.min_clean is not None
    study = open_study(plan, space.first_trials(), round(min_clean, 6), explicit)
    logger = open_study_run(plan, student.spec, space, study, context)
    try:
        paths = run_study(options, student, space, study, plan, context, logger)
    except BenchError as error:
        logger.end(FAILED, str(error))
        raise
    except BaseException:
        logger.end(KILLED, "interrupted")
        raise
    for path in paths:
        print(path)
    if options.search_only or len(plan.objectives) > 1:
        return 0
    # Other processes that joined wait, and find the final runs recorded.
    with exclusive(plan.storage, "final"):
        return run_final(options, student, paths[0])


def plan_study(options: TuneOptions, student: PlannedRun, space: SearchSpace) -> StudyPlan:
    """Return the study as plain values, without the fields that its trials do not depend on."""
    spec = trial_spec(student)
    objectives = tuple(options.objectives.split(","))
    names = [options.suite, spec.dataset, spec.arch, spec.method]
    if teacher_name(options, student) != "robust":
        names.append(options.teacher)
    if len(objectives) > 1:
        names.append("pareto")
    protocol = dataclasses.asdict(spec)
    for name in UNUSED_FIELDS:
        del protocol[name]
    for name in TRAINING_FACTORS:
        del protocol["training"][name]
    identity = {
        "objectives": options.objectives,
        "search space": space.describe(),
        "protocol": protocol,
    }
    return StudyPlan(
        "/".join(names),
        storage_url(options),
        objectives,
        options.sampler,
        pruner_name(options),
        options.search_seed,
        spec.training.epochs,
        identity,
    )


def trial_spec(student: PlannedRun) -> Spec:
    """Return the spec of a trial: without averages of the weights, which no trial measures."""
    return replace(student.spec, training=replace(student.spec.training, averaging=()))


def open_study_run(
    plan: StudyPlan, spec: Spec, space: SearchSpace, study: Study, context: RunContext
) -> RunLogger:
    """Open the study's MLflow run."""
    tags = {"role": "study", "study": study.user_attrs["id"], "method": spec.method}
    tags |= {"student": spec.arch, "dataset": spec.dataset}
    tags |= {"sampler": plan.sampler, "pruner": plan.pruner}
    experiment, name = spec.suite + TUNING, f"tune {plan.name}"
    logger = context.store.open(experiment, name, tags, "", ("role", "study"))
    logger.params({f"range.{name}": text for name, text in space.describe().items()})
    return logger


def run_study(
    options: TuneOptions,
    student: PlannedRun,
    space: SearchSpace,
    study: Study,
    plan: StudyPlan,
    context: RunContext,
    logger: RunLogger,
) -> list[Path]:
    """Run the trials that the budget lacks; return the files of the best configurations."""
    study_id, min_clean = study.user_attrs["id"], study.user_attrs["floor"]
    trials = TrialContext(
        plan,
        space,
        trial_spec(student),
        study_id,
        logger.run_id,
        max(options.trials, len(space.first_trials())),
        min_clean,
        options.store / "work" / "tuning" / study_id,
    )
    if count_over(study) < trials.budget:
        run_workers(options, trials, context)
        study = load_study(plan, connect(plan.storage))
    print(summarize_study(study, trials), file=sys.stderr)
    # On a server, two processes that write one tag at once would collide.
    with exclusive(plan.storage, "outcome"):
        return write_results(study, trials, context, teacher_name(options, student), logger)


def run_final(options: TuneOptions, student: PlannedRun, config: Path) -> int:
    """Train default and best configuration with fresh seeds and test each once, as `run` does."""
    spec = student.spec
    names = {"dataset": spec.dataset, "method": spec.method, "student": spec.arch}
    names |= {"teacher": teacher_name(options, student), "seeds": options.seeds}
    default = RunOptions(**protocol_options(options) | names)
    runs = plan_runs(default, {})
    for run in plan_runs(replace(default, config=config), {}):
        if run.spec.role == "student":
            runs.append(run)
    code = grid.run_grid(default, runs)
    print("`python -m bench leaderboard` shows the rows", file=sys.stderr)
    return code


def show_plan(options: TuneOptions, runs: list[PlannedRun], spaces: dict[str, SearchSpace]) -> int:
    """Print the search spaces and the time that the search would take."""
    console = Console(file=sys.stderr, highlight=False)
    device = environment.resolve_device(options.device)
    for method, space in spaces.items():
        table = Table(method, "default", "range", box=None, pad_edge=False)
        for parameter in space.parameters:
            table.add_row(parameter.name, format_value(parameter.default), parameter.label)
        console.print(table)
    costs = grid.estimate(runs, executors.dataset_loader(options.data_root), options.store, device)
    searches, seconds, epochs = 0, 0.0, 0
    for run, cost in zip(runs, costs, strict=True):
        if run.spec.role == "student":
            searches += 1
            seconds += cost.train
            epochs = run.spec.training.epochs
    rungs = rung_epochs(pruner_name(options), epochs)
    seconds *= options.trials * sum(rungs) / epochs / options.workers
    console.print(
        f"{options.trials} trials of {' and '.join(map(str, rungs))} epochs for each of "
        f"{searches} searches with {options.sampler}: at most about {format_duration(seconds)} "
        f"on {environment.device_name(device)}, then the final runs",
        soft_wrap=True,
    )
    return 0
