"""The command `tune`: search each method, then train the best configuration and test it once."""

from __future__ import annotations

import dataclasses
import shutil
import traceback
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna
from mlflow.exceptions import MlflowException
from optuna.study import Study

from bench.execution.cost import estimate_costs
from bench.execution.evaluation import choose_attack_search
from bench.execution.grid.overview import log_head, missing_data
from bench.execution.grid.processes import check_workers, choose_devices
from bench.execution.grid.run import run_grid
from bench.execution.inputs import cached_loader
from bench.execution.job import RunContext
from bench.execution.plan import PlannedRun, parse_seeds, plan_runs, plan_teacher
from bench.execution.suite_file import resolve_suite
from bench.protocol import tuned_config
from bench.protocol.options import ProtocolOptions, RunOptions
from bench.system import environment
from bench.system.database import sqlite_address
from bench.system.errors import BenchError, UsageError, one_line
from bench.system.log import LOGGER, NOTE, RESULT, open_log_file
from bench.system.progress import format_duration
from bench.system.tables import format_table
from bench.system.words import check_count
from bench.teachers import cards
from bench.tracking.run_logger import RunLogger
from bench.tracking.store import TUNING_SUFFIX, TrackingStore, store_exists
from bench.training.trainer import clean_and_robust_accuracy
from bench.tuning.options import TuneOptions
from bench.tuning.results import summarize, write_results
from bench.tuning.space import TRAINING_FACTORS, SearchSpace, build_space, check_ranges
from bench.tuning.storage import connect, exclusive, storage_errors
from bench.tuning.study import (
    FEWEST_TRIALS,
    StudyPlan,
    count_over,
    load_study,
    open_study,
    rung_epochs,
)
from bench.tuning.trial import TrialContext, format_value
from bench.tuning.worker import run_workers
from leaderboards.schema.fields import FAILED, KILLED
from leaderboards.schema.spec import Spec
from methods.base import Budget

# Fields of a spec that a trial does not depend on.
UNUSED_FIELDS = ("hyper", "limit_test", "limit_aa", "attacks", "full_checkpoints", "tuned")
CLEAN_ALLOWANCE = 0.1  # how far below the robust teacher's clean accuracy a configuration may fall


def tune(options: TuneOptions, dry_run: bool = False) -> int:
    """Search and test; return the exit code, 1 if one method's search failed."""
    check_options(options)
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    runs = plan_runs(search_options(options), {})
    students = [run for run in runs if run.spec.role == "student"]
    spaces = {}
    for run in students:
        spec = run.spec
        spaces[spec.method] = build_space(type(run.method), spec.training, options.range)
    check_ranges(spaces, options.range)
    warn_of_few_trials(options)
    if dry_run:
        return show_plan(options, runs, spaces)
    device, source = environment.resolve_device(options.device), environment.source_state()
    attack_search = choose_attack_search(options, device)
    if not store_exists(options.store):
        # Data that cannot be had are reported before a store is made.
        load = cached_loader(options.data_root)
        for run in runs:
            load(run.spec, test=False)
    # A storage that cannot be reached is reported before anything is trained.
    connect(storage_url(options))
    run_context = RunContext(TrackingStore(options.store), device, source, search=attack_search)
    open_log_file(options.store, log_head(device, source))
    if code := train_teachers(options, runs):
        return code
    for run in students:
        search = Search(options, run, spaces[run.spec.method], run_context)
        try:
            with storage_errors(storage_url(options)):
                code = max(code, search.run())
        except (BenchError, MlflowException) as error:
            LOGGER.error(f"error: {one_line(error)}")
            LOGGER.log(NOTE, traceback.format_exc())
            code = max(code, getattr(error, "exit_code", 1))
    return code


def check_options(options: TuneOptions) -> None:
    """Raise UsageError for options that are wrong whatever the method."""
    if options.force:
        raise UsageError("--force: a search is not repeated; begin another with another --storage")
    if options.ray:
        raise UsageError("--ray: of runs; several machines join a search by --storage")
    check_count("--trials", options.trials)
    check_workers(options.workers)
    if options.min_clean is not None and not 0 <= options.min_clean <= 1:
        raise UsageError(f"--min-clean {options.min_clean}: between 0 and 1")
    # The samplers seed numpy's generators.
    seed, path = options.search_seed, options.storage
    if not 0 <= seed < 2**32:
        raise UsageError(f"--search-seed {seed}: not negative and below 2^32")
    if seed in (parse_seeds(options.seeds) or resolve_suite(options.suite).seeds):
        raise UsageError(f"--search-seed {seed}: not one of the final runs', which must be fresh")
    if path and "://" not in path:
        url = sqlite_address(Path(path).with_suffix(".db"))
        raise UsageError(f"--storage {path}: journal files are no longer used; use {url}")
    # Without this a search begun by 0.1.0 would silently start over.
    journal, database = options.store / "tuning.journal", options.store / "tuning.db"
    if not path and journal.exists() and not database.exists():
        advice = f"copy its studies to {storage_url(options)} as CHANGELOG.md says, or remove it"
        raise UsageError(f"{journal}: journal files are no longer used; {advice}")


