"""Every method against the contract, how methods are found, and what the contract itself finds."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import methods
from bench.cli.commands.run import RunCommandOptions
from methods import contract
from methods.base import Batch, Method, Nets, hp, official
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
    "igdm": ({"base": "trades"}, {"base": "mtard"}),
    "kdiga": ({"inputs": "adv"},),
    "saad": ({"beta": 0.2},),
    "gacd": (
        {"student_input": "both", "symmetric": False},
        {"teacher_input": "adv", "inner": "feature"},
        {"estimator": "infonce", "bank": 16, "weigh": "positive"},
        {"weight": "indicator", "student_input": "clean"},
        {"two_stage": True, "lambda_kd": 0.5},
    ),
}
ROBUST = ("robust",)
BOTH = ("robust", "natural")
ROLES = {
    **dict.fromkeys(("natural", "pgd_at", "trades", "mart", "peeraid"), ()),
    **dict.fromkeys(("iad2", "mtard", "bmtard", "ciard"), BOTH),
}


def cases(name: str) -> list[Method]:
    """A method at its defaults, as `--official` sets it and in its branches."""
    form = methods.load(name)
    values = ({}, official(form), *BRANCHES.get(name, ()))
    return list(dict.fromkeys(form(**each) for each in values))


class TestEveryMethod(Contract):
    cases = tuple(case for name in methods.builtin() for case in cases(name))


def test_reserved_names_cover_the_command_line() -> None:
    assert {field.name for field in dataclasses.fields(RunCommandOptions)} <= contract.RESERVED


@pytest.mark.parametrize("name", methods.builtin())
def test_a_method_fits_on_a_page(name: str) -> None:
    """What is longer shares something with other methods, or could."""
    assert len(Path(methods.__path__[0], f"{name}.py").read_text().splitlines()) < 60


@pytest.mark.parametrize("name", methods.builtin())
def test_teachers_are_asked_for_where_needed(name: str) -> None:
    assert methods.load(name)().requires == ROLES.get(name, ROBUST)


@pytest.mark.parametrize("base", ["pgd_at", "rslad", "mtard"])
def test_igdm_asks_for_its_teacher_and_the_base_s(base: str) -> None:
    case = methods.load("igdm")(base=base)
    assert set(case.requires) == {"robust", *ROLES.get(base, ROBUST)}
    assert case.adversarial


@pytest.mark.parametrize("base", ["igdm", "no such method", "contract", "kd"])
def test_igdm_needs_another_method(base: str) -> None:
    with pytest.raises(ValueError, match="base"):
        methods.load("igdm")(base=base)


# --- How methods are found


def test_unknown_name() -> None:
    for name in ("nonsense", *methods.SUPPORT, ""):
        assert name not in methods.names()
        with pytest.raises(KeyError):
            methods.load(name)


def test_only_what_is_asked_for_is_imported() -> None:
    code = (
        "import sys, methods; methods.names();"
        "assert not {'torch', 'numpy', 'bench', 'methods.base'} & sys.modules.keys();"
        "methods.load('kd'); loaded = {name for name in sys.modules if name.startswith('methods.')};"
        "assert loaded == {'methods.kd', 'methods.base', 'methods.fold', 'methods.inner'}, loaded;"
        "assert not {'bench', 'attacks', 'leaderboards'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- The contract finds what it says it finds: methods with one fault each


def fault(**members: Any) -> Method:
    """KD with something replaced or added; hyper-parameters as name=(type, field)."""
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
    form = type(
        "Fault",
        (Kd,),
        body | {name: field for name, (_, field) in fields.items()} | members.get("extra", {}),
    )
    made: Method = dataclass(frozen=True)(form)()
    return made


def also(act: Callable[[Nets, Batch], Any]) -> Callable[..., dict[str, Tensor]]:
    """KD's loss, after something that it should not do."""

    def loss(self: Kd, nets: Nets, batch: Batch, adv: Tensor) -> dict[str, Tensor]:
        act(nets, batch)
        return Kd.loss(self, nets, batch, adv)

    return loss


def instead(change: Callable[[Tensor, Nets, Batch], Tensor]) -> Callable[..., dict[str, Tensor]]:
    """KD's loss as one term, changed."""

    def loss(self: Kd, nets: Nets, batch: Batch, adv: Tensor) -> dict[str, Tensor]:
        return {"kl": change(contract.total(Kd.loss(self, nets, batch, adv)), nets, batch)}

    return loss


def teach_in_train_mode(nets: Nets, batch: Batch) -> None:
    with mode(nets.teacher, training=True), torch.no_grad():
        nets.teacher(batch.x)


def move_teacher(self: Kd, nets: Nets, batch: Batch) -> None:
    for value in nets.teacher.parameters():
        value.mul_(0.9)


def head_alone(self: Kd, nets: Nets, batch: Batch, adv: Tensor) -> dict[str, Tensor]:
    return {
        "kl": nets.student.head(nets.student.features(batch.x).detach()).logsumexp(dim=1).mean()
    }


