"""From options to specs: golden identities, what a command asks for, and the command that repeats each run."""

from __future__ import annotations

import dataclasses
import pickle
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from bench import models
from bench.cli.commands.run import read_request
from bench.execution import plan
from bench.execution.plan import PlannedRun
from bench.protocol import suites
from bench.protocol.options import RunOptions
from bench.protocol.spec import Spec
from bench.protocol.suites import Suite
from bench.system.errors import UsageError
from methods.base import RECIPE

# A changed id disowns every record of its suite: change the suite's version with it, never these lines alone.
GOLDEN = {
    "digits": ("8adc3f9f6aa88ef8", "e35ba164b1dbfbdc"),
    "cifar-mini": ("b0ffce380d7b2402", "bb32de8e55fa3f02"),
    "cifar": ("49af02bfc28ea0a3", "210cd1ee85139843"),
    "cifar-fast": ("874053e5d8d913f8", "b3004e6717742940"),
    "stl": ("fc1f321bc436c5c9", "ebda2925dacd4af9"),
}


def cells(*words: str) -> list[PlannedRun]:
    options, hyper = read_request(words)
    return plan.plan_runs(options, hyper)


def students(*words: str) -> list[Spec]:
    return [cell.spec for cell in cells(*words) if cell.spec.role == "student"]


@pytest.mark.parametrize("name", suites.SUITES)
def test_specs_are_golden(name: str) -> None:
    ids = {
        cell.spec.role: cell.spec.id
        for cell in reversed(cells("--method", "rslad", "--suite", name))
    }
    assert (ids["teacher"], ids["student"]) == GOLDEN[name]  # the first of each


@pytest.mark.parametrize("suite", suites.SUITES.values(), ids=suites.SUITES)
def test_suites_are_consistent(suite: Suite) -> None:
    for arch in (*suite.students, *(teacher.arch for teacher in suite.teachers.values())):
        models.check(arch)
    assert set(suite.teachers) == {"robust", "natural"}
    assert suite.inner_step * suite.inner_steps > suite.eps
    assert set(suite.full_checkpoints) <= {"best", "last", *suite.training.averaging}
    assert "aa" in suite.attacks


@pytest.mark.parametrize(
    "words", ["--method rslad", "--method rslad --alpha 0.9 --workers 2", "--method ard,rslad"]
)
def test_options_reach_worker_processes(words: str) -> None:
    options, _ = read_request(words.split())
    assert pickle.loads(pickle.dumps(options)) == options


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
    assert len({spec.method for spec in students("--method", "all")}) >= 28


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
        (("--awp", "0.005"), "training", dataclasses.replace(suites.DIGITS.training, awp=0.005)),
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
        "--method iad --official --begin 0.1 --no-trust-all --epochs 3",
        "--method mart --official --awp 0.01",
        "--method igdm --base rslad --alpha 0.9",
    ],
)
def test_the_recorded_command_makes_the_same_run(words: str) -> None:
    cell = next(cell for cell in cells(*words.split()) if cell.spec.role == "student")
    said = shlex.split(cell.command)
    assert said[:4] == ["python", "-m", "bench", "run"]
    assert [spec.id for spec in students(*said[4:])] == [cell.spec.id]


def test_official_sets_switches_and_training() -> None:
    spec = students("--method", "ard", "--official", "--suite", "cifar")[0]
    quirks = {"reduction": "mean", "train_mode_attack": True, "extra_forward": True}
    assert spec.hyper == {"alpha": 1.0, "tau": 30.0, **quirks}
    expected = dataclasses.replace(
        suites.CIFAR.training, epochs=200, milestones=(0.5,), weight_decay=2e-4
    )
    assert spec.training == expected
    several = {spec.method: spec.hyper for spec in students("--method", "ard,kd", "--official")}
    assert several == {"ard": spec.hyper, "kd": {"alpha": 0.9, "tau": 4.0}}


def test_recipes_speak_of_the_training() -> None:
    assert set(RECIPE) < {field.name for field in dataclasses.fields(suites.Training)}


def test_flags_win_over_official() -> None:
    spec = students(
        "--method", "iad", "--official", "--begin", "0.1", "--no-trust-all", "--epochs", "3"
    )[0]
    assert (spec.hyper["begin"], spec.hyper["trust_all"], spec.hyper["plain_self"]) == (
        0.1,
        False,
        True,
    )
    assert spec.training.epochs == 3


def test_the_variant_says_what_is_changed() -> None:
    words = "--method", "iad", "--official", "--begin", "0.1", "--awp", "0.005"
    assert {cell.variant for cell in cells(*words) if cell.spec.role == "student"} == {
        "official, begin=0.1, awp=0.005"
    }
    assert {cell.variant for cell in cells("--method", "iad")} == {""}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--method kd --tau 0", "kd: tau = 0.0: more than 0"),
        ("--method kd --alpha 1.5", "kd: alpha = 1.5: at most 1"),
        ("--method trades --beta -1", "trades: beta = -1.0: not negative"),
        ("--method gacd --dim 0", "gacd: dim = 0: more than 0"),
        ("--method igdm --base igdm", "igdm: base = 'igdm': choose another method"),
        ("--method igdm --base nothing", "igdm: base = 'nothing': choose another method"),
        ("--method gacd --bank 99999999999", "gacd: bank = 99999999999: at most 1.04858e+06"),
        (
            "--method iad2 --alpha-robust 0.9 --alpha-natural 0.9",
            "iad2: alpha_robust + alpha_natural = 1.8: at most 1",
        ),
        (
            "--method gacd --official",
            "--official: no script of gacd is known to do anything otherwise",
        ),
        ("--method kd --awp -1", "--awp -1.0: between 0 and 1"),
    ],
)
def test_what_is_out_of_range_is_refused(words: str, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        cells(*words.split())


def test_a_teacher_must_be_of_the_data_set(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown teacher 'nobody'"):
        plan.plan_runs(RunOptions(method="kd", teacher="nobody", store=tmp_path), {})


@pytest.mark.parametrize("name", ["mtard", "iad2"])
def test_two_roles_need_two_teachers(name: str) -> None:
    with pytest.raises(
        UsageError, match="--teacher natural: robust and natural must be two teachers"
    ):
        cells("--method", name, "--teacher", "natural")


def test_a_teacher_that_nobody_asks_is_refused() -> None:
    with pytest.raises(UsageError, match="--teacher natural: pgd_at has no teacher"):
        cells("--method", "pgd_at", "--teacher", "natural")
    assert cells("--method", "pgd_at,kd", "--teacher", "natural")


def test_official_is_said_where_a_script_differs() -> None:
    found = {cell.spec.method: cell.variant for cell in cells("--method", "ard,gacd", "--official")}
    assert (found["ard"], found["gacd"]) == ("official", "")


@pytest.mark.parametrize("name", suites.SUITES)
def test_what_a_suite_states_is_what_its_students_record(name: str) -> None:
    said = {
        key: str(value)
        for key, value in plan.plan_runs(RunOptions(method="natural", suite=name), {})[0]
        .spec.flat()
        .items()
    }
    stated = suites.protocol(suites.get(name).id)
    assert len(stated) == 20
    assert stated.items() <= said.items()
    assert suites.protocol(f"{name}@99") == {}
