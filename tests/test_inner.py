"""The training attack: its bounds, its result where the worst case is known, its side effects."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from methods.inner import Budget, Norm, Start, ce, kl_to, mode, pgd

STARTS: tuple[Start, ...] = ("uniform", "gauss", "none")
NORMS: tuple[Norm, ...] = ("Linf", "L2")
BUDGET = Budget(eps=0.1, step=0.03, steps=5)


def lengths(change: Tensor, norm: Norm) -> Tensor:
    """Return the length of each image's change, (B,)."""
    change = change.flatten(1)
    return change.abs().amax(dim=1) if norm == "Linf" else change.norm(dim=1)


def images(seed: int = 0) -> Tensor:
    """Noise, with many pixels at both ends of the range."""
    noise = torch.rand(6, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
    return (2 * noise - 0.5).clamp(0, 1)


def network() -> nn.Sequential:
    """Return a network in train mode except for Dropout, with BatchNorm statistics."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(36, 3),
    )
    net(images(1))
    net[3].eval()
    return net


def labels() -> Tensor:
    return torch.tensor([0, 1, 2, 0, 1, 2])


@pytest.mark.parametrize(
    "values",
    [
        (-0.1, 0.01, 1),
        (1.1, 0.01, 1),
        (0.1, -0.01, 1),
        (0.1, 0.01, -1),
        (2 / 255, 8 / 255, 10),
        (float("nan"), 0.1, 1),
        (0.1, float("nan"), 1),
    ],
)
def test_budget_refuses(values: tuple[float, float, int]) -> None:
    with pytest.raises(ValueError, match=r"out of range|swapped"):
        Budget(*values)


def test_the_norm_of_a_budget() -> None:
    """An L2 ball may be larger than a pixel's range; no other norm is taken for one of the two."""
    assert Budget(3.0, 1.5, 10, "L2").eps == 3.0
    for values in ((-0.1, 0.01, 1), (0.5, 0.6, 10), (float("nan"), 0.1, 1)):
        with pytest.raises(ValueError, match=r"out of range|swapped"):
            Budget(*values, "L2")
    with pytest.raises(ValueError, match="norm 'l2': Linf or L2"):
        Budget(norm="l2")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "values", [(0, 0, 0), (1, 1, 10), (0.1, 0.1, 10), (0.1, 0.15, 1), (0, 0.1, 10)]
)
def test_budget_accepts(values: tuple[float, float, int]) -> None:
    """A single step may be longer than the radius, as FGSM's from a random start is."""
    assert Budget(*values).steps == values[2]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("steps", [0, 1, 5])
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("start", STARTS)
def test_stays_in_ball_and_range(start: Start, train: bool, steps: int, norm: Norm) -> None:
    x, budget = images(), Budget(0.1, 0.09, steps, norm)
    visited = []

    def objective(net: nn.Module, adv: Tensor) -> Tensor:
        visited.append(adv.detach().clone())
        return ce(labels())(net, adv)

    adv = pgd(network(), x, objective, budget, start=start, train=train)
    assert len(visited) == steps
    for image in (*visited, adv):
        assert image.min() >= 0
        assert image.max() <= 1
        assert lengths(image - x, norm).max() <= 0.1 + 1e-6
    assert torch.equal(x, images())
    # Not vacuous: some pixels went all the way, in L2 some image nearly: a clamp shortened it.
    if steps > 1:
        assert lengths(adv - x, norm).max() >= (0.1 - 1e-6 if norm == "Linf" else 0.09)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("start", STARTS)
