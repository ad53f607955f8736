"""Planned runs: from the options of a command to every run that it asks for, teachers first."""

from __future__ import annotations

import dataclasses
import itertools
import shlex
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import methods
from bench import datasets, models
from bench.execution.suite_file import inline_suite, resolve_suite
from bench.protocol import tuned_config
from bench.protocol.options import ProtocolOptions, RunOptions
from bench.protocol.suites import Suite
from bench.system.errors import UsageError, unknown_name
from bench.system.log import LOGGER
from bench.teachers import cards
from leaderboards.schema.spec import Spec
from methods.base import Method, official_values


@dataclass(frozen=True)
class PlannedRun:
    """One run to make: its spec, its method, and how people see it."""

    spec: Spec
    method: Method
    # Hyper-parameters that differ from the default ones, as text.
    variant: str
    # The command that repeats this one run.
    command: str
    # Fields of the training that the variant stands for.
    variant_fields: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """A name for people, unique in a grid."""
        if not self.variant:
            return self.spec.label
        return f"{self.spec.label} ({self.variant})"

    @property
    def identity(self) -> str:
        """The name of the teacher that this run makes, if it makes one."""
        return f"{self.spec.arch}-{self.spec.method}-{self.spec.id[:8]}"


@dataclass(frozen=True)
class StartingValues:
    """What the authors' script sets otherwise than the method's defaults, before flags do."""

    hyper: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)

    @property
    def official(self) -> bool:
        """Whether the script sets anything."""
        return bool(self.hyper or self.training)


def plan_runs(options: RunOptions, hyper: dict[str, Any]) -> list[PlannedRun]:
    """Return the runs of the command `run`, each teacher they need before them.

    Args:
        options: what the command asks for.
        hyper: all hyper-parameters of the one method, with defaults, `--official` and `--config`
            applied; {} for several methods, each of which takes its own starting values.

    Raises:
        UsageError: a name does not exist, or options contradict each other.
    """
    suite = resolve_suite(options.suite)
    students = split_names(options.student) or suite.students
    for arch in students:
        models.check(arch)
    check_student_options(options)
    seeds = parse_seeds(options.seeds) or suite.seeds
    starts = {}
    built = {}
    for name in requested_methods(options.method):
        starts[name] = starting_values(options, name)
        built[name] = build_method(name, hyper or starts[name].hyper)
    check_method_options(options, starts, built)
    teacher_runs: dict[str, PlannedRun] = {}
    student_runs = []
    for dataset in requested_datasets(options, suite):
        for name, method in built.items():
            identities = teacher_identities(options, suite, dataset, method, teacher_runs)
            for arch, seed in itertools.product(students, seeds):
                run = plan_student(
                    options, suite, dataset, arch, name, method, identities, seed, starts[name]
                )
                student_runs.append(run)
    return [*teacher_runs.values(), *student_runs]


def check_student_options(options: RunOptions) -> None:
    """Raise UsageError for numbers out of range."""
    if options.epochs is not None and options.epochs < 1:
        raise UsageError(f"--epochs {options.epochs}: at least 1")
    if not 0 <= options.awp <= 1:
        raise UsageError(f"--awp {options.awp}: between 0 and 1")
    if options.tuned < 0:
        raise UsageError(f"--tuned {options.tuned}: not negative")
    for name, value in training_flags(options).items():
        if fault := tuned_config.setting_fault(name, value):
            raise UsageError(f"--{fault.replace('_', '-', 1)}")


def check_method_options(
    options: RunOptions, starts: dict[str, StartingValues], built: dict[str, Method]
) -> None:
    """Raise UsageError for options that none of the methods can follow."""
    if options.official and not any(start.official for start in starts.values()):
        raise UsageError(
            f"--official: no script of {options.method} is known to do anything otherwise"
        )
    distils = any(method.teacher_roles for method in built.values())
    if options.teacher != "robust" and not distils:
        raise UsageError(f"--teacher {options.teacher}: {options.method} has no teacher")
    if options.tuned and (options.official or len(built) > 1):
        raise UsageError("--tuned: values of one method, and not those of --official")


