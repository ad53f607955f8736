"""From options to specs: golden ids, the runs of a command, and the command that repeats a run."""

from __future__ import annotations

import dataclasses
import pickle
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

import methods
from bench import models
from bench.cli.commands.run import read_request
from bench.execution import plan
from bench.execution.plan import PlannedRun
from bench.execution.suite_file import check_rows
from bench.protocol import suites, tuned_config
from bench.protocol.options import RunOptions
from bench.protocol.suites import Suite
from bench.protocol.tuned_config import TunedConfig
from bench.system.errors import UsageError
from bench.training.distributed import ProcessGroup
from leaderboards.schema.spec import Spec
from methods.base import RECIPE, Method, hp

# Ids of the first teacher and the first student. A changed id disowns every record of its suite:
# change the suite's version with it, never these lines alone.
GOLDEN = {
    "digits": ("8adc3f9f6aa88ef8", "e35ba164b1dbfbdc"),
    "cifar-mini": ("68eb0f18fc93abbe", "99014e70d3e76427"),
    "cifar": ("ccd8b6ad74c73b6c", "e91fe9cb936e3b1f"),
    "cifar-fast": ("71dbaa3c378de1ed", "8350d4b24090d3ae"),
    "cifar-sprint": ("432dfb747dc88a88", "5df5089f990b086d"),
    "stl": ("fc1f321bc436c5c9", "ebda2925dacd4af9"),
    "gacd-ablation": ("c88384fb78f9a2b4", "93c223f925c21e9b"),
    "gacd-ablation-cifar": ("f0f0ec3b1cc71fd1", "6ca755de54d549ba"),
    "digits-halves": ("bb998ad45bca061a", "715fa697b3ec6404"),
    "digits-models": ("7192ef322898ad51", "46411c76cb51f609"),
    "cifar-mini-halves": ("00e69fc4eb281815", "012ee60b7204e51e"),
}


def plan_command(arguments: str) -> list[PlannedRun]:
    """Return the runs of `python -m bench run` with these arguments."""
    options, hyper = read_request(arguments.split())
    return plan.plan_runs(options, hyper)


def student_runs(arguments: str) -> list[PlannedRun]:
    return [run for run in plan_command(arguments) if run.spec.role == "student"]


def student_specs(arguments: str) -> list[Spec]:
    return [run.spec for run in student_runs(arguments)]


def repeat_student(command: str) -> PlannedRun:
    """Plan the student of a recorded command."""
    options, hyper = read_request(shlex.split(command)[4:])
    return plan.plan_runs(options, hyper)[-1]


@pytest.mark.parametrize("name", suites.SUITES)
def test_specs_are_golden(name: str) -> None:
    first_ids: dict[str, str] = {}
    for run in plan_command(f"--method rslad --suite {name}"):
        first_ids.setdefault(run.spec.role, run.spec.id)
    assert (first_ids["teacher"], first_ids["student"]) == GOLDEN[name]


@pytest.mark.parametrize("suite", suites.SUITES.values(), ids=suites.SUITES)
def test_suites_are_consistent(suite: Suite) -> None:
    teacher_archs = [teacher.arch for teacher in suite.teachers.values()]
    for arch in (*suite.students, *teacher_archs):
        models.check(arch)
    assert set(suite.teachers) == {"robust", "natural"}
    assert suite.inner_step * suite.inner_steps > suite.eps
    assert set(suite.full_checkpoints) <= {"best", "last", *suite.training.averaging}
    assert "aa" in suite.attacks


@pytest.mark.parametrize(
    "arguments", ["--method rslad", "--method rslad --alpha 0.9 --workers 2", "--method ard,rslad"]
)
def test_options_reach_worker_processes(arguments: str) -> None:
    options, _ = read_request(arguments.split())
    assert pickle.loads(pickle.dumps(options)) == options


def test_a_grid_is_every_combination_with_each_teacher_once() -> None:
    runs = plan_command("--method rslad,ard,pgd_at --seeds 0,1 --suite digits")
    assert [run.spec.role for run in runs] == ["teacher"] + ["student"] * 12
    identity = runs[0].identity
    teachers_by_method = {run.spec.method: set(run.spec.teachers.values()) for run in runs[1:]}
    assert teachers_by_method == {"rslad": {identity}, "ard": {identity}, "pgd_at": set()}
    assert len({run.spec.id for run in runs}) == 13
    assert len({run.spec.label for run in runs}) == 13


