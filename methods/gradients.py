"""Gradients with respect to the images, which some methods compare between student and teacher or attack along."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.base import Batch, Nets, kl
from methods.inner import Objective, full


def of_loss(logits: Tensor, x: Tensor, y: Tensor, create: bool) -> Tensor:
    """Of the cross-entropy, summed over the batch, for the images x that gave the logits (B, C): shaped as x."""
    loss = F.cross_entropy(full(logits), y, reduction="sum")
    (found,) = torch.autograd.grad(loss, x, create_graph=create, retain_graph=True)
    return found


def of_both(nets: Nets, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Both networks' gradients at the clean images: the norm of their difference, (B,), and both logits, (B, C)."""
    x = batch.x.detach().clone().requires_grad_()
    with torch.enable_grad():
        logits, target = nets.student(x), nets.teacher(x)
        own, theirs = (
            of_loss(logits, x, batch.y, create=True),
            of_loss(target, x, batch.y, create=False),
        )
    return (own - theirs).flatten(1).norm(dim=1), logits, target.detach()


def gap(nets: Nets, behind: Tensor, target: Tensor, far: Tensor) -> Tensor:
    """KL(T(x~) - T(x - d) || S(x~) - S(x - d)) per image, (B,), from x - d and both logits at x~, (B, C)."""
    return kl(target - nets.at(behind), far - nets.student(behind))


def linearised(teacher: nn.Module, batch: Batch, factor: float) -> Objective:
    """KL(T_lin(adv) || S(adv)), summed; T_lin: T(x) with factor <grad T_y(x), adv - x> added to the true class."""
    at = batch.x.detach().clone().requires_grad_()
    with torch.enable_grad():
        clean = teacher(at)
        (slope,) = torch.autograd.grad(clean.gather(1, batch.y[:, None]).sum(), at)
    true = torch.zeros_like(clean).scatter(1, batch.y[:, None], 1.0)

    def disagreement(net: nn.Module, adv: Tensor) -> Tensor:
        rise = factor * (slope * (adv - batch.x)).flatten(1).sum(dim=1, keepdim=True)
        return kl(clean.detach() + rise * true, net(adv)).sum()

    return disagreement
