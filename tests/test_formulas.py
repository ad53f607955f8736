"""Every method against its formula in NumPy: values, gradients, attacks, identities, state."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable
from typing import Any

import formulas
import numpy as np
import pytest
import torch
from formulas import LABELS, NONE, REFERENCES, SOME, Array, At, Normed, flat_batch, flat_nets
from torch import Tensor, nn

import methods
from bench.training.awp import perturbed_weights
from methods import base, contract
from methods.absld import Absld, ClassTemperatures
from methods.adaad import Adaad
from methods.adaiad import Adaiad
from methods.adaptive import TeacherTemperatures, rate_decay
from methods.akd import Akd
from methods.ard import Ard
from methods.base import Batch, Budget, Method, Net, Nets, kl, official_values
from methods.bmtard import Bmtard
from methods.ciard import Ciard
from methods.contract import label
from methods.contrast import Contrast
from methods.crd import Contrastive, Crd
from methods.crd_adv import CrdAdv
from methods.crdnd import Crdnd, denoising_matrix
from methods.dard import Dard
from methods.dgad import Dgad
from methods.fair_rslad import FairRslad
from methods.fitnet import Fitnet
from methods.gacd import Gacd
from methods.gkl import ClassPrior, Gkl, soft_ce, weighted_mse
from methods.gkl_at import GklAt
from methods.iad import Iad
from methods.iad2 import Iad2
from methods.igdm import Igdm
from methods.inner import Objective, eval_logits, kl_between, mode, pgd
from methods.kd import Kd
from methods.kdiga import Kdiga
from methods.lbgat import Lbgat
from methods.mart import Mart
from methods.mtard import Balance, Mtard
from methods.natural import Natural
from methods.peeraid import Peeraid
from methods.pgd_at import PgdAt
from methods.rrm import Rrm
from methods.rslad import Rslad
from methods.saad import Saad
from methods.trades import Trades
from methods.vgap import Vgap

# --- Values and gradients, at random images

SWITCHES: tuple[dict[str, Any], ...] = (
    {"student_input": "clean"},
    {"student_input": "both"},
    {"teacher_input": "clean"},
    {"estimator": "infonce"},
    {"tau": 0.5},
    {"dim": 32},
    {"symmetric": True},
    {"symmetric": True, "teacher_input": "clean"},
    {"weight": "indicator"},
    {"weight": "none"},
    {"beta": 0.3},
    {"weigh": "positive"},
    {"lambda_ce": 0.5},
    {"lambda_con": 0.3},
    {"lambda_kd": 0.5},
    {"student_input": "both", "lambda_kd": 0.5, "tau_kd": 2.0},
    {"estimator": "infonce", "symmetric": True, "weigh": "positive"},
)
METHODS = {name: methods.load(name) for name in methods.builtin()}
CASES: tuple[Method, ...] = tuple(
    dict.fromkeys(
        (
            *(method() for method in METHODS.values()),
            *(method(**official_values(method)) for method in METHODS.values()),
            Absld(alpha=0.6, aliased=True),
            Adaad(alpha=0.6),
            Adaiad(tau=2.0, beta=0.7),
            Akd(alpha=0.3, tau=2.0, teacher_input="clean"),
            Ard(alpha=0.7, tau=3.0),
            Bmtard(reduction="tenth"),
            Ciard(begin=1.0, push=0.4),
            Crd(estimator="infonce", tau=0.5, symmetric=False),
            CrdAdv(lambda_con=0.5),
            Crdnd(clean_share=0.6, tau=0.3),
            Dard(alpha=0.4),
            Dgad(beta=2.0, swap=False),
            FairRslad(alpha=0.6),
            Fitnet(inputs="adv", beta=3.0),
            Gkl(alpha=1.5, beta=3.0, gamma=0.2),
            GklAt(alpha=1.5, beta=3.0, gamma=0.2, tau=1.0),
            Iad(beta=0.7, tau=2.0),
            Iad(beta=1.0, detach=True),
            Iad(begin=0.7),
            Iad2(alpha_robust=0.3, alpha_natural=0.1, beta=0.8, tau=2.0),
            Iad2(begin=0.7),
            *(
                Igdm(base=name, alpha=7.0)
                for name in ("pgd_at", "trades", "iad", "rslad", "bmtard", "peeraid")
            ),
            Kd(alpha=0.3, tau=2.0),
            *(Igdm(base=name, alpha=7.0, script_base=True) for name in ("ard", "rslad", "trades")),
            Kdiga(inputs="adv", alpha=0.3, gamma=2.0, tau=3.0),
            Kdiga(gamma=2.0, gradient_norm="batch"),
            Lbgat(beta=2.0),
            Mart(beta=2.0),
            Peeraid(tau=2.0, l2=0.7, l3=0.3, g1=0.4, g2=0.9),
            Rrm(alpha=0.4),
            Rslad(alpha=0.6),
            Saad(alpha=3.0, beta=0.4),
            Saad(beta=0.4, shifted=True),
            Trades(beta=2.0),
            Vgap(alpha=0.6, beta=7.0),
            *(Gacd(**switch) for switch in SWITCHES),
        )
    )
)
# Their losses pass through single precision.
SINGLE_PRECISION = (Absld, Contrastive, Crdnd, Rrm, Saad)


def test_every_method_has_a_formula() -> None:
    assert REFERENCES.keys() == METHODS.keys()


@pytest.mark.parametrize("case", CASES, ids=label)
def test_value_and_gradient(case: Method) -> None:
    """Of each term, along a random direction of the student's weights and of each part's."""
    nets, batch = with_unequal_state(flat_nets(case)), flat_batch()
    random = torch.Generator().manual_seed(6)
    adv = random_images(batch) if case.adversarial else batch.x
    at = At(case, nets, batch, adv)
    precision = (
        {"rel": 1e-3, "abs": 1e-4}
        if isinstance(case, SINGLE_PRECISION)
        else {"rel": 1e-6, "abs": 1e-8}
    )
    terms, expected = case.loss(nets, batch, adv), reference_terms(at)
    assert terms.keys() == expected.keys()
    for name, term in terms.items():
        assert term.item() == pytest.approx(
            expected[name], rel=1e-5 if isinstance(case, SINGLE_PRECISION) else 1e-12
        ), name
    for part, module in {"student": nets.student, **nets.parts}.items():
        values = list(module.parameters())
        direction = [
            torch.randn(value.shape, generator=random, dtype=torch.float64) for value in values
        ]
        slopes = difference_quotient(at, values, direction)
        for name, term in terms.items() if values else ():
            gradients = torch.autograd.grad(term, values, allow_unused=True, retain_graph=True)
            slope = 0.0
            for gradient, d in zip(gradients, direction, strict=True):
                slope += 0.0 if gradient is None else (gradient * d).sum().item()
            assert slope == pytest.approx(slopes[name], **precision), f"{name} by {part}"


def reference_terms(at: At) -> formulas.Terms:
    names = {method: name for name, method in METHODS.items()}
    return REFERENCES[names[type(at.m)]](at)


def difference_quotient(
    at: At, values: list[Tensor], direction: list[Tensor], width: float = 1e-5
) -> formulas.Terms:
    """Return the difference quotients of the formula's terms."""
    terms = []
    for sign in (1, -2, 1):
        for value, d in zip(values, direction, strict=True):
            value.data.add_(d, alpha=sign * width)
        terms.append(reference_terms(at))
    return {name: (terms[0][name] - terms[1][name]) / (2 * width) for name in terms[0]}


def with_unequal_state(nets: Nets) -> Nets:
    """Make adapted weights and temperatures differ, as after some training."""
    for name, buffer in nets.parts.named_buffers():
        if name.endswith(("weights", "tau", "prior")):
            buffer.copy_(torch.linspace(0.6, 1.4, buffer.numel()).view_as(buffer))
    return nets


def random_images(batch: Batch) -> Tensor:
    noise = torch.rand(
        batch.x.shape, generator=torch.Generator().manual_seed(6), dtype=torch.float64
    )
    return (batch.x + 0.4 * (noise - 0.5)).clamp(0, 1)


def test_inputs_take_both_branches() -> None:
    """Teachers are right on some images and wrong on others, at x~ not on the same as at x."""
    batch = flat_batch()
    at = At(Mtard(), flat_nets(Mtard()), batch, random_images(batch))
    right = [(z.argmax(axis=1) == at.y).tolist() for z in (at.t, at.t_adv, at.n, at.n_adv)]
    assert all(0 < sum(each) < len(LABELS) for each in right)
    assert right[0] != right[1]


# --- Inner problems


@dataclasses.dataclass
class AttackCall:
    """The arguments of a method's call of `pgd`."""

    objective: Objective
    budget: Budget
    start: str
    train: bool


def record_attack(case: Method, nets: Nets, batch: Batch) -> AttackCall:
    """Check that the student is attacked at x and that its examples are returned."""
    calls, adv = [], batch.x.clone()

    def spy(
        net: nn.Module,
        x: Tensor,
        objective: Objective,
        budget: Budget,
        start="uniform",
        train=False,
    ) -> Tensor:
        assert net is nets.student
        assert x is batch.x
        calls.append(AttackCall(objective, budget, start, train))
        return adv

    with pytest.MonkeyPatch.context() as patch:
        for name, module in list(sys.modules.items()):
            if name.startswith("methods.") and name != "methods.inner" and hasattr(module, "pgd"):
                patch.setattr(module, "pgd", spy)
        assert case.attack(nets, batch) is adv
    (call,) = calls
    return call


