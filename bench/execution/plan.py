"""Planned runs: from the options of a command to every run that it asks for, teachers first."""

from __future__ import annotations

import dataclasses
import itertools
import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import methods
from bench import datasets, models
from bench.datasets.loading import split_sizes
from bench.execution.hyper import build_method, check_hyper, load_method
from bench.execution.suite_file import inline_suite, resolve_suite
from bench.protocol import tuned_config
from bench.protocol.options import ProtocolOptions, RunOptions
from bench.protocol.suites import RECORDED_FIELDS, Suite
from bench.protocol.tuned_config import TunedConfig
from bench.system.errors import UsageError
from bench.system.log import LOGGER
from bench.system.words import check_count, parse_whole
from bench.teachers import cards
from bench.training.trainer import check_batch_size
from leaderboards.schema.spec import Spec
from methods.base import Method, official_values, spec_values


@dataclass(frozen=True)
class PlannedRun:
    """One run to make: its spec, its method, and how people see it."""

    spec: Spec
    method: Method
    variant: str  # hyper-parameters that differ from the default ones, as text
    command: str  # repeats this one run
    variant_fields: tuple[str, ...] = ()  # of the training, that the variant stands for

    @property
    def label(self) -> str:
        """A name for people, unique in a grid."""
        return f"{self.spec.label} ({self.variant})" if self.variant else self.spec.label

    @property
    def identity(self) -> str:
        """The name of the teacher that this run makes, if it makes one."""
        return cards.teacher_identity(self.spec)


@dataclass(frozen=True)
class MethodChoice:
    """A method to train with, and what the authors' script sets before flags do.

    hyper, training: settings of the script that differ from the defaults; {} without `--official`.
    """

    name: str
    method: Method
    hyper: dict[str, Any]
    training: dict[str, Any]

    @property
    def official(self) -> bool:
        """Whether the script sets anything."""
        return bool(self.hyper or self.training)

    @property
    def changed_hyper(self) -> dict[str, Any]:
        """The hyper-parameters whose values are not the starting ones."""
        fields = dataclasses.fields(self.method)
        defaults = {field.name: field.default for field in fields} | self.hyper
        values = dataclasses.asdict(self.method)
        return {name: value for name, value in values.items() if value != defaults[name]}


def plan_runs(options: RunOptions, hyper: dict[str, Any]) -> list[PlannedRun]:
    """Return the runs of the command `run`, each teacher they need before them.

    Args:
        options: what the command asks for.
        hyper: all hyper-parameters of the one method, with defaults, `--official` and `--config`
            applied; {} for several methods, each of which takes its own starting values, and for
            a suite's own rows, which state them.

    Raise UsageError if a name does not exist, options contradict each other, or a batch or a limit
    does not fit the data.
    """
    suite = resolve_suite(options.suite)
    students = split_names(options.student) or suite.students
    names = requested_datasets(options, suite)
    for name, arch in itertools.product(names, students):
        models.check(arch, datasets.get(name))
    check_student_options(options)
    seeds = parse_seeds(options.seeds) or suite.seeds
    choices = choose_methods(options, suite, hyper)
    check_method_options(options, choices)
    teacher_runs: dict[str, PlannedRun] = {}
    student_runs = []
    for dataset in names:
        for choice in choices:
            identities = teacher_identities(options, suite, dataset, choice.method, teacher_runs)
            for arch, seed in itertools.product(students, seeds):
                run = plan_student(options, suite, dataset, arch, choice, identities, seed)
                student_runs.append(run)
    return [*teacher_runs.values(), *student_runs]


def check_student_options(options: RunOptions) -> None:
    """Raise UsageError for numbers out of range."""
    if options.epochs is not None:
        check_count("--epochs", options.epochs)
    if not 0 <= options.awp <= 1:
        raise UsageError(f"--awp {options.awp}: between 0 and 1")
    check_count("--tuned", options.tuned, least=0)
    for name, value in training_flags(options).items():
        if fault := tuned_config.setting_fault(name, value):
            raise UsageError(f"--{fault.replace('_', '-', 1)}")


def check_config_networks(options: RunOptions, config: TunedConfig) -> None:
    """Raise UsageError for a function as a configuration's network that no flag names too."""
    for flag in ("student", "teacher"):
        stated = getattr(config, flag)
        names = "" if getattr(options, flag) == stated else stated
        for arch in filter(models.is_name, names.split(",")):
            models.check_stated(arch, f"--config: its {flag}")