COUNT = [0]


def counted(loss: Tensor, nets: Nets, batch: Batch) -> Tensor:
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
        "official_form_is_declared",
        "not negative",
        {"gamma": (float, hp(1.0, "a", low=0.0, high=2.0, official=-1.0))},
    ),
    (
        "official_form_is_declared",
        "no field of the training",
        {"recipe": (("momentum", 0.8, "as in the script"),)},
    ),
    ("official_form_is_declared", "no reason", {"recipe": (("lr", 0.01, " "),)}),
    ("no_flag_is_shadowed", "student", {"student": (str, hp("a", "kind", choices=("a", "b")))}),
    ("values_survive_json", "becomes", {"gamma": (tuple, hp((1, 2), "shares")), **UNCHECKED}),
    ("bad_values_are_refused", "alpha = nan is accepted", UNCHECKED),
    ("terms_are_finite_scalars", "no terms", {"loss": lambda *_: {}}),
    ("terms_are_finite_scalars", "shape", {"loss": instead(lambda loss, nets, batch: loss[None])}),
    (
        "terms_are_finite_scalars",
        "nan",
        {"loss": instead(lambda loss, nets, batch: loss * float("nan"))},
    ),
    (
        "terms_are_finite_scalars",
        "inf",
        {"loss": instead(lambda loss, n, b: loss / (b.y - b.y[0]).count_nonzero())},
    ),
    (
        "terms_are_finite_scalars",
        "is no name",
        {"loss": lambda self, nets, batch, adv: {"a/b": adv.sum()}},
    ),
    ("gradient_reaches_student_and_parts", "reaches student.trunk", {"loss": head_alone}),
    (
        "gradient_reaches_student_and_parts",
        "reaches parts.spare",
        {"build": lambda *_: {"spare": nn.Linear(1, 1)}},
    ),
    (
        "teachers_and_batch_are_untouched",
        "running_mean of teacher",
        {"loss": also(teach_in_train_mode)},
    ),
    ("teachers_and_batch_are_untouched", "weight of teacher", {"after_step": move_teacher}),
    (
        "teachers_and_batch_are_untouched",
        "left eval mode",
        {"loss": also(lambda nets, batch: nets.teacher.linear.train())},
    ),
    (
        "teachers_and_batch_are_untouched",
        "unfrozen",
        {"after_step": lambda s, nets, b: nets.teacher.requires_grad_()},
    ),
    (
        "teachers_and_batch_are_untouched",
        "x was changed",
        {"loss": also(lambda nets, batch: batch.x.mul_(0.5))},
    ),
    (
        "teachers_and_batch_are_untouched",
        "x requires",
        {"loss": also(lambda nets, batch: batch.x.requires_grad_())},
    ),
    (
        "teachers_and_batch_are_untouched",
        "y was changed",
        {"loss": also(lambda nets, batch: batch.y.zero_())},
    ),
    (
        "teachers_and_batch_are_untouched",
        "index was",
        {"after_step": lambda self, nets, batch: batch.index.zero_()},
    ),
    ("modes_are_restored", "another mode", {"loss": also(lambda nets, batch: nets.student.eval())}),
    (
        "modes_are_restored",
        "another mode",
        {"loss": also(lambda nets, batch: nets.student.eval().train())},
    ),
    (
        "modes_are_restored",
        "requires_grad",
        {"loss": also(lambda nets, batch: nets.student.requires_grad_())},
    ),
    (
        "same_seed_same_terms",
        "becomes",
        {"loss": instead(lambda loss, nets, batch: loss * np.random.rand())},
    ),
    ("state_is_saved", "becomes", {"loss": instead(counted)}),
    (
        "attack_stays_in_the_ball",
        "outside the ball",
        {"attack": lambda self, nets, batch: 1 - batch.x},
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
        {"loss": instead(lambda loss, nets, batch: 2 * loss.detach() - loss)},
    ),
    (
        "loss_falls",
        "in epoch 2",
        {
            "loss": instead(
                lambda loss, nets, batch: loss if batch.epoch < 2 else 2 * loss.detach() - loss
            )
        },
    ),
]


@pytest.mark.parametrize(
    ("test", "message", "members"), FAULTS, ids=[f"{test}-{message}" for test, message, _ in FAULTS]
)
def test_contract_finds_the_fault(test: str, message: str, members: dict[str, Any]) -> None:
    check, grid = (
        getattr(Contract(), f"test_{test}"),
        {"classes": 3} if test.startswith(("terms", "gradient")) else {},
    )
    check(case=Kd(), **grid)
    with pytest.raises((AssertionError, ValueError), match=message):
        check(case=fault(**members), **grid)


def test_contract_needs_cases() -> None:
    with pytest.raises(AssertionError, match="set `cases`"):
        Contract().pytest_generate_tests(None)
