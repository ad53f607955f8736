"""Every method against the contract, the lookup of methods, old names, the contract's own tests."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import methods
from bench.api.runs import RunCommandOptions
from methods import base, contract, inner
from methods.base import Batch, Method, Nets, hp, official_values
from methods.contract import Contract
from methods.inner import mode
from methods.kd import Kd
from methods.pgd_at import PgdAt

BRANCHES: dict[str, tuple[dict[str, Any], ...]] = {
    "ard": ({"alpha": 0.7},),
    "iad": ({"begin": 0.5, "detach": True},),
    "adaad": ({"alpha": 0.5},),
    "akd": ({"teacher_input": "clean"},),
    "dgad": ({"swap": False},),
    "fitnet": ({"inputs": "adv"},),
    "igdm": (
        {"base": "trades"},
        {"base": "mtard"},
        {"base": "rslad", "script_base": True, "script_passes": True},
    ),
    "kdiga": (
        {"inputs": "adv"},
        {"inputs": "adv", "train_mode_attack": True, "script_passes": True},
    ),
    "saad": ({"beta": 0.2},),
    "gacd": (
        {"student_input": "both", "symmetric": True},
        {"teacher_input": "clean", "inner": "feature"},
        {"estimator": "infonce", "bank": 16, "weigh": "positive"},
        {"weight": "indicator", "student_input": "clean"},
        {"two_stage": True, "lambda_kd": 0.5},
    ),
}
ROBUST = ("robust",)
BOTH = ("robust", "natural")
ROLES = {
    **dict.fromkeys(("natural", "pgd_at", "trades", "mart", "peeraid", "lbgat", "gkl_at"), ()),
    **dict.fromkeys(("iad2", "mtard", "bmtard", "ciard", "dard"), BOTH),
}


def cases(name: str) -> list[Method]:
    """Return a method at its defaults, as `--official` sets it and in its branches."""
    method_class = methods.load(name)
    settings = ({}, official_values(method_class), *BRANCHES.get(name, ()))
    return list(dict.fromkeys(method_class(**values) for values in settings))


class TestEveryMethod(Contract):
    cases = tuple(case for name in methods.builtin() for case in cases(name))


def test_reserved_names_cover_the_command_line() -> None:
    assert {field.name for field in dataclasses.fields(RunCommandOptions)} <= contract.RESERVED


@pytest.mark.parametrize("name", methods.builtin())
def test_teacher_roles(name: str) -> None:
    assert methods.load(name)().teacher_roles == ROLES.get(name, ROBUST)


@pytest.mark.parametrize("base", ["pgd_at", "rslad", "mtard"])
def test_igdm_reads_its_teacher_and_those_of_the_base(base: str) -> None:
    case = methods.load("igdm")(base=base)
    assert set(case.teacher_roles) == {"robust", *ROLES.get(base, ROBUST)}
    assert case.adversarial


@pytest.mark.parametrize("base", ["igdm", "no such method", "contract", "kd"])
def test_igdm_refuses_itself_and_methods_without_an_attack(base: str) -> None:
    with pytest.raises(ValueError, match="base"):
        methods.load("igdm")(base=base)


def test_epoch_dependent_methods() -> None:
    """All others' captured steps serve in every epoch."""
    dependent = {name for name in methods.builtin() if methods.load(name)().epoch_dependent}
    by_class = {"absld", "fair_rslad", "gkl", "gkl_at"}
    assert dependent == by_class | {"bmtard", "ciard", "igdm", "mtard"}


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("adaiad", {"begin": 0.3}),
        ("gacd", {"two_stage": True}),
        ("iad", {"begin": 0.3}),
        ("iad2", {"begin": 0.2}),
        ("saad", {"ramp": True}),
    ],
)
def test_hyper_parameters_that_make_a_method_epoch_dependent(
    name: str, values: dict[str, Any]
) -> None:
    assert not methods.load(name)().epoch_dependent
    assert methods.load(name)(**values).epoch_dependent


