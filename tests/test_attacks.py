"""Attacks on models with a closed-form worst case; state, verdict file, refusals and cost."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchattacks
from conftest import QUICK
from torch import Tensor, nn
from torch.fx import GraphModule

from attacks import (
    ATTACKS,
    Attack,
    Evaluation,
    NamedAttack,
    evaluate,
    evaluation,
    folding,
    names,
)
from attacks.attacked_model import AttackedModel
from attacks.build import MAX_TARGETS, Settings, build_attack
from attacks.catalog import MINIMUM_NORM
from attacks.verdict_file import ForeignVerdictsError
from bench import models
from bench.datasets import CIFAR10, DIGITS, Dataset

EPS = 8 / 255
SHAPE = (3, 5, 5)


def random_images(n: int, seed: int = 0) -> Tensor:
    """Far from 0 and 1, so that clipping never plays a role."""
    return torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(seed)) * 0.4 + 0.3


def linear_model(
    classes: int, *, disjoint: bool = False, shift: float = 0.0, seed: int = 0
) -> nn.Sequential:
    """Logits W x + b with b = shift - W 0.5, so that all classes occur.

    `disjoint`: each pixel serves one class with weight 1 or -1. Then one signed step is the worst
    case for all classes.
    """
    draw = torch.Generator().manual_seed(seed)
    size = SHAPE[0] * SHAPE[1] * SHAPE[2]
    layer = nn.Linear(size, classes)
    weight = torch.randn(classes, size, generator=draw)
    if disjoint:
        weight = weight.sign() * (torch.arange(size) % classes == torch.arange(classes)[:, None])
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(shift - weight.sum(dim=1) / 2)
    return nn.Sequential(nn.Flatten(), layer)


def boundary_distances(net: nn.Sequential, x: Tensor, y: Tensor, norm: str = "Linf") -> Tensor:
    """Return the exact distances to the nearest wrong decision, negative where it is wrong.

    min_j (z_y - z_j) / ||w_y - w_j|| in the dual norm.
    """
    weight = net[1].weight.detach().double()
    logits = x.flatten(1).double() @ weight.T + net[1].bias.detach().double()
    margin = logits.gather(1, y[:, None]) - logits
    ratio = margin / (weight[y][:, None] - weight).norm(p=1 if norm == "Linf" else 2, dim=2)
    return ratio.scatter(1, y[:, None], torch.inf).amin(dim=1)


def choose_eps(distances: Tensor) -> float:
    """Return an eps in the widest relative gap of the middle half of the positive distances."""
    positive = distances[distances > 0].sort().values
    middle = positive[len(positive) // 4 : -len(positive) // 4]
    widest = int((middle[1:] / middle[:-1]).argmax())
    return float((middle[widest] * middle[widest + 1]).sqrt())


def labelled_images(net: nn.Sequential, n: int = 24) -> tuple[Tensor, Tensor]:
    """Return images with the model's predictions as labels, every eighth one wrong."""
    x = random_images(n)
    z = net(x)
    y = z.argmax(dim=1)
    y[::8] = (y[::8] + 1) % z.shape[1]
    return x, y


@pytest.mark.parametrize("shift", [0.0, -50.0])
@pytest.mark.parametrize(
    ("name", "classes", "disjoint"),
    [
        ("fgsm", 2, False),
        ("fgsm", 5, True),
        ("pgd20", 2, False),
        ("pgd20", 5, True),
        ("pgd20_trades", 2, False),
        ("cw_inf", 2, False),
        ("cw_inf", 5, True),
    ],
)
def test_verdict_is_the_exact_one(name: str, classes: int, disjoint: bool, shift: float) -> None:
    net = linear_model(classes, disjoint=disjoint, shift=shift)
    x, y = labelled_images(net, 40)
    if shift:
        assert net(x).max() < 0  # torchattacks' own margin losses have no gradient here
    distances = boundary_distances(net, x, y)
    eps = choose_eps(distances)
    result = evaluate(net, x, y, (name,), eps=eps)
    assert result.clean.tolist() == (distances > 0).tolist()
    assert result.robust[name].tolist() == (distances > eps).tolist()
    assert 5 < int(result.robust[name].sum()) < int(result.clean.sum()) - 5


@pytest.mark.parametrize(
    ("classes", "norm"), [(2, "Linf"), (3, "Linf"), (4, "Linf"), (6, "Linf"), (3, "L2"), (6, "L2")]
)
def test_autoattack_verdict_is_the_exact_one(classes: int, norm: str) -> None:
    net = linear_model(classes)
    x, y = labelled_images(net)
    distances = boundary_distances(net, x, y, norm)
    eps = choose_eps(distances)
    assert (
        evaluate(net, x, y, ("aa",), eps=eps, norm=norm).robust["aa"].tolist()
        == (distances > eps).tolist()
    )
    assert 3 < int((distances > eps).sum()) < int((distances > 0).sum()) - 3