def check_method_options(options: RunOptions, choices: list[MethodChoice]) -> None:
    """Raise UsageError for options that none of the methods can follow."""
    if options.official and not any(choice.official for choice in choices):
        names = options.method or "a row"
        raise UsageError(
            f"--official: no script of {names} is known; `python -m bench list {names}` says what "
            "is assumed instead"
        )
    distils = any(choice.method.teacher_roles for choice in choices)
    if options.teacher != "robust" and not distils:
        names = options.method or "no row"
        raise UsageError(f"--teacher {options.teacher}: {names} has no teacher")
    if options.tuned and (options.official or len(choices) > 1):
        raise UsageError("--tuned: values of one method, and not those of --official")


def plan_teacher(
    options: ProtocolOptions, suite: Suite, dataset: str, role: str, arch: str = ""
) -> PlannedRun:
    """Return the run that trains the suite's teacher of a role, or another network in its way."""
    recipe = suite.teachers[role]
    if arch:
        recipe = replace(recipe, arch=arch)
    method = build_method(recipe.method)
    protocol = shared_spec_fields(options, suite, dataset)
    if recipe.limit_aa:
        protocol["limit_aa"] = recipe.limit_aa
    spec = Spec(
        role="teacher", arch=recipe.arch, method=recipe.method, teachers={}, seed=0,
        training=recipe.training, hyper=spec_values(method), **protocol)  # fmt: skip
    check_sizes(spec)
    suite_text = inline_suite(options.suite)
    values = {"suite": suite_text, "dataset": dataset, "role": role, "arch": arch or None}
    return PlannedRun(spec, method, "", command_line("teacher train", values, options))


def plan_student(
    options: RunOptions,
    suite: Suite,
    dataset: str,
    arch: str,
    choice: MethodChoice,
    teachers: dict[str, str],
    seed: int,
) -> PlannedRun:
    """Return the run of one student; `teachers` maps roles to identities."""
    changes = choice.training | training_flags(options)
    training = replace(suite.training, **changes)
    for name in ("awp", "epochs"):
        if value := getattr(options, name):
            training = replace(training, **{name: value})
    spec = Spec(
        role="student", arch=arch, method=choice.name, teachers=teachers, seed=seed,
        training=training, hyper=spec_values(choice.method), tuned=options.tuned,
        **shared_spec_fields(options, suite, dataset))  # fmt: skip
    check_sizes(spec)
    command = student_command(options, spec, choice)
    return PlannedRun(spec, choice.method, variant_text(options, choice), command, tuple(changes))


def check_sizes(spec: Spec) -> None:
    """Raise UsageError for a batch or a limit that does not fit the data."""
    num_train, _ = split_sizes(spec.dataset, spec.limit_train, spec.limit_test)
    check_batch_size(spec.training.batch, num_train)


def shared_spec_fields(options: ProtocolOptions, suite: Suite, dataset: str) -> dict[str, Any]:
    """Return the fields of a spec that teachers and students share."""
    fields = {name: getattr(suite, name) for name in (*RECORDED_FIELDS, "full_checkpoints")}
    for name in ("limit_train", "limit_test"):
        if getattr(options, name) is not None:
            fields[name] = getattr(options, name)
    return fields | {"suite": suite.id, "dataset": dataset, "precision": options.precision}


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
        run = None
        if name in suite.teachers:
            run = plan_teacher(options, suite, dataset, name)
        elif not cards.is_card(options.store, name) and models.is_name(name):
            models.check(name, datasets.get(dataset))
            run = plan_teacher(options, suite, dataset, role, name)
        if run:
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
    # A folder of images is named by what it holds.
    covered = [datasets.get(name).name for name in suite.datasets]
    requested = split_names(options.dataset) or suite.datasets
    names = tuple(datasets.get(name).name for name in requested)
    for name in names:
        if name not in covered:
            message = f"suite {suite.name} is not for {name}: it covers {', '.join(covered)}"
            raise UsageError(message)
    return names