def warn_of_few_trials(options: TuneOptions) -> None:
    """Warn of a search that has hardly any trials to learn from."""
    if options.trials < FEWEST_TRIALS and options.sampler != "random":
        LOGGER.warning(
            f"warning: --trials {options.trials}: the first 10 trials or more are drawn at random, "
            f"so fewer than {FEWEST_TRIALS} are a random search"
        )


def run_options(options: TuneOptions, names: list[str], **values: Any) -> RunOptions:
    """Return options of `run`: those of the protocol and of `names` from `tune`, then `values`."""
    names = [*names, *(field.name for field in dataclasses.fields(ProtocolOptions))]
    return RunOptions(**{name: getattr(options, name) for name in names} | values)


def search_options(options: TuneOptions) -> RunOptions:
    """Return the options of the runs whose values are searched, one for each study."""
    names = ["method", "student", "teacher", "epochs"]
    return run_options(options, names, seeds=str(options.search_seed))


def storage_url(options: TuneOptions) -> str:
    """Return the address of the studies' database."""
    return options.storage or sqlite_address(options.store / "tuning.db")


def pruner_name(options: TuneOptions) -> str:
    """Return the pruner; Optuna has none for two objectives."""
    return options.pruner if options.objectives == "robust" else "none"


def train_teachers(options: TuneOptions, runs: list[PlannedRun]) -> int:
    """Train the teachers of the students and those that set the clean accuracy to keep."""
    needed = [run for run in runs if run.spec.role == "teacher"]
    if options.min_clean is None:
        needed = [reference_teacher(options, run) for run in runs] + needed
    unique = list({run.identity: run for run in needed}.values())
    if not unique:
        return 0
    # Other processes that join wait for those that this one trains.
    return int(bool(run_grid(search_options(options), unique, show_results=False)))


def reference_teacher(options: TuneOptions, student: PlannedRun) -> PlannedRun:
    """Return the robust teacher of a data set, which sets one clean accuracy for all methods."""
    return plan_teacher(options, resolve_suite(options.suite), student.spec.dataset, "robust")


def measure_clean_accuracy(
    teacher: PlannedRun, run_context: RunContext, options: TuneOptions
) -> float:
    """Measure a teacher's clean accuracy on the validation images."""
    spec, load = teacher.spec, cached_loader(options.data_root)
    data = load(spec, test=False).to(run_context.device)
    card = cards.find_card(run_context.root, teacher.identity, spec.dataset)
    net = cards.load_teacher(run_context.root, card, data.info).to(run_context.device)
    return clean_and_robust_accuracy(net, data.val, Budget(0.0, 0.0, 0))[0]