# Last iterates stop inside a boundary between three classes, and CW-L2 descends towards one class:
# those attacks get two classes.
REACHING = [
    *[
        (name, 2, "Linf")
        for name in ("pgd10", "pgd50", "pgd100", "mifgsm", "eotpgd", "apgd_ce", "fab_t")
    ],
    *[(name, 5, "Linf") for name in ("apgd_t", "fab_t")],
    *[(name, 2, "L2") for name in ("pgd100", "cw_inf", "apgd_ce", "fab_t", "deepfool", "cw_l2")],
    *[(name, 5, "L2") for name in ("apgd_t", "fab_t")],
]


@pytest.mark.parametrize("shift", [0.0, -50.0])
@pytest.mark.parametrize(("name", "classes", "norm"), REACHING)
def test_verdict_of_every_white_box_attack_is_the_exact_one(
    name: str, classes: int, norm: str, shift: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = dataclasses.replace(ATTACKS["cw_l2"], components=(Attack("cw-l2", 300, restarts=12),))
    monkeypatch.setitem(ATTACKS, "cw_l2", short)
    net = linear_model(classes, shift=shift)
    x, y = labelled_images(net, 40)
    distances = boundary_distances(net, x, y, norm)
    eps = choose_eps(distances)
    result = evaluate(net, x, y, (name,), eps=eps, norm=norm, probes=0)
    assert result.robust[name].tolist() == (distances > eps).tolist()
    assert 5 < int(result.robust[name].sum()) < int(result.clean.sum()) - 5


def test_transfer_is_made_on_the_surrogate_and_judged_on_the_model() -> None:
    net, surrogate = linear_model(4), linear_model(4, seed=1)
    x, y = labelled_images(net, 60)
    result = evaluate(
        net,
        x,
        y,
        ("fgsm", "fgsm@other", "fgsm@self"),
        eps=0.02,
        surrogates={"other": surrogate, "self": net},
    )
    (component,) = ATTACKS["fgsm"].components
    adv = build_attack(component, AttackedModel(surrogate, x), Settings(0.02, "Linf", 0, 250, 4))(
        x, y
    )
    assert (
        result.robust["fgsm@other"].tolist()
        == (result.clean & (net(adv).argmax(dim=1) == y)).tolist()
    )
    assert torch.equal(result.robust["fgsm@self"], result.robust["fgsm"])
    assert (
        int(result.robust["fgsm"].sum())
        < int(result.robust["fgsm@other"].sum())
        < int(result.clean.sum())
    )


OFFICIAL = {
    "apgd-ce": (
        torchattacks.APGD,
        {"steps": 100, "n_restarts": 1, "loss": "ce", "eot_iter": 1, "thr_decr": 0.75},
    ),
    "apgd-t": (
        torchattacks.APGD,
        {"steps": 100, "n_restarts": 1, "loss": "dlr", "eot_iter": 1, "thr_decr": 0.75},
    ),
    "fab-t": (
        torchattacks.FAB,
        {
            "steps": 100,
            "n_restarts": 1,
            "alpha_max": 0.1,
            "eta": 1.05,
            "beta": 0.9,
            "multi_targeted": True,
        },
    ),
    "square": (
        torchattacks.Square,
        {
            "n_queries": 5000,
            "n_restarts": 1,
            "p_init": 0.8,
            "loss": "margin",
            "rescale_schedule": False,
        },
    ),
}


@pytest.mark.parametrize(("classes", "targets"), [(4, 3), (10, 9), (100, 9)])
def test_autoattack_has_the_official_budgets(classes: int, targets: int) -> None:
    assert [component.kind for component in ATTACKS["aa"].components] == list(OFFICIAL)
    for component in ATTACKS["aa"].components:
        cls, budget = OFFICIAL[component.kind]
        settings = Settings(EPS, "Linf", seed=3, num_classes=classes)
        attack = build_attack(
            component, AttackedModel(linear_model(classes), random_images(2)), settings
        )
        assert isinstance(attack, cls)
        common = {"norm": "Linf", "eps": EPS, "seed": 3, "targeted": False}
        assert {key: getattr(attack, key) for key in budget | common} == budget | common
        if component.kind in ("apgd-t", "fab-t"):
            assert attack.n_target_classes == targets <= MAX_TARGETS


@pytest.mark.parametrize("eps", [EPS, 4 / 255, 0.15])
@pytest.mark.parametrize(
    ("name", "steps", "step"),
    [("pgd20", 20, 2 / 255), ("pgd20_trades", 20, 0.003), ("cw_inf", 30, 2 / 255)],
)
def test_steps_are_the_published_ones_and_scale_with_eps(
    name: str, steps: int, step: float, eps: float
) -> None:
    (component,) = ATTACKS[name].components
    settings = Settings(eps, "Linf", seed=0, num_classes=4)
    attack = build_attack(component, AttackedModel(linear_model(4), random_images(2)), settings)
    assert (attack.steps, attack.eps, attack.targeted) == (steps, eps, False)
    assert attack.alpha == pytest.approx(step * eps / EPS, rel=1e-12)
    assert attack.random_start is True


def test_fgsm_has_one_step_of_eps_and_no_random_start() -> None:
    net, x = linear_model(2), random_images(6)
    y = net(x).argmax(dim=1)
    settings = Settings(0.05, "Linf", seed=0, num_classes=2)
    attack = build_attack(*ATTACKS["fgsm"].components, AttackedModel(net, x), settings)
    ways = (net[1].weight[1 - y] - net[1].weight[y]).sign().view_as(x)
    torch.testing.assert_close(attack(x, y), x + 0.05 * ways)


@pytest.mark.parametrize("name", ["fgsm", "pgd20", "cw_inf", "aa"])
def test_eps_zero_is_the_clean_verdict(name: str) -> None:
    net = linear_model(4)
    x, y = labelled_images(net)
    result = evaluate(net, x, y, (name,), eps=0.0)
    assert torch.equal(result.robust[name], result.clean)
    assert torch.equal(result.clean, net(x).argmax(dim=1) == y)
    assert 0 < int(result.clean.sum()) < len(y)


def test_robust_is_a_subset_of_clean_and_worst_the_conjunction(quick: str) -> None:
    net = linear_model(5)
    x, y = labelled_images(net, 60)
    result = evaluate(net, x, y, ("fgsm", "pgd20", quick), eps=0.006)
    assert not any((verdict & ~result.clean).any() for verdict in result.robust.values())
    assert len({tuple(verdict.tolist()) for verdict in result.robust.values()}) > 1
    assert torch.equal(
        result.worst, result.robust["fgsm"] & result.robust["pgd20"] & result.robust[quick]
    )
    assert result.accuracy()["worst"] == result.worst.float().mean().item() > 0


@pytest.mark.parametrize(
    ("clean", "robust", "worst"),
    [
        ([1, 1, 0], {}, [1, 1, 0]),
        ([1, 1, 0], {"a": [1, 0, 1]}, [1, 0, 0]),
        ([1, 1, 1], {"a": [1, 0, 1], "b": [0, 1, 1]}, [0, 0, 1]),
    ],
)
def test_worst_and_accuracy(
    clean: list[int], robust: dict[str, list[int]], worst: list[int]
) -> None:
    result = Evaluation(
        torch.tensor(clean).bool(), {name: torch.tensor(row).bool() for name, row in robust.items()}
    )
    assert result.worst.int().tolist() == worst
    rows = {"clean": clean, **robust, "worst": worst}
    assert result.accuracy() == pytest.approx({name: sum(row) / 3 for name, row in rows.items()})


# State after an evaluation


class Overheated(nn.Module):
    """Fails as soon as it is attacked."""

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad:
            raise RuntimeError("overheated")
        return x


class Noise(nn.Module):
    """A randomised defence."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.01 * torch.randn_like(x)


def digits_net(*extra: nn.Module) -> nn.Sequential:
    """In training mode but for one BatchNorm, one parameter frozen, gradients everywhere else."""
    net = models.build("resnet8-w4", DIGITS)
    net.layer2[0].bn1.eval()
    net.linear.bias.requires_grad_(False)
    for parameter in net.parameters():
        parameter.grad = torch.full_like(parameter, 0.5) if parameter.requires_grad else None
    return nn.Sequential(*extra, net)


def evaluation_state(net: nn.Module) -> dict[str, Any]:
    """Return all that an evaluation must restore, in a form that `==` compares."""
    tensors = dict(net.state_dict(keep_vars=True))
    grads = {f"{name}.grad": parameter.grad for name, parameter in net.named_parameters()}
    tensor_states = {
        name: t
        if t is None
        else (id(t), t.requires_grad, t.dtype, hash(t.detach().numpy().tobytes()))
        for name, t in (tensors | grads).items()
    }
    return tensor_states | {
        "torch random": hash(torch.get_rng_state().numpy().tobytes()),
        "numpy random": hash(np.random.get_state()[1].tobytes()),
        "python random": hash(random.getstate()),
        "gradient mode": torch.is_grad_enabled(),
        "modes": [module.training for module in net.modules()],
    }


@pytest.mark.parametrize(
    ("extra", "fails"),
    [
        ((), None),
        ((), "progress"),
        ((Overheated(),), "overheated"),
        ((Noise(),), None),
    ],
)
def test_everything_is_left_as_it_was(
    extra: tuple[nn.Module, ...], fails: str | None, quick: str
) -> None:
    net = digits_net(*extra)
    x = torch.rand(12, *DIGITS.shape)
    with torch.no_grad():
        y = copy.deepcopy(net).eval()(x).argmax(dim=1)
    x_before, y_before = x.clone(), y.clone()

    def progress(name: str, done: int, total: int) -> None:
        if fails == "progress" and name == "quick square":
            raise RuntimeError("progress")

    before = evaluation_state(net)
    with pytest.raises(RuntimeError, match=fails) if fails else contextlib.nullcontext():
        evaluate(net, x, y, ("fgsm", "pgd20", "cw_inf", quick), eps=0.001, progress=progress)
    assert evaluation_state(net) == before
    assert torch.equal(x, x_before)
    assert torch.equal(y, y_before)


@pytest.mark.parametrize("context", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_works_in_any_gradient_mode(context: Callable[[], Any], quick: str) -> None:
    net = linear_model(4)
    x, y = labelled_images(net)
    with context():
        result = evaluate(net, x, y, ("fgsm", "pgd20", "cw_inf", quick), eps=0.006)
    assert 0 < int(result.worst.sum()) < int(result.clean.sum())


@pytest.fixture
def adversarial_batches(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Every batch of adversarial examples that an attack returns, in order."""
    batches: list[Tensor] = []

    def build_recorded(*arguments: Any) -> Callable[[Tensor, Tensor], Tensor]:
        attack = build_attack(*arguments)

        def run_attack(x: Tensor, y: Tensor) -> Tensor:
            adv = attack(x, y)
            batches.append(adv)
            return adv

        return run_attack

    monkeypatch.setattr(evaluation, "build_attack", build_recorded)
    return batches


@pytest.mark.parametrize("name", ["pgd20_trades", "cw_inf", "quick"])
def test_the_seed_alone_decides(name: str, adversarial_batches: list[Tensor], quick: str) -> None:
    net = linear_model(5)
    x, y = labelled_images(net)

    def run(seed: int, *before: str) -> tuple[list[bool], list[Tensor]]:
        adversarial_batches.clear()
        result = evaluate(net, x, y, (*before, name), eps=0.006, seed=seed, batch_size=9)
        return result.robust[name].tolist(), list(adversarial_batches)

    verdict, first = run(0)
    torch.manual_seed(123)
    torch.rand(7)
    repeated_verdict, later = run(0, "fgsm", "pgd20")
    assert verdict == repeated_verdict
    assert all(torch.equal(a, b) for a, b in zip(first, later[-len(first) :], strict=True))
    _, other_seed = run(1)
    assert len(other_seed) != len(first) or not all(
        torch.equal(a, b) for a, b in zip(first, other_seed, strict=True)
    )


# The record


@pytest.fixture
def task() -> dict[str, Any]:
    """An evaluation in which some images are robust to each attack, and not the same ones."""
    net = linear_model(5)
    x, y = labelled_images(net, 60)
    return {"net": net, "x": x, "y": y, "eps": 0.006}


@pytest.fixture
def no_attack(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Call it to make every further attack an error."""

    def refuse(*arguments: Any) -> None:
        raise AssertionError("attacked")

    return lambda: monkeypatch.setattr(evaluation, "build_attack", refuse)


def test_verdicts_are_written_after_each_attack(task: dict[str, Any], tmp_path: Path) -> None:
    record, arrays = tmp_path / "verdicts.npz", {}

    def progress(name: str, done: int, total: int) -> None:
        arrays[name] = set(np.load(record)) if record.exists() else set()

    evaluate(**task, attacks=("fgsm", "pgd20", "cw_inf"), record=record, progress=progress)
    assert [
        {key for key in arrays[name] if key.startswith("robust_")}
        for name in ("fgsm", "pgd20", "cw_inf")
    ] == [
        set(),
        {"robust_fgsm"},
        {"robust_fgsm", "robust_pgd20"},
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["verdicts.npz"]


def test_recorded_verdicts_are_taken_over(
    task: dict[str, Any], tmp_path: Path, no_attack: Callable[[], None], quick: str
) -> None:
    chosen, record = ("fgsm", quick), tmp_path / "verdicts.npz"
    first = evaluate(**task, attacks=chosen, record=record)
    no_attack()
    repeated = evaluate(**task, attacks=chosen, record=record)
    assert torch.equal(first.clean, repeated.clean)
    assert all(torch.equal(first.robust[name], repeated.robust[name]) for name in chosen)
    assert repeated.robust[quick].dtype == torch.bool
    assert first.cost == repeated.cost
    assert first.robust["fgsm"].tolist() != first.robust[quick].tolist()


def test_an_attack_more_keeps_the_recorded_ones(
    task: dict[str, Any], tmp_path: Path, no_attack: Callable[[], None], quick: str
) -> None:
    record = tmp_path / "verdicts.npz"
    evaluate(**task, attacks=("fgsm",), record=record)
    grown = evaluate(**task, attacks=("fgsm", quick), record=record)
    no_attack()
    assert (
        evaluate(**task, attacks=(quick, "fgsm"), record=record).robust.keys()
        == grown.robust.keys()
    )


def test_asking_for_another_attack_keeps_the_recorded_ones(
    task: dict[str, Any], tmp_path: Path, no_attack: Callable[[], None]
) -> None:
    record = tmp_path / "verdicts.npz"
    evaluate(**task, attacks=("fgsm",), record=record)
    evaluate(**task, attacks=("pgd20",), record=record)
    no_attack()
    evaluate(**task, attacks=("fgsm",), record=record)


def same_tensors_other_function(net: nn.Sequential) -> nn.Sequential:
    return nn.Sequential(net[0], net[1], nn.Softplus())


@pytest.mark.parametrize(
    "change",
    [
        {"net": linear_model(5, seed=1)},
        {"net": same_tensors_other_function(linear_model(5))},
        {"x": random_images(60, seed=1)},
        {"y": torch.zeros(60, dtype=torch.int64)},
        {"seed": 1},
        {"eps": 0.0061},
        {"batch_size": 20},
    ],
    ids=lambda change: next(iter(change)),
)
def test_verdicts_of_something_else_are_not_taken_over(
    change: dict[str, Any], task: dict[str, Any], tmp_path: Path, no_attack: Callable[[], None]
) -> None:
    record = tmp_path / "verdicts.npz"
    evaluate(**task, attacks=("fgsm",), record=record)
    no_attack()
    evaluate(**task, attacks=("fgsm",), record=record)
    content = record.read_bytes()
    with pytest.raises(
        ForeignVerdictsError,
        match=r"verdicts\.npz' holds (another evaluation: |verdicts on another)",
    ):
        evaluate(**(task | change), attacks=("fgsm",), record=record)
    assert record.read_bytes() == content


def test_a_file_of_another_kind_is_left_alone(task: dict[str, Any], tmp_path: Path) -> None:
    np.savez(tmp_path / "mine.npz", a=np.arange(3))
    with pytest.raises(ForeignVerdictsError, match=r"mine\.npz' holds no verdicts"):
        evaluate(**task, attacks=("fgsm",), record=tmp_path / "mine.npz")
    assert list(np.load(tmp_path / "mine.npz")) == ["a"]


def test_more_probes_keep_the_verdicts(
    task: dict[str, Any], tmp_path: Path, no_attack: Callable[[], None]
) -> None:
    record = tmp_path / "verdicts.npz"
    evaluate(**task, attacks=("fgsm",), probes=8, record=record)
    no_attack()
    assert evaluate(**task, attacks=("fgsm",), probes=16, record=record).probed == 16


def with_invalid_block(content: bytes) -> bytes:
    """Return the archive with verdicts whose compressed block has a type that does not exist."""
    name = content.index(b"robust_fgsm.npy")
    extra = int.from_bytes(
        content[name - 2 : name], "little"
    )  # the local header ends with its two lengths
    start = name + len("robust_fgsm.npy") + extra
    return content[:start] + bytes([content[start] | 0b110]) + content[start + 1 :]


def single_array(content: bytes) -> bytes:
    return (
        b"\x93NUMPY\x01\x00v\x00{'descr': '<f8', 'fortran_order': False, 'shape': (1,), }".ljust(
            127
        )
        + b"\n"
        + b"\0" * 8
    )


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: b"not an archive\n" * 50,
        lambda content: content[:100],
        lambda content: content[:-30],
        lambda content: content[1:],
        with_invalid_block,
        single_array,
    ],
    ids=["empty", "text", "head", "cut", "beheaded", "with_invalid_block", "array"],
)
def test_a_damaged_record_is_ignored_and_replaced(
    damage: Callable[[bytes], bytes],
    task: dict[str, Any],
    tmp_path: Path,
    no_attack: Callable[[], None],
) -> None:
    record = tmp_path / "verdicts.npz"
    first = evaluate(**task, attacks=("fgsm",), record=record)
    record.write_bytes(damage(record.read_bytes()))
    repeated = evaluate(**task, attacks=("fgsm",), record=record)
    assert torch.equal(first.robust["fgsm"], repeated.robust["fgsm"])
    no_attack()
    evaluate(**task, attacks=("fgsm",), record=record)


def test_an_interrupted_evaluation_goes_on_and_ends_the_same(
    task: dict[str, Any], tmp_path: Path, quick: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen, record = ("pgd20", quick, "fgsm"), tmp_path / "verdicts.npz"
    complete = evaluate(**task, attacks=chosen, batch_size=16)

    def stop(name: str, done: int, total: int) -> None:
        if name == "quick square":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(**task, attacks=chosen, batch_size=16, record=record, progress=stop)
    kinds: list[str] = []

    def build_noted(component: Attack, *rest: Any) -> Any:
        kinds.append(component.kind)
        return build_attack(component, *rest)

    monkeypatch.setattr(evaluation, "build_attack", build_noted)
    resumed = evaluate(**task, attacks=chosen, batch_size=16, record=record)
    assert kinds == [*(component.kind for component in QUICK), "fgsm"]
    assert resumed.robust.keys() == complete.robust.keys()
    assert all(torch.equal(resumed.robust[name], complete.robust[name]) for name in chosen)
    assert len({tuple(verdict.tolist()) for verdict in complete.robust.values()}) > 1


# Refusals


class Shaped(nn.Module):
    """A linear model whose output went through something."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.net = linear_model(4)
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        return self.change(self.net(x))


def with_bad_pixel(bad: float) -> Tensor:
    """Five images of which the last has one bad pixel."""
    x = random_images(5)
    x[4, 0, 0, 0] = bad
    return x


REFUSED = [
    ({"y": torch.tensor([0, 1, 2, 3, 4])}, "from 0 to 4"),
    ({"y": torch.tensor([0, 1, 2, 3, -1])}, "from -1 to 3"),
    ({"x": with_bad_pixel(1.5)}, r"1\.5\]"),
    ({"x": with_bad_pixel(-0.25)}, r"\[-0\.25"),
    ({"x": (random_images(5) * 255).to(torch.uint8)}, "uint8"),
    ({"x": random_images(5).double()}, "float64"),
    ({"x": random_images(5).half()}, "float16"),
    ({"y": torch.tensor([0, 1, 2, 3])}, "with as many int64"),
    ({"net": Shaped(lambda z: z * torch.nan)}, "NaN"),
    ({"net": Shaped(lambda z: z.view(-1, 4, 1, 1))}, r"\(2, 4, 1, 1\)"),
    ({"net": Shaped(lambda z: z[:, 0])}, r"\(2,\)"),
    ({"eps": -0.1}, r"-0\.1"),
    ({"eps": 8.0}, r"8\.0"),
    ({"eps": float("nan")}, "nan"),
    ({"attacks": ("fgsm", "pgd2")}, "'pgd2'.*pgd20"),
    ({"attacks": "aa"}, "'a'"),
    (
        {"net": linear_model(3), "y": torch.zeros(5, dtype=torch.int64), "attacks": ("apgd_t",)},
        "apgd_t.* 4 classes.* 3",
    ),
    ({"x": with_bad_pixel(float("nan"))}, "nan"),
    ({"net": Shaped(lambda z: z.mean(dim=0, keepdim=True))}, r"\(1, 4\)"),
    ({"y": torch.zeros(5, 1, dtype=torch.int64)}, r"\(5, 1\)"),
    ({"y": torch.zeros(5, dtype=torch.int32)}, "int32"),
    ({"y": torch.zeros(5)}, "float32"),
    ({"batch_size": 0}, "batch_size = 0"),
    ({"seed": 2**64}, "seed = 18446744073709551616"),
    ({"seed": -1}, "seed = -1"),
    ({"probes": -1}, "probes = -1"),
    ({"x": torch.zeros(5, 3, 0, 0)}, r"images of no pixels: \(5, 3, 0, 0\)"),
    ({"norm": "L2", "eps": float("inf"), "attacks": ("pgd20",)}, "eps = inf is outside"),
    ({"x": random_images(5).flatten(1)}, r"must be \(N, C, H, W\)"),
    ({"net": Shaped(lambda z: (z, z))}, "not tuple"),
    ({"net": nn.Conv2d(1, 4, 3)}, r"the model fails on images \(3, 5, 5\): RuntimeError"),
    (
        {"attacks": ("fgsm@s",), "surrogates": {"s": linear_model(5)}},
        "surrogate s has 5 outputs, the model 4",
    ),
    (
        {
            "attacks": ("blur-1",),
            "x": random_images(5)[..., :4],
            "net": nn.Sequential(nn.Flatten(), nn.Linear(60, 4)),
        },
        "blur needs",
    ),
    ({"norm": "L1"}, "'L1': Linf or L2"),
    ({"norm": "L2"}, "fgsm is an attack in Linf, not in L2"),
    ({"attacks": ("deepfool",)}, "deepfool is an attack in L2, not in Linf"),
    ({"eps": -1.0, "norm": "L2", "attacks": ("pgd20",)}, "eps = -1.0 is outside"),
    ({"attacks": ("fgsm@teacher",)}, "no surrogate 'teacher' was given"),
    (
        {"attacks": ("aa@t",), "surrogates": {"t": linear_model(4)}},
        "aa stops where .* these transfer: fgsm, pgd10",
    ),
    (
        {
            "x": random_images(5)[..., :4],
            "net": nn.Sequential(nn.Flatten(), nn.Linear(60, 4)),
            "norm": "L2",
            "attacks": ("aa",),
        },
        "Square needs images as wide as high.* 5x4",
    ),
    ({"net": linear_model(1), "y": torch.zeros(5, dtype=torch.int64)}, "single output"),
]


@pytest.mark.parametrize(("change", "named"), REFUSED)
def test_what_cannot_be_evaluated_is_refused_by_name(change: dict[str, Any], named: str) -> None:
    good: dict[str, Any] = {
        "net": linear_model(4),
        "x": random_images(5),
        "y": torch.tensor([0, 1, 2, 3, 0]),
        "attacks": ("fgsm",),
    }
    evaluate(**good)
    with pytest.raises(ValueError, match=named):
        evaluate(**(good | change))


def test_too_few_classes_are_refused_before_anything_runs() -> None:
    started: list[str] = []
    net = linear_model(3)
    with pytest.raises(ValueError, match="4 classes"):
        evaluate(
            net,
            *labelled_images(net),
            ("fgsm", "apgd_t"),
            progress=lambda name, *counts: started.append(name),
        )
    assert started == []


def test_a_record_that_cannot_be_written_is_refused_before_anything_runs(
    task: dict[str, Any], tmp_path: Path
) -> None:
    started: list[str] = []
    with pytest.raises(OSError, match="directory"):
        evaluate(
            **task,
            attacks=("fgsm",),
            record=tmp_path,
            progress=lambda name, *counts: started.append(name),
        )
    assert started == []


def from_black_to_white(x: Tensor) -> Tensor:
    return (x - 0.3) / 0.4


OUTSIDE = r"fgsm returned images outside the ball of 0\.0313"


def with_nan(x: Tensor) -> Tensor:
    adv = x.clone()
    adv[-1, 0, 0, 0] = torch.nan
    return adv


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x, ""),
        (lambda x: (x + EPS).clamp(0, 1), ""),
        (lambda x: (x + EPS * 1.001).clamp(0, 1), OUTSIDE),
        (lambda x: (x - 0.5).clamp(0, 1), OUTSIDE),
        (lambda x: x + EPS, OUTSIDE),  # in the ball, above 1
        (lambda x: x - EPS, OUTSIDE),  # in the ball, below 0
        (with_nan, "fgsm returned NaN"),
    ],
)
def test_only_images_of_the_ball_count(
    change: Callable[[Tensor], Tensor], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = linear_model(4)
    x = from_black_to_white(random_images(24))
    x[:, 0, 0, 0], x[:, 0, 0, 1] = 0.0, 1.0
    y = net(x).argmax(dim=1)
    monkeypatch.setattr(
        evaluation, "build_attack", lambda *arguments: lambda images, labels: change(images)
    )
    if message:
        with pytest.raises(RuntimeError, match=message):
            evaluate(net, x, y, ("fgsm",), eps=EPS)
    else:
        result = evaluate(net, x, y, ("fgsm",), eps=EPS)
        assert torch.equal(result.robust["fgsm"], net(change(x)).argmax(dim=1) == y)


# The attacked model


def with_batch_statistics(net: nn.Module, x: Tensor) -> nn.Module:
    """BatchNorm with weights that matter and the statistics of `x`, in evaluation mode."""
    draw = torch.Generator().manual_seed(0)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=draw)
            nn.init.normal_(module.bias, 0, 0.2, generator=draw)
    with torch.no_grad():
        net.train()(x)
    return net.eval()