def plan_teacher(options: ProtocolOptions, suite: Suite, dataset: str, role: str) -> PlannedRun:
    """Return the run that trains the suite's teacher of a role."""
    recipe = suite.teachers[role]
    method = build_method(recipe.method)
    protocol = shared_spec_fields(options, suite, dataset)
    if recipe.limit_aa:
        protocol["limit_aa"] = recipe.limit_aa
    spec = Spec(
        role="teacher",
        arch=recipe.arch,
        method=recipe.method,
        teachers={},
        seed=0,
        training=recipe.training,
        hyper=dataclasses.asdict(method),
        **protocol,
    )
    words = ["teacher", "train", "--suite", inline_suite(options.suite)]
    words += ["--dataset", dataset, "--role", role]
    return PlannedRun(spec, method, "", complete_command(words, options))


def plan_student(
    options: RunOptions,
    suite: Suite,
    dataset: str,
    arch: str,
    name: str,
    method: Method,
    teacher_names: dict[str, str],
    seed: int,
    start: StartingValues,
) -> PlannedRun:
    """Return the run of one student; `teacher_names` maps roles to identities."""
    changes = start.training | training_flags(options)
    training = replace(suite.training, **changes)
    if options.awp:
        training = replace(training, awp=options.awp)
    if options.epochs is not None:
        training = replace(training, epochs=options.epochs)
    spec = Spec(
        role="student",
        arch=arch,
        method=name,
        teachers=teacher_names,
        seed=seed,
        training=training,
        hyper=dataclasses.asdict(method),
        tuned=options.tuned,
        **shared_spec_fields(options, suite, dataset),
    )
    variant = variant_text(options, method, start)
    command = student_command(options, spec, method, start)
    return PlannedRun(spec, method, variant, command, tuple(changes))


def shared_spec_fields(options: ProtocolOptions, suite: Suite, dataset: str) -> dict[str, Any]:
    """Return the fields of a spec that teachers and students share."""
    limit_train, limit_test = suite.limit_train, suite.limit_test
    if options.limit_train is not None:
        limit_train = options.limit_train
    if options.limit_test is not None:
        limit_test = options.limit_test
    return {
        "suite": suite.id,
        "dataset": dataset,
        "eps": suite.eps,
        "inner_step": suite.inner_step,
        "inner_steps": suite.inner_steps,
        "attacks": suite.attacks,
        "full_checkpoints": suite.full_checkpoints,
        "precision": options.precision,
        "limit_train": limit_train,
        "limit_val": suite.limit_val,
        "limit_test": limit_test,
        "limit_aa": suite.limit_aa,
    }


def teacher_identities(
    options: RunOptions,
    suite: Suite,
    dataset: str,
    method: Method,
    teacher_runs: dict[str, PlannedRun],
) -> dict[str, str]:
    """Return the identity of the teacher of each role that the method reads.

    Runs of the teachers that are to be trained here are added to `teacher_runs`.
    """
    identities = {}
    for role in method.teacher_roles:
        name = options.teacher if role == "robust" else role
        if name in suite.teachers:
            run = plan_teacher(options, suite, dataset, name)
            teacher_runs[run.identity] = run
            identities[role] = run.identity
        else:
            identities[role] = cards.find_card(options.store, name, dataset).identity
    if len(set(identities.values())) < len(identities):
        roles = " and ".join(identities)
        raise UsageError(f"--teacher {options.teacher}: {roles} must be two teachers")
    return identities


def requested_datasets(options: ProtocolOptions, suite: Suite) -> tuple[str, ...]:
    """Return the data sets asked for. Raise UsageError for one that the suite does not cover."""
    requested = split_names(options.dataset) or suite.datasets
    for name in requested:
        datasets.get(name)
        if name not in suite.datasets:
            covered = ", ".join(suite.datasets)
            raise UsageError(f"suite {suite.name} is not for {name}: it covers {covered}")
    return requested


def requested_methods(text: str) -> list[str]:
    """Return the methods named, or all that can be used for "all".

    A plugin that cannot be used is named in a line of warning.
    """
    everything = text == "all"
    names = []
    # No name is an unknown one.
    for name in methods.names() if everything else split_names(text) or ("",):
        builtin = name in methods.builtin()
        fault = ""
        if (everything or builtin) and name in methods.plugins():
            # A plugin that a built-in method hides is reported too; the method is used.
            fault = methods.plugin_fault(name)
        if fault:
            LOGGER.warning(f"warning: plugin {name!r} {fault}")
        if builtin or not fault:
            names.append(name)
    return names


def starting_values(options: RunOptions, name: str) -> StartingValues:
    """Return what `--official` sets of a method; nothing without it."""
    if not options.official:
        return StartingValues()
    method_class = load_method(name)
    training = {setting: value for setting, value, _ in method_class.recipe}
    return StartingValues(official_values(method_class), training)


