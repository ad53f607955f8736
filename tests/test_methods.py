"""Every method against the contract, its formula in NumPy and the identities between methods; how they are found."""

from __future__ import annotations

import copy
import dataclasses
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import methods
from bench import options
from methods import base, contract
from methods.ard import Ard
from methods.base import Batch, Budget, Method, Net, Nets, hp
from methods.contract import Contract, label
from methods.contrast import Contrast
from methods.gacd import Gacd
from methods.iad import Iad
from methods.inner import Objective, mode, pgd
from methods.kd import Kd
from methods.natural import Natural
from methods.pgd_at import PgdAt
from methods.rslad import Rslad
from methods.trades import Trades

Array = NDArray[Any]
BRANCHES: dict[str, tuple[dict[str, Any], ...]] = {
    "ard": ({"alpha": 0.7},),
    "iad": ({"begin": 0.5}, {"detach": True}),
    "gacd": (
        {"student_input": "both", "symmetric": False},
        {"teacher_input": "adv", "attack": "feature"},
        {"estimator": "infonce", "bank": 16, "weigh": "positive"},
        {"bank": 16, "beta": 0.5},
        {"weight": "indicator", "student_input": "clean"},
        {"weight": "none", "lambda_kd": 0.5},
        {"two_stage": True, "lambda_kd": 0.5},
    ),
}
NONE, SOME = Budget(0, 0, 0), Budget(0.1, 0.05, 3)
LABELS = [0, 1, 2, 0, 1, 1]


class TestEveryMethod(Contract):
    cases = tuple(methods.load(name)(**values) for name in methods.names() for values in ({}, *BRANCHES.get(name, ())))


def test_reserved_names_cover_the_command_line() -> None:
    assert {field.name for field in dataclasses.fields(options.Run)} <= contract.RESERVED


@pytest.mark.parametrize("name", methods.builtin())
def test_teachers_are_asked_for_where_needed(name: str) -> None:
    assert methods.load(name).requires == (() if name in ("natural", "pgd_at", "trades") else ("robust",))


# --- The formulas, in NumPy: networks without BatchNorm, in double precision, at the images that the attack returned


