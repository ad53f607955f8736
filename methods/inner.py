"""The one training attack: projected gradient ascent inside an l-inf or L2 ball and [0, 1].

Evaluation attacks live in `attacks` and share no code with it, so one bug cannot hide in both.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.fold import folded
from methods.renamed import module_getattr

Objective = Callable[[nn.Module, Tensor], Tensor]
Start = Literal["uniform", "gauss", "none"]
Norm = Literal["Linf", "L2"]


@dataclass(frozen=True)
class Budget:
    """An attack budget in pixel units of [0, 1]: radius, step size, steps, norm and start."""

    eps: float = 8 / 255
    step: float = 2 / 255
    steps: int = 10
    norm: Norm = "Linf"
    # Whether the attack begins inside [0, 1]; its steps always end there.
    clamp_start: bool = True

    def __post_init__(self) -> None:
        if self.norm not in get_args(Norm):
            raise ValueError(f"norm {self.norm!r}: Linf or L2")
        # How long an image may be in L2 depends on its pixels.
        longest = 1.0 if self.norm == "Linf" else math.inf
        if not 0 <= self.eps <= longest or not 0 <= self.step <= longest or self.steps < 0:
            raise ValueError(f"attack budget out of range: {self}")
        # A single step may be longer than the radius, as FGSM's from a random start is.
        if self.eps and self.steps > 1 and self.step > self.eps:
            raise ValueError(f"step {self.step} is larger than eps {self.eps}: swapped?")


@contextmanager
def mode(net: nn.Module, training: bool) -> Iterator[None]:
    """Put all modules of `net` in train or eval mode; restore each one's own mode afterwards."""
    before = [(module, module.training) for module in net.modules()]
    net.train(training)
    try:
        yield
    finally:
        # Not net.train(): single modules may have been in another mode than the network.
        for module, was_training in before:
            module.training = was_training


@contextmanager
def frozen_parameters(net: nn.Module) -> Iterator[None]:
    """Inside, no parameter of `net` needs a gradient: a compiled network would compute it."""
    trainable = [value for value in net.parameters() if value.requires_grad]
    for value in trainable:
        value.requires_grad_(False)
    try:
        yield
    finally:
        for value in trainable:
            value.requires_grad_()


@contextmanager
def still_statistics(net: nn.Module) -> Iterator[None]:
    """Inside, a pass in train mode leaves BatchNorm's running statistics as they are."""
    layers: list[Any] = [
        layer for layer in net.modules() if getattr(layer, "track_running_stats", False)
    ]
    for layer in layers:
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer in layers:
            layer.track_running_stats = True


@torch.no_grad()
def eval_logits(net: nn.Module, x: Tensor) -> Tensor:
    """Return the logits of x, (B, C), in eval mode and without gradient, as a target."""
    with mode(net, training=False):
        logits: Tensor = net(x)
    return logits


@torch.no_grad()
def update_statistics(net: nn.Module, *passes: Tensor) -> None:
    """Make a pass for each of these batches of images, for BatchNorm's running statistics alone."""
    for x in passes:
        net(x)


def both_logits(
    net: nn.Module, adv: Tensor, x: Tensor, *, clean_first: bool
) -> tuple[Tensor, Tensor]:
    """Return the logits at x~ and at x, (B, C) each.

    clean_first: the pass at x comes first. BatchNorm's running statistics show the order.
    """
    if clean_first:
        logits_nat = net(x)
        return net(adv), logits_nat
    logits_adv = net(adv)
    return logits_adv, net(x)


def at_least_float32(values: Tensor) -> Tensor:
    """Return values in single precision at least."""
    # Autocast on a CPU leaves softmax and logarithm in bfloat16.
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values


def ce(y: Tensor) -> Objective:
    """Cross-entropy with the labels y: (B,)."""
    return lambda net, adv: F.cross_entropy(at_least_float32(net(adv)), y, reduction="sum")