INNER: tuple[tuple[Callable[[At], Array], str, tuple[Method, ...]], ...] = (
    (
        formulas.true_label,
        "uniform",
        (PgdAt(), Ard(), Iad(), Iad2(), Akd(), CrdAdv(), Gacd(), Igdm(base="ard")),
    ),
    (formulas.true_label, "uniform", (Fitnet(inputs="adv"), Kdiga(inputs="adv"))),
    (formulas.true_label, "gauss", (Mart(), Mtard(), Bmtard(), Ciard())),
    (formulas.teacher_clean, "gauss", (Rslad(), FairRslad(), Crdnd(), Gkl(), Vgap())),
    (formulas.teacher_softened, "gauss", (Absld(), Absld(aliased=True))),
    (formulas.teacher_adv, "gauss", (Adaad(), Adaiad(), Dgad(), Igdm())),
    (formulas.own_clean, "gauss", (Trades(), GklAt(), Lbgat())),
    (formulas.dice_of_the_first_step, "none", (Dard(),)),
    (formulas.peer_clean, "gauss", (Peeraid(),)),
    (formulas.linearised, "gauss", (Saad(), Saad(slope=0.3))),
    (formulas.feature_angle, "gauss", (Gacd(inner="feature"),)),
)


@pytest.mark.parametrize(
    ("case", "expected", "start"),
    [(case, expected, start) for expected, start, cases in INNER for case in cases],
    ids=lambda value: label(value) if isinstance(value, Method) else "",
)
def test_inner_problem(case: Method, expected: Callable[[At], Array], start: str) -> None:
    """Objective, gradient, start and budget of the attack."""
    nets, batch = with_unequal_state(flat_nets(case)), flat_batch()
    call = record_attack(case, nets, batch)
    probe = random_images(batch).requires_grad_()
    direction = torch.randn(
        probe.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64
    )
    value = call.objective(nets.student, probe)
    (gradient,) = torch.autograd.grad(value, probe)
    at, up, down = (
        expected(At(case, nets, batch, probe.detach() + width * direction)).sum()
        for width in (0, 1e-5, -1e-5)
    )
    assert value.item() == pytest.approx(at, rel=1e-5)
    assert (gradient * direction).sum().item() == pytest.approx((up - down) / 2e-5, rel=1e-4)
    assert (call.budget, call.start, call.train) == (SOME, start, False)


def test_every_attack_has_an_objective() -> None:
    covered = {type(case) for _, _, cases in INNER for case in cases}
    assert covered >= {method for method in METHODS.values() if method().adversarial}


@pytest.mark.parametrize("name", ["ard", "dard", "iad", "iad2"])
def test_official_attack_in_train_mode(name: str) -> None:
    case = METHODS[name](**official_values(METHODS[name]))
    assert record_attack(case, flat_nets(case), flat_batch()).train


@pytest.mark.parametrize("train", [False, True])
def test_kdiga_s_attack_in_train_mode(train: bool) -> None:
    case = Kdiga(inputs="adv", train_mode_attack=train)
    assert record_attack(case, flat_nets(case), flat_batch()).train == train


@pytest.mark.parametrize("case", [Natural(), Kd(), Crd(), Rrm(), Fitnet(), Kdiga()], ids=label)
def test_no_attack(case: Method) -> None:
    assert torch.equal(case.attack(flat_nets(case), flat_batch()), flat_batch().x)


@pytest.mark.parametrize("case", [Trades(), Peeraid(), GklAt(), Lbgat()], ids=label)
def test_target_of_the_attack_is_of_eval_mode(case: Method) -> None:
    """The objective is zero where net and target agree in eval mode, and is not in train mode."""
    nets, batch = contract.networks(case), contract.images(LABELS)
    objective = record_attack(case, nets, batch).objective
    twin = dict(nets.parts).get("peer", nets.student)
    for training in (False, True):
        with mode(twin, training):
            value = objective(twin, batch.x).item()
        assert (abs(value) < 1e-6) != training


OFFICIAL: dict[str, dict[str, Any]] = {
    "absld": {"aliased": True, "reduction": "tenth", "class_sums": True},
    "adaad": {"reduction": "mean10", "extra_forward": True},
    "adaiad": {
        **{"tau": 30.0, "begin": 60 / 200, "trust_all": True, "plain_self": True},
        "script_passes": True,
    },
    "ard": {"reduction": "mean", "train_mode_attack": True, "extra_forward": True},
    "bmtard": {"reduction": "tenth", "early_weights": True},
    "ciard": {"train_mode_teacher": True, "reduction": "mean", "script_passes": True},
    "crd": {"memory": 16384},
    "crdnd": {"denoise": False},
    "dard": {"train_mode_attack": True, "resoftened": True},
    "dgad": {"script_passes": True},
    "fair_rslad": {"reduction": "mean", "class_sums": True},
    "iad": {"begin": 60 / 200, "trust_all": True, "plain_self": True, "train_mode_attack": True},
    "iad2": {"begin": 40 / 200, "train_mode_attack": True},
    "igdm": {"script_base": True, "script_passes": True},
    "kdiga": {
        **{"reduction": "mean", "gradient_norm": "batch"},
        **{"train_mode_attack": True, "script_passes": True},
    },
    "mart": {"script_passes": True},
    "mtard": {"reduction": "tenth", "early_weights": True},
    "peeraid": {"reduction": "mean", "detach": False},
    "rslad": {"reduction": "tenth"},
    "saad": {"shifted": True, "ramp": True, "script_passes": True},
    "trades": {"script_passes": True},
}


@pytest.mark.parametrize("name", METHODS)
def test_official_values(name: str) -> None:
    """The epochs at which the scripts switch are shares of all epochs."""
    assert official_values(METHODS[name]) == OFFICIAL.get(name, {})


# --- BatchNorm: each forward in train mode counts


@pytest.mark.parametrize(
    ("case", "count"),
    [
        *(
            (method(), 1)
            for method in (
                Natural,
                Kd,
                PgdAt,
                Ard,
                Adaad,
                Akd,
                Crd,
                CrdAdv,
                Fitnet,
                Dard,
                Gacd,
                Kdiga,
                Rrm,
            )
        ),
        *(
            (method(), 2)
            for method in (
                Absld,
                Adaiad,
                Bmtard,
                Ciard,
                Crdnd,
                Dgad,
                FairRslad,
                Iad,
                Iad2,
                Mart,
                Mtard,
            )
        ),
        *((method(), 2) for method in (Peeraid, Rslad, Saad, Trades)),
        *((method(), 2) for method in (Gkl, GklAt, Lbgat, Vgap)),
        (Dard(train_mode_attack=True), 1 + contract.BUDGET.steps),
        (Adaad(alpha=0.5), 2),
        (Adaad(extra_forward=True), 2),
        (Ard(alpha=0.5), 2),
        (Ard(extra_forward=True), 2),
        (Ard(extra_forward=True, alpha=0.5), 2),
        (Kdiga(inputs="adv", train_mode_attack=True), 2 + contract.BUDGET.steps),
        (
            Kdiga(inputs="adv", train_mode_attack=True, script_passes=True),
            3 + contract.BUDGET.steps,
        ),
        (Ard(train_mode_attack=True), 1 + contract.BUDGET.steps),
        (Iad(train_mode_attack=True), 2 + contract.BUDGET.steps),
        (Iad2(train_mode_attack=True), 2 + contract.BUDGET.steps),
        (Fitnet(inputs="adv"), 1),
        (Gacd(inner="feature"), 1),
        (Gacd(student_input="clean"), 2),
        (Gacd(student_input="both"), 2),
        (Igdm(), 3),
        (Mart(script_passes=True), 2),
        (Trades(script_passes=True), 3),
        (Ciard(script_passes=True), 2),
        (Kdiga(inputs="adv"), 2),
        (Saad(beta=0.2), 3),
    ],
    ids=lambda value: label(value) if isinstance(value, Method) else "",
)
def test_forwards_that_move_batch_statistics(case: Method, count: int) -> None:
    nets = contract.networks(case)
    contract.terms(case, nets, contract.images(LABELS))
    assert nets.student.get_buffer("trunk.1.num_batches_tracked") == count


@pytest.mark.parametrize(
    ("case", "part"),
    [
        (Peeraid(), "peer"),
        (Lbgat(), "natural"),
        (Ciard(train_mode_teacher=True), "teacher"),
    ],
)
def test_a_part_s_batch_statistics_move_once(case: Method, part: str) -> None:
    nets = contract.networks(case)
    contract.terms(case, nets, contract.images(LABELS))
    assert nets.parts[part].get_buffer("trunk.1.num_batches_tracked") == 1