class Flat(Net):
    """tanh between two matrices, for images (3, 2, 2)."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
        self.width, self.num_classes = width, num_classes
        self.first, self.last = nn.Linear(12, width), nn.Linear(width, num_classes)
        nn.init.normal_(self.first.weight)
        nn.init.normal_(self.last.weight)

    def features(self, x: Tensor) -> Tensor:
        return self.first(x.flatten(1)).tanh()

    def head(self, f: Tensor) -> Tensor:
        return self.last(f)


def flat_nets(case: Method) -> Nets:
    torch.manual_seed(0)
    student, teacher = Flat(5, 3).double(), Flat(7, 3).double()
    parts = nn.ModuleDict(case.build(student, {"robust": teacher}, 64))
    for layer in parts.modules():
        if isinstance(layer, nn.Linear):
            layer.double()
    return Nets(student, {"robust": teacher.eval().requires_grad_(False)}, parts)


def flat_batch(budget: Budget = NONE, epoch: int = 1) -> Batch:
    x = torch.rand(len(LABELS), 3, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return Batch(x, torch.tensor(LABELS), torch.arange(len(x)), epoch, epochs=2, num_train=64, budget=budget)


@dataclass
class Attack:
    """What a loss asked of its inner attack, and the images it got: the clean ones if it asked for none."""

    adv: Tensor
    objective: Objective | None = None
    start: str = ""
    budget: Budget | None = None


def watched(case: Method, nets: Nets, batch: Batch, given: Tensor | None = None) -> tuple[dict[str, Tensor], Attack]:
    """The loss and its attack, whose result is `given` if there is one."""
    attack = Attack(batch.x)

    def spy(net: nn.Module, x: Tensor, objective: Objective, budget: Budget, *, start: Any = "uniform") -> Tensor:
        assert net is nets.student
        assert x is batch.x
        adv = pgd(net, x, objective, budget, start=start) if given is None else given
        attack.adv, attack.objective, attack.start, attack.budget = adv, objective, start, budget
        return adv

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules[type(case).__module__], "pgd", spy, raising=False)
        torch.manual_seed(1)
        return case.loss(nets, batch), attack


def total(case: Method, nets: Nets, batch: Batch, given: Tensor | None = None) -> Tensor:
    return torch.stack(list(watched(case, nets, batch, given)[0].values())).sum()


def linear(layer: nn.Module, x: Array) -> Array:
    return x @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()


def features(net: Net, x: Tensor) -> Array:
    return np.tanh(linear(net.first, x.numpy().reshape(len(x), -1)))


def logits(net: Net, x: Tensor) -> Array:
    return linear(net.last, features(net, x))


def softmax(z: Array) -> Array:
    return np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)


def of_label(p: Array, y: Tensor) -> Array:
    return p[np.arange(len(y)), y.numpy()]


def ce(z: Array, y: Tensor) -> Array:
    return -np.log(of_label(softmax(z), y))


def kl(target: Array, z: Array, tau: float = 1.0) -> Array:
    p, q = softmax(target / tau), softmax(z / tau)
    return (p * np.log(p / q)).sum(axis=1)


def natural(m: Natural, nets: Nets, x: Tensor, adv: Tensor, y: Tensor) -> dict[str, Array]:
    return {"ce": ce(logits(nets.student, x), y).mean()}


def pgd_at(m: PgdAt, nets: Nets, x: Tensor, adv: Tensor, y: Tensor) -> dict[str, Array]:
    return {"ce_adv": ce(logits(nets.student, adv), y).mean()}


def trades(m: Trades, nets: Nets, x: Tensor, adv: Tensor, y: Tensor) -> dict[str, Array]:
    clean = logits(nets.student, x)
    return {"ce": ce(clean, y).mean(), "kl_adv": m.beta * kl(clean, logits(nets.student, adv)).mean()}


def kd(m: Kd, nets: Nets, x: Tensor, adv: Tensor, y: Tensor) -> dict[str, Array]:
    clean = logits(nets.student, x)
    soft = kl(logits(nets.teacher, x), clean, m.tau).mean()
    return {"ce": (1 - m.alpha) * ce(clean, y).mean(), "kl": m.alpha * m.tau**2 * soft}


def ard(m: Ard, nets: Nets, x: Tensor, adv: Tensor, y: Tensor) -> dict[str, Array]:
    soft = kl(logits(nets.teacher, x), logits(nets.student, adv), m.tau).mean()
    hard = {"ce": (1 - m.alpha) * ce(logits(nets.student, x), y).mean()} if m.alpha < 1 else {}
    return {"kl_adv": m.alpha * m.tau**2 * soft, **hard}


def iad(m: Iad, nets: Nets, x: Tensor, adv: Tensor, y: Tensor) -> dict[str, Array]:
    trust = of_label(softmax(logits(nets.teacher, adv)), y) ** m.beta
    student = logits(nets.student, adv)
    teachers = trust * kl(logits(nets.teacher, x), student, m.tau)
    own = (1 - trust) * kl(logits(nets.student, x), student, m.tau)
    return {"kl_teacher": m.tau**2 * teachers.mean(), "kl_self": m.tau**2 * own.mean()}


def rslad(m: Rslad, nets: Nets, x: Tensor, adv: Tensor, y: Tensor) -> dict[str, Array]:
    target = logits(nets.teacher, x)
    near, far = (kl(target, logits(nets.student, seen)).mean() for seen in (x, adv))
    return {"kl_adv": m.alpha * far, "kl": (1 - m.alpha) * near}


def gacd(m: Gacd, nets: Nets, x: Tensor, adv: Tensor, y: Tensor) -> dict[str, Array]:
    u, seen = (adv if m.teacher_input == "adv" else x), {"adv": [adv], "clean": [x], "both": [adv, x]}[m.student_input]
    target = logits(nets.teacher, u)
    weights = {
        "prob": of_label(softmax(target), y) ** m.beta,
        "indicator": 1.0 * (target.argmax(axis=1) == y.numpy()),
        "none": np.ones(len(y)),
    }
    w, z, losses = weights[m.weight] / weights[m.weight].mean(), None, []
    t = embed(nets, "project_t", features(nets.teacher, u))
    for v in seen:
        e = np.exp(t @ embed(nets, "project_s", features(nets.student, v)).T / m.tau)
        mean = e[~np.eye(len(e), dtype=bool)].mean()
        z = mean if z is None else 0.99 * z + 0.01 * mean
        sides = [critic(m, scores, z, y) for scores in ([e, e.T] if m.symmetric else [e])]
        positive, negative = (sum(side) for side in zip(*sides, strict=True))
        losses.append((w * positive + (w if m.weigh == "all" else 1) * negative).mean())
    soft = np.mean([kl(target, logits(nets.student, v), m.tau_kd).mean() for v in seen])
    return {
        "contrast": m.lambda_con * np.mean(losses),
        "ce_adv": m.lambda_ce * ce(logits(nets.student, adv), y).mean(),
        **({"kl": m.lambda_kd * m.tau_kd**2 * soft} if m.lambda_kd else {}),
    }


def embed(nets: Nets, layer: str, f: Array) -> Array:
    v = linear(nets.parts["contrast"].get_submodule(layer), f)
    return v / np.linalg.norm(v, axis=1, keepdims=True)


def critic(m: Gacd, e: Array, z: float, y: Tensor) -> tuple[Array, Array]:
    """e: exponentials of anchor i (row) and candidate k (column); the positives are on the diagonal."""
    other = y.numpy()[:, None] != y.numpy()[None]
    if m.estimator == "infonce":
        return -np.log(np.diag(e)), np.log(np.diag(e) + (e * other).sum(axis=1))
    r, n = e / z, other.sum(axis=1, keepdims=True)
    h = r / (r + n)
    return -np.log(np.diag(h)), -(np.log(1 - h) * other).sum(axis=1)


REFERENCES: dict[type[Method], Callable[..., dict[str, Array]]] = {
    Natural: natural,
    PgdAt: pgd_at,
    Trades: trades,
    Kd: kd,
    Ard: ard,
    Iad: iad,
    Rslad: rslad,
    Gacd: gacd,
}
SWITCHES: tuple[dict[str, Any], ...] = (
    {"student_input": "clean"},
    {"student_input": "both"},
    {"teacher_input": "adv"},
    {"attack": "feature"},
    {"estimator": "infonce"},
    {"tau": 0.5},
    {"dim": 32},
    {"symmetric": False},
    {"weight": "indicator"},
    {"weight": "none"},
    {"beta": 0.3},
    {"weigh": "positive"},
    {"lambda_ce": 0.5},
    {"lambda_con": 0.3},
    {"lambda_kd": 0.5},
    {"student_input": "both", "lambda_kd": 0.5, "tau_kd": 2.0},
    {"estimator": "infonce", "symmetric": False, "weigh": "positive"},
)
FORMULAS: tuple[Method, ...] = (
    *(form() for form in REFERENCES),
    Ard(alpha=0.7, tau=3.0),
    Kd(alpha=0.3, tau=2.0),
    Iad(beta=0.7, tau=2.0),
    Iad(beta=1.0, detach=True),
    Rslad(alpha=0.6),
    Trades(beta=2.0),
    *(Gacd(**switch) for switch in SWITCHES),
)


def test_every_method_has_a_formula() -> None:
    assert {methods.load(name) for name in methods.builtin()} == REFERENCES.keys()


@pytest.mark.parametrize("budget", [NONE, SOME], ids=["no attack", "attack"])
@pytest.mark.parametrize("case", FORMULAS, ids=label)
def test_value(case: Method, budget: Budget) -> None:
    nets, batch = flat_nets(case), flat_batch(budget)
    terms, attack = watched(case, nets, batch)
    expected = REFERENCES[type(case)](case, nets, batch.x, attack.adv, batch.y)
    assert torch.equal(attack.adv, batch.x) == (budget == NONE or not case.adversarial)
    assert terms.keys() == expected.keys()
    for name, term in terms.items():
        precision = 1e-4 if name == "contrast" else 1e-10  # its embeddings are in single precision
        assert term.item() == pytest.approx(expected[name], rel=precision, abs=1e-12), name


@pytest.mark.parametrize("case", [Ard(), Ard(alpha=0.5), Kd(), Iad(), PgdAt(), Rslad(), Trades(), Gacd()], ids=label)
def test_gradient_is_that_of_the_value(case: Method) -> None:
    """Nothing that depends on the student is detached: the directional derivative agrees with a difference quotient."""
    assert slope(case, analytic=True) == pytest.approx(slope(case, analytic=False), rel=1e-3)


def test_detached_self_target() -> None:
    one, other = Iad(beta=1.0), Iad(beta=1.0, detach=True)
    assert slope(one, analytic=False) == slope(other, analytic=False)
    assert slope(one, analytic=True) != pytest.approx(slope(other, analytic=True), rel=0.1)


def slope(case: Method, analytic: bool) -> float:
    """Of the loss at fixed adversarial images, along a random direction of the student's parameters."""
    nets, batch = flat_nets(case), flat_batch(SOME)
    values, random = list(nets.student.parameters()), torch.Generator().manual_seed(6)
    direction = [torch.randn(value.shape, generator=random, dtype=torch.float64) for value in values]
    adv = (batch.x + 0.1 * torch.randn(batch.x.shape, generator=random, dtype=torch.float64)).clamp(0, 1)
    for part in nets.parts.eval().values():
        part.log_z.zero_()  # Z is a constant in the gradient
    if analytic:
        gradients = torch.autograd.grad(total(case, nets, batch, adv), values)
        return sum((g * d).sum().item() for g, d in zip(gradients, direction, strict=True))
    width, losses = 1e-3, []
    for sign in (1, -2):
        with torch.no_grad():
            for value, d in zip(values, direction, strict=True):
                value.add_(d, alpha=sign * width)
        losses.append(total(case, nets, batch, adv).item())
    return (losses[0] - losses[1]) / (2 * width)