def test_no_radius_no_change(start: Start, norm: Norm) -> None:
    for budget in (Budget(0, 0.1, 5, norm), Budget(0, 0, 0, norm)):
        assert torch.equal(pgd(network(), images(), ce(labels()), budget, start=start), images())
        beyond = 3 * images() - 1
        assert torch.equal(
            pgd(network(), beyond, ce(labels()), budget, start=start), beyond.clamp(0, 1)
        )


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize(
    "budget",
    [Budget(0.1, 0.02, 10), Budget(0.3, 0.3, 2), Budget(0.1, 0.2, 1), Budget(1, 0.5, 4)],
    ids=str,
)
def test_worst_case_of_a_linear_model(budget: Budget, start: Start) -> None:
    """x + eps sign(w), clipped to [0, 1], where the steps together cross the ball."""
    x = images().double()
    w = torch.randn(x[0].numel(), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    net = nn.Sequential(nn.Flatten(), nn.Linear(len(w), 1, bias=False)).double()
    with torch.no_grad():
        net[1].weight.copy_(w)
    worst = (x + budget.eps * w.sign().view(x[0].shape)).clamp(0, 1)
    torch.testing.assert_close(
        pgd(net, x, lambda net, adv: net(adv).sum(), budget, start=start), worst
    )


@pytest.mark.parametrize("start", STARTS)
def test_worst_case_of_a_linear_classifier(start: Start) -> None:
    """Two classes: away from the true class's weights, whichever it is."""
    x, y = images().double(), torch.tensor([0, 1, 1, 0, 1, 0])
    torch.manual_seed(3)
    net = nn.Sequential(nn.Flatten(), nn.Linear(75, 2)).double()
    weight = net[1].weight.detach()
    away = (weight[1 - y] - weight[y]).sign().view(x.shape)
    adv = pgd(net, x, ce(y), Budget(0.1, 0.05, 5), start=start)
    torch.testing.assert_close(adv, (x + 0.1 * away).clamp(0, 1))


@pytest.mark.parametrize("start", STARTS)
def test_worst_case_of_a_linear_model_in_l2(start: Start) -> None:
    """x + eps w / |w|, approached from any start."""
    x = torch.full((6, 3, 5, 5), 0.5, dtype=torch.float64)
    w = torch.randn(3, 5, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    budget = Budget(0.1, 0.05, 20, "L2")
    adv = pgd(nn.Flatten(), x, lambda net, adv: (adv * w).sum(), budget, start=start)
    torch.testing.assert_close(adv, x + 0.1 * w / w.norm(), rtol=0, atol=0.003)


def test_steps_in_l2_have_the_size_of_the_budget() -> None:
    """However large the gradient, and for each image on its own; without one it stays."""
    x = torch.full((3, 1, 2, 2), 0.5)
    scale = torch.tensor([1e-6, 1e6, 0.0]).view(3, 1, 1, 1)
    for steps, moved in ((1, 0.03), (2, 0.06), (3, 0.09), (4, 0.1)):
        budget = Budget(0.1, 0.03, steps, "L2")
        adv = pgd(nn.Flatten(), x, lambda net, adv: (scale * adv).sum(), budget, start="none")
        torch.testing.assert_close(lengths(adv - x, "L2"), torch.tensor([moved, moved, 0.0]))


def test_steps_have_the_size_of_the_budget() -> None:
    """Each step on a linear model moves each pixel by `step`, up to the radius."""
    x, net = torch.full((1, 1, 2, 2), 0.5), nn.Flatten()
    for steps, moved in ((1, 0.03), (2, 0.06), (3, 0.09), (4, 0.1)):
        adv = pgd(net, x, lambda net, adv: -net(adv).sum(), Budget(0.1, 0.03, steps), start="none")
        torch.testing.assert_close(adv, x - moved)


@pytest.mark.parametrize("objective", [ce(labels()), kl_to(torch.randn(6, 3))], ids=["ce", "kl_to"])
def test_it_ascends_image_by_image(objective: Callable[[nn.Module, Tensor], Tensor]) -> None:
    """The objective grows, and the images of a batch do not touch each other."""
    net, x = network().eval(), images()
    adv = pgd(net, x, objective, BUDGET, start="none")
    assert objective(net, adv) > objective(net, x) + 0.1
    single = torch.cat(
        [
            pgd(net, x[i : i + 1], ce(labels()[i : i + 1]), BUDGET, start="none")
            for i in range(len(x))
        ]
    )
    torch.testing.assert_close(single, pgd(net, x, ce(labels()), BUDGET, start="none"))


def test_objectives_are_sums() -> None:
    logits, target = (torch.randn(4, 3, dtype=torch.float64) for _ in range(2))
    y, net = torch.tensor([0, 1, 2, 0]), nn.Identity()
    p, q = target.softmax(dim=1).numpy(), logits.softmax(dim=1).numpy()
    assert ce(y)(net, logits).item() == pytest.approx(-np.log(q[np.arange(4), y.numpy()]).sum())
    assert kl_to(target)(net, logits).item() == pytest.approx((p * np.log(p / q)).sum())


@pytest.mark.parametrize(
    ("start", "low", "high"),
    [("uniform", 0.099, 0.1), ("gauss", 0.003, 0.006), ("none", 0, 0)],
    ids=STARTS,
)
def test_start(start: Start, low: float, high: float) -> None:
    """The largest and the mean distance from x; seeded."""
    x = torch.full((8, 3, 16, 16), 0.5)
    adv, same_seed, next_seed = (start_images(x, start, seed, 0.1) for seed in (0, 0, 1))
    assert low - 1e-6 <= (adv - x).abs().max().item() <= high + 1e-6
    assert (adv - x).mean().abs().item() <= high / 20
    spread = {"uniform": 0.1 / 3**0.5, "gauss": 0.001, "none": 0.0}[start]
    assert (adv - x).std().item() == pytest.approx(spread, rel=0.05, abs=1e-9)
    assert torch.equal(adv, same_seed)
    if start == "uniform":  # the default
        torch.manual_seed(0)
        assert torch.equal(
            adv, pgd(nn.Flatten(), x, lambda net, adv: net(adv).sum(), Budget(0.1, 0, 0))
        )
    assert torch.equal(adv, next_seed) == (start == "none")


@pytest.mark.parametrize("start", ["uniform", "gauss"])
def test_a_free_start_leaves_the_range_until_the_first_step(start: Start) -> None:
    x = torch.tensor([0.0, 0.5, 1.0]).repeat(4, 3, 16, 1)
    visited: list[Tensor] = []

    def keep(net: nn.Module, adv: Tensor) -> Tensor:
        visited.append(adv.detach())
        return net(adv).sum()

    for clamp_start in (True, False):
        torch.manual_seed(0)
        budget = Budget(0.1, 0.05, 2, clamp_start=clamp_start)
        adv = pgd(nn.Flatten(), x, keep, budget, start=start)
        assert adv.min() >= 0
        assert adv.max() <= 1
    clamped, stepped, free, stepped_too = visited
    assert torch.equal(free.clamp(0, 1), clamped)
    assert free.min() < 0
    assert free.max() > 1
    assert min(stepped.min(), stepped_too.min()) >= 0


def test_uniform_start_in_l2() -> None:
    """In two dimensions a quarter of the disc's area lies within half of its radius."""
    x = torch.full((20_000, 1, 1, 2), 0.5)
    change = start_images(x, "uniform", 0, 0.4, "L2") - x
    radii = lengths(change, "L2")
    for share in (0.25, 0.5, 0.75):
        within = (radii <= 0.4 * share**0.5).float().mean().item()
        assert within == pytest.approx(share, abs=0.02)
    assert radii.max() <= 0.4 + 1e-6
    assert change.mean(dim=0).abs().max() <= 0.01


def start_images(x: Tensor, start: Start, seed: int, eps: float, norm: Norm = "Linf") -> Tensor:
    torch.manual_seed(seed)
    budget = Budget(eps, 0, 0, norm)
    return pgd(nn.Flatten(), x, lambda net, adv: net(adv).sum(), budget, start=start)


def test_gauss_start_stays_in_a_small_ball() -> None:
    x = torch.full((8, 3, 16, 16), 0.5)
    assert (start_images(x, "gauss", 0, 0.0005) - x).abs().max() <= 0.0005 + 1e-7
    assert lengths(start_images(x, "gauss", 0, 0.0005, "L2") - x, "L2").max() <= 0.0005 + 1e-6


@pytest.mark.parametrize("train", [False, True])
def test_batch_statistics(train: bool) -> None:
    net = network()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    pgd(net, images(), ce(labels()), BUDGET, train=train)
    changed = {
        name for name, value in net.state_dict().items() if not torch.equal(value, before[name])
    }
    assert changed == (
        {"1.running_mean", "1.running_var", "1.num_batches_tracked"} if train else set()
    )
    assert net[1].num_batches_tracked - before["1.num_batches_tracked"] == (
        BUDGET.steps if train else 0
    )


@pytest.mark.parametrize("train", [False, True])
def test_modes_of_each_module(train: bool) -> None:
    """One mode for all during the attack, each one's own afterwards."""
    net, modes = network(), []

    def objective(net: nn.Module, adv: Tensor) -> Tensor:
        modes.append({module.training for module in net.modules()})
        return ce(labels())(net, adv)

    before = [module.training for module in net.modules()]
    pgd(net, images(), objective, BUDGET, train=train)
    assert modes == [{train}] * BUDGET.steps
    assert [module.training for module in net.modules()] == before
    assert len(set(before)) == 2


@pytest.mark.parametrize("train", [False, True])
def test_modes_after_an_exception(train: bool) -> None:
    net = network()
    before = [module.training for module in net.modules()]

    def objective(net: nn.Module, adv: Tensor) -> Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pgd(net, images(), objective, BUDGET, train=train)
    assert [module.training for module in net.modules()] == before
    assert len(set(before)) == 2


@pytest.mark.parametrize("training", [True, False])
def test_mode(training: bool) -> None:
    net = network()
    before = [module.training for module in net.modules()]
    with mode(net, training):
        assert {module.training for module in net.modules()} == {training}
    assert [module.training for module in net.modules()] == before


@pytest.mark.parametrize(
    "gradients", [torch.enable_grad, torch.no_grad], ids=["enable_grad", "no_grad"]
)
def test_parameters_are_left_alone(gradients: Callable[[], Any]) -> None:
    """Value, .grad and requires_grad stay, whatever the gradient mode around the call."""
    net, x = network(), images()
    net[0].weight.requires_grad_(False)
    net[5].bias.grad = torch.arange(3.0)
    before = {name: (value.clone(), value.requires_grad) for name, value in net.named_parameters()}
    with gradients():
        adv = pgd(net, x, ce(labels()), BUDGET)
    assert not torch.equal(adv, x)
    assert not x.requires_grad
    assert not pgd(net, images().requires_grad_(), ce(labels()), BUDGET).requires_grad
    for name, value in net.named_parameters():
        assert torch.equal(value, before[name][0])
        assert value.requires_grad == before[name][1]
        assert (value.grad is None) == (name != "5.bias")
    assert torch.equal(net[5].bias.grad, torch.arange(3.0))