def test_ciard_s_teacher_is_in_eval_mode() -> None:
    nets = contract.networks(Ciard())
    contract.terms(Ciard(), nets, contract.images(LABELS))
    assert nets.parts["teacher"].get_buffer("trunk.1.num_batches_tracked") == 0


def normed_nets(case: Method) -> Nets:
    """Build a student in train mode, teachers in eval mode and no parts."""
    torch.manual_seed(0)
    teachers: dict[str, Net] = {role: Normed(7, 3).double().eval() for role in case.teacher_roles}
    return Nets(Normed(5, 3).double().train(), teachers, nn.ModuleDict())


def running_statistics(net: nn.Module, passes: list[Tensor]) -> tuple[Array, Array]:
    """Return running mean and unbiased variance of `Normed` after these passes, in NumPy."""
    mean, variance = np.zeros(5), np.ones(5)
    for x in passes:
        z = formulas.linear(net.get_submodule("first"), 2 * x.numpy().reshape(len(x), -1) - 1)
        mean = 0.9 * mean + 0.1 * z.mean(axis=0)
        variance = 0.9 * variance + 0.1 * z.var(axis=0, ddof=1)
    return mean, variance


@pytest.mark.parametrize(
    ("case", "names"),
    [
        (Adaad(), "adv"),
        (Adaad(alpha=0.5), "adv nat"),
        (Adaad(extra_forward=True), "nat adv"),
        (Adaad(extra_forward=True, alpha=0.5), "nat adv"),
        (Adaiad(), "adv nat"),
        (Adaiad(script_passes=True), "nat adv nat nat"),
        (Adaiad(script_passes=True, begin=0.9), "nat adv nat"),
        (Dgad(), "adv nat"),
        (Dgad(script_passes=True), "nat adv"),
        (Igdm(), "adv adv behind"),
        (Igdm(script_passes=True), "adv nat behind adv"),
        (Igdm(script_passes=True, script_base=True), "adv nat behind adv"),
        (Igdm(base="ard", script_passes=True, script_base=True), "adv nat behind"),
        (Igdm(base="rslad"), "adv nat adv behind"),
        (Igdm(base="rslad", script_passes=True, script_base=True), "adv adv nat behind"),
        (Igdm(base="trades", script_passes=True), "nat adv adv behind"),
        (Kdiga(), "nat"),
        (Kdiga(script_passes=True), "nat nat"),
        (Kdiga(inputs="adv"), "nat adv"),
        (Kdiga(inputs="adv", script_passes=True), "adv nat nat"),
        (Saad(), "adv behind"),
        (Saad(script_passes=True), "adv behind nat"),
        (Saad(script_passes=True, beta=0.2), "adv behind nat"),
    ],
    ids=lambda value: label(value) if isinstance(value, Method) else value,
)
def test_order_of_the_passes(case: Method, names: str) -> None:
    """BatchNorm's running statistics after a loss are those of these passes, in this order."""
    nets, batch = normed_nets(case), flat_batch()
    adv = random_images(batch)
    images = {"nat": batch.x, "adv": adv, "behind": 2 * batch.x - adv}
    case.loss(nets, batch, adv)
    mean, variance = running_statistics(nets.student, [images[name] for name in names.split()])
    norm = nets.student.get_submodule("norm")
    assert norm.get_buffer("running_mean").numpy() == pytest.approx(mean, rel=1e-12)
    assert norm.get_buffer("running_var").numpy() == pytest.approx(variance, rel=1e-12)
    assert norm.get_buffer("num_batches_tracked") == len(names.split())
    assert norm.track_running_stats


@pytest.mark.parametrize(
    ("plain", "switched"),
    [
        (Adaad(), Adaad(extra_forward=True)),
        (Adaad(alpha=0.5), Adaad(alpha=0.5, extra_forward=True)),
        *(
            (case, dataclasses.replace(case, script_passes=True))
            for case in (Adaiad(), Dgad(), Igdm(), Kdiga(), Kdiga(inputs="adv"), Saad())
        ),
    ],
    ids=lambda case: label(case),
)
def test_order_of_the_passes_leaves_loss_and_gradient(plain: Method, switched: Method) -> None:
    """In train mode a pass reads the batch's statistics alone."""
    batch, results = flat_batch(), []
    for case in (plain, switched):
        nets = normed_nets(case)
        terms = case.loss(nets, batch, random_images(batch))
        torch.stack([*terms.values()]).sum().backward()
        gradients = [value.grad.flatten() for value in nets.student.parameters()]
        results.append(torch.cat([torch.stack([*terms.values()]).detach(), *gradients]))
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-14)


# --- KDIGA's norm of the gradients


@pytest.mark.parametrize("size", [2, 6, 40])
def test_kdiga_s_two_norms(size: int) -> None:
    """Ours is B^1.5 mean / rms times the script's, which at B = 128 is less than 1,449."""
    batch = flat_batch()
    more = torch.rand(
        (size, 3, 2, 2), generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    batch = dataclasses.replace(batch, x=more, y=torch.arange(size) % 3)
    at = At(Kdiga(), flat_nets(Kdiga()), batch, batch.x)
    lengths = np.linalg.norm(formulas.input_gradient_difference(at), axis=1)
    ours, script = (
        Kdiga(gradient_norm=norm).loss(at.nets, batch, batch.x)["gradient"].item()
        for norm in ("image", "batch")
    )
    rms = np.sqrt((lengths**2).mean())
    assert ours / script == pytest.approx(size**1.5 * lengths.mean() / rms, rel=1e-10)
    assert ours == pytest.approx(0.5 * lengths.mean(), rel=1e-10)


# --- Identities between methods


def short_training(case: Method, budget: Budget = SOME) -> Tensor:
    """Return losses and final student weights of a training that reaches every phase."""
    nets = flat_nets(case)
    torch.manual_seed(1)
    batches = [flat_batch(budget, epoch, 4) for epoch in range(4) for _ in range(2)]
    losses = contract.train(case, nets, batches)
    return torch.cat(
        [
            torch.tensor(losses).double(),
            *(value.data.flatten() for value in nets.student.parameters()),
        ]
    )


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (Absld(rate=0.0), Rslad()),
        (Adaiad(beta=0.0), Adaad()),
        (Akd(alpha=0.0), PgdAt()),
        (Akd(alpha=1.0, tau=3.0, teacher_input="clean"), Ard(tau=3.0)),
        (Ard(alpha=0.0), Natural()),
        (Bmtard(rate=0.0), Mtard()),
        (Crd(lambda_con=0.0), Natural()),
        (CrdAdv(), Gacd(weight="none", symmetric=True, teacher_input="clean")),
        (CrdAdv(symmetric=False), Gacd(weight="none", teacher_input="clean")),
        (CrdAdv(lambda_con=0.0), PgdAt()),
        (Vgap(beta=0.0, alpha=0.6), Rslad(alpha=0.6)),
        (FairRslad(power=0.0), Rslad()),
        (Fitnet(beta=0.0), Natural()),
        (Fitnet(inputs="adv", beta=0.0), PgdAt()),
        (Gacd(lambda_con=0.0), PgdAt()),
        (Iad(beta=0.0, tau=5.0), Ard(tau=5.0)),
        (Iad(begin=1.0, tau=5.0), Ard(tau=5.0)),
        (Iad2(alpha_robust=0.4, alpha_natural=0.0, beta=0.0, tau=2.0), Akd(alpha=0.4, tau=2.0)),
        (Iad2(alpha_robust=0.0, alpha_natural=0.0), PgdAt()),
        (Iad2(beta=0.0), Iad2(begin=1.0)),
        *(
            (Igdm(base=name, alpha=0.0), METHODS[name]())
            for name in ("adaad", "fair_rslad", "mtard", "peeraid", "trades")
        ),
        (Kd(alpha=0.0), Natural()),
        (Kdiga(gamma=0.0, alpha=0.3, tau=2.0), Kd(alpha=0.3, tau=2.0)),
        (Kdiga(gamma=0.0, alpha=1.0, tau=2.0, inputs="adv"), Akd(alpha=1.0, tau=2.0)),
        (Trades(beta=0.0), Natural()),
        (Gacd(weight="none"), Gacd(beta=0.0)),
    ],
    ids=label,
)
def test_equal_methods(first: Method, second: Method) -> None:
    """The losses of all steps and the student are the same."""
    torch.testing.assert_close(short_training(first), short_training(second), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (Adaad(alpha=0.6), Adaad()),
        (Akd(alpha=1.0), Kd(alpha=1.0, tau=1.0)),
        (Dard(alpha=0.0), PgdAt()),
        (Dgad(beta=1.0, swap=False), Dgad(beta=3.0, swap=False)),
        (Crd(lambda_con=0.2), CrdAdv()),
        (Gacd(lambda_con=0.0, lambda_ce=0.0, lambda_kd=1.0, tau_kd=3.0), Ard(tau=3.0)),
        (Kd(alpha=1.0, tau=3.0), Ard(tau=3.0)),
        (Peeraid(l2=0.3), Peeraid(l2=0.3, l3=9.0)),
        (Rslad(alpha=0.6), Rslad()),
        (Rslad(alpha=1.0), Ard(tau=1.0)),
        (Rslad(), Adaad()),
        (Trades(), Natural()),
    ],
    ids=label,
)
def test_equal_methods_without_an_attack(first: Method, second: Method) -> None:
    torch.testing.assert_close(
        short_training(first, NONE), short_training(second, NONE), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    "case",
    [Absld(), Bmtard(), FairRslad(), Igdm(alpha=1.0), Saad(), Dgad(), Mtard(), Vgap()],
    ids=label,
)
def test_what_a_method_adds_has_an_effect(case: Method) -> None:
    """The identities above do not hold for want of an effect."""
    plain = {
        Absld: Rslad(),
        Bmtard: Mtard(),
        FairRslad: Rslad(),
        Igdm: Adaad(),
        Saad: Adaad(),
        Dgad: Adaad(),
        Mtard: Mtard(eta=0.0),
        Vgap: Rslad(),
    }
    assert (short_training(case) - short_training(plain[type(case)])).abs().max() > 1e-5