# --- Lookup


def test_unknown_name() -> None:
    for name in ("nonsense", "base", "contract", "inner", "__init__", ""):
        assert name not in methods.names()
        with pytest.raises(KeyError):
            methods.load(name)


def test_built_in_methods_are_the_files_that_declare_one() -> None:
    for name in methods.builtin():
        assert import_module(f"methods.{name}").METHOD is methods.load(name)
    shared = {path.stem for path in Path(methods.__path__[0]).glob("*.py")} - {*methods.builtin()}
    for name in shared - {"__init__"}:
        assert not hasattr(import_module(f"methods.{name}"), "METHOD")


def test_only_the_loaded_method_is_imported() -> None:
    code = """
import sys, methods
methods.names()
assert not {'torch', 'numpy', 'bench', 'methods.base'} & sys.modules.keys()
methods.load('natural')
imported = {name for name in sys.modules if name.startswith('methods.')}
names = ('natural', 'base', 'fold', 'inner', 'outside', 'renamed')
assert imported == {f'methods.{name}' for name in names}
assert not {'bench', 'attacks', 'leaderboards'} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", code], check=True)


# --- Plugins that were written for the old names


OLD_PLUGIN = '''"""After no paper."""
from dataclasses import dataclass
from methods.base import Method, hp, kl, official, scale, trust
from methods.inner import full, images_alone, kl_to, pgd, settled

@dataclass(frozen=True)
class Old(Method):
    """KL(T(x) || S(x~)) + beta mean p_T(y | x~) KL(N(x~) || S(x~))."""

    requires = ("robust", "natural")
    beta: float = hp(1.0, "weight of the natural teacher", low=0.0, high=2.0)

    def groups(self, nets):
        return [{**group, "scale": 0.5} for group in super().groups(nets)]

    def attack(self, nets, batch):
        with images_alone(nets.student):
            target = settled(nets.student, batch.x) + full(nets.clean(batch, "natural"))
        return pgd(nets.student, batch.x, kl_to(target), batch.budget)

    def loss(self, nets, batch, adv):
        logits, weight = nets.student(adv), trust(nets.at(adv), batch.y)
        return {
            "kl_adv": scale("batchmean", logits.shape[1]) * kl(nets.clean(batch), logits).mean(),
            "kl": self.beta * (weight * kl(nets.at(adv, "natural"), logits)).mean(),
        }

@dataclass(frozen=True)
class Older(Old):
    """The same, for the robust teacher beside the base's."""

    @property
    def requires(self):
        return (*super().requires,)

class Mixin:
    """What an outside package shares between its methods."""

    requires = ("robust", "natural")

    def groups(self, nets):
        return [{"params": [*nets.student.parameters()], "scale": 0.5}]

@dataclass(frozen=True)
class Mixed(Mixin, Method):
    """KL(N(x) || S(x))."""

    def loss(self, nets, batch, adv):
        return {"kl": kl(nets.clean(batch, "natural"), nets.student(batch.x)).mean()}
