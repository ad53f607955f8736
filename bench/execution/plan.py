"""From options to cells: every run that a command asks for, teachers first. No torch until a method is loaded."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import methods
from bench import datasets, models
from bench.cli.options import Run
from bench.protocol import config, suites
from bench.protocol.arguments import Protocol
from bench.protocol.spec import Spec
from bench.protocol.suites import Suite
from bench.system.errors import UsageError, unknown
from bench.teachers import cards
from methods import base
from methods.base import Method


@dataclass(frozen=True)
class Start:
    """The values that a student has unless told otherwise: the defaults, the authors' script's, or tuned ones."""

    hyper: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    name: str = ""
    flags: tuple[str, ...] = ()
    trials: int = 0  # that it took to find them


@dataclass(frozen=True)
class Cell:
    """One run to make: its spec, the method it names, and how people see it."""

    spec: Spec
    method: Method
    variant: str  # hyper-parameters that are not the default ones, as text
    command: str  # what repeats this one run
    sets: tuple[str, ...] = ()  # of the training: what the variant stands for

    @property
    def label(self) -> str:
        """A name for people, unique in a grid."""
        return f"{self.spec.label}{f' ({self.variant})' if self.variant else ''}"

    @property
    def identity(self) -> str:
        """The name of the teacher that this cell makes, if it makes one."""
        return f"{self.spec.arch}-{self.spec.method}-{self.spec.id[:8]}"


def plan(options: Run, hyper: dict[str, Any]) -> list[Cell]:
    """The cells of a `run`, each teacher that they need before them. Raises UsageError for what does not exist."""
    suite = resolve(options)
    students = names(options.student) or suite.students
    for arch in students:
        models.check(arch)
    starts = {name: start(options, suite, name) for name in wanted(options.method)}
    makers = [make(name, hyper or found.hyper) for name, found in starts.items()]
    if options.official and not any(found.name for found in starts.values()):
        raise UsageError(
            f"--official: no script of {options.method} is known to do anything otherwise"
        )
    if options.teacher != "robust" and not any(method.requires for _, method in makers):
        raise UsageError(f"--teacher {options.teacher}: {options.method} has no teacher")
    seeds = numbers(options.seeds) or suite.seeds
    needed: dict[str, Cell] = {}
    cells = []
    for dataset in chosen(options, suite):
        for name, method in makers:
            found = identities(options, suite, dataset, method, needed)
            for arch in students:
                for seed in seeds:
                    begin = starts[name]
                    spec = student(
                        options, suite, dataset, arch, (name, method), found, seed, begin
                    )
                    words = variant(options, method, begin), command(options, spec, method, begin)
                    cells.append(Cell(spec, method, *words, tuple(begin.training)))
    return [*needed.values(), *cells]


def teacher(options: Protocol, suite: Suite, dataset: str, role: str) -> Cell:
    """The cell that trains the suite's teacher of a role."""
    recipe = suite.teachers[role]
    name, method = make(recipe.method)
    shared = common(options, suite, dataset) | (
        {"limit_aa": recipe.limit_aa} if recipe.limit_aa else {}
    )
    spec = Spec(role="teacher", arch=recipe.arch, method=name, teachers={}, seed=0, training=recipe.training,
                hyper=dataclasses.asdict(method), **shared)  # fmt: skip
    words = ["teacher", "train", "--suite", suite.name, "--dataset", dataset, "--role", role]
    return Cell(spec, method, "", say(words, options))


def student(
    options: Run,
    suite: Suite,
    dataset: str,
    arch: str,
    method: tuple[str, Method],
    found: dict[str, str],
    seed: int,
    begin: Start,
) -> Spec:
    """The spec of one student; `found` maps the roles of its teachers to identities."""
    if options.epochs is not None and options.epochs < 1:
        raise UsageError(f"--epochs {options.epochs}: at least 1")
    if not 0 <= options.awp <= 1:
        raise UsageError(f"--awp {options.awp}: between 0 and 1")
    changed = begin.training | ({"epochs": options.epochs} if options.epochs is not None else {})
    training = replace(suite.training, **changed, awp=options.awp)
    return Spec(role="student", arch=arch, method=method[0], teachers=found, seed=seed, training=training,
                hyper=dataclasses.asdict(method[1]), tuned=begin.trials, **common(options, suite, dataset))  # fmt: skip


def common(options: Protocol, suite: Suite, dataset: str) -> dict[str, Any]:
    """The part of a spec that teachers and students share."""
    return {
        "suite": suite.id,
        "dataset": dataset,
        "eps": suite.eps,
        "inner_step": suite.inner_step,
        "inner_steps": suite.inner_steps,
        "attacks": suite.attacks,
        "full_checkpoints": suite.full_checkpoints,
        "precision": options.precision,
        "limit_train": suite.limit_train if options.limit_train is None else options.limit_train,
        "limit_val": suite.limit_val,
        "limit_test": suite.limit_test if options.limit_test is None else options.limit_test,
        "limit_aa": suite.limit_aa,
    }


def identities(
    options: Run, suite: Suite, dataset: str, method: Method, needed: dict[str, Cell]
) -> dict[str, str]:
    """The identity of the teacher for each role the method reads; those to be trained here are added to `needed`."""
    found = {}
    for role in method.requires:
        name = options.teacher if role == "robust" else role
        if name in suite.teachers:
            cell = teacher(options, suite, dataset, name)
            needed[cell.identity] = cell
            found[role] = cell.identity
        else:
            found[role] = cards.find_card(options.store, name, dataset).identity
    if len(set(found.values())) < len(found):
        raise UsageError(f"--teacher {options.teacher}: {' and '.join(found)} must be two teachers")
    return found