def test_iad2_without_introspection_is_akd2() -> None:
    case, batch = Iad2(beta=0.0, tau=2.0), flat_batch()
    at = At(case, flat_nets(case), batch, random_images(batch))
    expected = 0.25 * formulas.ce(at.s_adv, at.y) + 4 * (
        0.5 * formulas.kl(at.t_adv, at.s_adv, 2.0) + 0.25 * formulas.kl(at.n_adv, at.s_adv, 2.0)
    )
    assert loss_value(case, at.nets, batch, at.adv) == pytest.approx(expected.mean(), rel=1e-12)


def test_mtard_with_rates_of_zero_is_a_fixed_half() -> None:
    case, batch = Bmtard(eta=0.0, rate=0.0), flat_batch(epoch=0)
    nets = flat_nets(case)
    contract.train(case, nets, [batch] * 5)
    at = At(case, nets, batch, random_images(batch))
    expected = formulas.kl(at.t_adv, at.s_adv).mean() / 2 + formulas.kl(at.n, at.s).mean() / 2
    assert loss_value(case, nets, batch, at.adv) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("ramp", [False, True])
def test_saad_with_a_constant_weight_is_adaad_and_igdm(ramp: bool) -> None:
    """In a batch of single image the weight, its teacher's entropy, is a factor of the loss."""
    batch = flat_batch()
    single = dataclasses.replace(batch, x=batch.x[:1], y=batch.y[:1], epoch=0 if ramp else 1)
    nets, adv = flat_nets(Saad()), random_images(batch)[:1]
    weight = formulas.entropy(formulas.logits(nets.teacher, adv)).item()
    expected = loss_value(Igdm(alpha=3.0), nets, single, adv)
    assert loss_value(Saad(alpha=3.0, ramp=ramp), nets, single, adv) == pytest.approx(
        weight * expected, rel=1e-5
    )


@pytest.mark.parametrize("right", [True, False])
def test_dgad_with_a_teacher_that_is_always_right_or_wrong(right: bool) -> None:
    """AdaAD and the consistency of the student; or the corrected teacher on clean images alone."""
    batch = flat_batch()
    nets, adv = flat_nets(Dgad()), batch.x + 1e-3 * random_images(batch)
    top = nets.teacher(batch.x).argmax(dim=1)
    assert torch.equal(top, nets.teacher(adv).argmax(dim=1))
    batch = dataclasses.replace(batch, y=top if right else (top + 1) % 3)
    at, terms = At(Dgad(), nets, batch, adv), Dgad().loss(nets, batch, adv)
    assert terms["mse"].item() == pytest.approx(
        ((formulas.softmax(at.s_adv) - formulas.softmax(at.s)) ** 2).mean(), rel=1e-9
    )
    present, absent = ("kl_adv", "kl") if right else ("kl", "kl_adv")
    assert terms[absent] == 0
    swapped = at.t.copy()
    rows = np.arange(len(swapped))
    swapped[rows, at.y], swapped[rows, top] = at.t[rows, top], at.t[rows, at.y]
    expected = loss_value(Adaad(), nets, batch, adv) if right else formulas.kl(swapped, at.s).mean()
    assert terms[present].item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    "name", [name for name in METHODS if "reduction" in METHODS[name].__dataclass_fields__]
)
@pytest.mark.parametrize("classes", [3, 10])
def test_reduction_scales_the_divergences(name: str, classes: int) -> None:
    """ "mean" divides by the number of classes, "tenth" by ten; other terms stay.

    CIARD's push stays up to its power of ten.
    """
    plain, reduction = METHODS[name](), official_values(METHODS[name])["reduction"]
    case = dataclasses.replace(plain, reduction=reduction)
    batch = contract.images(LABELS)
    plain_terms = contract.values(plain, contract.networks(plain, classes), batch)
    scaled_terms = contract.values(case, contract.networks(case, classes), batch)
    divisor = {"mean": classes, "tenth": 10, "mean10": 10 if classes == 10 else 1}[reduction]
    factors = {name: divisor if "kl" in name else 1 for name in scaled_terms}
    if "push" in scaled_terms:
        factors["push"] = divisor * 10 ** round(
            math.log10(plain_terms["push"] / scaled_terms["push"] / divisor)
        )
    assert plain_terms == pytest.approx(
        {name: value * factors[name] for name, value in scaled_terms.items()}, rel=1e-5
    )
    assert any("kl" in name for name in plain_terms)


@pytest.mark.parametrize(
    "case",
    [
        *(
            method()
            for method in (Absld, Adaad, Ard, Bmtard, FairRslad, Iad, Igdm, Mtard, Rslad, Saad)
        ),
        Vgap(),
        *(
            Adaad(alpha=0.5),
            Akd(alpha=1.0),
            Kd(alpha=1.0),
            Kdiga(alpha=1.0),
            Rrm(alpha=0.0),
            Saad(beta=0.5),
        ),
    ],
    ids=label,
)
def test_no_loss_for_equal_teacher_and_student(case: Method) -> None:
    batch = flat_batch()
    assert loss_value(case, flat_nets(case, twins=True), batch, batch.x) == pytest.approx(
        0, abs=1e-7
    )


@pytest.mark.parametrize(
    "case",
    [Adaad(), Igdm(), Saad(), Iad2(alpha_robust=0.4, alpha_natural=0.6, beta=0.0)],
    ids=label,
)
def test_no_loss_for_equal_teacher_and_student_anywhere(case: Method) -> None:
    """Where the teacher sees x~ too."""
    batch = flat_batch()
    assert loss_value(
        case, flat_nets(case, twins=True), batch, random_images(batch)
    ) == pytest.approx(0, abs=1e-12)


def test_rrm_projects_between_different_widths_alone() -> None:
    assert not flat_nets(Rrm(), twins=True).parts
    assert flat_nets(Rrm()).parts["project"].weight.shape == (7, 5)


def test_adaad_has_no_gradient_for_equal_teacher_and_student() -> None:
    """The inner gradient is zero up to rounding; for another teacher it is not."""
    for twins in (True, False):
        nets, probe = flat_nets(Adaad(), twins), random_images(flat_batch()).requires_grad_()
        (gradient,) = torch.autograd.grad(kl_between(nets.teacher)(nets.student, probe), probe)
        assert gradient.abs().max() < 1e-12 if twins else gradient.abs().max() > 1e-3


def test_igdm_ignores_a_constant() -> None:
    """S = T + const, one for each class, has the same logit differences."""
    nets, batch = flat_nets(Igdm(), twins=True), flat_batch()
    nets.teacher.last.bias.add_(torch.tensor([3.0, -1.0, 0.5], dtype=torch.float64))
    terms = Igdm().loss(nets, batch, random_images(batch))
    assert terms["igdm"].item() == pytest.approx(0, abs=1e-12)
    assert terms["kl_adv"].item() > 0.01


def test_igdm_s_alpha_beside_the_script_s_rslad() -> None:
    """Ten times as strong for one epoch's share, by half more at the end: 0.9 acts as 13.5."""
    nets, adv = flat_nets(Igdm()), random_images(flat_batch())
    plain, script = (
        Igdm(base="rslad", alpha=alpha, script_base=scripted).loss(nets, flat_batch(), adv)
        for alpha, scripted in ((13.5, False), (0.9, True))
    )
    for name, term in plain.items():
        assert term.item() == pytest.approx(10 * script[name].item(), rel=1e-12)


def test_igdm_grows_over_the_epochs() -> None:
    nets, adv = flat_nets(Igdm()), random_images(flat_batch())
    terms = [
        Igdm(alpha=3.0).loss(nets, flat_batch(SOME, epoch, 4), adv)["igdm"].item()
        for epoch in range(4)
    ]
    gap = formulas.gradient_kl(At(Igdm(), nets, flat_batch(), adv)).mean()
    assert terms == pytest.approx([3 * (epoch + 1) / 4 * gap for epoch in range(4)], rel=1e-9)