'''


@pytest.fixture
def old_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """A module as a package from outside would have it."""
    (tmp_path / "old_plugin.py").write_text(OLD_PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    yield import_module("old_plugin")
    del sys.modules["old_plugin"]


@pytest.mark.parametrize("name", ["Old", "Older", "Mixed"])
def test_a_plugin_for_the_old_names_trains(old_plugin: ModuleType, name: str) -> None:
    case = getattr(old_plugin, name)()
    assert case.teacher_roles == case.requires == BOTH
    nets = contract.networks(case)
    (group,) = case.param_groups(nets)
    assert group["scale"] == 0.5
    losses = contract.train(case, nets, [contract.images([0, 1, 2] * 4)] * 20)
    assert sum(losses[-4:]) < sum(losses[:4])
    assert old_plugin.official is official_values


@pytest.mark.parametrize("name", ["Old", "Older"])
def test_a_plugin_for_the_old_names_keeps_the_contract(old_plugin: ModuleType, name: str) -> None:
    case, tests = getattr(old_plugin, name)(), Contract()
    tests.test_state_is_saved(case)
    tests.test_teachers_and_batch_are_untouched(case)
    tests.test_attack_is_declared(case)


def test_built_in_methods_have_the_old_names_too() -> None:
    """For plugins that derive from one."""
    ciard, nets = methods.load("ciard")(), contract.networks(methods.load("ciard")())
    assert ciard.requires == ciard.teacher_roles
    assert len(ciard.groups(nets)) == len(ciard.param_groups(nets)) == 2


def test_names_that_never_were_are_errors() -> None:
    nets = contract.networks(Kd())
    for owner in (nets, base, inner):
        with pytest.raises(AttributeError, match="no_such_name"):
            owner.no_such_name  # noqa: B018


# --- The contract reports a method with one fault


def faulty_method(**members: Any) -> Method:
    """Return KD with members replaced or added; hyper-parameters are name=(type, field)."""
    fields = {
        name: value
        for name, value in members.items()
        if isinstance(value, tuple) and name != "recipe"
    }
    body = {name: value for name, value in members.items() if name not in fields}
    body |= {
        "__doc__": "Faulty.",
        "__module__": __name__,
        "__annotations__": {n: kind for n, (kind, _) in fields.items()},
    }
    method_class = type(
        "Fault",
        (Kd,),
        body | {name: field for name, (_, field) in fields.items()} | members.get("extra", {}),
    )
    method: Method = dataclass(frozen=True)(method_class)()
    return method


def loss_after(act: Callable[[Nets, Batch], Any]) -> Callable[..., dict[str, Tensor]]:
    """Return KD's loss after an act that the contract forbids."""

    def loss(self: Kd, nets: Nets, batch: Batch, adv: Tensor) -> dict[str, Tensor]:
        act(nets, batch)
        return Kd.loss(self, nets, batch, adv)

    return loss


def changed_loss(
    change: Callable[[Tensor, Nets, Batch], Tensor],
) -> Callable[..., dict[str, Tensor]]:
    """Return KD's loss as one term, changed."""

    def loss(self: Kd, nets: Nets, batch: Batch, adv: Tensor) -> dict[str, Tensor]:
        return {"kl": change(contract.total(Kd.loss(self, nets, batch, adv)), nets, batch)}

    return loss


def run_teacher_in_train_mode(nets: Nets, batch: Batch) -> None:
    with mode(nets.teacher, training=True), torch.no_grad():
        nets.teacher(batch.x)


def move_teacher(self: Kd, nets: Nets, batch: Batch) -> None:
    for value in nets.teacher.parameters():
        value.mul_(0.9)


def train_head_only(self: Kd, nets: Nets, batch: Batch, adv: Tensor) -> dict[str, Tensor]:
    return {
        "kl": nets.student.head(nets.student.features(batch.x).detach()).logsumexp(dim=1).mean()
    }


COUNT = [0]


def count_steps(loss: Tensor, nets: Nets, batch: Batch) -> Tensor:
    COUNT[0] += 1
    return loss * COUNT[0]


UNCHECKED = {"__post_init__": lambda self: None}
FAULTS: list[tuple[str, str, dict[str, Any]]] = [
    ("is_documented", "docstring is @dataclass's own", {"extra": {"__doc__": None}}),
    ("is_documented", "docstring: state the formula", {"extra": {"__doc__": " "}}),
    (
        "hyper_parameters_are_declared",
        "declare it",
        {"gamma": (float, dataclasses.field(default=1.0))},
    ),
    (
        "hyper_parameters_are_declared",
        "no help",
        {"gamma": (float, hp(1.0, "", low=0.0, high=2.0))},
    ),
    (
        "hyper_parameters_are_declared",
        "no search range",
        {"gamma": (float, hp(1.0, "share", low=0.0))},
    ),
    (
        "hyper_parameters_are_declared",
        "0.0 <= 3.0 <= 2.0",
        {"gamma": (float, hp(3.0, "share", low=0.0, high=2.0))},
    ),
    (
        "hyper_parameters_are_declared",
        "2.0 < 1.0",
        {"gamma": (float, hp(1.5, "share", low=2.0, high=1.0))},
    ),
    (
        "hyper_parameters_are_declared",
        "starts above 0",
        {"gamma": (float, hp(1.0, "a", low=0.0, high=2.0, log=True))},
    ),
    (
        "hyper_parameters_are_declared",
        "not of type float",
        {"gamma": (float, hp(1, "share", low=0.0, high=2.0))},
    ),
    (
        "hyper_parameters_are_declared",
        "no flag's type",
        {"gamma": (tuple, hp((1, 2), "shares")), **UNCHECKED},
    ),
    (
        "hyper_parameters_are_declared",
        "a choice's type",
        {"gamma": (str, hp("a", "kind", choices=("a", 1)))},
    ),
    (
        "official_values_are_declared",
        "not negative",
        {"gamma": (float, hp(1.0, "a", low=0.0, high=2.0, official=-1.0))},
    ),
    (
        "official_values_are_declared",
        "no field of the training",
        {"recipe": (("momentum", 0.8, "as in the script"),)},
    ),
    ("official_values_are_declared", "no reason", {"recipe": (("lr", 0.01, " "),)}),
    ("no_flag_is_shadowed", "student", {"student": (str, hp("a", "kind", choices=("a", "b")))}),
    ("values_survive_json", "becomes", {"gamma": (tuple, hp((1, 2), "shares")), **UNCHECKED}),
    ("bad_values_are_refused", "alpha = nan is accepted", UNCHECKED),
    ("terms_are_finite_scalars", "no terms", {"loss": lambda *_: {}}),
    (
        "terms_are_finite_scalars",
        "shape",
        {"loss": changed_loss(lambda loss, nets, batch: loss[None])},
    ),
    (
        "terms_are_finite_scalars",
        "nan",
        {"loss": changed_loss(lambda loss, nets, batch: loss * float("nan"))},
    ),
    (
        "terms_are_finite_scalars",
        "inf",
        {"loss": changed_loss(lambda loss, n, b: loss / (b.y - b.y[0]).count_nonzero())},
    ),
    (
        "terms_are_finite_scalars",
        "is no name",
        {"loss": lambda self, nets, batch, adv: {"a/b": adv.sum()}},
    ),
    ("gradient_reaches_student_and_parts", "reaches student.trunk", {"loss": train_head_only}),
    (
        "gradient_reaches_student_and_parts",
        "reaches parts.spare",
        {"build": lambda *_: {"spare": nn.Linear(1, 1)}},
    ),
    (
        "teachers_and_batch_are_untouched",
        "running_mean of teacher",
        {"loss": loss_after(run_teacher_in_train_mode)},
    ),
    ("teachers_and_batch_are_untouched", "weight of teacher", {"after_step": move_teacher}),
    (
        "teachers_and_batch_are_untouched",
        "left eval mode",
        {"loss": loss_after(lambda nets, batch: nets.teacher.linear.train())},
    ),
    (
        "teachers_and_batch_are_untouched",
        "unfrozen",
        {"after_step": lambda s, nets, b: nets.teacher.requires_grad_()},
    ),
    (
        "teachers_and_batch_are_untouched",
        "x was changed",
        {"loss": loss_after(lambda nets, batch: batch.x.mul_(0.5))},
    ),
    (
        "teachers_and_batch_are_untouched",
        "x requires",
        {"loss": loss_after(lambda nets, batch: batch.x.requires_grad_())},
    ),
    (
        "teachers_and_batch_are_untouched",
        "y was changed",
        {"loss": loss_after(lambda nets, batch: batch.y.zero_())},
    ),
    (
        "teachers_and_batch_are_untouched",
        "index was",
        {"after_step": lambda self, nets, batch: batch.index.zero_()},
    ),
    (
        "monitored_values_are_finite_scalars",
        "no buffer of a part",
        {"monitor": lambda self, nets: {"mean": torch.zeros(())}},
    ),
    (
        "modes_are_restored",
        "another mode",
        {"loss": loss_after(lambda nets, batch: nets.student.eval())},
    ),
    (
        "modes_are_restored",
        "another mode",
        {"loss": loss_after(lambda nets, batch: nets.student.eval().train())},
    ),
    (
        "modes_are_restored",
        "requires_grad",
        {"loss": loss_after(lambda nets, batch: nets.student.requires_grad_())},
    ),
    (
        "same_seed_same_terms",
        "becomes",
        {"loss": changed_loss(lambda loss, nets, batch: loss * np.random.rand())},
    ),
    ("state_is_saved", "becomes", {"loss": changed_loss(count_steps)}),
    (
        "epoch_dependence_is_declared",
        "kl is another in epoch 150",
        {
            "epoch_dependent": False,
            "loss": changed_loss(lambda loss, nets, batch: loss * batch.progress),
        },
    ),
    (
        "epoch_dependence_is_declared",
        "in epoch 299",
        {
            "epoch_dependent": False,
            "loss": changed_loss(lambda loss, nets, batch: loss * (2 - batch.reached(0.9))),
        },
    ),
    (
        "epoch_dependence_is_declared",
        "parts.steps.running_mean is another",
        {
            "epoch_dependent": False,
            "build": lambda *_: {"steps": nn.BatchNorm1d(1, affine=False)},
            "after_step": lambda self, nets, batch: nets.parts["steps"].running_mean.fill_(
                batch.epoch
            ),
        },
    ),
    (
        "epoch_dependence_is_declared",
        "the attack is another",
        {
            "epoch_dependent": False,
            "attack": lambda self, nets, batch: batch.x * (1 - 0.1 * batch.reached(0.3)),
        },
    ),
    (
        "attack_stays_in_the_ball",
        "outside the ball in Linf",
        {"attack": lambda self, nets, batch: 1 - batch.x},
    ),
    (
        "attack_stays_in_the_ball",
        "outside the ball in L2",
        {"attack": lambda self, nets, batch: (batch.x + batch.budget.eps).clamp(0, 1)},
    ),
    (
        "attack_stays_in_the_ball",
        "outside .0, 1.",
        {"attack": lambda self, nets, batch: batch.x - 0.09},
    ),
    (
        "attack_stays_in_the_ball",
        "require",
        {"attack": lambda self, nets, batch: batch.x.clone().requires_grad_()},
    ),
    ("attack_is_declared", "adversarial = True", {"adversarial": True}),
    ("attack_is_declared", "adversarial = True", {"attack": PgdAt.attack}),
    (
        "attack_is_declared",
        "adversarial = False",
        {"adversarial": False, "attack": PgdAt.attack, "loss": PgdAt.loss},
    ),
    (
        "loss_falls",
        "in epoch 0",
        {"loss": changed_loss(lambda loss, nets, batch: 2 * loss.detach() - loss)},
    ),
    (
        "loss_falls",
        "in epoch 2",
        {
            "loss": changed_loss(
                lambda loss, nets, batch: loss if batch.epoch < 2 else 2 * loss.detach() - loss
            )
        },
    ),
]


@pytest.mark.parametrize(
    ("test", "message", "members"), FAULTS, ids=[f"{test}-{message}" for test, message, _ in FAULTS]
)
def test_contract_reports_the_fault(test: str, message: str, members: dict[str, Any]) -> None:
    check = getattr(Contract(), f"test_{test}")
    grid = {"classes": 3} if test.startswith(("terms", "gradient")) else {}
    check(case=Kd(), **grid)
    with pytest.raises((AssertionError, ValueError), match=message):
        check(case=faulty_method(**members), **grid)


def test_contract_needs_cases() -> None:
    with pytest.raises(AssertionError, match="set `cases`"):
        Contract().pytest_generate_tests(None)
