"""A suite from a TOML file: a built-in suite with changes, or a whole protocol."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

import methods
from attacks import catalog
from bench import datasets, models
from bench.execution.hyper import build_method, check_hyper
from bench.protocol import suites
from bench.protocol.suites import Suite
from bench.system.errors import UsageError, unknown_name
from bench.system.files import parse_tables, read_toml
from leaderboards.schema.fields import NORM_LABELS
from leaderboards.schema.record import describe_first_error
from leaderboards.schema.spec import LATER_TRAINING, without_defaults
from methods.base import Budget

SUFFIX = ".toml"
DIGEST = re.compile("-[0-9a-f]{8}$")  # how the name of a suite from a file ends
NAME = re.compile("[A-Za-z0-9][A-Za-z0-9_-]{0,39}")
# What a file may leave out; without them it states the same protocol.
LABELS = {"name": "", "version": 1, "about": "", "cpu_time": ""}
ROLES = {"robust", "natural"}


# Dataclasses inside inherit the configuration. Strict JSON has lists for tuples; Python has not.
class _SuiteFile(BaseModel, extra="forbid", strict=True, allow_inf_nan=False):
    suite: Suite


def resolve_suite(text: str) -> Suite:
    """Return the suite that `--suite` means: a name, a file FILE.toml, or its content as JSON.

    Raise UsageError for an unknown name, or a content that states no suite.
    """
    is_file = text.endswith(SUFFIX) or text.startswith("{")
    if not is_file:
        suite = suites.get(text)
        if text in suites.SUITES:
            return suite
    try:
        suite = read_suite(text) if is_file else validate(dataclasses.asdict(suite))
        check_names(suite)
    except UsageError as error:
        raise UsageError(f"--suite {text!r:.500}: {error}") from error
    return suite


def resolve_experiment(text: str) -> str:
    """Return the id of a suite file; of other words, which may name a suite, the words."""
    return resolve_suite(text).id if text.endswith(SUFFIX) else text


def inline_suite(text: str) -> str:
    """Return a value of `--suite` that means the same where the file is not: its content as JSON.

    Recorded commands have it, so that they can be run anywhere.
    """
    if not text.endswith(SUFFIX):
        return text
    content = read_content(text)
    # They may be long, and change nothing where the command names its method.
    for name in ("about", "rows"):
        content.pop(name, None)
    return json.dumps(content)


def read_content(text: str) -> dict[str, Any]:
    """Return the content of a suite file from its path or from JSON. Raise OSError, ValueError."""
    if not text.startswith("{"):
        return read_toml(Path(text))
    return parse_tables(json.loads, text)


def read_suite(text: str) -> Suite:
    """Read a suite from a file or JSON. Its name ends in eight hex digits of the protocol's hash.

    Another protocol under the same name is thus another suite: runs, teachers and rows of the two
    never mix, whichever store or leaderboard they meet in. Raise UsageError for no suite.
    """
    try:
        content = read_content(text)
        base = content.pop("base", None)
        fields = LABELS | content
        if base is not None:
            fields = merge_tables(dataclasses.asdict(suites.get(str(base))), fields)
        suite = validate(fields)
    except OSError as error:
        raise UsageError(f"{error.strerror}") from error
    # tomllib lets int's own error through for a number of thousands of digits.
    except ValueError as error:
        raise UsageError(
            f"no {'JSON' if text.startswith('{') else 'TOML file'}: {error}"
        ) from error
    if not NAME.fullmatch(suite.name) or suite.name in suites.REGISTRY.names():
        rule = "letters, digits, - and _, at most 40, and not the name of a built-in suite"
        raise UsageError(f"name = {suite.name!r}: {rule}")
    return dataclasses.replace(suite, name=f"{suite.name}-{protocol_digest(suite)}")


def validate(fields: Mapping[str, Any]) -> Suite:
    """Return the suite with these fields. Raise UsageError for one missing, unknown or no good."""
    try:
        return _SuiteFile.model_validate_json(json.dumps({"suite": fields}, default=str)).suite
    except ValidationError as error:
        raise UsageError(describe_first_error(error).removeprefix("suite.")) from error


def merge_tables(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tables of `base` with the values of `changes`."""
    merged = dict(base)
    for name, value in changes.items():
        both = isinstance(value, dict) and isinstance(merged.get(name), dict)
        merged[name] = merge_tables(merged[name], value) if both else value
    return merged


