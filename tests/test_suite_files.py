"""Suites from TOML files: their names, the runs they plan, everything that is refused."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shlex
from pathlib import Path

import pytest
from packages import copy_packages
from test_plugins import output_of

from bench import cli
from bench.cli.commands.run import read_request
from bench.execution import plan
from bench.execution.suite_file import read_suite, resolve_suite
from bench.protocol import suites
from bench.protocol.suites import DIGITS, Suite
from bench.system.errors import UsageError
from bench.tuning.options import TuneOptions
from bench.tuning.search import reference_teacher
from leaderboards.schema.fields import in_suite

EXAMPLES = Path(__file__).parents[1] / "examples"
SHORT = """
name = "mine"
base = "digits"
students = ["resnet8-w4"]
attacks = ["fgsm"]
eps = 0.1
limit_train = 128
limit_test = 8
training.epochs = 1
training.batch = 32
teachers.robust.training.epochs = 1
"""


@pytest.fixture
def suite_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = Path("mine.toml")
    path.write_text(SHORT)
    return path


def plan_command(arguments: str) -> list[plan.PlannedRun]:
    return plan.plan_runs(*read_request(arguments.split()))


def read_text(text: str, folder: Path) -> Suite:
    path = folder / "text.toml"
    path.write_text(text)
    return read_suite(str(path))


def test_a_file_changes_its_base(suite_file: Path) -> None:
    suite = read_suite(str(suite_file))
    teacher = dataclasses.replace(
        DIGITS.teachers["robust"],
        training=dataclasses.replace(DIGITS.teachers["robust"].training, epochs=1),
    )
    assert suite == dataclasses.replace(
        DIGITS,
        name=suite.name,
        version=1,
        about="",
        cpu_time="",
        students=("resnet8-w4",),
        attacks=("fgsm",),
        eps=0.1,
        limit_train=128,
        limit_test=8,
        training=dataclasses.replace(DIGITS.training, epochs=1, batch=32),
        teachers=DIGITS.teachers | {"robust": teacher},
    )


def test_a_file_without_a_base_states_everything(tmp_path: Path) -> None:
    text = """
        name = "whole"
        version = 2
        datasets = ["digits"]
        students = ["resnet8-w4"]
        eps = 1
        inner_step = 0.5
        inner_steps = 3
        training = {epochs = 3}
        [teachers]
        robust = {arch = "resnet8-w8", method = "trades", training = {epochs = 2}}
        natural = {arch = "resnet8-w8", method = "natural", training = {epochs = 2}}
    """
    suite = read_text(text, tmp_path)
    assert suite.id.startswith("whole-")
    assert suite.id.endswith("@2")
    assert (suite.eps, suite.training) == (1.0, suites.Training(epochs=3))
    assert suite.teachers["robust"].training == suites.Training(epochs=2)


def test_the_name_covers_the_protocol_and_not_its_labels(tmp_path: Path) -> None:
    name = read_text(SHORT, tmp_path).name
    assert read_text(f"{SHORT}\nversion = 3\nabout = 'mine'", tmp_path).name == name
    for change in ("seeds = [1]", "teachers.natural.training.lr = 0.3", "limit_val = 5"):
        assert read_text(f"{change}\n{SHORT}", tmp_path).name not in (name, "mine")
    renamed = read_text(SHORT.replace('"mine"', '"other"'), tmp_path).name
    assert renamed.removeprefix("other") == name.removeprefix("mine")


def test_runs_of_a_file_follow_it(suite_file: Path) -> None:
    suite = read_suite(str(suite_file))
    teacher, student = plan_command("--method rslad --suite mine.toml")
    assert {teacher.spec.suite, student.spec.suite} == {suite.id}
    assert (student.spec.training, student.spec.eps) == (suite.training, 0.1)
    assert teacher.spec.training == suite.teachers["robust"].training


def test_recorded_commands_hold_the_file(
    suite_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # MLflow keeps 8,000 characters of a tag.
    suite_file.write_text(f"about = '{9000 * 'x'}'\n{SHORT}")
    teacher, student = plan_command("--method rslad --suite mine.toml")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    words = shlex.split(student.command)
    assert words[:4] == ["python", "-m", "bench", "run"]
    repeated = plan.plan_runs(*read_request(words[4:]))
    assert [run.spec for run in repeated] == [teacher.spec, student.spec]
    assert [run.command for run in repeated] == [teacher.command, student.command]
    assert len(student.command) < 8000
    words = shlex.split(teacher.command)
    assert words[3:6] == ["teacher", "train", "--suite"]
    assert resolve_suite(words[6]).id == student.spec.suite


def test_a_file_may_be_in_l2(suite_file: Path) -> None:
    """Teacher and student are, under another name; in l-inf nothing tells of a norm."""
    plain = [run.spec for run in plan_command("--method rslad --suite mine.toml")]
    suite_file.write_text(f"{SHORT}\nnorm = 'Linf'")
    assert [run.spec for run in plan_command("--method rslad --suite mine.toml")] == plain
    assert "norm" not in plain[0].json() + plain[1].json()
    suite_file.write_text(SHORT.replace("fgsm", "pgd20").replace("eps", "norm = 'L2'\neps"))
    teacher, student = plan_command("--method rslad --suite mine.toml")
    assert (teacher.spec.norm, student.spec.norm, student.spec.eps) == ("L2", "L2", 0.1)
    assert student.spec.suite != plain[1].suite
    assert json.loads(student.spec.json())["norm"] == "L2"


def test_adversarial_weight_perturbation_of_a_file_is_used(suite_file: Path) -> None:
    suite_file.write_text(f"{SHORT}\ntraining.awp = 0.005")

    def awp(arguments: str) -> float:
        return plan_command(f"--method pgd_at --suite mine.toml {arguments}")[0].spec.training.awp

    assert (awp(""), awp("--awp 0.01")) == (0.005, 0.01)


def test_leaderboards_know_the_suite_by_its_name(suite_file: Path) -> None:
    suite = read_suite(str(suite_file))
    assert in_suite(suite.id, suite.name)
    assert in_suite(suite.id, suite.id)
    assert not in_suite(suite.id, "mine")
    assert suite.id not in suites.protocols()


def test_a_search_uses_the_file(suite_file: Path) -> None:
    options = TuneOptions(method="rslad", suite=str(suite_file))
    teacher, student = plan_command("--method rslad --suite mine.toml")
    assert reference_teacher(options, student).spec == teacher.spec


def test_a_tuned_configuration_names_the_suite_of_its_file(
    suite_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = read_suite(str(suite_file))
    config = f"""
        method = "ard"
        suite = "{suite.id}"
        dataset = "digits"
        student = "resnet8-w4"
        teacher = "robust"
        hyper = {{alpha = 0.8}}
        training = {{lr = 0.15}}
    """
    Path("tuned.toml").write_text(config)
    student = plan_command("--config tuned.toml --suite mine.toml")[-1].spec
    assert (student.suite, student.hyper["alpha"]) == (suite.id, 0.8)
    assert student.training == dataclasses.replace(suite.training, lr=0.15)
    with pytest.raises(UsageError, match=f"ard in {suite.id}, --suite is digits@3"):
        plan_command("--config tuned.toml")


def test_the_example_is_as_it_says() -> None:
    suite = resolve_suite(str(EXAMPLES / "suites" / "small-digits.toml"))
    assert suite.training == dataclasses.replace(DIGITS.training, epochs=12)
    assert suite.eps == 0.1
    assert suite.inner_step * suite.inner_steps > suite.eps
    # The guide shows it. It is that of before there were norms.
    assert suite.id == "small-digits-0e7668eb@1"
    suite = resolve_suite(str(EXAMPLES / "suites" / "digits-l2.toml"))
    assert (suite.norm, suite.eps, suite.inner_step) == ("L2", 0.6, 2.5 * 0.6 / 5)


def test_the_tuned_configuration_of_the_examples_plans_a_run() -> None:
    student = plan_command(f"--config {EXAMPLES / 'tuned' / 'rslad-digits.toml'}")[-1]
    assert student.variant.startswith("tuned, 12 trials")
    assert student.spec.training.lr != DIGITS.training.lr


ROWS = """
rows = [
    {method = "gacd"},
    {method = "gacd", hyper = {tau = 1, symmetric = true}},
    {method = "pgd_at"},
]
"""


def test_rows_of_a_file_are_run_without_a_method(suite_file: Path) -> None:
    """A whole number in the file is the float that the method has, as from a flag."""
    suite_file.write_text(ROWS + SHORT)
    runs = [run for run in plan_command("--suite mine.toml") if run.spec.role == "student"]
    assert [(run.spec.method, run.variant) for run in runs] == [
        ("gacd", ""),
        ("gacd", "tau=1.0, symmetric=True"),
        ("pgd_at", ""),
    ]
    stated = plan_command("--method gacd --tau 1 --symmetric --suite mine.toml")[-1]
    assert stated.spec == runs[1].spec
    assert [run.spec.method for run in plan_command("--method rslad --suite mine.toml")] == [
        "trades",
        "rslad",
    ]


def test_rows_do_not_change_the_name_of_a_file(suite_file: Path) -> None:
    """They say what is run, as `--method` does, not how: a further row repeats none."""
    name = read_suite("mine.toml").name
    suite_file.write_text(ROWS + SHORT)
    assert read_suite("mine.toml").name == name


def test_a_recorded_command_of_a_row_names_its_method_alone(suite_file: Path) -> None:
    suite_file.write_text(ROWS + SHORT)
    run = plan_command("--suite mine.toml")[2]
    words = shlex.split(run.command)
    assert "rows" not in run.command
    assert plan.plan_runs(*read_request(words[4:]))[-1].spec == run.spec


DEEP = "x = " + 5000 * "[" + 5000 * "]"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "datasets: Field required"),
        ("eps", "no TOML file: Expected '='"),
        ("name = 'x'", "datasets: Field required"),
        ("name = 'digits'", "name = 'digits': letters"),
        ("name = 'a@3'", "name = 'a@3': letters"),
        ("name = '../a'", "name = '../a'"),
        (f"name = '{41 * 'a'}'", "at most 40"),
        ("name = 5", "name: Input should be a valid string"),
        ("base = 'digist'", "unknown suite 'digist': did you mean 'digits'"),
        ("base = 5", "unknown suite '5'"),
        ("version = 0", "version: Input should be greater than or equal to 1"),
        ("version = 1e3", "version: Input should be a valid integer"),
        ("esp = 0.1", "esp: Unexpected keyword argument"),
        (r'"\u001b[31mx\ny" = 1', r"\x1b[31mx\ny: Unexpected keyword argument"),
        ("training.epoch = 3", "training.epoch: Unexpected keyword argument"),
        ("training = 3", "training: Input should be an object"),
        ("training.epochs = 0", "training.epochs: Input should be greater"),
        ("training.epochs = 3.5", "training.epochs: Input should be a valid integer"),
        ("training.epochs = true", "training.epochs: Input should be a valid integer"),
        ("training.epochs = '3'", "training.epochs: Input should be a valid integer"),
        (f"training.epochs = {5000 * '9'}", "no TOML file: Exceeds the limit"),
        (f"training.epochs = 0x{5000 * 'f'}", "no TOML file: Exceeds the limit"),
        ("training.lr = 0.0", "training.lr: Input should be greater than 0"),
        (
            "training.momentum = 0.0\ntraining.nesterov = true",
            "training: nesterov needs a momentum",
        ),
        ("training.momentum = 2.0", "training.momentum: Input should be less than or equal to 1"),
        (
            "training.schedule = 'linear'",
            "training.schedule: Input should be 'multistep', 'onecycle' or",
        ),
        ("training.averaging = ['sma']", "training.averaging.0: Input should be 'ema' or 'swa'"),
        ("training.milestones = [0.5, 7]", "training.milestones.1: Input should be less"),
        ("eps = 8", "eps = 8: at most 1 in l-inf on digits"),
        ("norm = 'L2'\neps = 9", "eps = 9: at most 8 in L2 on digits"),
        ("norm = 'l2'", "norm: Input should be 'Linf' or 'L2'"),
        ("norm = 'L2'", "unknown L2 attack 'fgsm': "),
        ("inner_step = 0.5", "step 0.5 is larger than eps 0.15: swapped?"),
        ("eps = nan", "eps: Input should be a finite number"),
        ("eps = -0.1", "eps: Input should be greater than 0"),
        ("eps = 1979-05-27", "eps: Input should be a valid number"),
        ("inner_steps = 0", "inner_steps: Input should be greater"),
        ("limit_train = -1", "limit_train: Input should be greater"),
        ("seeds = []", "seeds: "),
        ("seeds = [-1]", "seeds.0: Input should be greater"),
        ("seeds = [1, 1]", "seeds: each one once"),
        ("students = 'resnet8-w4'", "students: Input should be a valid"),
        ("students = []", "students: "),
        ("students = ['resnet9']", "resnet9"),
        ("datasets = ['digist']", "unknown dataset 'digist': did you mean 'digits'"),
        ("attacks = ['pgd21']", "unknown l-inf attack 'pgd21': did you mean 'pgd20'"),
        ("attacks = ['cw_l2']", "unknown l-inf attack 'cw_l2'"),
        ("full_checkpoints = ['swa']\ntraining.averaging = ['ema']", "unknown checkpoint 'swa'"),
        ("teachers.other.arch = 'resnet8-w4'", "teachers.other.method: Field required"),
        ("teachers.robust.arch = 'resnet9'", "resnet9"),
        ("teachers.robust.method = 'tradse'", "unknown method 'tradse': did you mean 'trades'"),
        ("teachers.robust.method = 'rslad'", "teachers.robust: rslad needs a teacher itself"),
        ("teachers.robust.limit_aa = 0", "teachers.robust.limit_aa: Input should be greater"),
        ("rows = 3", "rows: Input should be a valid"),
        ("rows = ['gacd']", "rows.0: Input should be an object"),
        ("rows = [{hyper = {}}]", "rows.0.method: Field required"),
        ("rows = [{method = 'gacd', tau = 0.1}]", "rows.0.tau: Unexpected keyword argument"),
        ("rows = [{method = 'gcad'}]", "unknown method of rows.0 'gcad': did you mean 'gacd'"),
        (
            "rows = [{method = 'kd'}, {method = 'gacd', hyper = {tua = 1}}]",
            "unknown hyper-parameter of gacd in rows.1 'tua': did you mean 'tau'",
        ),
        ("rows = [{method = 'gacd', hyper = {tau = 'a'}}]", "rows.0: tau = 'a' should be a float"),
        ("rows = [{method = 'gacd', hyper = {dim = 1.5}}]", "rows.0: dim = 1.5 should be a int"),
        ("rows = [{method = 'gacd', hyper = {tau = [1]}}]", "rows.0.hyper.tau"),
        ("rows = [{method = 'gacd', hyper = {tau = -1}}]", "gacd: tau = -1.0: more than 0"),
        ("rows = [{method = 'gacd', hyper = {weight = 'x'}}]", "weight = 'x': choose from prob"),
        (
            "rows = [{method = 'gacd'}, {method = 'gacd', hyper = {symmetric = false}}]",
            "rows: 1 is 0 again",
        ),
        (DEEP, "nested too deeply"),
        (f"x{5000 * '.x'} = 1", "nested too deeply"),
        ('x = "\\ud800"', "no TOML file"),
        ("name = ''", "name = ''"),
    ],
)
def test_a_bad_file_is_an_error_of_one_line(
    text: str,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    needs_base = text not in ("", "eps") and not text.startswith(("base", "name = 'x'"))
    head = "base = 'digits'\n" if needs_base else ""
    if needs_base and not text.startswith("name"):
        head += "name = 'mine'\n"
    Path("mine.toml").write_text(head + text)
    assert message in one_line_error(capsys, "run --method natural --suite mine.toml --dry-run")


@pytest.mark.parametrize(
    "command", ["run --method natural", "tune --method natural", "teacher train", "leaderboard"]
)
def test_what_is_no_file_is_refused_by_every_command(
    command: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder.toml").mkdir()
    Path("binary.toml").write_bytes(b"\xff\xfe")
    Path("large.toml").write_text("#" * 20_001)
    Path("device.toml").symlink_to("/dev/zero")
    os.mkfifo("pipe.toml")
    files = sorted(tmp_path.iterdir())
    for name, message in {
        "large.toml": "larger than 20,000 bytes",
        "device.toml": "no regular file",
        "pipe.toml": "no regular file",
        "none.toml": "No such file",
        "folder.toml": "Is a directory",
        "binary.toml": "no TOML file",
        f"{300 * 'a'}.toml": "File name too long",
        "folder": "unknown suite 'folder'",
    }.items():
        assert message in one_line_error(capsys, f"{command} --suite {name}")
    assert sorted(tmp_path.iterdir()) == files


def exit_code(command: str) -> int | str | None:
    with pytest.raises(SystemExit) as stop:
        cli.main(command.split())
    return stop.value.code


def one_line_error(capsys: pytest.CaptureFixture[str], command: str, code: int = 2) -> str:
    capsys.readouterr()
    assert exit_code(command) == code
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1, error
    return error


@pytest.mark.e2e
@pytest.mark.slow
def test_a_suite_file_from_run_to_record(
    suite_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes train, the leaderboard has a section, the record is refused elsewhere."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    suite = read_suite(str(suite_file))
    assert exit_code("run --method rslad,natural --suite mine.toml --workers 2") == 0
    assert exit_code("leaderboard --suite mine.toml") == 0
    assert exit_code(f"leaderboard --suite {suite.name} --out by_name") == 0
    page = Path("leaderboard/leaderboard.md").read_text()
    assert suite.id in page
    assert "rslad" in page
    assert Path("by_name/leaderboard.md").read_text() == page
    assert exit_code("export --suite mine.toml") == 0
    records = sorted(Path("records").glob(f"{suite.id}-*.json"))
    assert len(records) == 3
    error = one_line_error(capsys, f"import {records[0]} --store elsewhere", code=1)
    assert f"unknown suite '{suite.name}'" in error


TRAINING_VALUES = {
    "epochs": 3,
    "batch": 50,
    "lr": 0.03,
    "momentum": 0.5,
    "weight_decay": 0.001,
    "milestones": [0.3, 0.6],
    "schedule": "onecycle",
    "averaging": ["ema"],
    "validate_every": 2,
    "ema_decay": 0.9,
    "swa_start": 0.5,
    "awp": 0.01,
    "nesterov": True,
    "drop_last": False,
    "normalise": False,
    "clamp_start": False,
}
SUITE_VALUES = {
    "version": 7,
    "about": "mine",
    "datasets": ["svhn", "tiny-imagenet"],
    "students": ["resnet8-w8"],
    "eps": 0.3,
    "inner_step": 0.2,
    "inner_steps": 9,
    "norm": "L2",
    "attacks": ["pgd20"],
    "full_checkpoints": ["best", "last"],
    "limit_train": 100,
    "limit_val": 101,
    "limit_test": 102,
    "limit_aa": 103,
    "seeds": [4, 5],
    "cpu_time": "an hour",
}


def test_every_field_can_be_set(tmp_path: Path) -> None:
    fields = {field.name for field in dataclasses.fields(Suite)}
    assert fields - SUITE_VALUES.keys() == {"name", "teachers", "training", "rows"}
    training = {field.name for field in dataclasses.fields(suites.Training)}
    assert training == TRAINING_VALUES.keys()
    for name, value in SUITE_VALUES.items():
        suite = read_text(f"name = 'x'\nbase = 'digits'\n{name} = {json.dumps(value)}", tmp_path)
        expected = tuple(value) if isinstance(value, list) else value
        assert getattr(suite, name) == expected
    for name, value in TRAINING_VALUES.items():
        line = f"{name} = {json.dumps(value)}"
        text = f"name = 'x'\nbase = 'digits'\ntraining.{line}\nteachers.natural.training.{line}"
        suite = read_text(text, tmp_path)
        expected = tuple(value) if isinstance(value, list) else value
        assert getattr(suite.training, name) == expected
        assert getattr(suite.teachers["natural"].training, name) == expected
    teacher = "teachers.robust = {arch = 'resnet18', method = 'pgd_at', limit_aa = 5}"
    robust = read_text(f"name = 'x'\nbase = 'digits'\n{teacher}", tmp_path).teachers["robust"]
    assert (robust.arch, robust.method, robust.limit_aa) == ("resnet18", "pgd_at", 5)


FRESH = """FRESH = replace(
    DIGITS, name="fresh", version=1, about="three epochs", students=("resnet8-w4",)
)
"""


@pytest.mark.e2e
def test_a_suite_touches_exactly_one_file(tmp_path: Path) -> None:
    """List, run, record and leaderboard read a new suite beside the built-in ones."""
    copy_packages(tmp_path)
    module = tmp_path / "bench" / "protocol" / "suites.py"
    start, end = module.read_text().split("ALL = (")
    module.write_text(f"{start}{FRESH}ALL = (FRESH, {end}")
    assert re.search("^  fresh +three epochs", output_of("-m bench list", tmp_path), re.M)
    short = "--limit-train 128 --limit-test 8 --epochs 1"
    text = output_of(f"-m bench run --method natural --suite fresh {short}", tmp_path)
    assert "digits resnet8-w4 natural seed 0: clean" in text
    output_of("-m bench leaderboard", tmp_path)
    assert "fresh@1" in (tmp_path / "leaderboard" / "leaderboard.md").read_text()