def resolve(options: Protocol) -> Suite:
    return suites.get(options.suite)


def chosen(options: Protocol, suite: Suite) -> tuple[str, ...]:
    """The data sets asked for; a suite covers only its own."""
    asked = names(options.dataset) or suite.datasets
    for name in asked:
        datasets.get(name)
        if name not in suite.datasets:
            raise UsageError(
                f"suite {suite.name} is not for {name}: it covers {', '.join(suite.datasets)}"
            )
    return asked


def wanted(text: str) -> list[str]:
    """The methods named, or "all" that can be used; a plugin that is not used is named in a line of warning."""
    every, found = text == "all", []
    for name in methods.names() if every else names(text):
        inside = name in methods.builtin()
        fault = methods.fault(name) if (every or inside) and name in methods.plugins() else ""
        if fault:
            print(f"warning: plugin {name!r} {fault}", file=sys.stderr)
        if inside or not fault:
            found.append(name)
    return found


def start(options: Run, suite: Suite, name: str) -> Start:
    """What a method's values are to begin with. Raises UsageError for a configuration that is not for this run."""
    if options.config:
        if options.official:
            raise UsageError("--official and --config: one of them")
        found = config.read(options.config)
        if (found.method, found.suite) != (name, suite.id):
            raise UsageError(
                f"--config {str(options.config)!r} is for {found.method} in {found.suite}"
            )
        return Start(
            found.hyper,
            found.training,
            found.label,
            ("--config", str(options.config)),
            found.trials,
        )
    if not options.official:
        return Start()
    form = load(name)
    recipe = {field: value for field, value, _ in form.recipe}
    known = bool(recipe or base.official(form))
    return Start(base.official(form), recipe, *(("official", ("--official",)) if known else ()))


def load(name: str) -> type[Method]:
    """A method's class by name."""
    try:
        return methods.load(name)
    except KeyError as error:
        raise unknown("method", name, methods.names()) from error


def make(name: str, hyper: dict[str, Any] | None = None) -> tuple[str, Method]:
    """A method by name with its hyper-parameters. Raises UsageError for values out of range."""
    try:
        return name, load(name)(**(hyper or {}))
    except ValueError as error:
        raise UsageError(f"{name}: {error}") from error


def names(text: str) -> tuple[str, ...]:
    """A list with commas. Raises UsageError for empty or repeated names."""
    found = tuple(word.strip() for word in text.split(",")) if text else ()
    for word in found:
        if not word or found.count(word) > 1:
            raise UsageError(
                f"{text!r} names {word!r} twice" if word else f"{text!r} has an empty name"
            )
    return found


def numbers(text: str) -> tuple[int, ...]:
    """Seeds with commas. Raises UsageError for what is no seed or is given twice."""
    try:
        seeds = tuple(int(word) for word in names(text))
    except ValueError as error:
        raise UsageError(f"--seeds {text!r}: whole numbers with commas, such as 0,1,2") from error
    if any(seed < 0 for seed in seeds) or len(set(seeds)) < len(seeds):
        raise UsageError(f"--seeds {text!r}: each seed once, none negative")
    return seeds


def changes(method: Method, begin: Start) -> dict[str, Any]:
    """The hyper-parameters whose values are not those that it began with."""
    usual = {field.name: field.default for field in dataclasses.fields(method)} | begin.hyper
    return {
        name: value for name, value in dataclasses.asdict(method).items() if value != usual[name]
    }


def variant(options: Run, method: Method, begin: Start) -> str:
    """How a student's training differs from the method's default, for people."""
    words = [begin.name] if begin.name else []
    words += [f"{name}={value}" for name, value in changes(method, begin).items()]
    return ", ".join([*words, f"awp={options.awp}"] if options.awp else words)


def command(options: Run, spec: Spec, method: Method, begin: Start) -> str:
    """The command line that repeats one student."""
    words = ["run", "--method", spec.method, "--suite", options.suite, "--dataset", spec.dataset]
    words += ["--student", spec.arch, "--seeds", str(spec.seed)]
    words += (
        ["--teacher", options.teacher] if method.requires and options.teacher != "robust" else []
    )
    words += ["--epochs", str(options.epochs)] if options.epochs is not None else []
    words += begin.flags
    words += ["--awp", str(options.awp)] if options.awp else []
    for name, value in changes(method, begin).items():
        flag = name.replace("_", "-")
        words += (
            [f"--{'' if value else 'no-'}{flag}"]
            if isinstance(value, bool)
            else [f"--{flag}", str(value)]
        )
    return say(words, options)


def say(words: list[str], options: Protocol) -> str:
    for name in ("limit_train", "limit_test"):
        value = getattr(options, name)
        words += [f"--{name.replace('_', '-')}", str(value)] if value is not None else []
    words += ["--precision", options.precision] if options.precision != "fp32" else []
    return f"python -m bench {shlex.join(words)}"


def work(store: Path, spec: Spec) -> Path:
    """The folder in which an unfinished run of a spec keeps its state."""
    return store / "work" / spec.id
