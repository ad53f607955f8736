"""The one training attack: projected gradient ascent on any objective inside an l-inf ball and [0, 1].

Evaluation attacks live in `attacks` and share no code with this one, so that one bug cannot hide in both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.fold import folded

Objective = Callable[[nn.Module, Tensor], Tensor]
Start = Literal["uniform", "gauss", "none"]


@dataclass(frozen=True)
class Budget:
    """An l-inf attack budget in pixel units of [0, 1]: radius, step size, number of steps."""

    eps: float = 8 / 255
    step: float = 2 / 255
    steps: int = 10

    def __post_init__(self) -> None:
        if not 0 <= self.eps <= 1 or not 0 <= self.step <= 1 or self.steps < 0:
            raise ValueError(
                f"attack budget out of range: eps {self.eps}, step {self.step}, steps {self.steps}"
            )
        if self.eps and self.steps > 1 and self.step > self.eps:
            raise ValueError(f"step {self.step} is larger than eps {self.eps}: swapped?")


@contextmanager
def mode(net: nn.Module, training: bool) -> Iterator[None]:
    """Puts every module of `net` in train or eval mode and restores each one's own mode afterwards."""
    before = [(module, module.training) for module in net.modules()]
    net.train(training)
    try:
        yield
    finally:
        for module, was in before:
            module.training = was


@contextmanager
def images_alone(net: nn.Module) -> Iterator[None]:
    """Inside, no parameter of `net` needs a gradient: the backward pass of a compiled network would compute it."""
    trained = [value for value in net.parameters() if value.requires_grad]
    for value in trained:
        value.requires_grad_(False)
    try:
        yield
    finally:
        for value in trained:
            value.requires_grad_()


@torch.no_grad()
def settled(net: nn.Module, x: Tensor) -> Tensor:
    """The logits of x, (B, C), that a network in training has in eval mode, as a target without gradient."""
    with mode(net, training=False):
        logits: Tensor = net(x)
    return logits


def full(values: Tensor) -> Tensor:
    """In single precision at least: autocast on a CPU leaves softmax and logarithm in bfloat16."""
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values


def ce(y: Tensor) -> Objective:
    """Cross-entropy with the labels y: (B,)."""
    return lambda net, adv: F.cross_entropy(full(net(adv)), y, reduction="sum")


def kl_to(target: Tensor) -> Objective:
    """KL(softmax(target) || softmax(net(adv))) for fixed logits `target`: (B, C)."""
    soft = full(target).softmax(dim=1)
    return lambda net, adv: F.kl_div(F.log_softmax(full(net(adv)), dim=1), soft, reduction="sum")


def kl_between(teacher: nn.Module) -> Objective:
    """KL(softmax(teacher(adv)) || softmax(net(adv))), with the gradient through the frozen teacher as well."""

    def disagreement(net: nn.Module, adv: Tensor) -> Tensor:
        target, logits = full(teacher(adv)).log_softmax(dim=1), full(net(adv)).log_softmax(dim=1)
        return F.kl_div(logits, target, reduction="sum", log_target=True)

    return disagreement


def pgd(
    net: nn.Module,
    x: Tensor,
    objective: Objective,
    budget: Budget,
    *,
    start: Start = "uniform",
    train: bool = False,
) -> Tensor:
    """Adversarial images for x: (B, C, H, W) in [0, 1], that ascend `objective(net, adv)`, a sum over the batch.

    start: uniform in the ball, "gauss" (0.001 N(0, 1)) or none. train: attack `net` in train mode, so that its BatchNorm
    statistics move at every step; in eval mode the objective sees it folded (methods/fold.py). Gradients are taken for the
    input only; parameters' .grad stay untouched.
    """
    adv = (x + _noise(x, budget.eps, start)).clamp(0, 1)
    low, high = (x - budget.eps).clamp(0, 1), (x + budget.eps).clamp(0, 1)
    layout = torch.contiguous_format if train else torch.channels_last
    with (
        torch.enable_grad(),
        mode(net, train),
        images_alone(net),
        nullcontext() if train else folded(net),
    ):
        for _ in range(budget.steps):
            adv = adv.detach().contiguous(memory_format=layout).requires_grad_()
            (gradient,) = torch.autograd.grad(objective(net, adv), adv)
            adv = adv.detach().add(gradient.sign(), alpha=budget.step).clamp(low, high)
    return adv.detach().contiguous()


def _noise(x: Tensor, eps: float, start: Start) -> Tensor:
    if start == "none" or eps == 0:
        return torch.zeros_like(x)
    if start == "gauss":
        return (0.001 * torch.randn(x.shape, device=x.device)).clamp(-eps, eps)
    return (2 * torch.rand(x.shape, device=x.device) - 1) * eps