def test_all_selects_every_method() -> None:
    assert len({spec.method for spec in student_specs("--method all")}) >= 28


@pytest.mark.parametrize(
    ("arguments", "field", "value"),
    [
        ("--epochs 2", "training", dataclasses.replace(suites.DIGITS.training, epochs=2)),
        ("--limit-train 200", "limit_train", 200),
        ("--limit-test 20", "limit_test", 20),
        ("--precision bf16", "precision", "bf16"),
        ("--tau 0.1", "hyper", None),
        ("--symmetric", "hyper", None),
        ("--teacher natural", "teachers", None),
        ("--awp 0.005", "training", dataclasses.replace(suites.DIGITS.training, awp=0.005)),
    ],
)
def test_an_option_changes_the_spec(arguments: str, field: str, value: Any) -> None:
    default = student_specs("--method gacd")[0]
    changed = student_specs(f"--method gacd {arguments}")[0]
    assert getattr(default, field) != getattr(changed, field)
    assert value is None or getattr(changed, field) == value
    assert default.id != changed.id


@pytest.mark.parametrize(
    "arguments",
    [
        "--method gacd --symmetric --tau 0.1 --seeds 3 --student resnet8-w8 --epochs 2"
        " --limit-train 300 --limit-test 9",
        "--method kd --teacher natural --precision bf16 --suite cifar-mini",
        "--method trades --suite cifar --dataset cifar100 --student mobilenetv2",
        "--method iad --official --begin 0.1 --no-trust-all --epochs 3",
        "--method mart --official --awp 0.01",
        "--method igdm --base rslad --alpha 0.9",
        "--method rslad --lr 0.05 --momentum 0.8 --weight-decay 1e-05",
        "--method ard --official --lr 0.05",
        "--method rslad --alpha 0.25 --lr 0.3 --tuned 20",
    ],
)
def test_the_recorded_command_plans_the_same_run(arguments: str) -> None:
    planned = student_runs(arguments)[0]
    assert shlex.split(planned.command)[:4] == ["python", "-m", "bench", "run"]
    assert repeat_student(planned.command) == planned
    devices = ProcessGroup(size=2, sync_batchnorm=True).command_line(planned.command)
    launcher, program, words = devices.partition(" -m bench run ")
    assert (launcher, program) == ("torchrun --nproc-per-node 2", " -m bench run ")
    options, hyper = read_request(shlex.split(words))
    assert options.sync_batchnorm
    assert plan.plan_runs(options, hyper)[-1].spec.id == planned.spec.id