@pytest.mark.parametrize("case", CASES, ids=label)
def test_order_of_the_batch_does_not_matter(case: Method) -> None:
    batch, order = flat_batch(), torch.tensor([3, 0, 5, 1, 4, 2])
    adv = random_images(batch)
    moved = dataclasses.replace(batch, x=batch.x[order], y=batch.y[order], index=batch.index[order])
    expected = loss_value(case, with_unequal_state(flat_nets(case)), batch, adv)
    assert loss_value(
        case, with_unequal_state(flat_nets(case)), moved, adv[order]
    ) == pytest.approx(expected, rel=1e-5)


def loss_value(case: Method, nets: Nets, batch: Batch, adv: Tensor) -> float:
    return sum(term.item() for term in case.loss(nets, batch, adv).values())


# --- Weights and temperatures that move


def test_rates_fall_to_a_tenth_three_times() -> None:
    """At RSLAD's milestones, epochs 215, 260 and 285 of 300."""
    epochs = (0, 214, 215, 259, 260, 284, 285, 299)
    rates = [rate_decay(flat_batch(epoch=epoch, epochs=300)) for epoch in epochs]
    assert rates == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001])


@pytest.mark.parametrize(
    "case",
    [Mtard(), Mtard(eta=0.1, gamma=3.0), Bmtard(eta=0.1), Mtard(reduction="tenth")],
    ids=label,
)
def test_mtard_weights(case: Mtard) -> None:
    """They sum to 1 and follow the rule, written here for the natural teacher's weight."""
    nets, w_natural, first = flat_nets(case), 0.5, None
    optimiser = torch.optim.SGD(nets.student.parameters(), lr=0.5)
    for epoch in (0, 0, 0, 100, 215, 299):
        batch = flat_batch(SOME, epoch, 300)
        terms = case.loss(nets, batch, random_images(batch))
        w = nets.parts["balance"].get_buffer("weights").clone()
        assert w.tolist() == pytest.approx([1 - w_natural, w_natural], rel=1e-5)
        now = np.array([term.item() for term in terms.values()]) / w.numpy()
        first = now if first is None else first
        optimiser.zero_grad()
        contract.total(terms).backward()
        optimiser.step()
        case.after_step(nets, batch)
        robust, natural = (now / first) ** case.gamma
        rate = case.eta * 0.1 ** sum(epoch >= milestone for milestone in (215, 260, 285))
        w_natural -= rate * (w_natural - natural / (robust + natural))
    assert w_natural != pytest.approx(0.5, abs=1e-4)
    assert nets.parts["balance"].get_buffer("weights").sum().item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("slow", [0, 1])
def test_balance_moves_to_the_slower_term(slow: int) -> None:
    """And stops at its share of what is left; a term that begins at zero does no harm."""
    balance = Balance()
    balance.observe(torch.tensor([2.0, 2.0]))
    left = torch.tensor([0.5, 0.5])
    left[slow] = 1.5
    balance.observe(left)
    moved = []
    for _ in range(200):
        balance.move(0.1, 1.0)
        moved.append(balance.weights[slow].item())
        assert balance.weights.sum().item() == pytest.approx(1, abs=1e-5)
    assert moved == sorted(moved)
    assert moved[-1] == pytest.approx(0.75, rel=1e-3)
    empty = Balance()
    empty.observe(torch.zeros(2))
    empty.move(0.1, 1.0)
    assert empty.weights.isfinite().all()


def test_bmtard_temperatures() -> None:
    """They move in opposite directions by the sign of the softened outputs' entropy gap."""
    case, tau = Bmtard(rate=0.05), np.ones(2)
    nets = flat_nets(case)
    nets.teachers["natural"].last.weight.mul_(0.3)  # the more uncertain one
    for epoch in (0, 0, 0, 215):
        batch = flat_batch(SOME, epoch, 300)
        at = At(case, nets, batch, random_images(batch))
        h = [formulas.entropy(z / t).mean() for z, t in zip((at.t_adv, at.n), tau, strict=True)]
        case.loss(nets, batch, at.adv)
        case.after_step(nets, batch)
        rate = 0.05 if epoch < 215 else 0.005
        tau = np.clip(
            [tau[0] - rate * np.sign(h[0] / h[1] - 1), tau[1] - rate * np.sign(h[1] / h[0] - 1)],
            1,
            10,
        )
        assert nets.parts["uncertainty"].get_buffer("tau").numpy() == pytest.approx(tau, rel=1e-5)
    assert tau.tolist() == pytest.approx([1.155, 1.0])


def test_temperatures_stay_in_their_bounds() -> None:
    sure, unsure = torch.tensor([[50.0, 0.0, 0.0]]), torch.tensor([[0.1, 0.0, 0.0]])
    for pair, bounds in (
        ((sure, unsure), [10.0, 1.0]),
        ((unsure, sure), [1.0, 10.0]),
        ((sure, sure), [1.0, 1.0]),
    ):
        part = TeacherTemperatures()
        for _ in range(5):
            part(*pair)
            part.move(4.0)
        assert part.tau.tolist() == bounds


def attack_after(case: Method, nets: Nets, batch: Batch, steps: int) -> Tensor:
    """Where the attack is after so many of its steps."""
    torch.manual_seed(3)
    budget = dataclasses.replace(batch.budget, steps=steps)
    return pgd(
        nets.student, batch.x, record_attack(case, nets, batch).objective, budget, start="gauss"
    )


def test_fair_rslad_weights() -> None:
    """kappa^-2 of mean 1, clamped, an epoch later.

    kappa: the number of steps at which images of the class are still classified rightly.
    """
    case, batch = FairRslad(), dataclasses.replace(flat_batch(epoch=0), budget=Budget(0.6, 0.15, 4))
    nets = flat_nets(case)
    with torch.no_grad():
        batch = dataclasses.replace(batch, y=nets.student(batch.x).argmax(dim=1))
    assert set(batch.y.tolist()) == {0, 1, 2}
    right = [
        formulas.logits(nets.student, attack_after(Rslad(), nets, batch, j)).argmax(axis=1)
        == batch.y.numpy()
        for j in range(4)
    ]
    kappa = [np.sum(right, axis=0)[batch.y.numpy() == c].mean() for c in range(3)]
    assert len(set(kappa)) > 1
    torch.manual_seed(3)
    case.attack(nets, batch)
    fair = nets.parts["fair"]
    assert fair.get_buffer("weights").tolist() == [1, 1, 1]
    w = np.array(kappa) ** -2.0
    torch.manual_seed(3)
    case.attack(nets, dataclasses.replace(batch, epoch=1))
    assert fair.get_buffer("weights").numpy() == pytest.approx(
        np.clip(w / w.mean(), 5 / 6, 5 / 2), rel=1e-5
    )
    assert fair.get_buffer("counts").sum() == len(batch.y)


@pytest.mark.parametrize(
    ("kappa", "expected"),
    [
        ([1.0, 1.0, 1.0], [1, 1, 1]),
        ([4.0, 4.0, 0.0], [5 / 6, 5 / 6, 5 / 2]),
        ([10.0, 9.5, 9.0], None),
    ],
)
def test_fair_weights_are_clamped(kappa: list[float], expected: list[float] | None) -> None:
    fair = FairRslad().build(formulas.Flat(5, 3), {}, 64)["fair"]
    fair.update(torch.tensor([kappa]), 2.0)
    w = np.array(kappa) ** -2.0 if expected is None else np.array(expected)
    assert fair.weights.numpy() == pytest.approx(w / w.mean() if expected is None else w, rel=1e-5)


@pytest.mark.parametrize(("epoch", "rate"), [(1, 0.1), (215, 0.01)])
def test_absld_temperatures(epoch: int, rate: float) -> None:
    """They follow the class means of the last epoch's cross-entropy: sharper for hard classes."""
    case, first = Absld(), flat_batch(epoch=0, epochs=300)
    nets = flat_nets(case)
    classes, losses = nets.parts["classes"], []
    batches = (first, dataclasses.replace(first, x=1 - first.x, y=first.y.flip(0)))
    for batch in batches:
        at = At(case, nets, batch, random_images(batch))
        case.loss(nets, batch, at.adv)
        losses.append(np.stack([formulas.ce(at.s, at.y), formulas.ce(at.s_adv, at.y)]))
    assert (classes.get_buffer("tau") == 1).all()
    y, losses = np.concatenate([batch.y for batch in batches]), np.concatenate(losses, axis=1)
    g = np.stack([losses[:, y == c].mean(axis=1) for c in range(3)], axis=1)
    g -= g.mean(axis=1, keepdims=True)
    case.loss(nets, dataclasses.replace(first, epoch=epoch), first.x)
    tau = classes.get_buffer("tau").numpy()
    assert tau == pytest.approx(1 - rate * g / np.abs(g).max(axis=1, keepdims=True), rel=1e-5)
    assert (tau.argmin(axis=1) == g.argmax(axis=1)).all()


def test_class_temperatures_stay_in_their_bounds() -> None:
    part = ClassTemperatures(3)
    for _ in range(9):
        part.update(torch.tensor([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0]]), 1.0)
    assert part.tau.tolist() == [[0.5, 1, 5], [5, 1, 0.5]]
    part.update(torch.ones(2, 3), 1.0)
    assert part.tau.tolist() == [[0.5, 1, 5], [5, 1, 0.5]]