def protocol_digest(suite: Suite) -> str:
    """Return eight hex digits, the same for the same protocol whatever its labels and rows."""
    protocol = dataclasses.asdict(suite)
    for name in (*LABELS, "rows"):
        del protocol[name]
    if suite.norm == "Linf":
        # Suites from before there was another keep their names.
        del protocol["norm"]
    for table in (protocol, *protocol["teachers"].values()):
        table["training"] = without_defaults(table["training"], LATER_TRAINING)
    return hashlib.sha256(json.dumps(protocol, sort_keys=True).encode()).hexdigest()[:8]


def check_names(suite: Suite) -> None:
    """Raise UsageError for names in a suite that stand for nothing here, or stand there twice."""
    for field in ("datasets", "students", "attacks", "full_checkpoints", "seeds"):
        values = getattr(suite, field)
        if len(set(values)) < len(values):
            raise UsageError(f"{field}: each one once")
    archs = {*suite.students, *(teacher.arch for teacher in suite.teachers.values())}
    for dataset, arch in itertools.product(suite.datasets, sorted(archs)):
        models.check(arch, datasets.get(dataset))
    check_threat_model(suite)
    checkpoints = ["best", "last", *suite.training.averaging]
    check_choices("checkpoint", suite.full_checkpoints, checkpoints)
    check_teachers(suite)
    check_rows(suite)


def check_threat_model(suite: Suite) -> None:
    """Raise UsageError for a radius, a step or an attack that does not fit the suite's norm."""
    for dataset in map(datasets.get, suite.datasets):
        # The radius of a ball that holds all images.
        largest = 1.0 if suite.norm == "Linf" else math.prod(dataset.shape) ** 0.5
        if suite.eps > largest:
            limit = f"at most {largest:.4g} in {NORM_LABELS[suite.norm]} on {dataset.name}"
            raise UsageError(f"eps = {suite.eps:g}: {limit}")
    try:
        Budget(suite.eps, suite.inner_step, suite.inner_steps, suite.norm)
    except ValueError as error:
        raise UsageError(str(error)) from error
    names = [name for name, attack in catalog.ATTACKS.items() if suite.norm in attack.norms]
    check_choices(f"{NORM_LABELS[suite.norm]} attack", suite.attacks, names)


def check_teachers(suite: Suite) -> None:
    """Raise UsageError unless a suite has a robust and a natural teacher that can be trained."""
    if suite.teachers.keys() != ROLES:
        raise UsageError(f"teachers: {' and '.join(sorted(ROLES))}, no more and no less")
    for role, teacher in suite.teachers.items():
        check_choices("method", (teacher.method,), methods.names())
        if methods.load(teacher.method).teacher_roles:
            raise UsageError(f"teachers.{role}: {teacher.method} needs a teacher itself")


def check_rows(suite: Suite) -> None:
    """Raise UsageError for a row that no method can be made from, or that is another's twice."""
    rows = []
    for number, row in enumerate(suite.rows):
        source = f"rows.{number}"
        check_choices(f"method of {source}", (row.method,), methods.names())
        rows.append(
            (row.method, build_method(row.method, check_hyper(row.method, row.hyper, source)))
        )
    for number, entry in enumerate(rows):
        if entry in rows[:number]:
            raise UsageError(f"rows: {number} is {rows.index(entry)} again")


def check_choices(kind: str, names: Sequence[str], choices: Sequence[str]) -> None:
    """Raise UsageError for a name that is not among the choices."""
    for name in names:
        if name not in choices:
            raise unknown_name(kind, name, choices)