@pytest.mark.parametrize("change", ["", "--seeds 1", "--epochs 2", "--limit-train 300 --seeds 0"])
def test_the_command_of_a_tuned_run_needs_no_file(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hyper, training = {"alpha": 0.123456789, "tau": 2}, {"lr": 1, "weight_decay": 1e-05}
    config = TunedConfig(
        *("ard", "digits@3", "digits", "resnet8-w8", "natural"), hyper, training, {"trials": 20}
    )
    monkeypatch.chdir(tmp_path)
    tuned_config.write(Path("found/c.toml"), config)
    planned = plan_command(f"--config found/c.toml {change}")[-1]
    assert (planned.spec.tuned, planned.spec.hyper["alpha"]) == (20, 0.123456789)
    assert re.fullmatch(r"tuned, 20 trials, [0-9a-f]{4}", planned.variant)
    assert planned.variant_fields == ("lr", "weight_decay")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    assert "found" not in planned.command
    assert repeat_student(planned.command) == planned


def test_a_tuned_row_is_named_after_its_values() -> None:
    """The names of the rows that this repository has recorded."""
    for digest, alpha, lr, decay in (
        ("aacd", 0.8242542047409623, 0.2767710726805693, 0.0017432660009571899),
        ("30ef", 0.7068105583984519, 0.7841990447924024, 0.0014986973714879025),
    ):
        flags = f"--alpha {alpha} --lr {lr} --weight-decay {decay} --tuned 30"
        (*_, run) = plan_command(f"--method rslad --student resnet8-w4 --seeds 0 {flags}")
        assert run.variant == f"tuned, 30 trials, {digest}"


@pytest.mark.parametrize("change", ["--alpha 0.5", "--lr 0.3"])
def test_a_changed_configuration_is_not_tuned(change: str, tmp_path: Path) -> None:
    names = ("rslad", "digits@3", "digits", "resnet8-w4", "robust")
    config = TunedConfig(*names, {"alpha": 0.9}, {"lr": 0.1}, {"trials": 20})
    tuned_config.write(tmp_path / "c.toml", config)
    run = plan_command(f"--config {tmp_path / 'c.toml'} {change}")[-1]
    assert (run.spec.tuned, "tuned" in run.variant) == (0, False)
    assert change.removeprefix("--").replace(" ", "=") in run.variant
    assert repeat_student(run.command) == run


def test_a_hyper_parameter_may_hide_an_option(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclasses.dataclass(frozen=True)
    class Hiding(Method):
        lr: float = hp(0.5, "of its own")

    monkeypatch.setattr(methods, "load", lambda name: Hiding)
    run = plan_command("--method kd --lr 0.7")[-1]
    assert (run.spec.hyper["lr"], run.spec.training.lr) == (0.7, suites.DIGITS.training.lr)
    assert repeat_student(run.command) == run


def test_official_sets_switches_and_training() -> None:
    spec = student_specs("--method ard --official --suite cifar")[0]
    switches = {"reduction": "mean", "train_mode_attack": True, "extra_forward": True}
    assert spec.hyper == {"alpha": 1.0, "tau": 30.0, **switches}
    assert spec.training == dataclasses.replace(
        suites.CIFAR.training,
        **{"epochs": 200, "milestones": (0.5,), "weight_decay": 2e-4},
        **{"drop_last": False, "normalise": False, "clamp_start": False},
    )
    runs = student_runs("--method ard,kd --official")
    hyper_by_method = {run.spec.method: run.spec.hyper for run in runs}
    assert hyper_by_method == {"ard": spec.hyper, "kd": {"alpha": 0.9, "tau": 4.0}}


def test_official_trains_alike_in_every_suite() -> None:
    """Rate, batch and schedule of a script are not those of a suite of small images."""
    trainings = {
        dataclasses.replace(spec.training, ema_decay=0.999)
        for suite in ("digits", "cifar", "cifar-mini")
        for spec in student_specs(f"--method rslad --official --suite {suite}")
    }
    assert len(trainings) == 1
    assert (trainings.pop().batch, suites.DIGITS.training.batch) == (128, 64)


def test_official_training_of_igdm_follows_its_base() -> None:
    """RSLAD's script has 300 epochs and three milestones, the others the suite's."""
    common = {"weight_decay": 2e-4, "drop_last": False}
    for base, changes in (
        ("adaad", {"clamp_start": False}),
        ("ard", {}),
        ("rslad", {"epochs": 300, "milestones": (0.7, 0.86, 0.95), "clamp_start": False}),
    ):
        (run, *_) = student_runs(f"--method igdm --base {base} --official --suite cifar")
        assert run.spec.training == dataclasses.replace(
            suites.CIFAR.training, **common, **changes
        ), base
        assert run.spec.hyper["script_base"] is True
        assert repeat_student(run.command) == run


def test_recipe_names_are_fields_of_the_training() -> None:
    assert set(RECIPE) < {field.name for field in dataclasses.fields(suites.Training)}


def test_flags_win_over_official() -> None:
    spec = student_specs("--method iad --official --begin 0.1 --no-trust-all --epochs 3")[0]
    assert spec.hyper["begin"] == 0.1
    assert spec.hyper["trust_all"] is False
    assert spec.hyper["plain_self"] is True
    assert spec.training.epochs == 3


def test_the_variant_names_the_changes() -> None:
    runs = student_runs("--method iad --official --begin 0.1 --awp 0.005")
    assert {run.variant for run in runs} == {"official, begin=0.1, awp=0.005"}
    assert {run.variant for run in plan_command("--method iad")} == {""}


@pytest.mark.parametrize(
    ("arguments", "message"),
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
            "--method ard --official --tuned 3",
            "--tuned: values of one method, and not those of --official",
        ),
        ("--method kd,rslad --tuned 3", "--tuned: values of one method"),
        ("--method kd --tuned -3", "--tuned -3: at least 0"),
        ("--method kd --lr 0", "--lr = 0.0: more than 0 and at most 100"),
        ("--method kd --weight-decay nan", "--weight-decay: 'nan' is no finite number"),
        (
            "--method gacd --official",
            "--official: no script of gacd is known; `python -m bench list gacd` says what is",
        ),
        ("--method kd --awp -1", "--awp -1.0: between 0 and 1"),
    ],
)
def test_values_out_of_range_are_refused(arguments: str, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        plan_command(arguments)


def test_an_unknown_teacher_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown teacher 'nobody'"):
        plan.plan_runs(RunOptions(method="kd", teacher="nobody", store=tmp_path), {})


@pytest.mark.parametrize("name", ["mtard", "iad2"])
def test_two_roles_need_two_teachers(name: str) -> None:
    message = "--teacher natural: robust and natural must be two teachers"
    with pytest.raises(UsageError, match=message):
        plan_command(f"--method {name} --teacher natural")


def test_a_teacher_for_methods_without_one_is_refused() -> None:
    with pytest.raises(UsageError, match="--teacher natural: pgd_at has no teacher"):
        plan_command("--method pgd_at --teacher natural")
    assert plan_command("--method pgd_at,kd --teacher natural")


def test_the_variant_is_official_only_where_a_script_differs() -> None:
    runs = plan_command("--method ard,gacd --official")
    variants = {run.spec.method: run.variant for run in runs}
    assert variants["ard"] == "official"
    assert variants["gacd"] == ""


@pytest.mark.parametrize(
    ("name", "base"), [("gacd-ablation", "digits"), ("gacd-ablation-cifar", "cifar-mini")]
)
def test_the_ablation_changes_one_thing_at_a_time(name: str, base: str) -> None:
    """In the protocol of its base, perhaps on more images; every row trains another student."""
    suite = suites.get(name)
    check_rows(suite)
    shared = [*suites.RECORDED_FIELDS, "training", "teachers", "full_checkpoints"]
    expected = dataclasses.replace(suites.get(base), limit_aa=suite.limit_aa)
    assert all(getattr(suite, field) == getattr(expected, field) for field in shared)
    runs = student_runs(f"--suite {name}")
    assert len({run.spec.id for run in runs}) == len(suite.rows) * len(suite.seeds)
    assert (runs[0].spec.method, runs[0].variant) == ("gacd", "")
    changes = [run.variant.count("=") for run in runs if run.spec.method == "gacd"]
    assert [count for count in changes if count > 1] == [2] * len(suite.seeds)


def test_options_change_every_row_of_a_suite() -> None:
    runs = student_runs("--suite gacd-ablation --seeds 5 --epochs 2 --lr 0.1 --student resnet8-w4")
    assert len(runs) == len(suites.GACD_ROWS)
    assert {run.spec.seed for run in runs} == {5}
    assert {run.spec.training.epochs for run in runs} == {2}
    assert runs[0].variant == "lr=0.1"
    assert runs[1].variant == "lr=0.1, symmetric=True"
    assert repeat_student(runs[1].command).spec == runs[1].spec


def test_tuned_values_are_not_those_of_several_rows() -> None:
    with pytest.raises(UsageError, match="--tuned: values of one method"):
        plan_command("--suite gacd-ablation --tuned 3")


def test_the_former_default_of_gacd_keeps_its_spec() -> None:
    words = "--method gacd --symmetric --teacher-input clean --student resnet8-w8"
    assert student_specs(words)[0].id.startswith("49461488")


@pytest.mark.parametrize("name", suites.SUITES)
def test_students_record_the_protocol_of_their_suite(name: str) -> None:
    run = plan.plan_runs(RunOptions(method="natural", suite=name), {})[0]
    recorded = {key: str(value) for key, value in run.spec.flat().items()}
    protocol = suites.protocols()[suites.get(name).id]
    assert len(protocol) == 25
    assert protocol.items() <= recorded.items()