def test_class_means_wait_for_every_class() -> None:
    """An epoch in which a class is missing changes nothing and is forgotten."""
    case, batch = Absld(), flat_batch(epoch=0, epochs=3)
    nets = flat_nets(case)
    case.loss(nets, dataclasses.replace(batch, y=batch.y.clamp(max=1)), batch.x)
    case.loss(nets, dataclasses.replace(batch, epoch=1), batch.x)
    assert (nets.parts["classes"].get_buffer("tau") == 1).all()
    assert nets.parts["classes"].get_buffer("counts").tolist() == torch.bincount(batch.y).tolist()


@pytest.mark.parametrize("classes", [2, 10, 100])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_gkl_s_error_is_the_sum_over_all_pairs(classes: int, offset: float) -> None:
    """Also far from the origin, where a difference of two squares would lose the digits."""
    random = torch.Generator().manual_seed(0)
    target, logits, q = torch.randn(3, 5, classes, generator=random, dtype=torch.float64)
    target, weights = target + offset, q.softmax(dim=1) ** 0.4
    gap = target - logits
    pairs = weights[:, :, None] * weights[:, None]
    naive = (pairs * (gap[:, :, None] - gap[:, None]) ** 2).sum() / pairs.sum() / 4
    assert weighted_mse(target, logits, weights).item() == pytest.approx(naive.item(), rel=1e-9)


@pytest.mark.parametrize("case", [Gkl(tau=2.0), GklAt(tau=2.0)], ids=label)
def test_gkl_s_prior(case: Gkl) -> None:
    """By class, the last epoch's mean softened probabilities; a class without images keeps its."""
    nets, prior = flat_nets(case), np.full((3, 3), 1 / 3)
    for epoch, labels in enumerate(([0, 1, 2, 2, 2, 1], [0, 1, 1, 0, 1, 1], LABELS)):
        batch = dataclasses.replace(flat_batch(epoch=epoch, epochs=9), y=torch.tensor(labels))
        other = dataclasses.replace(batch, x=1 - batch.x)
        sums = np.zeros((3, 3))
        for part in (batch, other):
            adv = case.attack(nets, part)
            assert nets.parts["classes"].prior.numpy() == pytest.approx(prior, rel=1e-5)
            case.loss(nets, part, adv)
            net = nets.teacher if case.teacher_roles else nets.student
            np.add.at(sums, part.y.numpy(), formulas.softmax(formulas.logits(net, part.x) / 2))
        present = np.isin(np.arange(3), labels)
        prior[present] = sums[present] / sums[present].sum(axis=1, keepdims=True)
    assert np.abs(prior[2] - 1 / 3).max() > 0.01


def test_gkl_s_prior_is_of_all_processes() -> None:
    """They average the sums and the counts at an epoch's end: the rows stay means."""
    single, averaged = ClassPrior(3), ClassPrior(3)
    single.add_logits(torch.eye(3)[[0, 0, 1]], torch.tensor([0, 0, 1]), 1.0)
    averaged.load_state_dict(single.state_dict())
    averaged.sums /= 4
    averaged.counts /= 4
    for part in (single, averaged):
        part.begin_step(flat_batch(epoch=1))
    torch.testing.assert_close(single.prior, averaged.prior)
    torch.testing.assert_close(single.prior.sum(dim=1), torch.ones(3))
    assert (single.prior[2] == 1 / 3).all()


def test_gkl_at_s_clean_logits_learn_from_the_squared_error_alone() -> None:
    target = torch.randn(4, 3, requires_grad=True)
    logits, weights = torch.randn(4, 3), torch.full((4, 3), 1 / 3)
    case, nets = GklAt(), contract.networks(GklAt())
    terms = case.terms(nets, contract.images([0, 1, 2, 0]), target, target, logits)
    assert not terms["soft_ce"].requires_grad
    (gradient,) = torch.autograd.grad(terms["wmse"], target)
    assert gradient.any()
    assert soft_ce(target, target).item() > 0
    assert weighted_mse(target, target, weights).item() == 0


def test_dard_s_attack_turns_to_the_wrong_images() -> None:
    """Step i of n weighs them by (i - 1) / 2n; the next attack begins anew; no image is no loss."""
    nets, batch = flat_nets(Dard()), flat_batch(Budget(0.3, 0.1, 5))
    for _ in range(2):
        objective = record_attack(Dard(), nets, batch).objective
        for i in range(5):
            adv = random_images(batch) * (1 - 0.1 * i)
            expected = formulas.dice_objective(At(Dard(), nets, batch, adv), (i - 1) / 10)
            assert objective(nets.student, adv).item() == pytest.approx(expected, rel=1e-9)
    right = dataclasses.replace(batch, y=nets.student(batch.x).argmax(dim=1))
    objective = record_attack(Dard(), nets, right).objective
    assert 0 < objective(nets.student, batch.x).item() < 1.05


def test_dard_s_robust_teacher_sees_its_own_examples() -> None:
    """Where its attack cannot move, it sees the clean images."""
    nets, batch = flat_nets(Dard()), flat_batch()
    adv = random_images(batch)
    moved = loss_value(Dard(), nets, batch, adv)
    still = loss_value(Dard(), nets, dataclasses.replace(batch, budget=NONE), adv)
    assert moved != pytest.approx(still, rel=1e-3)


@pytest.mark.parametrize("logits", [0.0, 300.0])
def test_dard_s_target_is_finite(logits: float) -> None:
    """Also where one teacher rules a class out."""
    nets, batch = flat_nets(Dard()), flat_batch()
    nets.teachers["natural"].last.weight.mul_(logits)
    assert math.isfinite(loss_value(Dard(), nets, batch, random_images(batch)))


def test_lbgat_s_networks_train_each_other() -> None:
    nets, batch = flat_nets(Lbgat()), flat_batch()
    terms, reached = Lbgat().loss(nets, batch, random_images(batch)), {}
    for name, term in terms.items():
        for part, module in (("student", nets.student), ("natural", nets.parts["natural"])):
            gradients = torch.autograd.grad(
                term, list(module.parameters()), allow_unused=True, retain_graph=True
            )
            if any(gradient is not None for gradient in gradients):
                reached.setdefault(name, []).append(part)
    assert reached == {
        "mse": ["student", "natural"],
        "natural_ce": ["natural"],
        "kl_adv": ["student"],
    }


def test_vgap_ignores_width_scale_and_rotation() -> None:
    """Of the teacher's features, but not how far they spread at x~ beside x."""
    nets, batch = flat_nets(Vgap()), flat_batch()
    adv = random_images(batch)
    expected = Vgap().loss(nets, batch, adv)
    features, turn = nets.teacher.features, torch.linalg.qr(torch.randn(9, 7).double()).Q
    nets.teacher.features = lambda x: 5 * features(x) @ turn.T + 3
    for name in ("gram", "gram_adv"):
        rotated = Vgap().loss(nets, batch, adv)[name].item()
        assert rotated == pytest.approx(expected[name].item(), rel=1e-9)
    nets.teacher.features = lambda x: features(x) * (2 if x is adv else 1)
    wider = Vgap().loss(nets, batch, adv)
    assert wider["gram"].item() == pytest.approx(expected["gram"].item(), rel=1e-9)
    assert wider["gram_adv"].item() > 2 * expected["gram_adv"].item()


def test_ciard_s_teacher_learns_once_it_has_begun() -> None:
    """The copy, slowly and with momentum of its own; the robust teacher itself never."""
    case = Ciard(begin=0.5)
    nets = flat_nets(case)
    before = contract.copied(nets.parts["teacher"])
    assert all(
        torch.equal(before[name], value) for name, value in nets.teacher.state_dict().items()
    )
    for epoch in range(2):
        contract.train(case, nets, [flat_batch(SOME, epoch, 2)] * 2)
        moved = [
            not torch.equal(before[name], value)
            for name, value in nets.parts["teacher"].state_dict().items()
        ]
        assert any(moved) == (epoch == 1)
    assert all(
        torch.equal(before[name], value) for name, value in nets.teacher.state_dict().items()
    )


def test_ciard_s_groups() -> None:
    nets = flat_nets(Ciard())
    student, teacher = Ciard(teacher_rate=0.005).param_groups(nets)
    assert [id(value) for value in student["params"]] == [
        id(value) for value in nets.student.parameters()
    ]
    assert [id(value) for value in teacher["params"]] == [
        id(value) for value in nets.parts["teacher"].parameters()
    ]
    options = {name: value for name, value in teacher.items() if name != "params"}
    assert options == {"momentum": 0.1, "weight_decay": 2e-4, "scale": 0.005}
    assert student.keys() == {"params"}


@pytest.mark.parametrize("logits", [0.01, 0.3, 3.0, 30.0])
def test_ciard_s_push_has_the_order_of_the_smaller_term(logits: float) -> None:
    nets, batch = flat_nets(Ciard()), flat_batch()
    nets.teachers["natural"].last.weight.mul_(logits)
    terms = {
        name: abs(term.item())
        for name, term in Ciard().loss(nets, batch, random_images(batch)).items()
    }
    smaller = min(terms["kl_robust"], terms["kl_natural"])
    assert np.floor(np.log10(terms["push"])) == np.floor(np.log10(smaller))


