"""From options to specs: golden identities, what a command asks for, and the command that repeats each run."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import Any

import pytest

from bench import cli, models, plan, suites
from bench.errors import UsageError
from bench.options import Run
from bench.plan import Cell
from bench.spec import Spec
from bench.suites import Suite

# A changed id disowns every record of its suite: change the suite's version with it, never these lines alone.
GOLDEN = {
    "digits": ("9b6184ee2d30297e", "bdff410215962b1d"),
    "cifar-mini": ("30867987642f86f8", "dd3b9649a2b60fb9"),
    "cifar": ("d4d447889bbca554", "a01dc3c287ea1a37"),
    "cifar-fast": ("870438b4d8b51dfa", "9889e93c630f02a4"),
    "stl": ("0a6c3d8adf1d9705", "4b78c0a6d9848d28"),
}


def cells(*words: str) -> list[Cell]:
    options, hyper = cli.parse("run", list(words))
    return plan.plan(options, hyper)


def students(*words: str) -> list[Spec]:
    return [cell.spec for cell in cells(*words) if cell.spec.role == "student"]


@pytest.mark.parametrize("name", suites.SUITES)
def test_specs_are_golden(name: str) -> None:
    ids = {cell.spec.role: cell.spec.id for cell in reversed(cells("--method", "rslad", "--suite", name))}
    assert (ids["teacher"], ids["student"]) == GOLDEN[name]  # the first of each


@pytest.mark.parametrize("suite", suites.SUITES.values(), ids=suites.SUITES)
def test_suites_are_consistent(suite: Suite) -> None:
    for arch in (*suite.students, *(teacher.arch for teacher in suite.teachers.values())):
        models.check(arch)
    assert set(suite.teachers) == {"robust", "natural"}
    assert suite.inner_step * suite.inner_steps > suite.eps
    assert set(suite.full_checkpoints) <= {"best", "last", "averaged"}
    assert "aa" in suite.attacks


def test_a_grid_is_every_combination_with_each_teacher_once() -> None:
    found = cells("--method", "rslad,ard,pgd_at", "--seeds", "0,1", "--suite", "digits")
    roles = [cell.spec.role for cell in found]
    assert roles == ["teacher"] + ["student"] * 12
    teacher = found[0].identity
    assert {cell.spec.method: set(cell.spec.teachers.values()) for cell in found[1:]} == {
        "rslad": {teacher},
        "ard": {teacher},
        "pgd_at": set(),
    }
    assert len({cell.spec.id for cell in found}) == 13
    assert len({cell.spec.label for cell in found}) == 13


def test_all_means_every_method() -> None:
    assert len({spec.method for spec in students("--method", "all")}) >= 8


@pytest.mark.parametrize(
    ("words", "field", "value"),
    [
        (("--epochs", "2"), "training", dataclasses.replace(suites.DIGITS.training, epochs=2)),
        (("--limit-train", "200"), "limit_train", 200),
        (("--limit-test", "20"), "limit_test", 20),
        (("--precision", "bf16"), "precision", "bf16"),
        (("--tau", "0.1"), "hyper", None),
        (("--no-symmetric",), "hyper", None),
        (("--teacher", "natural"), "teachers", None),
    ],
)
def test_each_choice_is_another_spec(words: tuple[str, ...], field: str, value: Any) -> None:
    usual, changed = (students("--method", "gacd", *more)[0] for more in ((), words))
    assert getattr(usual, field) != getattr(changed, field)
    assert value is None or getattr(changed, field) == value
    assert usual.id != changed.id


@pytest.mark.parametrize(
    "words",
    [
        "--method gacd --no-symmetric --tau 0.1 --seeds 3 --student resnet8-w8 --epochs 2 --limit-train 300 --limit-test 9",
        "--method kd --teacher natural --precision bf16 --suite cifar-mini",
        "--method trades --suite cifar --dataset cifar100 --student mobilenetv2",
    ],
)
def test_the_recorded_command_makes_the_same_run(words: str) -> None:
    cell = next(cell for cell in cells(*words.split()) if cell.spec.role == "student")
    said = shlex.split(cell.command)
    assert said[:4] == ["python", "-m", "bench", "run"]
    assert [spec.id for spec in students(*said[4:])] == [cell.spec.id]


def test_a_teacher_must_be_of_the_data_set(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown teacher 'nobody'"):
        plan.plan(Run(method="kd", teacher="nobody", store=tmp_path), {})