def cosine_gap(m: Gacd, nets: Nets, x: Tensor, adv: Tensor, y: Tensor) -> Array:
    s, t = embed(nets, "project_s", features(nets.student, adv)), embed(nets, "project_t", features(nets.teacher, x))
    return 1 - (s * t).sum(axis=1)


def label_ce(m: Method, nets: Nets, x: Tensor, adv: Tensor, y: Tensor) -> Array:
    return ce(logits(nets.student, adv), y)


@pytest.mark.parametrize(
    ("case", "expected", "start"),
    [
        (PgdAt(), label_ce, "uniform"),
        (Ard(), label_ce, "uniform"),
        (Iad(), label_ce, "uniform"),
        (Gacd(), label_ce, "uniform"),
        (Gacd(attack="feature"), cosine_gap, "gauss"),
        (Rslad(), lambda m, n, x, adv, y: kl(logits(n.teacher, x), logits(n.student, adv)), "gauss"),
        (Trades(), lambda m, n, x, adv, y: kl(logits(n.student, x), logits(n.student, adv)), "gauss"),
    ],
    ids=lambda value: label(value) if isinstance(value, Method) else "",
)
def test_inner_attack(case: Method, expected: Callable[..., Array], start: str) -> None:
    """What it maximises, with which gradient, from where, within the suite's budget."""
    nets, batch = flat_nets(case), flat_batch(SOME)
    attack = watched(case, nets, batch)[1]
    probe, direction = torch.rand_like(batch.x).requires_grad_(), torch.randn_like(batch.x)
    assert attack.objective is not None
    value = attack.objective(nets.student, probe)
    (gradient,) = torch.autograd.grad(value, probe)
    at, up, down = (
        expected(case, nets, batch.x, probe.detach() + width * direction, batch.y).sum() for width in (0, 1e-5, -1e-5)
    )
    assert value.item() == pytest.approx(at, rel=1e-5)
    assert (gradient * direction).sum().item() == pytest.approx((up - down) / 2e-5, rel=1e-4)
    assert (attack.start, attack.budget) == (start, SOME)