def test_ciard_pushes_from_mistakes_alone() -> None:
    nets, batch = flat_nets(Ciard()), flat_batch()
    adv = random_images(batch)
    right = dataclasses.replace(batch, y=nets.teachers["natural"](adv).argmax(dim=1))
    assert Ciard().loss(nets, right, adv)["push"].item() == 0


@pytest.mark.parametrize("detach", [True, False])
def test_peer_and_student_do_not_train_each_other(detach: bool) -> None:
    """Unless gradients pass through the student's outputs where they are targets."""
    nets, batch = flat_nets(Peeraid()), flat_batch()
    terms = Peeraid(detach=detach).loss(nets, batch, random_images(batch))
    reached = {}
    for name, term in terms.items():
        for part, module in (("student", nets.student), ("peer", nets.parts["peer"])):
            gradients = torch.autograd.grad(
                term, list(module.parameters()), allow_unused=True, retain_graph=True
            )
            if any(gradient is not None for gradient in gradients):
                reached.setdefault(name, []).append(part)
    across = ["peer"] if detach else ["student", "peer"]
    assert reached == {
        "kl_peer": ["student"],
        "kl_self": ["student"],
        "peer_ce": ["peer"],
        "peer_kl": across,
    }


@pytest.mark.parametrize(("case", "part"), [(Peeraid(), "peer"), (Lbgat(), "natural")])
def test_a_network_beside_the_student_begins_as_another(case: Method, part: str) -> None:
    nets = contract.networks(case)
    student, peer = nets.student.state_dict(), nets.parts[part].state_dict()
    assert student.keys() == peer.keys()
    assert not torch.equal(student["trunk.0.weight"], peer["trunk.0.weight"])
    assert not torch.equal(student["linear.weight"], peer["linear.weight"])