@dataclass(frozen=True)
class Search:
    """The search of one method; `student` is the run of its default configuration."""

    options: TuneOptions
    student: PlannedRun
    space: SearchSpace
    run_context: RunContext

    def run(self) -> int:
        """Continue the study to its end and make the final runs; return the exit code."""
        plan, min_clean = self.plan_study(), self.options.min_clean
        if min_clean is None:
            teacher = reference_teacher(self.options, self.student)
            accuracy = measure_clean_accuracy(teacher, self.run_context, self.options)
            min_clean = accuracy - CLEAN_ALLOWANCE
        explicit = self.options.min_clean is not None
        study = open_study(plan, self.space.first_trials(), round(min_clean, 6), explicit)
        logger = self.open_run(plan, study)
        try:
            paths = self.run_study(plan, study, logger)
        except BenchError as error:
            logger.finish(FAILED, str(error))
            raise
        except BaseException:
            logger.finish(KILLED, "interrupted")
            raise
        for path in paths:
            print(path)
        if self.options.search_only or len(plan.objectives) > 1:
            return 0
        # Other processes that joined wait, and find the final runs recorded.
        with exclusive(plan.storage, "final"):
            return self.run_final(paths[0])

    @property
    def trial_spec(self) -> Spec:
        """The spec without averages of the weights, which no trial measures."""
        spec = self.student.spec
        return replace(spec, training=replace(spec.training, averaging=()))

    @property
    def teacher(self) -> str:
        """The teacher asked for, unless the method has none."""
        return self.options.teacher if self.student.method.teacher_roles else "robust"

    def plan_study(self) -> StudyPlan:
        """Return the study as plain values, without what its trials do not depend on."""
        options, spec = self.options, self.trial_spec
        objectives = tuple(options.objectives.split(","))
        names = [spec.suite.partition("@")[0], spec.dataset, spec.arch, spec.method]
        if self.teacher != "robust":
            names.append(options.teacher)
        if len(objectives) > 1:
            names.append("pareto")
        protocol = dataclasses.asdict(spec)
        for name in UNUSED_FIELDS:
            del protocol[name]
        for name in TRAINING_FACTORS:
            del protocol["training"][name]
        identity = {"objectives": options.objectives, "search space": self.space.describe()}
        identity["protocol"] = protocol
        return StudyPlan(
            "/".join(names),
            storage_url(options),
            objectives,
            sampler=options.sampler,
            pruner=pruner_name(options),
            seed=options.search_seed,
            epochs=spec.training.epochs,
            identity=identity,
        )

    def open_run(self, plan: StudyPlan, study: Study) -> RunLogger:
        """Open the study's MLflow run."""
        spec = self.student.spec
        tags = {"role": "study", "study": study.user_attrs["id"], "method": spec.method}
        tags |= {"student": spec.arch, "dataset": spec.dataset}
        tags |= {"sampler": plan.sampler, "pruner": plan.pruner}
        experiment, key = spec.suite + TUNING_SUFFIX, ("role", "study")
        logger = self.run_context.store.open_run(experiment, f"tune {plan.name}", tags, "", key)
        logger.log_params({f"range.{name}": text for name, text in self.space.describe().items()})
        return logger

    def run_study(self, plan: StudyPlan, study: Study, logger: RunLogger) -> list[Path]:
        """Run the trials that the budget lacks; return the files of the best configurations."""
        study_id = study.user_attrs["id"]
        trial_context = TrialContext(
            plan,
            self.space,
            self.trial_spec,
            study_id=study_id,
            parent_run=logger.run_id,
            budget=max(self.options.trials, len(self.space.first_trials())),
            min_clean=study.user_attrs["floor"],
            work=self.options.store / "work" / "tuning" / study_id,
        )
        if count_over(study) < trial_context.budget:
            run_workers(self.options, trial_context, self.run_context)
            study = load_study(plan, connect(plan.storage))
        LOGGER.log(RESULT, f"{plan.name}: {summarize(study, trial_context)}")
        # On a server, two processes that write one tag at once would collide.
        with exclusive(plan.storage, "outcome"):
            # Of trials whose process was killed when they were over.
            shutil.rmtree(trial_context.work, ignore_errors=True)
            return write_results(study, trial_context, self.run_context, self.teacher, logger)

    def run_final(self, path: Path) -> int:
        """Train default and best configuration with fresh seeds and test each, as `run` does."""
        spec = self.student.spec
        names = {"dataset": spec.dataset, "method": spec.method, "student": spec.arch}
        default = run_options(self.options, ["seeds"], **names, teacher=self.teacher)
        config = tuned_config.read(path)
        values: dict[str, Any] = {"tuned": config.trials, **config.training}
        tuned = plan_runs(replace(default, **values), config.hyper)
        runs = plan_runs(default, {}) + [run for run in tuned if run.spec.role == "student"]
        return int(bool(run_grid(default, runs)))


def show_plan(options: TuneOptions, runs: list[PlannedRun], spaces: dict[str, SearchSpace]) -> int:
    """Print the search spaces and the time that the search would take."""
    device = environment.resolve_device(options.device)
    for method, space in spaces.items():
        rows = []
        for parameter in space.parameters:
            rows.append((parameter.name, format_value(parameter.default), parameter.label))
        LOGGER.log(RESULT, format_table((method, "default", "range"), rows))
    for line in missing_data(options, runs):
        LOGGER.log(RESULT, line)
    costs = estimate_costs(runs, runs, options.store, device)
    pairs = zip(runs, costs, strict=True)
    seconds = [cost.train for run, cost in pairs if run.spec.role == "student"]
    # Teachers come first, so the last run is a student's.
    epochs = runs[-1].spec.training.epochs
    rungs = rung_epochs(pruner_name(options), epochs)
    total = options.trials * sum(seconds) * sum(rungs) / epochs
    total /= len(choose_devices(options.workers, device))
    text = f"{options.trials} trials of {' and '.join(map(str, rungs))} epochs for each of "
    text += f"{len(seconds)} searches with {options.sampler}: at most about "
    text += f"{format_duration(total)} on {environment.device_name(device)}, then the final runs"
    LOGGER.log(RESULT, text)
    return 0