def kl_to(target: Tensor) -> Objective:
    """KL(softmax(target) || softmax(net(adv))) for fixed logits `target`: (B, C)."""
    probabilities = at_least_float32(target).softmax(dim=1)

    def divergence(net: nn.Module, adv: Tensor) -> Tensor:
        log_q = F.log_softmax(at_least_float32(net(adv)), dim=1)
        return F.kl_div(log_q, probabilities, reduction="sum")

    return divergence


def kl_between(teacher: nn.Module) -> Objective:
    """KL(softmax(teacher(adv)) || softmax(net(adv))), with the gradient through both networks."""

    def divergence(net: nn.Module, adv: Tensor) -> Tensor:
        log_p = at_least_float32(teacher(adv)).log_softmax(dim=1)
        log_q = at_least_float32(net(adv)).log_softmax(dim=1)
        return F.kl_div(log_q, log_p, reduction="sum", log_target=True)

    return divergence


def pgd(
    net: nn.Module,
    x: Tensor,
    objective: Objective,
    budget: Budget,
    *,
    start: Start = "uniform",
    train: bool = False,
) -> Tensor:
    """Return adversarial examples for x, (B, C, H, W), that ascend `objective(net, adv)`.

    objective: a sum over the batch. start: "uniform" in the ball, "gauss" (0.001 N(0, 1)) or
    "none". budget: a step goes along the sign of the gradient in l-inf, along each image's gradient
    in L2. train: attack in train mode, so that BatchNorm's statistics move at every step; in eval
    mode it is folded (methods/fold.py).
    """
    adv = x + _start_noise(x, budget, start)
    if budget.clamp_start:
        adv = adv.clamp(0, 1)
    step = _step_function(x, budget)
    layout = torch.contiguous_format if train else torch.channels_last
    view = nullcontext() if train else folded(net)
    with torch.enable_grad(), mode(net, train), frozen_parameters(net), view:
        for _ in range(budget.steps):
            adv = adv.detach().contiguous(memory_format=layout).requires_grad_()
            # Not backward(): the parameters' .grad stay untouched.
            (gradient,) = torch.autograd.grad(objective(net, adv), adv)
            adv = step(adv.detach(), gradient)
    return adv.detach().contiguous()


def _step_function(x: Tensor, budget: Budget) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the step from (images, gradient) to images inside the ball around x and [0, 1]."""
    if budget.norm == "Linf":
        low, high = (x - budget.eps).clamp(0, 1), (x + budget.eps).clamp(0, 1)
        return lambda adv, gradient: adv.add(gradient.sign(), alpha=budget.step).clamp(low, high)

    # As in `robustness`, the library of Madry's group.
    def step(adv: Tensor, gradient: Tensor) -> Tensor:
        direction = F.normalize(gradient.flatten(1), dim=1).view_as(x)
        change = adv.add(direction, alpha=budget.step) - x
        # x is in [0, 1], so that the clamp shortens the change.
        return (x + change.renorm(2, 0, budget.eps)).clamp(0, 1)

    return step


def _start_noise(x: Tensor, budget: Budget, start: Start) -> Tensor:
    eps = budget.eps
    if start == "none" or eps == 0:
        return torch.zeros_like(x)
    if start == "gauss":
        noise = 0.001 * torch.randn(x.shape, device=x.device)
        return noise.clamp(-eps, eps) if budget.norm == "Linf" else noise.renorm(2, 0, eps)
    if budget.norm == "Linf":
        return (2 * torch.rand(x.shape, device=x.device) - 1) * eps
    # Voelker et al. 2017: a point on the sphere in two more dimensions, without these two.
    size = x.shape[1:].numel()
    on_sphere = F.normalize(torch.randn(len(x), size + 2, device=x.device), dim=1)
    return eps * on_sphere[:, :size].reshape(x.shape)


if not TYPE_CHECKING:
    __getattr__ = module_getattr(__name__)