@pytest.mark.parametrize("shifted", [True, False])
def test_saad_weighs_down_what_the_teacher_is_sure_of(shifted: bool) -> None:
    sharp = torch.tensor([[9.0, 0.0, 0.0], [2.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    w, sure = Saad(shifted=shifted).entropy_weights(sharp)
    assert w.tolist() == sorted(w.tolist())
    assert sure.tolist() == sorted(sure.tolist(), reverse=True)
    assert sure[2].item() == pytest.approx(0, abs=1e-6)
    entropy = formulas.entropy(sharp.numpy())
    assert w.numpy() == pytest.approx(5 * (entropy - entropy[0]) if shifted else entropy, rel=1e-4)


def test_crdnd_s_matrix() -> None:
    """Columns sum to 1; a class that is not in the batch stays as it is."""
    target = torch.eye(4)[[0, 1, 1, 2, 2]]
    matrix = denoising_matrix(target, torch.tensor([0, 0, 1, 1, 2]))
    assert matrix.diag().tolist() == [0.5, 0.5, 1, 1]
    torch.testing.assert_close(matrix.sum(dim=0), torch.ones(4))
    assert matrix[1, 0].item() == pytest.approx(0.5 / 3)
    assert matrix[0, 2] == 0


@pytest.mark.parametrize("case", [Iad(begin=0.5), Adaiad(begin=0.5), Iad2(begin=0.5)], ids=label)
def test_introspection_begins(case: Method) -> None:
    nets, adv = flat_nets(case), random_images(flat_batch())
    kl_self = [
        case.loss(nets, flat_batch(SOME, epoch, 4), adv)["kl_self"].item() for epoch in range(4)
    ]
    assert kl_self[:2] == [0, 0]
    assert kl_self[2] == kl_self[3] > 1e-3


# --- Adversarial weight perturbation


def assert_equal_state(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    torch.testing.assert_close(dict(actual), expected, rtol=0, atol=0, equal_nan=True)


def copy_weights(net: nn.Module) -> dict[str, Tensor]:
    return {name: value.data.clone() for name, value in net.named_parameters()}


@pytest.mark.parametrize("gamma", [0.005, 0.1])
@pytest.mark.parametrize(
    "case", [PgdAt(), Gacd(bank=16), Mtard(), Absld(), Ciard(), Gkl()], ids=label
)
def test_weight_perturbation(case: Method, gamma: float) -> None:
    """Each matrix moves by gamma of its norm along the gradient; all state is restored."""
    nets, batch = contract.networks(case), contract.images(LABELS)
    student, adv = nets.student, case.attack(nets, batch)
    state = nn.ModuleDict({"student": nets.student, "parts": nets.parts})
    before, buffers = copy_weights(student), contract.copied(state)
    gradients = torch.autograd.grad(
        contract.total(case.loss(nets, batch, adv)), list(student.parameters())
    )
    state.load_state_dict(buffers)
    with perturbed_weights(
        student, state, lambda: contract.total(case.loss(nets, batch, adv)), gamma
    ):
        for (name, now), gradient in zip(copy_weights(student).items(), gradients, strict=True):
            was = before[name]
            step = (
                gamma * was.norm() * gradient / gradient.norm()
                if was.ndim > 1
                else torch.zeros_like(was)
            )
            torch.testing.assert_close(now - was, step, rtol=1e-3, atol=1e-6)
        now = dict(state.named_buffers())
        assert_equal_state(now, {name: buffers[name] for name in now})
    assert_equal_state(state.state_dict(), buffers)
    assert all(value.grad is None for value in state.parameters())


def test_weight_perturbation_of_zero_is_none() -> None:
    net = contract.networks(PgdAt()).student
    before = copy_weights(net)
    with perturbed_weights(net, net, lambda: pytest.fail("the loss was evaluated"), 0.0):
        assert all(torch.equal(value, before[name]) for name, value in copy_weights(net).items())
    assert all(torch.equal(value, before[name]) for name, value in copy_weights(net).items())


# --- GACD


@pytest.mark.parametrize("switch", SWITCHES, ids=str)
def test_gacd_switch_has_an_effect(switch: dict[str, Any]) -> None:
    case = Gacd(**switch)
    adv = random_images(flat_batch())
    plain = loss_value(Gacd(), flat_nets(Gacd()), flat_batch(), adv)
    assert loss_value(case, flat_nets(case), flat_batch(), adv) != pytest.approx(plain, rel=1e-4)


@pytest.mark.parametrize(
    "case", [Gacd(), Gacd(beta=2.0), Gacd(weight="indicator"), Gacd(weight="none")], ids=label
)
def test_gacd_weights_before_their_scaling(case: Gacd) -> None:
    target, y = 4 * torch.randn(40, 3), torch.arange(40) % 3
    w = case.sample_weights(target, y)
    assert ((w >= 0) & (w <= 1)).all()
    assert (w.std() > 0.1) == (case.weight != "none")


def test_gacd_weights_of_a_teacher_that_knows_nothing_are_none() -> None:
    losses = []
    for case in (Gacd(), Gacd(weight="none")):
        nets = flat_nets(case)
        for value in nets.teacher.get_submodule("last").parameters():
            value.zero_()
        losses.append(loss_value(case, nets, flat_batch(), random_images(flat_batch())))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


@pytest.mark.parametrize("student_input", ["adv", "clean", "both"])
@pytest.mark.parametrize("bank", [0, 16])
def test_gacd_contrast_alone_trains_the_features(student_input: str, bank: int) -> None:
    """Without the student-anchored direction, also when the negatives come from a bank."""
    case = Gacd(student_input=student_input, bank=bank, lambda_ce=0.0)
    nets = flat_nets(case)
    for _ in range(2):
        contract.total(contract.terms(case, nets, flat_batch())).backward()
        case.after_step(nets, flat_batch())
    assert all(value.grad.any() for value in nets.student.get_submodule("first").parameters())


def test_gacd_two_stages() -> None:
    case = Gacd(two_stage=True, lambda_kd=0.5)
    for epoch in range(5):
        nets = flat_nets(case)
        terms = contract.terms(case, nets, flat_batch(SOME, epoch, 5))
        contract.total(terms).backward()
        trained = [
            name
            for name, value in nets.student.named_parameters()
            if value.grad is not None and value.grad.any()
        ]
        assert set(terms) == ({"contrast"} if epoch < 2.5 else {"ce_adv", "kl"})
        assert trained == (
            ["first.weight", "first.bias"] if epoch < 2.5 else ["last.weight", "last.bias"]
        )
        assert (nets.parts["contrast"].get_parameter("project_s.weight").grad is not None) == (
            epoch < 2.5
        )


@pytest.mark.parametrize("student_input", ["adv", "both"])
def test_gacd_freezes_the_trunk_in_its_second_stage(student_input: str) -> None:
    """Parameters and BatchNorm's running statistics; in the first stage both move."""
    case = Gacd(two_stage=True, student_input=student_input, lambda_kd=0.5)
    nets = contract.networks(case)
    trunk = nets.student.get_submodule("trunk")
    for batch in contract.every_epoch(contract.images([0, 1, 2, 0])):
        before = contract.copied(trunk)
        contract.train(case, nets, [batch])
        changed = {
            name for name, value in trunk.state_dict().items() if (value != before[name]).any()
        }
        assert changed == (set() if batch.reached(0.5) else before.keys())


def test_gacd_fits_the_classifier_to_the_features_of_eval_mode() -> None:
    case = Gacd(two_stage=True)
    nets = contract.networks(case)
    batch = contract.every_epoch(contract.images([0, 1, 2, 0]))[-1]
    adv = case.attack(nets, batch)
    loss = case.loss(nets, batch, adv)["ce_adv"]
    expected = nn.functional.cross_entropy(eval_logits(nets.student, adv), batch.y)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_gacd_monitors_the_weights_and_the_similarity_of_embeddings() -> None:
    """Against NumPy: weights before their scaling, all pairs of two images."""
    case = Gacd(beta=0.5, two_stage=True)
    for epoch in (0, 3):
        nets, batch = flat_nets(case), flat_batch(SOME, epoch, 4)
        adv = random_images(batch)
        at = At(case, nets, batch, adv)
        case.loss(nets, batch, adv)
        w = formulas.pick_label(formulas.softmax(at.t_adv), at.y) ** 0.5
        s = formulas.embed(at, "s", formulas.features(nets.student, adv))
        off_diagonal = (s @ s.T)[~np.eye(len(s), dtype=bool)]
        monitored = {name: value.item() for name, value in case.monitor(nets).items()}
        assert monitored == pytest.approx(
            {
                "weight_mean": w.mean(),
                "weight_spread": w.std() / w.mean(),
                "similarity": off_diagonal.mean(),
            },
            rel=1e-5,
        )


def test_gacd_monitors_a_single_image() -> None:
    case = Gacd()
    nets, batch = flat_nets(case), flat_batch()
    batch = dataclasses.replace(batch, x=batch.x[:1], y=batch.y[:1], index=batch.index[:1])
    case.loss(nets, batch, batch.x)
    values = case.monitor(nets)
    assert values["similarity"].item() == pytest.approx(0, abs=1e-6)
    assert values["weight_spread"] == 0


def test_gacd_attacks_features_while_the_classifier_is_untrained() -> None:
    case = Gacd(two_stage=True)
    starts = [
        record_attack(case, flat_nets(case), flat_batch(SOME, epoch, 4)).start for epoch in range(4)
    ]
    assert starts == ["gauss", "gauss", "uniform", "uniform"]


@pytest.mark.parametrize("estimator", ["nce", "infonce"])
def test_gacd_negatives_from_the_bank(estimator: str) -> None:
    """Negatives are the first batch's embeddings of other classes; empty entries do not count."""
    case = Gacd(bank=8, tau=0.5, weight="none", estimator=estimator, symmetric=True)
    nets, first = flat_nets(case), flat_batch(NONE)
    second = dataclasses.replace(first, x=1 - first.x, y=first.y.flip(0))
    for batch in (first, second):
        contrast = case.loss(nets, batch, batch.x)["contrast"].item()
        case.after_step(nets, batch)
    at = At(case, nets, first, first.x)
    (s, t), (s_2, t_2) = (
        [
            formulas.embed(at, side, formulas.features(net, x))
            for side, net in (("s", nets.student), ("t", nets.teacher))
        ]
        for x in (first.x, second.x)
    )
    off = ~np.eye(len(s), dtype=bool)
    z = 0.99 * np.exp(t @ s.T / 0.5)[off].mean() + 0.01 * np.exp(t_2 @ s_2.T / 0.5)[off].mean()
    negatives = second.y.numpy()[:, None] != first.y.numpy()[None]
    pair, expected = np.exp((t_2 * s_2).sum(axis=1) / 0.5), np.zeros(len(s))
    for e in (np.exp(t_2 @ s.T / 0.5), np.exp(s_2 @ t.T / 0.5)):
        n = negatives.sum(axis=1, keepdims=True)
        if estimator == "infonce":
            expected += np.log(1 + (e * negatives).sum(axis=1) / pair)
        else:
            expected -= np.log(pair / (pair + z * n[:, 0])) + (
                np.log(z * n / (e + z * n)) * negatives
            ).sum(axis=1)
    assert contrast == pytest.approx(case.lambda_con * expected.mean(), rel=1e-4)
    assert nets.parts["contrast"].get_buffer("log_z").item() == pytest.approx(np.log(z), abs=1e-6)


def test_gacd_bank_is_first_in_first_out() -> None:
    case = Gacd(bank=8)
    nets = flat_nets(case)
    labels = []
    for y in (0, 1, 2):
        batch = dataclasses.replace(flat_batch(), y=torch.full((6,), y))
        case.loss(nets, batch, batch.x)
        case.after_step(nets, batch)
        labels.append(sorted(nets.parts["contrast"].get_buffer("bank_y").tolist()))
    assert labels == [[-1] * 2 + [0] * 6, [0] * 2 + [1] * 6, [1] * 2 + [2] * 6]


def critic_of_identity(estimator: str) -> Contrast:
    """Projections that do nothing, Z = 1."""
    part = Contrast(8, 8, 8, tau=0.5, estimator=estimator).eval()
    with torch.no_grad():
        for layer in (part.project_s, part.project_t):
            layer.weight.copy_(torch.eye(8))
            layer.bias.zero_()
        part.log_z.zero_()
    return part


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("estimator", ["nce", "infonce"])
def test_contrast_follows_the_alignment(estimator: str, symmetric: bool) -> None:
    """It falls as t_i . s_i grows, and rises as t_i . s_k does."""

    def loss(positive: float, negative: float) -> float:
        axes = torch.eye(8)
        rest = (1 - positive**2 - negative**2) ** 0.5
        s = positive * axes[:4] + negative * axes[:4].roll(1, 0) + rest * axes[4:]
        return (
            sum(critic_of_identity(estimator)(axes[:4], s, torch.arange(4), symmetric))
            .mean()
            .item()
        )

    steps = (-0.6, -0.3, 0.0, 0.3, 0.6)
    falling, rising = [loss(a, 0.1) for a in steps], [loss(0.1, b) for b in steps]
    assert falling == sorted(set(falling), reverse=True)
    assert rising == sorted(set(rising))


@pytest.mark.parametrize("shift", [0.0, 5.0], ids=["spread", "nearly parallel"])
def test_critic_of_a_random_pair(shift: float) -> None:
    """About 1 / (1 + N), wherever the embeddings lie: that is what Z is for."""
    torch.manual_seed(0)
    part = Contrast(32, 32, 128, tau=0.5, estimator="nce")
    positive, _ = part(
        torch.randn(64, 32) + shift, torch.randn(64, 32) + shift, torch.arange(64), symmetric=False
    )
    assert (-positive).exp().mean().item() == pytest.approx(1 / 64, rel=0.1)


@pytest.mark.parametrize("sign", [1, -1])
def test_critic_is_a_probability(sign: int) -> None:
    torch.manual_seed(0)
    part, f = Contrast(32, 32, 32, tau=0.07, estimator="nce"), torch.randn(16, 32)
    part.project_s.load_state_dict(part.project_t.state_dict())
    h = (-part(f, sign * f, torch.arange(16), symmetric=False)[0]).exp()
    assert ((h > 0) & (h < 1)).all()
    assert ((h > 0.5) == (sign > 0)).all()


# --- The KL divergence


@pytest.mark.parametrize("tau", [1.0, 4.0])
def test_kl(tau: float) -> None:
    target, z = (3 * torch.randn(5, 10, dtype=torch.float64) for _ in range(2))
    values = base.kl(target, z, tau)
    np.testing.assert_allclose(values, formulas.kl(target.numpy(), z.numpy(), tau), rtol=1e-10)
    library = nn.functional.kl_div(
        (z / tau).log_softmax(1), (target / tau).softmax(1), reduction="batchmean"
    )
    assert values.mean().item() == pytest.approx(library.item(), rel=1e-12)
    assert (values > 0).all()
    assert base.kl(z, z + 7, tau).abs().max() < 1e-12


def test_gradient_of_kl() -> None:
    target, z = (torch.randn(5, 10, dtype=torch.float64) for _ in range(2))
    (gradient,) = torch.autograd.grad(base.kl(target, z.requires_grad_()).mean(), z)
    np.testing.assert_allclose(
        gradient,
        (formulas.softmax(z.detach().numpy()) - formulas.softmax(target.numpy())) / 5,
        atol=1e-14,
    )
    (gradient,) = torch.autograd.grad(1e8 * base.kl(target, z, 1e4).mean(), z)  # logit regression
    gap = (z - target).detach().numpy()
    np.testing.assert_allclose(
        gradient, (gap - gap.mean(axis=1, keepdims=True)) / 10 / 5, rtol=2e-3, atol=1e-6
    )


@pytest.mark.parametrize("tau", [1.0, 4.0])
def test_divergences_are_computed_in_single_precision(tau: float) -> None:
    """Close logits of bfloat16 give no negative divergence, as they would under autocast."""
    generator = torch.Generator().manual_seed(0)
    target = (0.02 * torch.randn(64, 10, generator=generator)).bfloat16()
    values = kl(target, (0.02 * torch.randn(64, 10, generator=generator)).bfloat16(), tau)
    assert values.dtype == torch.float32
    assert (values >= 0).all()