# --- Identities


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Iad(beta=0.0, tau=5.0), Ard(alpha=1.0, tau=5.0)),
        (Trades(beta=0.0), Natural()),
        (Kd(alpha=0.0), Natural()),
        (Ard(alpha=0.0), Natural()),
        (Gacd(lambda_con=0.0), PgdAt()),
        (Gacd(lambda_con=0.0, lambda_ce=0.0, lambda_kd=1.0, tau_kd=3.0), Ard(tau=3.0)),
        (Kd(alpha=1.0, tau=3.0), Ard(tau=3.0)),
        (Rslad(alpha=1.0), Ard(tau=1.0)),
        (Gacd(weight="none"), Gacd(beta=0.0)),
    ],
    ids=label,
)
def test_equal_methods(one: Method, other: Method) -> None:
    """Same value, same gradient for the student. Without an attack, as methods may attack differently."""
    (value, gradient), (value_2, gradient_2) = map(value_and_gradient, (one, other))
    assert value == pytest.approx(value_2, rel=1e-6)
    torch.testing.assert_close(gradient, gradient_2, rtol=1e-5, atol=1e-8)


def value_and_gradient(case: Method) -> tuple[float, Tensor]:
    nets = flat_nets(case)
    loss = total(case, nets, flat_batch())
    loss.backward()
    return loss.item(), torch.cat([value.grad.flatten() for value in nets.student.parameters()])


def test_iad_begins_as_ard() -> None:
    nets, batch = flat_nets(Iad()), flat_batch(SOME, epoch=0)
    alone = [total(case, nets, batch).item() for case in (Iad(begin=0.5), Ard(tau=1.0), Iad())]
    assert alone[0] == pytest.approx(alone[1], rel=1e-12)
    assert alone[0] != pytest.approx(alone[2], rel=1e-3)


@pytest.mark.parametrize("case", [Rslad(), Ard(), Iad(), Kd(alpha=1.0)], ids=label)
def test_nothing_to_learn_from_oneself(case: Method) -> None:
    nets = flat_nets(case)
    nets.teachers["robust"] = copy.deepcopy(nets.student).requires_grad_(False)
    assert total(case, nets, flat_batch()).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("case", FORMULAS, ids=label)
def test_order_of_the_batch_does_not_matter(case: Method) -> None:
    nets, batch = flat_nets(case), flat_batch()
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    moved = dataclasses.replace(batch, x=batch.x[order], y=batch.y[order], index=batch.index[order])
    assert total(case, flat_nets(case), moved).item() == pytest.approx(total(case, nets, batch).item(), rel=1e-5)