def requested_methods(text: str) -> list[str]:
    """Return the methods named, or all that can be used for "all".

    What cannot be used is named in a line of warning.
    """
    everything = text == "all"
    names = []
    # No name is an unknown one.
    for name in methods.names() if everything else split_names(text) or ("",):
        # A plugin that a built-in method hides is reported too; the method is used.
        if name in methods.builtin() and name in methods.plugins():
            LOGGER.warning(f"warning: plugin {name!r} {methods.plugin_fault(name)}")
        try:
            if everything:
                methods.load(name)
            names.append(name)
        except methods.PluginError as error:
            LOGGER.warning(f"warning: {error}")
    return names


def choose_methods(options: RunOptions, suite: Suite, hyper: dict[str, Any]) -> list[MethodChoice]:
    """Return the methods that are asked for, the suite's own rows if none is."""
    if options.method or not suite.rows:
        names = requested_methods(options.method)
        return [choose_method(options, name, hyper) for name in names]
    choices = []
    for row in suite.rows:
        stated = check_hyper(row.method, row.hyper, f"the rows of {suite.name}")
        choices.append(choose_method(options, row.method, stated))
    return choices


def choose_method(options: RunOptions, name: str, hyper: dict[str, Any]) -> MethodChoice:
    """Return a method with its starting values, but for these hyper-parameters."""
    start, training = dict[str, Any](), dict[str, Any]()
    if options.official:
        start = official_values(load_method(name))
    method = build_method(name, start | hyper)
    if options.official:
        training = {setting: value for setting, value, _ in method.official_recipe()}
    return MethodChoice(name, method, start, training)


def training_flags(options: RunOptions) -> dict[str, float]:
    """Return the settings of the students' training that flags state."""
    values = {name: getattr(options, name) for name in tuned_config.TRAINING}
    return {name: value for name, value in values.items() if value is not None}


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
        seeds = tuple(map(parse_whole, split_names(text)))
    except ValueError as error:
        raise UsageError(f"--seeds {text!r}: whole numbers with commas, such as 0,1,2") from error
    if any(seed < 0 for seed in seeds) or len(set(seeds)) < len(seeds):
        raise UsageError(f"--seeds {text!r}: each seed once, none negative")
    return seeds


def variant_text(options: RunOptions, choice: MethodChoice) -> str:
    """Say how a student's training differs from the method's default."""
    parts = ["official"] if choice.official else []
    changes = training_flags(options) | choice.changed_hyper
    if options.tuned:
        # Quirks are never tuned.
        fields, hyper = dataclasses.fields(choice.method), dataclasses.asdict(choice.method)
        quirks = {field.name for field in fields if field.metadata["quirk"]}
        tuned = {name: value for name, value in hyper.items() if name not in quirks}
        digest = tuned_config.values_digest(tuned, training_flags(options))
        parts.append(f"tuned, {options.tuned} trials, {digest}")
        changes = {name: value for name, value in changes.items() if name in quirks}
    parts += [f"{name}={value}" for name, value in changes.items()]
    if options.awp:
        parts.append(f"awp={options.awp}")
    return ", ".join(parts)


def student_command(options: RunOptions, spec: Spec, choice: MethodChoice) -> str:
    """Return the command line that repeats one student."""
    values: dict[str, Any] = {"method": spec.method, "suite": inline_suite(options.suite)}
    values |= {"dataset": spec.dataset, "student": spec.arch, "seeds": spec.seed}
    if choice.method.teacher_roles and options.teacher != "robust":
        values["teacher"] = options.teacher
    values |= {"epochs": options.epochs, "official": choice.official or None}
    values |= training_flags(options) | choice.changed_hyper
    values |= {"awp": options.awp or None, "tuned": options.tuned or None}
    return command_line("run", values, options)


def command_line(command: str, values: dict[str, Any], options: ProtocolOptions) -> str:
    """Return a command line with `values`, without those that are None, and what runs share."""
    values = values | {"limit_train": options.limit_train, "limit_test": options.limit_test}
    for name in ("precision", "search", "search_precision"):
        if (value := getattr(options, name)) != getattr(ProtocolOptions, name):
            values[name] = value
    words = ["python", "-m", "bench", *command.split()]
    for name, value in values.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        elif value is not None:
            words += [f"--{flag}", str(value)]
    return shlex.join(words)


def work_folder(store: Path, spec: Spec) -> Path:
    """Return the folder in which an unfinished run of a spec keeps its state."""
    return store / "work" / spec.id