def count_modules(net: nn.Module, kind: type[nn.Module]) -> int:
    return sum(isinstance(module, kind) for module in net.modules())


@pytest.mark.parametrize(
    ("arch", "info", "unfolded"),
    [
        ("resnet8-w4", DIGITS, 0),
        ("mobilenetv2", CIFAR10, 0),
        ("wrn10-1", CIFAR10, 4),
    ],  # WRN: the others follow a sum
)
def test_folded_logits_are_the_models(arch: str, info: Dataset, unfolded: int) -> None:
    x = torch.rand(6, *info.shape, generator=torch.Generator().manual_seed(1))
    net = with_batch_statistics(models.build(arch, info), x)
    with torch.no_grad():
        expected = net(x)
    assert (expected[0] - expected[1]).abs().max() > 0.01 * expected.abs().max()
    model = AttackedModel(net.train(), x[:2])
    assert isinstance(model.network, GraphModule)
    assert (
        count_modules(model.network, nn.BatchNorm2d)
        == unfolded
        < count_modules(net, nn.BatchNorm2d)
    )
    assert (expected - model(x)).abs().max() <= 1e-4 * expected.abs().max()


class Branching(nn.Module):
    """Control flow that depends on the data."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn(self.conv(x)).mean(dim=(2, 3))
        return out if x.mean() > 0.5 else -out


class Shared(nn.Module):
    """One convolution before two BatchNorms: folding both into it is wrong."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.one = nn.BatchNorm2d(4)
        self.two = nn.BatchNorm2d(4)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * (self.one(self.conv(x)) - self.two(self.conv(1 - x))).mean(dim=(2, 3))