@pytest.mark.parametrize(
    ("case", "count"),
    [
        (Natural(), 1),
        (Kd(), 1),
        (PgdAt(), 1),
        (Ard(), 1),
        (Ard(alpha=0.5), 2),
        (Iad(), 2),
        (Rslad(), 2),
        (Trades(), 2),
        (Gacd(), 1),
        (Gacd(attack="feature"), 1),
        (Gacd(student_input="clean"), 2),
        (Gacd(student_input="both"), 2),
    ],
    ids=lambda value: label(value) if isinstance(value, Method) else "",
)
def test_forwards_that_move_batch_statistics(case: Method, count: int) -> None:
    """Attacks see the student in eval mode, and no forward is made for nothing."""
    nets = contract.networks(case)
    case.loss(nets, contract.images(LABELS))
    assert nets.student.get_buffer("trunk.1.num_batches_tracked") == count


def test_trades_attacks_the_prediction_of_eval_mode() -> None:
    nets, batch = contract.networks(Trades()), contract.images(LABELS)
    objective = watched(Trades(), nets, batch)[1].objective
    assert objective is not None
    with mode(nets.student, training=True):
        assert objective(nets.student, batch.x) > 1e-3
    nets = contract.networks(Trades())
    objective = watched(Trades(), nets, dataclasses.replace(batch, budget=NONE), batch.x)[1].objective
    assert objective is not None
    fresh = contract.networks(Trades()).student.eval()
    assert objective(fresh, batch.x).item() == pytest.approx(0, abs=1e-6)


# --- The KL divergence


@pytest.mark.parametrize("tau", [1.0, 4.0])
def test_kl(tau: float) -> None:
    target, z = (3 * torch.randn(5, 10, dtype=torch.float64) for _ in range(2))
    values = base.kl(target, z, tau)
    np.testing.assert_allclose(values, kl(target.numpy(), z.numpy(), tau), rtol=1e-10)
    library = nn.functional.kl_div((z / tau).log_softmax(1), (target / tau).softmax(1), reduction="batchmean")
    assert values.mean().item() == pytest.approx(library.item(), rel=1e-12)
    assert (values > 0).all()
    assert base.kl(z, z + 7, tau).abs().max() < 1e-12


def test_gradient_of_kl() -> None:
    target, z = (torch.randn(5, 10, dtype=torch.float64) for _ in range(2))
    (gradient,) = torch.autograd.grad(base.kl(target, z.requires_grad_()).mean(), z)
    np.testing.assert_allclose(gradient, (softmax(z.detach().numpy()) - softmax(target.numpy())) / 5, atol=1e-14)
    (gradient,) = torch.autograd.grad(1e8 * base.kl(target, z, 1e4).mean(), z)  # logit regression
    gap = (z - target).detach().numpy()
    np.testing.assert_allclose(gradient, (gap - gap.mean(axis=1, keepdims=True)) / 10 / 5, rtol=2e-3, atol=1e-6)


# --- GACD


@pytest.mark.parametrize("switch", SWITCHES, ids=str)
def test_gacd_switch_has_an_effect(switch: dict[str, Any]) -> None:
    case = Gacd(**switch)
    plain = total(Gacd(), flat_nets(Gacd()), flat_batch(SOME)).item()
    assert total(case, flat_nets(case), flat_batch(SOME)).item() != pytest.approx(plain, rel=1e-4)


@pytest.mark.parametrize("case", [Gacd(), Gacd(beta=2.0), Gacd(weight="indicator"), Gacd(weight="none")], ids=label)
def test_gacd_weights_have_mean_one(case: Gacd) -> None:
    target, y = 4 * torch.randn(40, 3), torch.arange(40) % 3
    w = case._weights(target, y)
    assert w.mean().item() == pytest.approx(1, rel=1e-5)
    assert (w >= 0).all()
    assert (w.std() > 0.1) == (case.weight != "none")