def training_flags(options: RunOptions) -> dict[str, float]:
    """Return the settings of the students' training that flags state."""
    values = {name: getattr(options, name) for name in tuned_config.TRAINING}
    return {name: value for name, value in values.items() if value is not None}


def load_method(name: str) -> type[Method]:
    """Return a method's class. Raise UsageError for an unknown name."""
    try:
        return methods.load(name)
    except KeyError as error:
        raise unknown_name("method", name, [*methods.names(), "all"]) from error


def build_method(name: str, hyper: dict[str, Any] | None = None) -> Method:
    """Return a method with its hyper-parameters. Raise UsageError for values out of range."""
    try:
        return load_method(name)(**(hyper or {}))
    except ValueError as error:
        raise UsageError(f"{name}: {error}") from error


def split_names(text: str) -> tuple[str, ...]:
    """Split a list with commas. Raise UsageError for empty or repeated names."""
    if not text:
        return ()
    names = tuple(word.strip() for word in text.split(","))
    for name in names:
        if not name:
            raise UsageError(f"{text!r} has an empty name")
        if names.count(name) > 1:
            raise UsageError(f"{text!r} names {name!r} twice")
    return names


def parse_seeds(text: str) -> tuple[int, ...]:
    """Return the seeds of a list with commas. Raise UsageError for one that is none."""
    try:
        seeds = tuple(int(word) for word in split_names(text))
    except ValueError as error:
        raise UsageError(f"--seeds {text!r}: whole numbers with commas, such as 0,1,2") from error
    if any(seed < 0 for seed in seeds) or len(set(seeds)) < len(seeds):
        raise UsageError(f"--seeds {text!r}: each seed once, none negative")
    return seeds


def changed_hyper(method: Method, start: StartingValues) -> dict[str, Any]:
    """Return the hyper-parameters whose values are not the starting ones."""
    defaults = {field.name: field.default for field in dataclasses.fields(method)} | start.hyper
    values = dataclasses.asdict(method)
    return {name: value for name, value in values.items() if value != defaults[name]}


def variant_text(options: RunOptions, method: Method, start: StartingValues) -> str:
    """Say how a student's training differs from the method's default."""
    parts = ["official"] if start.official else []
    changes = training_flags(options) | changed_hyper(method, start)
    if options.tuned:
        # Quirks are never tuned.
        quirks = {field.name for field in dataclasses.fields(method) if field.metadata["quirk"]}
        hyper = dataclasses.asdict(method)
        tuned = {name: value for name, value in hyper.items() if name not in quirks}
        digest = tuned_config.values_digest(tuned, training_flags(options))
        parts.append(f"tuned, {options.tuned} trials, {digest}")
        changes = {name: value for name, value in changes.items() if name in quirks}
    parts += [f"{name}={value}" for name, value in changes.items()]
    if options.awp:
        parts.append(f"awp={options.awp}")
    return ", ".join(parts)


def student_command(options: RunOptions, spec: Spec, method: Method, start: StartingValues) -> str:
    """Return the command line that repeats one student."""
    words = ["run", "--method", spec.method, "--suite", inline_suite(options.suite)]
    words += ["--dataset", spec.dataset, "--student", spec.arch, "--seeds", str(spec.seed)]
    if method.teacher_roles and options.teacher != "robust":
        words += ["--teacher", options.teacher]
    if options.epochs is not None:
        words += ["--epochs", str(options.epochs)]
    if start.official:
        words.append("--official")
    values = training_flags(options) | changed_hyper(method, start)
    for name in ("awp", "tuned"):
        if value := getattr(options, name):
            values[name] = value
    for name, value in values.items():
        flag = name.replace("_", "-")
        if value is True:
            words.append(f"--{flag}")
        elif value is False:
            words.append(f"--no-{flag}")
        else:
            words += [f"--{flag}", str(value)]
    return complete_command(words, options)


def complete_command(words: list[str], options: ProtocolOptions) -> str:
    """Return a command line with the options that every run shares."""
    if options.limit_train is not None:
        words += ["--limit-train", str(options.limit_train)]
    if options.limit_test is not None:
        words += ["--limit-test", str(options.limit_test)]
    if options.precision != "fp32":
        words += ["--precision", options.precision]
    return f"python -m bench {shlex.join(words)}"


def work_folder(store: Path, spec: Spec) -> Path:
    """Return the folder in which an unfinished run of a spec keeps its state."""
    return store / "work" / spec.id