@pytest.mark.parametrize("make", [Branching, Shared, lambda: Shared(1e-6)])
def test_what_cannot_be_folded_is_attacked_as_it_is(make: Callable[[], nn.Module]) -> None:
    x = random_images(6)
    net = with_batch_statistics(make(), x)
    model = AttackedModel(net, x[:2])
    assert not isinstance(model.network, GraphModule)
    assert torch.equal(model(x), net(x))
    assert torch.equal(model(1 - x), net(1 - x))


class StraightThrough(torch.autograd.Function):
    """Rounds, and lets the gradient through: what BPDA does, and what tracing forgets."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return (x * 4).round() / 4

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient


class Before(nn.Module):
    """A network behind some function of the image."""

    def __init__(self, change: Callable[[Tensor], Tensor], net: nn.Module) -> None:
        super().__init__()
        self.change, self.net = change, net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.change(x))


def test_custom_gradients_are_what_attacks_climb() -> None:
    x = torch.rand(6, *DIGITS.shape)
    net = Before(
        StraightThrough.apply, with_batch_statistics(models.build("resnet8-w4", DIGITS), x)
    )
    model = AttackedModel(net, x)
    assert not isinstance(model.network, GraphModule)
    images = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(images).sum(), images)
    assert (gradient != 0).any()


@pytest.mark.parametrize(
    "change",
    [
        lambda x: (x > 0.5).float(),
        lambda x: x.detach(),
        lambda x: x.detach().clone().requires_grad_(),
    ],
    ids=["binary", "detached", "another leaf"],
)
def test_a_model_that_no_gradient_enters_is_attacked_in_vain_and_flagged(
    change: Callable[[Tensor], Tensor],
) -> None:
    net = Before(change, linear_model(4))
    x = torch.rand(40, *SHAPE)
    y = net(x).argmax(dim=1)
    result = evaluate(net, x, y, ("fgsm", "pgd20", "cw_inf", "apgd_ce"), eps=0.1)
    assert {"zero-gradient-cross-entropy", "zero-gradient-margin"} <= result.flags.keys()


def test_the_view_stays_in_eval_mode_and_its_judge_untouched() -> None:
    x = torch.rand(6, *DIGITS.shape)
    net = with_batch_statistics(models.build("resnet8-w4", DIGITS), x)
    model = AttackedModel(net.train(), x)
    before = {name: value.clone() for name, value in model.reference_model.state_dict().items()}
    settings = Settings(EPS, "Linf", seed=0, num_classes=10)
    build_attack(*ATTACKS["pgd10"].components, model, settings)(
        x, torch.zeros(6, dtype=torch.int64)
    )
    assert not any(module.training for module in model.modules())
    assert all(
        torch.equal(value, before[name])
        for name, value in model.reference_model.state_dict().items()
    )


def test_folding_that_changes_logits_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = linear_model(4), random_images(4)
    monkeypatch.setattr(folding, "fuse", lambda model: linear_model(4, shift=0.01))
    assert torch.equal(AttackedModel(net, x)(x), net(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_of_the_view_are_fresh_and_float32(dtype: torch.dtype) -> None:
    stored = torch.ones(4, 4, dtype=dtype)
    model = AttackedModel(Shaped(lambda z: stored), random_images(2))
    logits = model(random_images(4))
    logits.fill_(-torch.inf)
    assert logits.dtype == torch.float32
    assert stored.eq(1).all()


class Tally(torch.autograd.Function):
    """Counts images both ways, independently of the model."""

    forwards = backwards = 0

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        Tally.forwards += len(x)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        Tally.backwards += len(gradient)
        return gradient


class Tallied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = linear_model(5)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(Tally.apply(x))


@pytest.mark.parametrize(
    "component",
    [*QUICK, *(ATTACKS[name].components[0] for name in ("fgsm", "pgd20", "cw_inf"))],
    ids=str,
)
def test_view_counts_what_passes_through_the_model(component: Attack) -> None:
    net = Tallied()
    x, y = labelled_images(net.net)
    correct = net(x).argmax(dim=1) == y
    model = AttackedModel(net, x[:2])
    Tally.forwards = Tally.backwards = 0
    settings = Settings(0.006, "Linf", seed=0, num_classes=5)
    build_attack(component, model, settings)(x[correct], y[correct])
    assert (model.forwards, model.backwards) == (Tally.forwards, Tally.backwards)
    assert model.forwards > 0
    assert (model.backwards > 0) == (component.kind != "square")


@pytest.mark.parametrize(
    ("name", "passes"), [("fgsm", 1), ("pgd20", 20), ("pgd20_trades", 20), ("cw_inf", 30)]
)
def test_cost_is_steps_times_correct_images(name: str, passes: int) -> None:
    net = linear_model(4)
    x, y = labelled_images(net)
    result = evaluate(net, x, y, (name,), eps=0.006, batch_size=10)
    cost = result.cost[name]
    assert (cost.forwards, cost.backwards) == (passes * int(result.clean.sum()),) * 2
    assert cost.seconds > 0


def test_progress_tells_part_done_and_total(quick: str) -> None:
    net = linear_model(4)
    x, y = labelled_images(net)
    calls: list[tuple[str, int, int]] = []
    result = evaluate(
        net,
        x,
        y,
        ("fgsm", quick),
        eps=0.006,
        batch_size=10,
        progress=lambda *call: calls.append(call),
    )
    n = int(result.clean.sum())
    assert [call for call in calls if call[0] == "fgsm"] == [
        ("fgsm", done, n) for done in range(0, n, 10)
    ]
    parts = [call for call in calls if call[0] != "fgsm"]
    assert parts[0] == ("quick apgd-ce", 0, n)
    assert list(dict.fromkeys(name for name, *_ in parts)) == [
        f"quick {component.kind}" for component in QUICK
    ]
    totals = [total for _, done, total in parts if done == 0]
    assert totals == sorted(totals, reverse=True)
    assert totals[1] < n  # later components only get robust images


def test_rows_of_the_catalogue_fit_what_they_name() -> None:
    """Norms and transfer follow from the kinds; the passes rise with the steps."""
    assert names() == list(ATTACKS)
    for name, attack in ATTACKS.items():
        assert attack.about
        assert attack.passes >= max(component.steps for component in attack.components) / 2
        minimum_norm = any(part.kind in MINIMUM_NORM for part in attack.components)
        assert (attack.norms == ("L2",)) == minimum_norm, name
        assert not (attack.transferable and (minimum_norm or len(attack.components) > 1)), name


def test_a_class_of_torchattacks_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """With eps, steps and a step size that scales with eps."""
    row = NamedAttack((Attack("NIFGSM", 5, 2 / 255),), "Nesterov", 10, ("Linf",), True)
    monkeypatch.setitem(ATTACKS, "nifgsm", row)
    net = linear_model(4)
    x, y = labelled_images(net, 30)
    distances = boundary_distances(net, x, y, "Linf")
    result = evaluate(net, x, y, ("nifgsm",), eps=0.02, probes=0)
    fooled = result.clean & ~result.robust["nifgsm"]
    # An image whose gradient vanishes stays where it is.
    assert fooled.sum() > 5
    assert (distances[fooled] <= 0.02).all()
    with pytest.raises(ValueError, match="nifgsm is an attack in Linf, not in L2"):
        evaluate(net, x, y, ("nifgsm",), eps=0.02, norm="L2", probes=0)


def test_import_is_cheap() -> None:
    heavy = "{'torch', 'torchattacks', 'bench'}"
    code = f"import sys, attacks; attacks.names(); assert not {heavy} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)