def test_gacd_weights_of_a_teacher_that_knows_nothing_are_none() -> None:
    losses = []
    for case in (Gacd(), Gacd(weight="none")):
        nets = flat_nets(case)
        for value in nets.teacher.get_submodule("last").parameters():
            value.zero_()
        losses.append(total(case, nets, flat_batch(SOME)).item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


@pytest.mark.parametrize("seen", ["adv", "clean", "both"])
@pytest.mark.parametrize("bank", [0, 16])
def test_gacd_contrast_alone_trains_the_features(seen: str, bank: int) -> None:
    """Also without the student-anchored direction, and when the negatives come from a bank."""
    case = Gacd(student_input=seen, symmetric=False, bank=bank, lambda_ce=0.0)
    nets = flat_nets(case)
    for _ in range(2):
        total(case, nets, flat_batch(SOME)).backward()
        case.after_step(nets, flat_batch(SOME))
    assert all(value.grad.any() for value in nets.student.get_submodule("first").parameters())


def test_gacd_two_stages() -> None:
    case = Gacd(two_stage=True, lambda_kd=0.5)
    for epoch in range(5):
        nets = flat_nets(case)
        terms = case.loss(nets, dataclasses.replace(flat_batch(SOME), epoch=epoch, epochs=5))
        torch.stack(list(terms.values())).sum().backward()
        trained = [
            name for name, value in nets.student.named_parameters() if value.grad is not None and value.grad.any()
        ]
        assert set(terms) == ({"contrast"} if epoch < 2.5 else {"ce_adv", "kl"})
        assert trained == (["first.weight", "first.bias"] if epoch < 2.5 else ["last.weight", "last.bias"])
        assert (nets.parts["contrast"].get_parameter("project_s.weight").grad is not None) == (epoch < 2.5)


def test_gacd_attacks_features_while_the_classifier_is_untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    starts = []

    def spy(net: nn.Module, x: Tensor, objective: Objective, budget: Budget, start: str = "uniform") -> Tensor:
        starts.append(start)
        return pgd(net, x, objective, budget)

    monkeypatch.setattr("methods.gacd.pgd", spy)
    case = Gacd(two_stage=True)
    for epoch in range(4):
        case.loss(flat_nets(case), dataclasses.replace(flat_batch(SOME), epoch=epoch, epochs=4))
    assert starts == ["gauss", "gauss", "uniform", "uniform"]


@pytest.mark.parametrize("estimator", ["nce", "infonce"])
def test_gacd_negatives_from_the_bank(estimator: str) -> None:
    """The second batch is contrasted with the first one's embeddings of other classes; the empty places do not count."""
    case = Gacd(bank=8, tau=0.5, weight="none", estimator=estimator)
    nets, one = flat_nets(case), flat_batch()
    two = dataclasses.replace(one, x=1 - one.x, y=one.y.flip(0))
    for batch in (one, two):
        found = case.loss(nets, batch)["contrast"].item()
        case.after_step(nets, batch)
    (s, t), (s_2, t_2) = (
        (embed(nets, "project_s", features(nets.student, x)), embed(nets, "project_t", features(nets.teacher, x)))
        for x in (one.x, two.x)
    )
    off = ~np.eye(len(s), dtype=bool)
    z = 0.99 * np.exp(t @ s.T / 0.5)[off].mean() + 0.01 * np.exp(t_2 @ s_2.T / 0.5)[off].mean()
    other = two.y.numpy()[:, None] != one.y.numpy()[None]
    pair, expected = np.exp((t_2 * s_2).sum(axis=1) / 0.5), np.zeros(len(s))
    for e in (np.exp(t_2 @ s.T / 0.5), np.exp(s_2 @ t.T / 0.5)):
        n = other.sum(axis=1, keepdims=True)
        if estimator == "infonce":
            expected += np.log(1 + (e * other).sum(axis=1) / pair)
        else:
            expected -= np.log(pair / (pair + z * n[:, 0])) + (np.log(z * n / (e + z * n)) * other).sum(axis=1)
    assert found == pytest.approx(case.lambda_con * expected.mean(), rel=1e-4)
    assert nets.parts["contrast"].get_buffer("log_z").item() == pytest.approx(np.log(z), abs=1e-6)


def test_gacd_bank_is_first_in_first_out() -> None:
    case = Gacd(bank=8)
    nets = flat_nets(case)
    held = []
    for y in (0, 1, 2):
        batch = dataclasses.replace(flat_batch(), y=torch.full((6,), y))
        case.loss(nets, batch)
        case.after_step(nets, batch)
        held.append(sorted(nets.parts["contrast"].get_buffer("bank_y").tolist()))
    assert held == [[-1] * 2 + [0] * 6, [0] * 2 + [1] * 6, [1] * 2 + [2] * 6]


def plain_critic(estimator: str) -> Contrast:
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
        return sum(plain_critic(estimator)(axes[:4], s, torch.arange(4), symmetric)).mean().item()

    steps = (-0.6, -0.3, 0.0, 0.3, 0.6)
    falling, rising = [loss(a, 0.1) for a in steps], [loss(0.1, b) for b in steps]
    assert falling == sorted(set(falling), reverse=True)
    assert rising == sorted(set(rising))


@pytest.mark.parametrize("shift", [0.0, 5.0], ids=["spread", "nearly parallel"])
def test_critic_of_a_random_pair(shift: float) -> None:
    """About 1 / (1 + N), wherever the embeddings lie: that is what Z is for."""
    torch.manual_seed(0)
    part = Contrast(32, 32, 128, tau=0.5, estimator="nce")
    positive, _ = part(torch.randn(64, 32) + shift, torch.randn(64, 32) + shift, torch.arange(64), symmetric=False)
    assert (-positive).exp().mean().item() == pytest.approx(1 / 64, rel=0.1)


@pytest.mark.parametrize("sign", [1, -1])
def test_critic_is_a_probability(sign: int) -> None:
    torch.manual_seed(0)
    part, f = Contrast(32, 32, 32, tau=0.07, estimator="nce"), torch.randn(16, 32)
    part.project_s.load_state_dict(part.project_t.state_dict())
    h = (-part(f, sign * f, torch.arange(16), symmetric=False)[0]).exp()
    assert ((h > 0) & (h < 1)).all()
    assert ((h > 0.5) == (sign > 0)).all()


# --- How methods are found


def test_unknown_name() -> None:
    for name in ("nonsense", "base", "contract", "contrast", "inner", "__init__", ""):
        assert name not in methods.names()
        with pytest.raises(KeyError):
            methods.load(name)


def test_names_are_those_of_the_files() -> None:
    assert methods.builtin() == ["ard", "gacd", "iad", "kd", "natural", "pgd_at", "rslad", "trades"]


def test_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by entry point, no built-in name taken over, and one that is broken is in nobody's way."""
    points = [("mine", "methods.ard:Ard"), ("kd", "methods.ard:Ard"), ("broken", "no.such.module:Method")]
    found = [EntryPoint(name, value, "bench.methods") for name, value in points]
    monkeypatch.setattr(methods, "entry_points", lambda group: found if group == "bench.methods" else [])
    assert {"mine", "broken"} == set(methods.names()) - set(methods.builtin())
    assert methods.names() == sorted(set(methods.names()))
    assert methods.load("mine") is Ard
    assert methods.load("kd") is Kd
    with pytest.raises(ModuleNotFoundError):
        methods.load("broken")


def test_only_what_is_asked_for_is_imported() -> None:
    code = (
        "import sys, methods; methods.names();"
        "assert not {'torch', 'numpy', 'bench', 'methods.base'} & sys.modules.keys();"
        "methods.load('kd'); loaded = {name for name in sys.modules if name.startswith('methods.')};"
        "assert loaded == {'methods.kd', 'methods.base', 'methods.inner'}, loaded;"
        "assert not {'bench', 'attacks', 'leaderboards'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- The contract finds what it says it finds: methods with one fault each


def fault(**members: Any) -> Method:
    """KD with something replaced or added; hyper-parameters as name=(type, field)."""
    fields = {name: value for name, value in members.items() if isinstance(value, tuple)}
    body = {name: value for name, value in members.items() if name not in fields}
    body |= {
        "__doc__": "Faulty.",
        "__module__": __name__,
        "__annotations__": {n: kind for n, (kind, _) in fields.items()},
    }
    form = type("Fault", (Kd,), body | {name: field for name, (_, field) in fields.items()} | members.get("extra", {}))
    made: Method = dataclass(frozen=True)(form)()
    return made


def also(act: Callable[[Nets, Batch], Any]) -> Callable[..., dict[str, Tensor]]:
    """KD's loss, after something that it should not do."""

    def loss(self: Kd, nets: Nets, batch: Batch) -> dict[str, Tensor]:
        act(nets, batch)
        return Kd.loss(self, nets, batch)

    return loss


def instead(change: Callable[[Tensor, Nets, Batch], Tensor]) -> Callable[..., dict[str, Tensor]]:
    """KD's loss as one term, changed."""

    def loss(self: Kd, nets: Nets, batch: Batch) -> dict[str, Tensor]:
        return {"kl": change(contract.total(Kd.loss(self, nets, batch)), nets, batch)}

    return loss


def teach_in_train_mode(nets: Nets, batch: Batch) -> None:
    with mode(nets.teacher, training=True), torch.no_grad():
        nets.teacher(batch.x)


def move_teacher(self: Kd, nets: Nets, batch: Batch) -> None:
    for value in nets.teacher.parameters():
        value.mul_(0.9)


def head_alone(self: Kd, nets: Nets, batch: Batch) -> dict[str, Tensor]:
    return {"kl": nets.student.head(nets.student.features(batch.x).detach()).logsumexp(dim=1).mean()}


COUNT = [0]


def counted(loss: Tensor, nets: Nets, batch: Batch) -> Tensor:
    COUNT[0] += 1
    return loss * COUNT[0]


FAULTS: list[tuple[str, str, dict[str, Any]]] = [
    ("is_documented", "docstring is @dataclass's own", {"extra": {"__doc__": None}}),
    ("is_documented", "docstring: state the formula", {"extra": {"__doc__": " "}}),
    ("hyper_parameters_are_declared", "declare it", {"gamma": (float, dataclasses.field(default=1.0))}),
    ("hyper_parameters_are_declared", "no help", {"gamma": (float, hp(1.0, "", low=0.0, high=2.0))}),
    ("hyper_parameters_are_declared", "no search range", {"gamma": (float, hp(1.0, "share", low=0.0))}),
    ("hyper_parameters_are_declared", "0.0 <= 3.0 <= 2.0", {"gamma": (float, hp(3.0, "share", low=0.0, high=2.0))}),
    ("hyper_parameters_are_declared", "2.0 < 1.0", {"gamma": (float, hp(1.5, "share", low=2.0, high=1.0))}),
    ("hyper_parameters_are_declared", "starts above 0", {"gamma": (float, hp(1.0, "a", low=0.0, high=2.0, log=True))}),
    ("hyper_parameters_are_declared", "not of type float", {"gamma": (float, hp(1, "share", low=0.0, high=2.0))}),
    ("hyper_parameters_are_declared", "no flag's type", {"gamma": (tuple, hp((1, 2), "shares"))}),
    ("hyper_parameters_are_declared", "a choice's type", {"gamma": (str, hp("a", "kind", choices=("a", 1)))}),
    ("no_flag_is_shadowed", "student", {"student": (str, hp("a", "kind", choices=("a", "b")))}),
    ("values_survive_json", "becomes", {"gamma": (tuple, hp((1, 2), "shares"))}),
    ("bad_values_are_refused", "alpha = nan is accepted", {"__post_init__": lambda self: None}),
    ("terms_are_finite_scalars", "no terms", {"loss": lambda self, nets, batch: {}}),
    ("terms_are_finite_scalars", "shape", {"loss": instead(lambda loss, nets, batch: loss[None])}),
    ("terms_are_finite_scalars", "nan", {"loss": instead(lambda loss, nets, batch: loss * float("nan"))}),
    ("terms_are_finite_scalars", "inf", {"loss": instead(lambda loss, n, b: loss / (b.y - b.y[0]).count_nonzero())}),
    ("terms_are_finite_scalars", "is no name", {"loss": lambda self, nets, batch: {"a/b": batch.x.sum()}}),
    ("gradient_reaches_student_and_parts", "reaches student.trunk", {"loss": head_alone}),
    ("gradient_reaches_student_and_parts", "reaches parts.spare", {"build": lambda *_: {"spare": nn.Linear(1, 1)}}),
    ("teachers_and_batch_are_untouched", "running_mean of teacher", {"loss": also(teach_in_train_mode)}),
    ("teachers_and_batch_are_untouched", "weight of teacher", {"after_step": move_teacher}),
    (
        "teachers_and_batch_are_untouched",
        "left eval mode",
        {"loss": also(lambda nets, batch: nets.teacher.linear.train())},
    ),
    ("teachers_and_batch_are_untouched", "unfrozen", {"after_step": lambda s, nets, b: nets.teacher.requires_grad_()}),
    ("teachers_and_batch_are_untouched", "x was changed", {"loss": also(lambda nets, batch: batch.x.mul_(0.5))}),
    ("teachers_and_batch_are_untouched", "x requires", {"loss": also(lambda nets, batch: batch.x.requires_grad_())}),
    ("teachers_and_batch_are_untouched", "y was changed", {"loss": also(lambda nets, batch: batch.y.zero_())}),
    ("teachers_and_batch_are_untouched", "index was", {"after_step": lambda self, nets, batch: batch.index.zero_()}),
    ("modes_are_restored", "another mode", {"loss": also(lambda nets, batch: nets.student.eval())}),
    ("modes_are_restored", "another mode", {"loss": also(lambda nets, batch: nets.student.eval().train())}),
    ("modes_are_restored", "requires_grad", {"loss": also(lambda nets, batch: nets.student.requires_grad_())}),
    ("same_seed_same_terms", "becomes", {"loss": instead(lambda loss, nets, batch: loss * np.random.rand())}),
    ("state_is_saved", "becomes", {"loss": instead(counted)}),
    ("attack_is_declared", "adversarial = True", {"adversarial": True}),
    ("attack_is_declared", "adversarial = False", {"loss": PgdAt.loss}),
    ("loss_falls", "in epoch 0", {"loss": instead(lambda loss, nets, batch: 2 * loss.detach() - loss)}),
    (
        "loss_falls",
        "in epoch 2",
        {"loss": instead(lambda loss, nets, batch: loss if batch.epoch < 2 else 2 * loss.detach() - loss)},
    ),
]


@pytest.mark.parametrize(
    ("test", "message", "members"), FAULTS, ids=[f"{test}-{message}" for test, message, _ in FAULTS]
)
def test_contract_finds_the_fault(test: str, message: str, members: dict[str, Any]) -> None:
    check, grid = getattr(Contract(), f"test_{test}"), {"classes": 3} if test.startswith(("terms", "gradient")) else {}
    check(case=Kd(), **grid)
    with pytest.raises(AssertionError, match=message):
        check(case=fault(**members), **grid)


def test_contract_needs_cases() -> None:
    with pytest.raises(AssertionError, match="set `cases`"):
        Contract().pytest_generate_tests(None)
